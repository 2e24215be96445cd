"""The plan: which checkpoints the orders need, each exactly once."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from trainorder import fingerprint, paths, results
from trainorder.config import (
    DEFAULT,
    ROLES,
    AnyJudgeConfig,
    ModelJudgeConfig,
    Params,
    PreferenceConfig,
    Role,
    load_params,
)
from trainorder.files import write_text
from trainorder.fingerprint import Code
from trainorder.plan import names, pipeline
from trainorder.plan.names import judge_code, phase_code
from trainorder.plan.orders import Resolved, order_phases, single_phases, usable
from trainorder.reading import ParamsError, did_you_mean, found_at, read_yaml, shaped
from trainorder.registries import BACKENDS, ENGINES, FORMATS, JUDGE_MAKERS, JUDGES
from trainorder.sources import find, section
from trainorder.tasks import TASKS, kind_of, make_task, options_of

Kind = Literal["model", "base", "structured", "creative", "mixed", "sft", "merge"]

SAMPLING = ("merge", "evaluate")
"""Stages that sample with the engine of `rollout.backend`, beside judges and RL phases; the gate of SFT uses torch's."""

SMALL_FILES = 8 << 20
"""Bytes of what the node of a user's model holds, config and tokenizer; about."""

HEADER = "# Compiled from params.yaml by `trainorder plan`: edit params.yaml, not this file.\n"


@dataclass(frozen=True)
class Node:
    """A checkpoint of the plan.

    >>> Node("s0--math", "structured", 0, ("s0",), phase="math").stage
    'plan/dvc.yaml:s0--math'
    """

    id: str
    kind: Kind
    seed: int
    parents: tuple[str, ...] = ()
    """None for a base (`model` or `base`); base first, then the merged nodes, for a merge."""
    phase: str | None = None
    merge: str | None = None
    variant: str = DEFAULT
    """Whose settings it is made with; a base serves all variants."""
    teacher: str | None = None
    """The node that its phase distils from (`rl.teacher`)."""

    @property
    def stage(self) -> str:
        """The DVC stage that makes the node."""
        return names.address(self.id)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a checkpoint with full weights (bases, merges), of one of an RL phase, and of one step checkpoint."""

    full: int
    phase: int
    step: int

    def of(self, node: Node) -> int:
        """Bytes of a node's checkpoint."""
        if node.kind == "model":
            return SMALL_FILES
        return self.full if node.kind in ("base", "merge") else self.phase


@dataclass(frozen=True)
class Appointed:
    """A judge, the judged tasks that it serves, and what sets it apart from the preference models before it."""

    config: AnyJudgeConfig
    tasks: tuple[str, ...]
    seed: int
    """Its number among the preference models of its task."""
    first: int
    """Its first prompt in the task's shuffled training problems; those before it teach other judges."""


def appointed(params: Params, judged: Mapping[str, Mapping[Role, str]]) -> dict[str, Appointed]:
    """The judges that these tasks have, in the order of params.yaml; `judged` is task -> role -> judge."""
    found: dict[str, Appointed] = {}
    taken: dict[str, list[int]] = {}
    for name, config in params.named_judges().items():
        tasks = tuple(task for task, roles in judged.items() if name in roles.values())
        if not tasks:
            continue
        before = taken.setdefault(config.task or tasks[0], [])
        found[name] = Appointed(config, tasks, len(before), sum(before))
        if isinstance(config, PreferenceConfig):
            before.append(0 if config.pairs else config.prompts + config.heldout_prompts)
    return found


def _judge_code(config: AnyJudgeConfig) -> set[str]:
    """What is loaded by name where a judge is asked."""
    form = FORMATS.get(find(config.path).kind) if isinstance(config, ModelJudgeConfig) else None
    return {JUDGES[config.kind], *([form] if form else [])}


def _content(config: AnyJudgeConfig) -> dict[str, str]:
    """The content of an installed package that a judge's model lies in, which no file of the project shows."""
    content = find(config.path).content if isinstance(config, ModelJudgeConfig) else None
    return {} if content is None else {"content": content}


@dataclass(frozen=True)
class Plan:
    """All nodes, parents before children, and how the orders run through them."""

    params: Params
    nodes: dict[str, Node]
    orders: dict[str, dict[int, tuple[str, ...]]]
    """Order -> seed -> its nodes, first phase first. Orders that wait for a measurement are left out."""
    singles: dict[int, dict[str, str]]
    """Seed -> phase -> the node trained on it from the base: transfer and merges start from these."""
    variants: dict[str, Arms]
    """The same under every other variant."""
    resolved: dict[str, tuple[str, ...]]
    """What a measurement filled in: `recommended` -> phases."""

    def bases(self) -> list[Node]:
        """One SFT checkpoint per seed, or the one model that all seeds begin at."""
        return [node for node in self.nodes.values() if not node.parents]

    @cached_property
    def judged(self) -> dict[str, dict[Role, str]]:
        """Task that a judge scores -> role -> the judge that has it."""
        tasks = self.params.tasks.items()
        judged = [name for name, config in tasks if make_task(name, config).rewarded_by == "judge"]
        return {name: self.params.judges_of(name) for name in judged}

    @cached_property
    def judges(self) -> dict[str, Appointed]:
        """The judges that any task has, as their stages are called."""
        return appointed(self.params, self.judged)

    @property
    def judge_stages(self) -> list[str]:
        """The DVC stages that make the judges."""
        return [names.judge(name) for name in self.judges]

    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages of plan/dvc.yaml: name -> command, dependencies, outputs."""
        return pipeline.content(self)["stages"]

    def texts(self) -> dict[Path, str]:
        """The compiled files: plan.yaml and plan/dvc.yaml."""
        return {
            paths.PLAN: HEADER + _yaml(self.data()),
            paths.PIPELINE: HEADER + _yaml(pipeline.content(self)),
        }

    def data(self) -> dict[str, Any]:
        """The content of plan.yaml."""
        groups = {
            name: {
                n.id: _entry(n, self.params.seeds) for n in self.nodes.values() if n.kind == kind
            }
            for name, kind in GROUPS.items()
        }
        return {
            "resolved": {name: list(phases) for name, phases in self.resolved.items()},
            **groups,
            **self.variant_data(DEFAULT),
            "variants": {name: self.variant_data(name) for name in self.variants},
            "recall": [
                name
                for name, config in self.params.tasks.items()
                if getattr(make_task(name, config), "recall", False)
            ],
            "evaluations": [str(paths.evaluation(node)) for node in self.nodes],
        }

    def variant_data(self, variant: str) -> dict[str, Any]:
        """`phases`, `orders`, `singles` and `merges` of one variant: laid over plan.yaml's own, they describe its arms."""
        params = self.params.variant(variant)
        orders, singles = self.arms(variant)
        return {
            "phases": {
                name: {"kind": phase.kind, "tasks": dict(phase.tasks)}
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
                for n in self.nodes.values()
                if n.kind == "merge" and n.variant == variant
            },
        }

    def arms(self, variant: str) -> Arms:
        """Orders and singles of a variant."""
        return (self.orders, self.singles) if variant == DEFAULT else self.variants[variant]

    def fingerprints(self) -> dict[str, str]:
        """Files of .fingerprints: what the code of every stage means, and the values of params.yaml that it reads."""
        texts = fingerprint.compute(self.code())
        for (
            name,
            config,
        ) in self.params.tasks.items():  # the user's own rows count as a part of the build
            files = getattr(make_task(name, config), "files", ())
            texts["build_data"] += "".join(f"{file} {_hash(file)}\n" for file in files)
        for name, tasks in self._graded().items():  # and so does the code of theirs that grades
            own = [getattr(make_task(task, self.params.tasks[task]), "code", ()) for task in tasks]
            texts[name] += fingerprint.of_files(sorted({file for code in own for file in code}))
        return {**texts, **pipeline.settings(self)}

    def settings(self) -> dict[str, Any]:
        """What of params.yaml can change a result, with defaults filled in: stages depend on values, however written.

        A section that names tasks carries what these are (`tasks` -> kind, options, length of an answer), and a
        phase its own `rl` and what samples and trains. A section whose stage samples has `rollout` where the torch
        engine does not.
        """
        params = self.params
        return {
            "policy": section(params.policy),
            "training": {"dtype": params.training.dtype},
            "tasks": {
                name: task.results() | (NO_LINES if params.sft is None else {})
                for name, task in params.tasks.items()
            },
            "data": params.data.results(),
            "evaluation": {
                **params.evaluation.results(),
                **params.engine(),
                **self._roles(params.tasks),
            },
            "measure": params.measure.results(),
            **self._sft(),
            "judges": self._judges(),
            "phases": self._phases(DEFAULT),
            "variants": {variant: self._phases(variant) for variant in params.variants},
            "merges": {
                name: merge.results()
                | (
                    {**params.engine(), **self._roles(params.tasks)}
                    if isinstance(merge.scale, list)
                    else {}
                )
                for name, merge in params.merges.items()
            },
        }

    def _sft(self) -> dict[str, Any]:
        sft = self.params.sft
        return {} if sft is None else {"sft": {**sft.results(), "tasks": self._tasks(sft.gate)}}

    def _judges(self) -> dict[str, Any]:
        return {
            name: {
                **judge.config.results(),
                **_content(judge.config),
                **self.params.engine(),
                "tasks": self._tasks(judge.tasks),
            }
            for name, judge in self.judges.items()
        }

    def _roles(self, tasks: Iterable[str]) -> dict[str, Any]:
        """`judges`: who judges those of the tasks that are judged; nothing where none is."""
        found = {task: self.judged[task] for task in tasks if task in self.judged}
        return {"judges": found} if found else {}

    def _phases(self, variant: str) -> dict[str, Any]:
        params = self.params.variant(variant)
        training = params.training.results()
        supervised = {
            name: {**phase.results(), "training": training}
            for name, phase in params.phases.items()
            if phase.kind == "sft"
        }
        return supervised | {
            name: {
                **phase.results(),
                "rl": params.phase_rl(name).results(),
                "rollout": params.rollout.results(),
                "training": training,
                "of": self._tasks(phase.tasks),
                **self._roles(phase.tasks),
            }
            for name, phase in params.phases.items()
            if phase.kind != "sft"
        }

    def _tasks(self, names: Iterable[str]) -> dict[str, Any]:
        tasks = {name: self.params.tasks[name] for name in names}
        return {
            name: {
                "kind": kind_of(name, task),
                "options": options_of(task),
                "max_new_tokens": task.max_new_tokens,
            }
            for name, task in tasks.items()
        }

    def _stage_tasks(self) -> dict[str, list[str]]:
        """Fingerprint of a stage that is no phase and no judge -> the tasks whose code it runs."""
        sft = self.params.sft
        return {
            "build_data": list(self.params.tasks),
            **({"base_model": []} if sft is None else {"sft_warmup": list(sft.gate)}),
            "merge": list(self.params.tasks),
            "evaluate": list(self.params.tasks),
            "measure_bwt": [],
            "report": [],
            "metrics": [],
        }

    def _graded(self) -> dict[str, list[str]]:
        """Fingerprint -> the tasks whose answers are graded under it."""
        phases = {
            phase_code(name, variant): list(phase.tasks)
            for variant in self.params.variant_names()
            for name, phase in self.params.variant(variant).phases.items()
        }
        return {**self._stage_tasks(), **phases}

    def code(self) -> dict[str, Code]:
        """Fingerprint -> the stage module it covers, and what this module loads by name."""
        params, engine = self.params, ENGINES[self.params.rollout.backend]
        form = FORMATS.get(find(params.policy.path).kind) if params.policy.path else None
        found = {
            stage: Code(
                _module(stage),
                self._loads(names, ROLES, build=stage == "build_data")
                | ({engine} if stage in SAMPLING else set())
                | (
                    {form}
                    if form and stage in ("build_data", "base_model", "sft_warmup")
                    else set()
                ),
            )
            for stage, names in self._stage_tasks().items()
        }
        for name, judge in self.judges.items():
            makes = {JUDGE_MAKERS[judge.config.kind], engine, *_judge_code(judge.config)}
            found[judge_code(name)] = Code(_module("train_judge"), self._loads(judge.tasks) | makes)
        for variant in params.variant_names():
            changed = params.variant(variant)
            for name, phase in changed.phases.items():
                if phase.kind == "sft":
                    found[phase_code(name, variant)] = Code(
                        _module("sft_phase"), self._loads(params.tasks)
                    )
                    continue
                backends = {engine, BACKENDS[params.training.backend]}
                found[phase_code(name, variant)] = Code(
                    _module("rl"),
                    self._loads(phase.tasks, ["reward"]) | backends,
                    changed.phase_rl(name).pieces(),
                )
        return found

    def _loads(
        self, tasks: Collection[str], roles: Sequence[Role] = (), build: bool = False
    ) -> frozenset[str]:
        """The kinds of these tasks with what they load by name, and the judges that have these roles in them."""
        kinds = {TASKS[kind_of(task, self.params.tasks[task])] for task in tasks}
        judges = {self.judged[t][role] for t in tasks if t in self.judged for role in roles}
        named = [getattr(make_task(task, self.params.tasks[task]), "loads", None) for task in tasks]
        loaded = {
            target
            for task, own in zip(tasks, named, strict=True)
            if own
            for target in own(task, build=build)
        }
        of_judges = {target for n in judges for target in _judge_code(self.judges[n].config)}
        return frozenset(kinds | loaded | of_judges)


GROUPS: dict[str, Kind] = {
    "model": "model",
    "bases": "base",
    "structured": "structured",
    "creative": "creative",
    "joint": "mixed",
    "supervised": "sft",
}
"""Key of plan.yaml -> the nodes under it."""


def _entry(node: Node, seeds: Sequence[int]) -> dict[str, Any]:
    if node.kind == "model":
        return {"seeds": list(seeds)}
    if node.phase is None:
        return {"seed": node.seed}
    return {"parent": node.parents[0], "phase": node.phase, "seed": node.seed} | _tag(node.variant)


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


def _module(stage: str) -> str:
    """The stage's module, put together here: a whole name in the source would be an import of this module (fingerprint.py)."""
    return f"stages.{stage}"


def _hash(file: Path) -> str:
    if not file.is_file():
        return "missing"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


NO_LINES = {"demonstrations": 0, "drills": 0}
"""What a task writes for a warm-up that there is not."""
Arms = tuple[dict[str, dict[int, tuple[str, ...]]], dict[int, dict[str, str]]]
"""Orders and singles, as `Plan.orders` and `Plan.singles`."""


def _tag(variant: str) -> dict[str, str]:
    return {} if variant == DEFAULT else {"variant": variant}


def compile_plan(params: Params, resolved: Resolved | None = None) -> Plan:
    """The plan of checked params (`trainorder.plan.check.check`).

    Under each seed, orders with a common beginning share its nodes; every phase of an order with two or more phases
    is also trained from the base, for the transfer matrix and the merges. `resolved` fills `recommended`; one that
    is no permutation of today's phases is dropped.
    """
    known = usable(params, resolved or {})
    nodes: dict[str, Node] = {}
    arms: dict[str, Arms] = {variant: ({}, {}) for variant in params.variant_names()}
    for seed in params.seeds:
        base = paths.BASE if params.sft is None else f"s{seed}"
        # the model of all seeds is of none: a change of the seeds changes nothing of it
        nodes[base] = Node(base, "base", seed) if params.sft else Node(base, "model", 0)
        for variant, (orders, singles) in arms.items():
            tree = _Branch(nodes, params.variant(variant), variant, seed, base)
            for name, phases in order_phases(params, known).items():
                orders.setdefault(name, {})[seed] = tuple(tree.grow(phases))
            singles[seed] = {phase: tree.grow([phase])[0] for phase in single_phases(params)}
            for merge in params.merges:
                tree.merge(merge, tuple(singles[seed].values()))
    nodes = _with_teachers(nodes, params)
    orders, singles = arms.pop(DEFAULT)
    return Plan(params, nodes, orders, singles, arms, known)


def _with_teachers(nodes: dict[str, Node], params: Params) -> dict[str, Node]:
    """The nodes with the teachers that their phases name, teachers before their pupils.

    Raises:
        ParamsError: a teacher is no node of the plan, or comes from its own pupil.
    """
    found = dict(nodes)
    for node in nodes.values():
        rl = (
            None
            if node.phase is None or node.kind == "sft"
            else params.variant(node.variant).phase_rl(node.phase)
        )
        teacher = None if rl is None else rl.teacher_node(node.seed)
        if teacher is None:
            continue
        if teacher not in nodes:
            raise ParamsError(
                f"phases.{node.phase}.rl.teacher: the plan has no node {teacher!r} for {node.id} to learn from; give a node "
                f"(`trainorder plan` lists them) or {{path: FOLDER}}{did_you_mean(teacher, list(nodes))}"
            )
        found[node.id] = replace(node, teacher=teacher)
    if found == nodes:
        return nodes
    ordered = dict[str, Node]()

    def add(name: str, above: tuple[str, ...] = ()) -> None:
        if name in above:
            pupil = next(found[n] for n in above[above.index(name) :] if found[n].teacher)
            raise ParamsError(
                f"phases.{pupil.phase}.rl.teacher: {pupil.teacher} is made from {pupil.id}, which is to learn from it; name "
                "a node that does not come from the pupil, and set rl.teacher only in phases that need it"
            )
        if name not in ordered:
            node = found[name]
            for other in (*node.parents, *([node.teacher] if node.teacher else [])):
                add(other, (*above, name))
            ordered[name] = node

    for name in found:
        add(name)
    return ordered


@dataclass(frozen=True)
class _Branch:
    """The part of the tree that one variant grows on one seed's base."""

    nodes: dict[str, Node]
    params: Params
    variant: str
    seed: int
    base: str

    @property
    def root(self) -> str:
        """What the names of the branch begin with."""
        return f"s{self.seed}" if self.variant == DEFAULT else f"s{self.seed}--{self.variant}"

    def grow(self, phases: Sequence[str]) -> list[str]:
        """Add the path root--phase--phase... to the tree; returns its nodes."""
        path, parent, name = [], self.base, self.root
        for phase in phases:
            name = f"{name}--{phase}"
            kind = self.params.phases[phase].kind
            new = Node(name, kind, self.seed, (parent,), phase=phase, variant=self.variant)
            self.nodes.setdefault(name, new)
            path.append(name)
            parent = name
        return path

    def merge(self, merge: str, parents: tuple[str, ...]) -> None:
        """Add a merge of these nodes."""
        name = f"{self.root}--{merge}"
        self.nodes[name] = Node(
            name, "merge", self.seed, (self.base, *parents), merge=merge, variant=self.variant
        )


def load() -> Plan:
    """The plan of params.yaml, with what plan.yaml already knows about `recommended`.

    Raises:
        ParamsError: params.yaml is wrong.
    """
    from trainorder.plan.check import check

    params = load_params()
    check(params)
    return compile_plan(params, _resolved())


def _resolved() -> dict[str, list[str]]:
    """What plan.yaml knows of `recommended`. All else in it is compiled again, so a damaged one is no error."""
    if not found_at(paths.PLAN):
        return {}
    try:
        return shaped(read_yaml(paths.PLAN), _Compiled, paths.PLAN, REPAIR).get("resolved", {})
    except ParamsError as error:
        print(f"warning: {error}", file=sys.stderr)
        return {}


class _Compiled(TypedDict):
    resolved: NotRequired[dict[str, list[str]]]


class _Base(TypedDict):
    seed: int


class _Model(TypedDict):
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
    model: NotRequired[dict[str, _Model]]
    bases: dict[str, _Base]
    structured: dict[str, _Phase]
    creative: dict[str, _Phase]
    joint: dict[str, _Phase]
    supervised: NotRequired[dict[str, _Phase]]
    variants: dict[str, _Arms]
    recall: list[str]
    evaluations: list[str]


REPAIR = "`trainorder plan` writes it from params.yaml"


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


def measured() -> dict[str, list[str]]:
    """`resolved` as the measurement in reports/bwt.json has it; empty where it recommends nothing.

    Raises:
        ParamsError: nothing was measured yet.
    """
    found = results.load()["recommended"]
    return {} if found is None else {"recommended": list(found["order"])}


def write(plan: Plan) -> bool:
    """Write plan.yaml and plan/dvc.yaml, each whole and then renamed; returns whether either changed."""
    changed = stale_files(plan)
    for file, text in changed.items():
        file.parent.mkdir(exist_ok=True)
        write_text(file, text)
    return bool(changed)


def stale_files(plan: Plan) -> dict[Path, str]:
    """The compiled files that are not what this plan says, with what it says."""
    return {
        file: text
        for file, text in plan.texts().items()
        if not file.is_file() or file.read_bytes() != text.encode()
    }
