"""Whether the orders of an experiment train for the same steps and prompts."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Refuse orders of different budgets, unless they are allowed."""
    asked = [name for name, order in params.orders.items() if isinstance(order, str)]
    orders = {**listed_orders(params), **dict.fromkeys(asked, single_phases(params))}
    first, *others = [(name, budget(params, phases)) for name, phases in orders.items()]
    for name, spent in others:
        one, other = _comparable(first[1], spent)
        quantities = list(dict.fromkeys([*one, *other]))
        pairs = [(q, one.get(q, 0), other.get(q, 0)) for q in quantities]
        different = [f"{q} {a:g} and {b:g}" for q, a, b in pairs if a != b]
        if different:
            raise ParamsError(
                f"{where}orders: {first[0]} and {name} differ in budget: {', '.join(different)}; "
                f"an order effect could be a budget effect. Make them equal, or set `allow_unequal_budgets: true`"
            )
