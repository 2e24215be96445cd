"""What an arm's mean does not show: its weakest task, the problems gained and lost beneath it, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from trainorder.measure.evidence import Evidence
    from trainorder.plan.design import Arm, BySeed

Solved = Mapping[str, Mapping[str, np.ndarray]]
"""Task -> node -> of every problem of a split whether the most likely answer is right."""
GREEDY = "greedy"
RIGHT = 0.5
"""A most likely answer counts as right from this score on."""


def solved(
    table: pd.DataFrame, nodes: list[str], tasks: Iterable[str], split: str = "test"
) -> Solved:
    """Of the tasks that have greedy scores at every node, over the problems that have one at every node."""
    rows = table[(table["metric"] == GREEDY) & (table["split"] == split)]
    found: dict[str, dict[str, np.ndarray]] = {}
    for task in tasks:
        own = rows[rows["task"] == task]
        wide = own.pivot_table(index="node", columns="problem", values="value", dropna=False)
        scores = wide.reindex(nodes).to_numpy(dtype=float)
        known = scores[:, ~np.isnan(scores).any(0)]
        if known.shape[1]:
            found[task] = dict(zip(nodes, known >= RIGHT, strict=True))
    return found


def beneath(evidence: Evidence, arm: Arm, mean: float, base: float) -> dict[str, Any]:
    """`worst`, `turnover`, `cost` and `rollouts_per_point` of an arm, as the ranking has them."""
    scores = evidence.scores["test"].of(arm.final)[:, 0].mean(0)
    worst = int(np.argmin(scores[evidence.trained]))
    cost = evidence.design.cost(arm.final)
    points = 100 * (mean - base)
    spent = cost["rollouts"] if cost else 0
    return {
        "worst": {"task": evidence.tasks[worst], "score": float(scores[worst])},
        "turnover": turnover(evidence.solved, arm.final, evidence.design.bases),
        "cost": cost,
        "rollouts_per_point": spent / points if spent and points > 0 else None,
    }


def turnover(found: Solved, final: BySeed, bases: BySeed) -> dict[str, Any] | None:
    """Problems of verified tasks that an arm solves and another, the base, of its seed does not, and the other way round.

    A mean over seeds; None where no task is verified. A stable mean can hide as many gained as lost problems (arXiv
    2606.03087). Most likely answers: sampled ones would turn over by chance alone.

    >>> found = {"math": {"s0": np.array([True, True, False]), "x": np.array([True, False, True])}}
    >>> turnover(found, {0: "x"}, {0: "s0"})
    {'gained': 1.0, 'lost': 1.0, 'problems': 3, 'tasks': {'math': {'gained': 1.0, 'lost': 1.0}}}
    """
    if not found:
        return None
    tasks = {
        task: {
            "gained": float(np.mean([(by[final[s]] & ~by[bases[s]]).sum() for s in final])),
            "lost": float(np.mean([(by[bases[s]] & ~by[final[s]]).sum() for s in final])),
        }
        for task, by in found.items()
    }
    total = {key: sum(task[key] for task in tasks.values()) for key in ("gained", "lost")}
    problems = sum(len(next(iter(by.values()))) for by in found.values())
    return {**total, "problems": problems, "tasks": tasks}
