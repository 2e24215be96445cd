"""Whether the orders of an experiment train for the same steps and prompts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from trainorder.config import (
    Params,
    RlConfig,
)
from trainorder.plan.orders import listed_orders, single_phases
from trainorder.reading import ParamsError


def budget(params: Params, phases: Sequence[str]) -> dict[str, float]:
    """What training on these phases spends: updates, rollouts, and prompts of every task.

    A phase of weights w spends steps * prompts_per_step * w[task] / sum(w) prompts of a task. Where the phase decides
    itself what to ask (a sampler or curriculum that looks at rewards), prompts are counted as `prompts of any task`.
    """
    spent: dict[str, float] = {"updates": 0, "rollouts": 0}
    for name in phases:
        phase, rl = params.phases[name], params.phase_rl(name)
        if phase.kind == "sft":
            rows = phase.steps * phase.supervised.batch_size
            for quantity, count in {"supervised updates": phase.steps, "rows": rows}.items():
                spent[quantity] = spent.get(quantity, 0) + count
            continue
        prompts = phase.steps * rl.prompts_per_step
        spent["updates"] += phase.steps * (
            len(phase.tasks) if rl.serial_tasks else rl.updates_per_batch
        )
        spent["rollouts"] += prompts * rl.group_size
        if not _is_fixed(rl):
            spent[ANY_TASK] = spent.get(ANY_TASK, 0) + prompts
            continue
        total = sum(phase.tasks.values())
        for task, weight in phase.tasks.items():
            key = f"prompts of {task}"
            spent[key] = round(spent.get(key, 0) + prompts * weight / total, 6)
    return spent


def spent(params: Params, phase: str) -> dict[str, float]:
    """What a phase spends in all: updates and rollouts, of `kind: sft` supervised updates and rows."""
    return {key: value for key, value in _total(budget(params, [phase])).items() if value}


ANY_TASK = "prompts of any task"


def _is_fixed(rl: RlConfig) -> bool:
    """Whether a task's share of the prompts is known beforehand."""
    names = [next(iter(p)) if isinstance(p, dict) else p for p in (rl.sampler, rl.curriculum)]
    return names[0] == "weights" and names[1] in ("together", "in_turn")


def _comparable(first: dict[str, float], second: dict[str, float]) -> list[dict[str, float]]:
    """Prompts are compared task by task, unless one of the two decides about them while it trains."""
    if ANY_TASK not in {*first, *second}:
        return [first, second]
    kept = [{k: v for k, v in b.items() if not k.startswith("prompts")} for b in (first, second)]
    for short, full in zip(kept, (first, second), strict=True):
        short["prompts"] = sum(v for k, v in full.items() if k.startswith("prompts"))
    return kept


def check_budgets(params: Params, where: str = "") -> None:
    """Refuse orders of different budgets, unless they are allowed.

    An order may go on beyond the budget of the others with returns (`like`) at its end, where another order spends as much
    on other returns after the same phases: what the two are compared on is where the extra steps went.
    """
    asked = [name for name, order in params.orders.items() if isinstance(order, str)]
    orders = {**listed_orders(params), **dict.fromkeys(asked, single_phases(params))}
    plain = [n for n, phases in orders.items() if not _returns(params, phases)]
    first = plain[0] if plain else next(iter(orders))
    whole = budget(params, orders[first])
    for name, phases in orders.items():
        different = _different(whole, budget(params, phases))
        returns = _returns(params, phases)
        before = phases[: len(phases) - len(returns)]
        if different and returns and not _different(whole, budget(params, before)):
            _check_control(params, where, name, orders)
        elif different:
            raise ParamsError(
                f"{where}orders: {first} and {name} differ in budget: {', '.join(different)}; "
                f"an order effect could be a budget effect. Make them equal, or set `allow_unequal_budgets: true`"
            )


def _different(first: dict[str, float], second: dict[str, float]) -> list[str]:
    one, other = _comparable(first, second)
    pairs = [(q, one.get(q, 0), other.get(q, 0)) for q in dict.fromkeys([*one, *other])]
    return [f"{q} {a:g} and {b:g}" for q, a, b in pairs if a != b]


def _returns(params: Params, phases: Sequence[str]) -> list[str]:
    """The returns that these phases end with."""
    ends = itertools.takewhile(lambda phase: params.phases[phase].like, reversed(phases))
    return list(ends)[::-1]


def _check_control(
    params: Params, where: str, name: str, orders: Mapping[str, Sequence[str]]
) -> None:
    """Another order must spend as many updates and rollouts as `name` does after the same phases, on other returns."""
    own = _returns(params, orders[name])
    before = orders[name][: len(orders[name]) - len(own)]
    spent = _total(budget(params, own))
    for phases in orders.values():
        other = _returns(params, phases)
        same_start = list(phases[: len(phases) - len(other)]) == list(before)
        if other != own and same_start and _total(budget(params, other)) == spent:
            return
    steps = sum(params.phases[phase].steps for phase in own)
    raise ParamsError(
        f"{where}orders: {name} goes on for {steps} steps of {', '.join(own)} after {', '.join(before)}, and no other order "
        "spends as much elsewhere after the same phases: a gain could be that of any further steps. Add such an order as the "
        f"control, e.g. with a phase `{{like: ANOTHER, steps: {steps}}}` at its end, or set `allow_unequal_budgets: true`"
    )


def _total(spent: Mapping[str, float]) -> dict[str, float]:
    """Without what says on which tasks."""
    return {key: value for key, value in spent.items() if not key.startswith("prompts")}
