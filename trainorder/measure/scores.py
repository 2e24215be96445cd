"""The long table of evaluations as arrays, with one set of bootstrap draws for all nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from trainorder import paths
from trainorder.metrics import statistics
from trainorder.plan import names
from trainorder.reading import ParamsError
from trainorder.streams import numpy_stream

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("dev", "test")
SCORE = "score"
POOLED = "*"
"""The `problem` of a value that belongs to a whole task, such as a diversity across answers."""
MIN_SHARE = 0.5
"""Below this share of problems that every node has a score for, the comparison stops."""


@dataclass(frozen=True)
class Scores:
    """Mean scores of one split in every draw; draw 0 is the data, the others are resamples of the problems."""

    tasks: tuple[str, ...]
    values: dict[str, Float[np.ndarray, "draw task"]]
    """Node -> its mean scores."""
    used: dict[str, int]
    dropped: dict[str, int] = field(default_factory=dict)
    """Problems that some node has no score for; they are left out for all nodes."""

    def of(self, nodes: Mapping[int, str]) -> Float[np.ndarray, "seed draw task"]:
        """Scores of one node per seed, seeds ascending."""
        return np.stack([self.values[nodes[seed]] for seed in sorted(nodes)])


def tasks_of(table: pd.DataFrame, trained: Iterable[str]) -> tuple[str, ...]:
    """Trained tasks first, then the held-out ones by name."""
    found = {str(task) for task in table["task"].unique()}
    first = list(trained)
    return (*first, *sorted(found - set(first)))


def check_nodes(table: pd.DataFrame, nodes: Iterable[str], tasks: Iterable[str]) -> None:
    """Refuse a table that lacks a node, or a task's scores at a node.

    Raises:
        ParamsError: names the node and the command that evaluates it.
    """
    main = table.loc[table["metric"] == SCORE, ["node", "split", "task"]].drop_duplicates()
    have = set(main.itertuples(index=False, name=None))
    present = {node for node, _, _ in have}
    wanted = tuple(tasks)
    for node in nodes:
        if node not in present:
            raise ParamsError(f"{paths.evaluation(node)} has no scores: {repair(node)}")
        for split in SPLITS:
            lacking = [task for task in wanted if (node, split, task) not in have]
            if lacking:
                raise ParamsError(
                    f"{paths.evaluation(node)} has no {split} scores of {', '.join(lacking)}: "
                    f"{repair(node)}"
                )


def scores_of(
    table: pd.DataFrame,
    split: str,
    nodes: list[str],
    tasks: tuple[str, ...],
    *,
    count: int,
    seed: int,
    metric: str = SCORE,
) -> Scores:
    """One metric of a split, reweighted `count` times; a value of a whole task is the same in every draw.

    The draws of a task depend on its name, its number of problems and `seed` alone, so adding nodes or tasks moves no
    interval of the others.
    """
    main = table[(table["metric"] == metric) & (table["split"] == split)]
    values = {node: np.empty((count + 1, len(tasks))) for node in nodes}
    used, dropped = {}, {}
    for column, task in enumerate(tasks):
        rows = main.loc[main["task"] == task]
        wide = rows.pivot_table(index="node", columns="problem", values="value", dropna=False)
        scores = wide.reindex(nodes).to_numpy(dtype=float)
        complete = ~np.isnan(scores).any(0)
        if metric == SCORE and split in SPLITS:  # others are averaged with nothing
            _check_scale(scores, split, task, nodes)
        used[task] = int(complete.sum())
        dropped[task] = int((~complete).sum())
        _check_overlap(scores, split, task, nodes)
        rng = numpy_stream("measure", seed, split, task)
        draws = statistics.draw_problems(used[task], count, rng)
        means = scores[:, complete] @ draws.T
        for node, mean in zip(nodes, means, strict=True):
            values[node][:, column] = mean
    return Scores(tasks, values, used, dropped)


def _check_overlap(
    scores: Float[np.ndarray, "node problem"], split: str, task: str, nodes: list[str]
) -> None:
    known = ~np.isnan(scores)
    if known.all(0).mean() < MIN_SHARE:
        worst = nodes[_odd_one(known)]
        raise ParamsError(
            f"only {int(known.all(0).sum())} of {known.shape[1]} {split} problems of {task} have a score at every "
            f"node, so arms cannot be compared in pairs; {worst} shares the fewest with the others: {repair(worst)}"
        )


def _check_scale(
    scores: Float[np.ndarray, "node problem"], split: str, task: str, nodes: list[str]
) -> None:
    """All tasks count alike in a mean, so all must be scored on the same scale."""
    outside = (scores < 0) | (scores > 1)
    if outside.any():
        node = int(outside.any(1).argmax())
        worst = float(scores[node][outside[node]][0])
        raise ParamsError(
            f"{paths.evaluation(nodes[node])} scores {task} ({split}) with {worst:g}, outside [0, 1]: tasks are averaged "
            f"on one scale, so its grader must answer within it; then {repair(nodes[node])}"
        )


def _odd_one(known: Bool[np.ndarray, "node problem"]) -> int:
    """The node whose known problems are known at the fewest other nodes."""
    popularity = known.sum(0)
    return int((known * popularity).sum(1).argmin())


def repair(node: str) -> str:
    """What brings the scores of a node."""
    return f"run `dvc repro {names.evaluation(node)}`"
