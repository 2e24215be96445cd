"""One checkpoint on the terminal: where it comes from, how it was made, what it scores, what lies on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from trainorder import paths
from trainorder.config import DEFAULT
from trainorder.files import size_text
from trainorder.lineage import read_manifest
from trainorder.plan.compile import Plan
from trainorder.plan.names import evaluation
from trainorder.reading import ParamsError, did_you_mean
from trainorder.registries import ways
from trainorder.report.records import test_means

if TYPE_CHECKING:
    from rich.console import RenderableType


def facts(plan: Plan, name: str) -> dict[str, Any]:
    """What the files say of a node of the plan; plain data, as `trainorder show --json` prints it.

    Raises:
        ParamsError: there is no such node.
        FileNotFoundError: it is not made yet.
    """
    check(plan, name)
    manifest = read_manifest(name)
    folder = paths.checkpoint(name)
    sizes = {
        file: (folder / file).stat().st_size
        for file in manifest["files"]
        if (folder / file).is_file()
    }
    kept = (
        "seed",
        "phase",
        "steps",
        "weights",
        "parents",
        "tokens",
        "seconds",
        "alarms",
        "params",
        "data",
    )
    return {
        "node": name,
        "stage": plan.nodes[name].stage,
        "kind": plan.nodes[name].kind,
        "variant": plan.nodes[name].variant,
        "lineage": lineage(plan, name),
        **{key: manifest.get(key) for key in kept},
        "code": manifest.get("code"),
        "versions": manifest.get("versions"),
        "machine": manifest.get("machine"),
        "mlflow_run": manifest.get("run_id"),
        "scores": scores(name),
        "files": {"checkpoint": str(folder), "records": str(paths.run(name)), "sizes": sizes},
    }


def check(plan: Plan, name: str) -> None:
    """Refuse a name that no node of the plan has.

    Raises:
        ParamsError: there is no such node.
    """
    if name not in plan.nodes:
        names = sorted(plan.nodes)
        raise ParamsError(
            f"no node {name!r} in the plan; there are {', '.join(names)}{did_you_mean(name, names)}"
        )


def lineage(plan: Plan, name: str) -> list[str]:
    """The node and what it was trained from, oldest first; a merge has several parents, of which none is followed."""
    chain = [name]
    while len(plan.nodes[chain[0]].parents) == 1:
        chain.insert(0, plan.nodes[chain[0]].parents[0])
    return chain


def scores(name: str) -> dict[str, dict[str, float]]:
    """Task -> metric -> mean over test problems; empty where the node was not evaluated."""
    found: dict[str, dict[str, float]] = {}
    for (metric, task), value in sorted(test_means(name).items(), key=lambda item: item[0][::-1]):
        found.setdefault(task, {})[metric] = value
    return found


def made(kind: str, phase: str | None, steps: int | None) -> str:
    """How a node came to be.

    >>> made("model", None, None), made("structured", "math", 60), made("merge", None, None)
    ('the model as it is', '60 steps of math', 'merge')
    """
    if kind == "model":
        return "the model as it is"
    return kind if phase is None else f"{steps} steps of {phase}"


def parents(phase: str | None, names: Sequence[str]) -> str:
    """What a checkpoint of several parents is made from: a phase of the first one, with teachers, or a merge.

    >>> parents("distil", ["s0", "s0--math"]), parents(None, ["s0", "s0--math", "s0--qa"])
    ('taught by s0--math', 'merged from s0, s0--math, s0--qa')
    """
    return (
        f"merged from {', '.join(names)}" if phase is None else f"taught by {', '.join(names[1:])}"
    )


def _ways(scores: dict[str, dict[str, float]]) -> Iterator[RenderableType]:
    """The metrics of `evaluation.ways`, a row each; nothing where there are none."""
    from rich.table import Table

    known = {name for row in scores.values() for name in row} - set(METRICS)
    names = [name for name in sorted(known) if name.startswith(tuple(ways()))]
    if names:
        table = Table("other ways", *scores, box=None, title="test", title_justify="left")
        for name in names:
            cells = (f"{row[name]:.3f}" if name in row else "-" for row in scores.values())
            table.add_row(name, *cells)
        yield table


METRICS = ("score", "strict", "greedy", "pass_at_k", "entropy_own", "length", "unscored", "gold")


def lines(found: dict[str, Any]) -> Iterator[RenderableType]:
    """The same for a reader."""
    from rich.table import Table
    from rich.tree import Tree

    how = made(found["kind"], found["phase"], found["steps"])
    if found["kind"] != "model":
        how += f", seed {found['seed']}, {found['tokens'] or 0:,} tokens"
    if found["variant"] != DEFAULT:
        how += f", variant {found['variant']}"
    yield f"[bold]{found['node']}[/]  {how}, {found['seconds'] or 0:.1f} s"
    first, *others = found["lineage"]
    root = branch = Tree(first, guide_style="dim")
    for node in others:
        branch = branch.add(node)
    yield root
    if len(found["parents"]) > 1:
        yield parents(found["phase"], found["parents"])
    if found["scores"]:
        shown = [m for m in METRICS if any(m in row for row in found["scores"].values())]
        table = Table("task", *shown, box=None, title="test", title_justify="left")
        for task, row in found["scores"].items():
            table.add_row(task, *(f"{row[m]:.3f}" if m in row else "-" for m in shown))
        yield table
        yield from _ways(found["scores"])
    else:
        yield f"not evaluated: `dvc repro {evaluation(found['node'])}`"
    for name, entry in (found["alarms"] or {}).items():
        yield f"[yellow]alarm[/] {name} from step {entry['first_step']} on, {entry['steps']} steps"
    params = Table(box=None, show_header=False, title="params", title_justify="left")
    for section, values in found["params"].items():
        params.add_row(
            section,
            ", ".join(f"{k}: {v}" for k, v in values.items())
            if isinstance(values, dict)
            else str(values),
        )
    yield params
    size = size_text(sum(found["files"]["sizes"].values()))
    yield f"checkpoint {found['files']['checkpoint']} ({size}), weights {found['weights'][:12]}; records {found['files']['records']}"
    yield f"stage {found['stage']}; MLflow run {found['mlflow_run'] or 'none'}"
