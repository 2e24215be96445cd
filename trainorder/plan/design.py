"""What was planned, as measure compares it, read from plan.yaml: bases, orders, singles and merges by seed, and what each phase trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainorder.reading import ParamsError

DEFAULT = "default"
"""The variant that is the params as written."""

BySeed = Mapping[int, str]
"""Seed -> node."""


@dataclass(frozen=True)
class Arm:
    """One way to spend the budget, by the checkpoints it ends in; arms are what the ranking compares."""

    name: str
    kind: str
    """order, joint (an order of one phase with several tasks), distill (of one that distils), merge or base."""
    final: BySeed
    phases: tuple[str, ...] | None = None
    """None for a merge or the base."""


@dataclass(frozen=True)
class Stage:
    """One trained phase: the checkpoints before and after it, by seed."""

    phase: str
    before: tuple[str, ...]
    """Phases trained before it; none when it was trained from the base."""
    parent: BySeed
    node: BySeed
    orders: tuple[str, ...]
    """Orders that run through it."""


@dataclass(frozen=True)
class Design:
    """The nodes of plan.yaml, grouped by the comparison they serve."""

    bases: BySeed
    orders: Mapping[str, Mapping[int, tuple[str, ...]]]
    """Order -> seed -> its nodes, first phase first."""
    order_phases: Mapping[str, tuple[str, ...]]
    singles: Mapping[str, BySeed]
    """Phase -> seed -> the node trained on it alone, from the base."""
    merges: Mapping[str, BySeed]
    phase_tasks: Mapping[str, tuple[str, ...]]
    """Tasks of every phase that an order or a single uses."""
    recall: tuple[str, ...] = ()
    """Tasks whose test asks facts that training taught."""
    distilling: frozenset[str] = frozenset()
    """Phases that learn from teachers."""
    budgets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Phase -> what it spends: updates, rollouts, ...; without the phases that plan.yaml says nothing of."""
    made_from: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Node -> the nodes that it is trained from, merged from or taught by."""
    phase_of: Mapping[str, str] = field(default_factory=dict)
    """Trained node -> its phase."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds, ascending."""
        return tuple(sorted(self.bases))

    @property
    def one_start(self) -> bool:
        """Whether several seeds begin at one base, so that they are replicates of RL alone."""
        return len(set(self.bases.values())) < len(self.bases)

    @property
    def replicates(self) -> str:
        """What the seeds are replicates of: the runs that a verdict over seeds holds for, as a phrase."""
        return "training runs from this base" if self.one_start else "training runs"

    @property
    def trained(self) -> tuple[str, ...]:
        """Tasks that some phase trains, in order of the phases."""
        return tuple(dict.fromkeys(t for tasks in self.phase_tasks.values() for t in tasks))

    def cost(self, final: BySeed) -> dict[str, float] | None:
        """What making an arm's checkpoint spends under one seed; None where plan.yaml does not say.

        It counts every trained node behind it, each once: of a merge all that it joins, of distillation the teachers.
        """
        behind, left = dict[str, None](), [final[self.seeds[0]]]
        while left:
            node = left.pop()
            if node not in behind:
                behind[node] = None
                left += self.made_from.get(node, ())
        phases = [self.phase_of[node] for node in behind if node in self.phase_of]
        if not all(phase in self.budgets for phase in phases):
            return None
        total = dict[str, float]({"rollouts": 0})
        for phase in phases:
            for quantity, count in self.budgets[phase].items():
                total[quantity] = total.get(quantity, 0) + count
        return total

    def nodes(self) -> list[str]:
        """Every node that is compared."""
        groups = [self.bases, *self.singles.values(), *self.merges.values()]
        flat = [node for group in groups for node in group.values()]
        chains = [node for runs in self.orders.values() for run in runs.values() for node in run]
        return list(dict.fromkeys(flat + chains))

    def chain(self, order: str, seed: int) -> tuple[str, ...]:
        """The base and then the order's nodes."""
        return (self.bases[seed], *self.orders[order][seed])

    def position(self, order: str, index: int) -> BySeed:
        """The order's node after `index` phases, by seed; 0 is the base."""
        return {seed: self.chain(order, seed)[index] for seed in self.seeds}

    def steps(self) -> list[Stage]:
        """Every trained phase of singles and orders, each once; a checkpoint that orders share is one."""
        found = {
            nodes: Stage(p, (), self.bases, self.singles[p], ())
            for p, nodes in ((p, tuple(sorted(n.items()))) for p, n in self.singles.items())
        }
        for name, phases in self.order_phases.items():
            for i, phase in enumerate(phases):
                node = self.position(name, i + 1)
                key = tuple(sorted(node.items()))
                known = found.get(key)
                names = (*(known.orders if known else ()), name)
                found[key] = Stage(phase, phases[:i], self.position(name, i), node, names)
        return list(found.values())

    def reverse_of(self, order: str) -> str | None:
        """The order that runs the same phases backwards, if there is one."""
        phases = self.order_phases[order]
        backwards = [o for o, p in self.order_phases.items() if p == phases[::-1] and o != order]
        return backwards[0] if backwards and len(phases) > 1 else None

    def arms(self) -> Iterator[Arm]:
        """Orders, merges and the base."""
        for name, phases in self.order_phases.items():
            kind = "order"
            if len(phases) == 1 and phases[0] in self.distilling:
                kind = "distill"
            elif len(phases) == 1 and len(self.phase_tasks[phases[0]]) > 1:
                kind = "joint"
            yield Arm(name, kind, self.position(name, len(phases)), phases)
        for name, nodes in self.merges.items():
            yield Arm(name, "merge", nodes)
        yield Arm("base", "base", self.bases)


def from_plan(plan: Mapping[str, Any]) -> dict[str, Design]:
    """Variant -> its design, from plan.yaml's content; `default` (the params as written) comes first.

    A variant has its own orders, singles and merges under `variants`, and shares the bases.

    Raises:
        ParamsError: an order or merge lacks a seed that others have.
    """
    others = {name: {**plan, **entry} for name, entry in (plan.get("variants") or {}).items()}
    return {name: _design(entry) for name, entry in {DEFAULT: plan, **others}.items()}


def _design(plan: Mapping[str, Any]) -> Design:
    groups = [
        plan.get(name) or {}
        for name in ("structured", "creative", "joint", "supervised", "distilled")
    ]
    phase_of = {node: entry["phase"] for group in groups for node, entry in group.items()}
    roots = {**(plan.get("model") or {}), **plan["bases"]}
    bases = {int(seed): node for node, entry in roots.items() for seed in entry["seeds"]}
    orders = {
        name: {int(seed): tuple(nodes) for seed, nodes in runs.items()}
        for name, runs in (plan.get("orders") or {}).items()
    }
    order_phases = {
        name: tuple(phase_of[node] for node in next(iter(runs.values())))
        for name, runs in orders.items()
    }
    singles: dict[str, dict[int, str]] = {}
    for seed, nodes in (plan.get("singles") or {}).items():
        for phase, node in nodes.items():
            singles.setdefault(phase, {})[int(seed)] = node
    merges: dict[str, dict[int, str]] = {}
    for node, entry in (plan.get("merges") or {}).items():
        merges.setdefault(entry["merge"], {})[int(entry["seed"])] = node
    for name, runs in {**orders, **singles, **merges}.items():
        _check_seeds(name, set(runs), set(bases))
    used = dict.fromkeys([*singles, *(p for seq in order_phases.values() for p in seq)])
    tasks = {phase: tuple(plan["phases"][phase]["tasks"]) for phase in used}
    recall = tuple(plan.get("recall") or ())
    distilling = frozenset(p for p in used if plan["phases"][p].get("kind") == "distill")
    budgets = {p: plan["phases"][p]["budget"] for p in used if "budget" in plan["phases"][p]}
    made_from = {
        node: (entry["parent"], *entry.get("teachers", {}).values())
        for group in groups
        for node, entry in group.items()
    } | {node: tuple(entry["parents"]) for node, entry in (plan.get("merges") or {}).items()}
    return Design(
        bases,
        orders,
        order_phases,
        singles,
        merges,
        tasks,
        recall,
        distilling,
        budgets,
        made_from,
        phase_of,
    )


def _check_seeds(name: str, found: set[int], wanted: set[int]) -> None:
    if found != wanted:
        raise ParamsError(
            f"plan.yaml: {name} was planned for seeds {sorted(found)}, the bases for {sorted(wanted)}: "
            f"run `trainorder plan`"
        )
