"""The orders of params.yaml: those it lists, those it leaves to a measurement, and the phases that can be reordered."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from trainorder.config import Params, Permutations
from trainorder.reading import ParamsError

Resolved = Mapping[str, Sequence[str]]
"""`recommended` -> phases, once measured."""


MEASURED = ("recommended", "recommended_reverse")
"""Orders that wait for a measurement."""

RULES: dict[str, Mapping[str, int]] = {
    "cascade": {"sft": 0, "creative": 1, "structured": 2, "mixed": 2},
    "creative_last": {"sft": 0, "structured": 1, "mixed": 1, "creative": 2},
}
"""Orders that follow from what the phases are: rule -> kind -> place; phases of one place keep the sequence of `phases`.
cascade: preferences first, then what is verified (Nemotron-Cascade, arXiv:2512.13607); creative_last: Omni-Thinker's
(arXiv:2507.14783)."""


def order_phases(params: Params, resolved: Resolved) -> dict[str, Sequence[str]]:
    """Order -> phases, by rule where a rule is named; `recommended` and its reverse where they are known."""
    best = resolved.get("recommended")
    known = {} if best is None else {"recommended": best, "recommended_reverse": best[::-1]}
    known |= {rule: by_rule(params, rule) for rule in RULES}
    found = listed_orders(params)
    for name, order in params.orders.items():
        if isinstance(order, str) and order in known:
            found[name] = known[order]
    place = {name: i for i, name in enumerate(params.orders)}
    return dict(sorted(found.items(), key=lambda item: place.get(item[0], len(place))))


def by_rule(params: Params, rule: str) -> list[str]:
    """The phases that can be reordered, in the order of a rule."""
    place = RULES[rule]
    return sorted(single_phases(params), key=lambda phase: place[params.phases[phase].kind])


def waiting(params: Params) -> list[str]:
    """Orders that are filled in from the measured transfer."""
    return [name for name, order in params.orders.items() if order in MEASURED]


def teachers_of(params: Params, phase: str) -> dict[str, list[str]]:
    """Task -> the phases whose checkpoint teaches it in a phase of `kind: distill`.

    Raises:
        ParamsError: no teacher is named, and no phase that can be reordered trains the task.
    """
    config, singles = params.phases[phase], single_phases(params)
    found: dict[str, list[str]] = {}
    for task in config.tasks:
        named = (config.teachers or {}).get(task)
        own = [p for p in singles if task in params.phases[p].tasks]
        if named is None and not own:
            raise ParamsError(
                f"phases.{phase}.teachers: {task!r} has no teacher: no order of two or more phases has a phase that trains it; "
                f"name one, e.g. `teachers: {{{task}: [PHASE]}}`"
            )
        found[task] = named or [min(own, key=lambda p: len(params.phases[p].tasks))]
    return found


def listed_orders(params: Params) -> dict[str, Sequence[str]]:
    """Order -> phases, of the orders that params.yaml spells out, `{all: [...]}` unrolled.

    A permutation that another order already lists keeps that order's name only.
    """
    listed: dict[str, Sequence[str]] = {
        name: order for name, order in params.orders.items() if isinstance(order, list)
    }
    taken = {tuple(order) for order in listed.values()}
    for order in params.orders.values():
        if isinstance(order, Permutations):
            for phases in itertools.permutations(order.all):
                if phases not in taken:
                    taken.add(phases)
                    listed["_".join(phases)] = phases
    return listed


def pending(params: Params, resolved: Resolved | None = None) -> list[str]:
    """Orders that wait for the measured transfer."""
    known = order_phases(params, usable(params, resolved or {}))
    return [name for name in waiting(params) if name not in known]


def single_phases(params: Params) -> list[str]:
    """Phases of the orders with two or more phases, as `phases` lists them: a reorder changes nothing here.

    A phase of several tasks that smaller phases train too (joint training as the first part of an order) is no
    candidate for reordering: it is left out. So are a return to another phase (`like`) and distillation.
    """
    explicit = [order for order in listed_orders(params).values() if len(order) > 1]
    used = [phase for phase in params.phases if any(phase in order for order in explicit)]
    tasks = {phase: set(config.tasks) for phase, config in params.phases.items()}

    def is_union(phase: str) -> bool:
        smaller = [t for t in tasks.values() if t < tasks[phase]]
        return tasks[phase] == set().union(*smaller)

    own = [p for p in used if params.phases[p].like is None and params.phases[p].kind != "distill"]
    return [phase for phase in own if not is_union(phase)]


def held_out(params: Params) -> list[str]:
    """Tasks that are evaluated and that no phase trains, under any variant."""
    phases = [p for v in params.variant_names() for p in params.variant(v).phases.values()]
    return sorted(set(params.tasks) - {task for phase in phases for task in phase.tasks})


def usable(params: Params, resolved: Resolved) -> dict[str, tuple[str, ...]]:
    """What of `resolved` still fits: a permutation of today's single phases that some order asks for."""
    best = tuple(resolved.get("recommended", ()))
    fits = sorted(best) == sorted(single_phases(params))
    return {"recommended": best} if best and waiting(params) and fits else {}
