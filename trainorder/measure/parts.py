"""What a difference of two arms is made of: verified tasks, judged tasks, and the taste that the judge stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from trainorder.config import MeasureConfig
from trainorder.measure.scores import SCORE, Scores, scores_of
from trainorder.metrics.statistics import side
from trainorder.plan.design import BySeed

if TYPE_CHECKING:
    import pandas as pd

GOLD, REWARD_JUDGE = "gold", "reward_judge"
"""Metrics of the evaluation that only judged tasks have; an endpoint's tasks have no `gold`."""


def judged_tasks(table: pd.DataFrame) -> set[str]:
    """Tasks whose score is a judge's."""
    rows = table.loc[table["metric"].isin((GOLD, REWARD_JUDGE)) & table["value"].notna(), "task"]
    return {str(task) for task in rows.unique()}


def same_judge(table: pd.DataFrame) -> set[str]:
    """Judged tasks whose judge in training is the one that scores: both gave every answer the same win rate."""
    keys = ["task", "node", "split", "problem"]
    score, reward = (
        table.loc[table["metric"] == m, [*keys, "value"]] for m in (SCORE, REWARD_JUDGE)
    )
    both = score.merge(reward, on=keys).dropna()
    differ = both.loc[both["value_x"] != both["value_y"], "task"]
    return {str(task) for task in both["task"].unique()} - {str(task) for task in differ.unique()}


def gold_scores(
    table: pd.DataFrame, split: str, nodes: list[str], tasks: Iterable[str], config: MeasureConfig
) -> Scores | None:
    """The hidden taste of those tasks that have one at every node; None without such a task."""
    rows = table[(table["metric"] == GOLD) & (table["split"] == split) & table["value"].notna()]
    have = rows.groupby("task")["node"].nunique()
    tasted = tuple(task for task in tasks if have.get(task, 0) == len(set(nodes)))
    if not tasted:
        return None
    count, seed = config.bootstrap, config.seed
    return scores_of(table, split, nodes, tasted, count=count, seed=seed, metric=GOLD)


@dataclass(frozen=True)
class Parts:
    """The trained tasks of one split, by how they are scored."""

    scores: Scores
    verified: tuple[int, ...]
    """Columns of `scores`."""
    judged: tuple[int, ...]
    gold: Scores | None
    """The hidden taste of the judged tasks that have one."""
    intervals: Callable[[Float[np.ndarray, "item seed draw"]], list[dict[str, Any] | None]]

    def of(self, a: BySeed, b: BySeed) -> dict[str, Any] | None:
        """A minus B on each part, None where there is no such task; None where no task is judged.

        `judged_only`: the difference is carried by judged tasks alone. There it excludes 0 on the side on which all tasks
        together are, and verified tasks do not show a difference of that sign.
        """
        if not self.judged:
            return None
        values = {
            "verified": _difference(self.scores, a, b, self.verified),
            "judged": _difference(self.scores, a, b, self.judged),
            "hidden_taste": self.gold and _difference(self.gold, a, b, range(len(self.gold.tasks))),
        }
        known: dict[str, Any] = {k: value for k, value in values.items() if value is not None}
        found: dict[str, Any] = dict.fromkeys(values)
        found |= zip(known, self.intervals(np.stack(list(known.values()))), strict=True)
        sign = side(found["judged"])
        every = (self.scores.of(a) - self.scores.of(b))[:, 0, [*self.verified, *self.judged]]
        ahead = bool(sign * every.mean() > 0)
        return {**found, "judged_only": ahead and side(found["verified"]) != sign}


def _difference(
    scores: Scores, a: BySeed, b: BySeed, columns: Iterable[int]
) -> Float[np.ndarray, "seed draw"] | None:
    at = list(columns)
    return (scores.of(a) - scores.of(b))[..., at].mean(-1) if at else None
