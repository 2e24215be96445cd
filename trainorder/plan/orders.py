"""The orders of params.yaml: those it lists, those it leaves to a measurement, and the phases that can be reordered."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from trainorder.config import Params, Permutations

Resolved = Mapping[str, Sequence[str]]
"""`recommended` -> phases, once measured."""


def order_phases(params: Params, resolved: Resolved) -> dict[str, Sequence[str]]:
    """Order -> phases, with `recommended` and `recommended_reverse` filled in where they are known."""
    best = resolved.get("recommended")
    known = {} if best is None else {"recommended": best, "recommended_reverse": best[::-1]}
    found = listed_orders(params)
    for name, order in params.orders.items():
        if isinstance(order, str) and order in known:
            found[name] = known[order]
    place = {name: i for i, name in enumerate(params.orders)}
    return dict(sorted(found.items(), key=lambda item: place.get(item[0], len(place))))


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
    asked = [name for name, order in params.orders.items() if isinstance(order, str)]
    return [name for name in asked if name not in known]


def single_phases(params: Params) -> list[str]:
    """Phases of the orders with two or more phases, as `phases` lists them: a reorder changes nothing here.

    A phase of several tasks that smaller phases train too (joint training as the first part of an order) is no
    candidate for reordering: it is left out.
    """
    explicit = [order for order in listed_orders(params).values() if len(order) > 1]
    used = [phase for phase in params.phases if any(phase in order for order in explicit)]
    tasks = {phase: set(config.tasks) for phase, config in params.phases.items()}

    def is_union(phase: str) -> bool:
        smaller = [t for t in tasks.values() if t < tasks[phase]]
        return tasks[phase] == set().union(*smaller)

    return [phase for phase in used if not is_union(phase)]


def usable(params: Params, resolved: Resolved) -> dict[str, tuple[str, ...]]:
    """What of `resolved` still fits: a permutation of today's single phases that some order asks for."""
    best = tuple(resolved.get("recommended", ()))
    asked = any(isinstance(order, str) for order in params.orders.values())
    fits = sorted(best) == sorted(single_phases(params))
    return {"recommended": best} if best and asked and fits else {}
