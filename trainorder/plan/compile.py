"""The plan: which checkpoints the orders need, each exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trainorder import paths
from trainorder.config import DEFAULT, Params, Role, load_params
from trainorder.fingerprint import Code
from trainorder.plan import code, compiled, names, pipeline, values
from trainorder.plan.appointed import Appointed, appointed
from trainorder.plan.orders import Resolved, order_phases, single_phases, teachers_of, usable
from trainorder.reading import ParamsError, did_you_mean
from trainorder.tasks import make_task

Kind = Literal["model", "base", "structured", "creative", "mixed", "sft", "distill", "merge"]
Arms = tuple[dict[str, dict[int, tuple[str, ...]]], dict[int, dict[str, str]]]
"""Orders and singles, as `Plan.orders` and `Plan.singles`."""

SMALL_FILES = 8 << 20
"""Bytes of what the node of a user's model holds, config and tokenizer; about."""


@dataclass(frozen=True)
class Node:
    """A checkpoint of the plan.

    >>> Node("s0--math", "structured", 0, ("s0",), phase="math").stage
    'plan/s0--math/dvc.yaml:train'
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
    teachers: tuple[tuple[str, str], ...] = ()
    """(task, node that teaches it), of `kind: distill`."""

    @property
    def learns_from(self) -> tuple[str, ...]:
        """Its teachers, each once."""
        one = () if self.teacher is None else (self.teacher,)
        return tuple(dict.fromkeys((*one, *(node for _, node in self.teachers))))

    @property
    def stage(self) -> str:
        """The DVC stage that makes the node."""
        return names.training(self.id)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a checkpoint with full weights (bases, merges), of one of an RL phase, and of one step checkpoint."""

    full: int
    phase: int
    step: int
    layers: int
    """How many layers the model has."""

    def of(self, node: Node) -> int:
        """Bytes of a node's checkpoint."""
        if node.kind == "model":
            return SMALL_FILES
        return self.full if node.kind in ("base", "merge") else self.phase


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
        """What RL begins at: one checkpoint of all seeds, or one per seed (`sft.per_seed`)."""
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
        """The compiled stages: how DVC is asked for one -> command, dependencies, outputs."""
        return {
            f"{file.as_posix()}:{name}": stage
            for file, stages in pipeline.content(self).items()
            for name, stage in stages.items()
        }

    def texts(self) -> dict[Path, str]:
        """The compiled files: plan.yaml, plan/dvc.yaml and plan/<node>/dvc.yaml."""
        return compiled.texts(self)

    def data(self) -> dict[str, Any]:
        """The content of plan.yaml."""
        return compiled.content(self)

    def arms(self, variant: str) -> Arms:
        """Orders and singles of a variant."""
        return (self.orders, self.singles) if variant == DEFAULT else self.variants[variant]

    def settings(self) -> dict[str, Any]:
        """What of params.yaml can change a result (`trainorder.plan.values`)."""
        return values.settings(self)

    def code(self) -> dict[str, Code]:
        """Fingerprint -> the stage module it covers, and what this module loads by name."""
        return code.code(self)

    def fingerprints(self) -> dict[str, str]:
        """Files of .fingerprints: what the code of every stage means, and the values of params.yaml that it reads."""
        return code.fingerprints(self)


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
        base = params.base_of(seed)
        # what all seeds share is of none of them: a change of the seeds changes nothing of it
        of = 0 if base == paths.BASE else seed
        nodes[base] = Node(base, "model" if params.sft is None else "base", of)
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
            for other in (*node.parents, *node.learns_from):
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
            if kind == "distill" and name not in self.nodes:
                found = teachers_of(self.params, phase).items()
                new = replace(new, teachers=tuple((t, self.grow(path)[-1]) for t, path in found))
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
    return compile_plan(params, compiled.resolved())
