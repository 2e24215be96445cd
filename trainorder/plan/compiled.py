"""The compiled files: plan.yaml says what is compared, the pipeline files of plan/ how it is made. Written, read and compared."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from trainorder import paths, results
from trainorder.config import DEFAULT
from trainorder.files import write_text
from trainorder.plan import pipeline
from trainorder.plan.check.budgets import spent
from trainorder.reading import ParamsError, found_at, read_yaml, shaped
from trainorder.tasks import make_task

if TYPE_CHECKING:
    from trainorder.plan.compile import Kind, Node, Plan

HEADER = "# Compiled from params.yaml by `trainorder plan`: edit params.yaml, not this file.\n"

GROUPS: dict[str, Kind] = {
    "model": "model",
    "bases": "base",
    "structured": "structured",
    "creative": "creative",
    "joint": "mixed",
    "supervised": "sft",
    "distilled": "distill",
}
"""Key of plan.yaml -> the nodes under it."""
REPAIR = "`trainorder plan` writes it from params.yaml"


def texts(plan: Plan) -> dict[Path, str]:
    """All of them as this plan has them."""
    stages = {file: {"stages": own} for file, own in pipeline.content(plan).items()}
    return {f: HEADER + _yaml(c) for f, c in {paths.PLAN: content(plan), **stages}.items()}


def content(plan: Plan) -> dict[str, Any]:
    """The content of plan.yaml."""
    groups = {
        name: {n.id: _entry(plan, n) for n in plan.nodes.values() if n.kind == kind}
        for name, kind in GROUPS.items()
    }
    return {
        "resolved": {name: list(phases) for name, phases in plan.resolved.items()},
        **groups,
        **variant_data(plan, DEFAULT),
        "variants": {name: variant_data(plan, name) for name in plan.variants},
        "recall": [
            name
            for name, config in plan.params.tasks.items()
            if getattr(make_task(name, config), "recall", False)
        ],
        "evaluations": [str(paths.evaluation(node)) for node in plan.nodes],
        **({"probes": [list(pair) for pair in probed(plan)]} if plan.params.probes else {}),
    }


def probed(plan: Plan) -> list[tuple[str, str]]:
    """(node, other) of what probes compare: every node with what it was trained from, and the end of every arm with its base."""
    found = [(node.id, node.parents[0]) for node in plan.nodes.values() if node.parents]
    for variant in (DEFAULT, *plan.variants):
        orders, _ = plan.arms(variant)
        ends = [(nodes[-1], seed) for by_seed in orders.values() for seed, nodes in by_seed.items()]
        found += [(node, plan.params.base_of(seed)) for node, seed in ends]
    return list(dict.fromkeys(found))


def variant_data(plan: Plan, variant: str) -> dict[str, Any]:
    """`phases`, `orders`, `singles` and `merges` of one variant: laid over plan.yaml's own, they describe its arms."""
    params = plan.params.variant(variant)
    orders, singles = plan.arms(variant)
    return {
        "phases": {
            name: {"kind": phase.kind, "tasks": dict(phase.tasks), "budget": spent(params, name)}
            for name, phase in params.phases.items()
        },
        "orders": {
            name: {str(seed): list(nodes) for seed, nodes in by_seed.items()}
            for name, by_seed in orders.items()
        },
        "singles": {str(seed): dict(nodes) for seed, nodes in singles.items()},
        "merges": {
            n.id: {
                "base": n.parents[0],
                "parents": list(n.parents[1:]),
                "merge": n.merge,
                "seed": n.seed,
            }
            | _tag(variant)
            for n in plan.nodes.values()
            if n.kind == "merge" and n.variant == variant
        },
    }


def write(plan: Plan) -> bool:
    """Write them, each whole and then renamed, and remove those of nodes that left the plan; returns whether any changed.

    A node's dvc.lock stays, so that a node that comes back, as those of a recommended order do in each run, is up to date.
    """
    changed = stale_files(plan)
    for file, text in changed.items():
        if text is None:
            file.unlink()
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    return bool(changed)


def stale_files(plan: Plan) -> dict[Path, str | None]:
    """The compiled files that are not what this plan says, with what it says; None: no such file."""
    texts = plan.texts()
    found: dict[Path, str | None] = {
        file: text
        for file, text in texts.items()
        if not file.is_file() or file.read_bytes() != text.encode()
    }
    others = set(paths.PIPELINE.parent.glob(f"*/{paths.PIPELINE.name}")) - texts.keys()
    return found | {file: None for file in sorted(others) if _is_compiled(file)}


def _is_compiled(file: Path) -> bool:
    """Whether it begins with our HEADER; another is the user's own."""
    with file.open("rb") as stream:
        return stream.read(len(HEADER)) == HEADER.encode()


def stored() -> dict[str, Any]:
    """The content of plan.yaml, as what was measured last was planned.

    Raises:
        ParamsError: there is none, or it is not what `trainorder plan` writes.
    """
    if not found_at(paths.PLAN):
        raise ParamsError(f"{paths.PLAN} not found: {REPAIR}")
    try:
        content = read_yaml(paths.PLAN)
    except ParamsError as error:
        raise ParamsError(f"{error}; {REPAIR}") from None
    return dict(shaped(content, _Stored, paths.PLAN, REPAIR))


def resolved() -> dict[str, list[str]]:
    """What plan.yaml knows of `recommended`. All else in it is compiled again, so a damaged one is no error."""
    if not found_at(paths.PLAN):
        return {}
    try:
        return shaped(read_yaml(paths.PLAN), _Compiled, paths.PLAN, REPAIR).get("resolved", {})
    except ParamsError as error:
        print(f"warning: {error}", file=sys.stderr)
        return {}


def measured() -> dict[str, list[str]]:
    """`resolved` as the measurement in reports/bwt.json has it; empty where it recommends nothing.

    Raises:
        ParamsError: nothing was measured yet.
    """
    found = results.load()["recommended"]
    return {} if found is None else {"recommended": list(found["order"])}


def _entry(plan: Plan, node: Node) -> dict[str, Any]:
    if not node.parents:
        params = plan.params
        return {"seeds": [seed for seed in params.seeds if params.base_of(seed) == node.id]}
    entry = {"parent": node.parents[0], "phase": node.phase, "seed": node.seed}
    taught = {"teachers": dict(node.teachers)} if node.teachers else {}
    return entry | taught | _tag(node.variant)


def _yaml(content: dict[str, Any]) -> str:
    """Block mappings, lists on one line."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.default_flow_style = None
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def _tag(variant: str) -> dict[str, str]:
    return {} if variant == DEFAULT else {"variant": variant}


class _Compiled(TypedDict):
    resolved: NotRequired[dict[str, list[str]]]


class _Base(TypedDict):
    seeds: list[int]


class _Phase(TypedDict):
    phase: str


class _Merge(TypedDict):
    base: str
    merge: str
    seed: int


class _Tasks(TypedDict):
    tasks: dict[str, float]


class _Arms(TypedDict):
    phases: dict[str, _Tasks]
    orders: dict[str, dict[str, list[str]]]
    singles: dict[str, dict[str, str]]
    merges: dict[str, _Merge]


class _Stored(_Arms):
    model: NotRequired[dict[str, _Base]]
    bases: dict[str, _Base]
    structured: dict[str, _Phase]
    creative: dict[str, _Phase]
    joint: dict[str, _Phase]
    supervised: NotRequired[dict[str, _Phase]]
    distilled: NotRequired[dict[str, _Phase]]
    variants: dict[str, _Arms]
    recall: list[str]
    evaluations: list[str]
