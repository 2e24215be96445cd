"""What every section of the measurement reads: the design, the scores in all draws, the other metrics' means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from trainorder import order as ordering
from trainorder.config import MeasureConfig
from trainorder.measure.beneath import Solved, solved
from trainorder.measure.parts import Parts, gold_scores, judged_tasks, same_judge
from trainorder.measure.scores import SPLITS, Scores, check_nodes, scores_of, tasks_of
from trainorder.metrics import statistics
from trainorder.metrics.sequential import level_at
from trainorder.plan.design import Design, Stage
from trainorder.streams import numpy_stream

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray
Means = dict[str, dict[str, dict[str, float]]]
"""Node -> metric -> task -> mean over problems."""


def metric_means(table: pd.DataFrame, split: str) -> Means:
    """Mean of every metric of the split, as recorded; a value of the whole task stands for itself."""
    rows = table.loc[table["split"] == split]
    means: Means = {}
    grouped = rows.groupby(["node", "metric", "task"], sort=True)["value"].mean()
    for keys, value in zip(grouped.index.to_list(), grouped.to_numpy(dtype=float), strict=True):
        node, metric, task = keys
        means.setdefault(node, {}).setdefault(metric, {})[task] = float(value)
    return means


def mean_metrics(means: Means, nodes: Iterable[str]) -> dict[str, dict[str, float]]:
    """Metric -> task -> mean over nodes (one per seed); absent where a node lacks it."""
    first, *others = [means[node] for node in nodes]
    result: dict[str, dict[str, float]] = {}
    for metric, by_task in first.items():
        for task, value in by_task.items():
            values = [value, *(other.get(metric, {}).get(task, math.nan) for other in others)]
            result.setdefault(metric, {})[task] = sum(values) / len(values)
    return result


@dataclass(frozen=True)
class Evidence:
    """Evaluations of all nodes of a design, ready to be compared."""

    design: Design
    config: MeasureConfig
    tasks: tuple[str, ...]
    """Trained tasks, then held-out ones: the columns of all scores."""
    scores: dict[str, Scores]
    """By split."""
    means: dict[str, Means]
    """By split."""
    seed_draws: Float[np.ndarray, "draw seed"]
    judged: frozenset[str] = frozenset()
    """Tasks that a judge scores."""
    same_judge: frozenset[str] = frozenset()
    """Of these, those whose score is by the judge that gave the rewards."""
    gold: Scores | None = None
    """The hidden taste of the judged tasks that have one, on test."""
    solved: Solved = field(default_factory=dict)
    """Which test problems of the verified tasks that are trained each node solves."""
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Some of each task, where evaluations keep answers."""
    _cache: dict[str, ordering.Measured] = field(default_factory=dict, compare=False, repr=False)

    @property
    def level(self) -> float:
        """Level of the intervals that a verdict is taken from: they hold over all looks together."""
        return settings(self.config, len(self.design.seeds))["level_of_differences"]

    @property
    def trained(self) -> list[int]:
        """Columns of the trained tasks."""
        return list(range(len(self.design.trained)))

    def columns(self, phase: str) -> list[int]:
        """Columns of the tasks that a phase trains."""
        return [self.tasks.index(task) for task in self.design.phase_tasks[phase]]

    def mean_score(self, split: str, nodes: Mapping[int, str]) -> Float[np.ndarray, "seed draw"]:
        """Mean score over the trained tasks."""
        return self.scores[split].of(nodes)[..., self.trained].mean(-1)

    @property
    def likeness(self) -> Float[np.ndarray, "phase phase"] | None:
        """How alike the prompts of two phases are; None where those of some phase are not known."""
        phases = [self.design.phase_tasks[phase] for phase in self.design.singles]
        texts = [
            [text for task in tasks for text in self.prompts.get(task, ())] for tasks in phases
        ]
        return ordering.word_likeness(texts) if texts and all(texts) else None

    def estimates(
        self, values: Float[np.ndarray, "item seed draw"], level: float | None = None
    ) -> list[statistics.Interval]:
        """Means over seeds with their intervals, of the config's level if none is given."""
        return statistics.intervals(values, self.seed_draws, level=level or self.config.level)

    def intervals(self, values: Float[np.ndarray, "item seed draw"]) -> list[dict[str, Any] | None]:
        """`estimates` as JSON, None where undefined."""
        known = [i for i, value in enumerate(values) if not np.isnan(value).any()]
        result: list[dict[str, Any] | None] = [None] * len(values)
        for i, found in zip(known, self.estimates(values[known]), strict=True):
            result[i] = as_json(found, self.design.seeds)
        return result

    def interval(self, values: Float[np.ndarray, "seed draw"]) -> dict[str, Any] | None:
        """`intervals` of one value."""
        return self.intervals(values[None])[0]

    @cached_property
    def parts(self) -> Parts:
        """The trained tasks of test, split into verified and judged ones."""
        judged = [c for c in self.trained if self.tasks[c] in self.judged]
        verified = [c for c in self.trained if c not in judged]
        return Parts(self.scores["test"], tuple(verified), tuple(judged), self.gold, self.intervals)

    def by_task(self, values: Float[np.ndarray, "seed draw task"]) -> dict[str, Any]:
        """Task -> interval."""
        return dict(zip(self.tasks, self.intervals(np.moveaxis(values, -1, 0)), strict=True))

    def measured(self, split: str, without: frozenset[str] = frozenset()) -> ordering.Measured:
        """What predictors of an order start from: bases, singles, pairs and later steps, [seed, draw, task] each.

        Pairs are those trained right after one another from the base where all of them were; else the mean change of
        a phase on one trained any time before it, without the nodes in `without`.
        """
        known = self._cache.get(split)
        if known is None:
            design, scores = self.design, self.scores[split]
            steps = [
                ordering.Step(s.phase, scores.of(s.parent), scores.of(s.node), min(s.node.values()))
                for s in self._later
            ]
            known = self._cache[split] = ordering.Measured(
                base=scores.of(design.bases),
                after={phase: scores.of(nodes) for phase, nodes in design.singles.items()},
                phase_tasks={phase: self.columns(phase) for phase in design.phase_tasks},
                pairs=self._pairs(steps, frozenset()),
                steps=steps,
            )
        if self.direct_pairs or not without:
            return known
        return replace(known, pairs=self._pairs(known.steps, without))

    def _pairs(
        self, steps: Sequence[ordering.Step], without: frozenset[str]
    ) -> dict[tuple[str, str], Array]:
        pairs: dict[tuple[str, str], list[Array]] = {}
        for stage, step in zip(self._later, steps, strict=True):
            if self.direct_pairs and len(stage.before) > 1:
                continue
            if not self.direct_pairs and not without.isdisjoint(stage.node.values()):
                continue
            change = step.after - step.before
            for earlier in stage.before:
                pairs.setdefault((earlier, stage.phase), []).append(change)
        return {key: np.add.reduce(changes) / len(changes) for key, changes in pairs.items()}

    @cached_property
    def _later(self) -> list[Stage]:
        """The trained phases that started from another checkpoint than the base."""
        return [stage for stage in self.design.steps() if stage.before]

    @cached_property
    def direct_pairs(self) -> bool:
        """Whether every phase was trained right after every other one that was trained from the base."""
        have = {(*s.before, s.phase) for s in self.design.steps() if len(s.before) == 1}
        return have >= set(permutations(self.design.singles, 2))


def settings(config: MeasureConfig, num_seeds: int) -> dict[str, Any]:
    """`settings` of reports/bwt.json: what intervals were made with."""
    return {
        "bootstrap": config.bootstrap,
        "level": config.level,
        "seed": config.seed,
        "looks": sorted({*config.looks, num_seeds}) if config.looks else [],
        "level_of_differences": level_at(config.level, config.looks, num_seeds),
    }


def as_json(interval: statistics.Interval, seeds: Iterable[int]) -> dict[str, Any]:
    """value, low, high and the seeds' own values; with two or more seeds also both intervals that these come from."""
    by_seed = {str(s): x for s, x in zip(seeds, interval.by_seed, strict=True)}
    result = {"value": interval.value, "low": interval.low, "high": interval.high, "seeds": by_seed}
    if interval.t is not None:
        result |= {"bootstrap": list(interval.bootstrap), "t": list(interval.t)}
    return result


def gather(
    table: pd.DataFrame,
    design: Design,
    config: MeasureConfig,
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> Evidence:
    """Check that every node is evaluated on every task and draw the resamples. `prompts` are some of each task.

    Raises:
        ParamsError: an evaluation is missing or incomplete; names the node and the command.
    """
    table = table.loc[table["split"].isin(SPLITS)]
    nodes, tasks = design.nodes(), tasks_of(table, design.trained)
    table = table.loc[table["node"].isin(nodes)]
    check_nodes(table, nodes, tasks)
    scores = {
        split: scores_of(table, split, nodes, tasks, count=config.bootstrap, seed=config.seed)
        for split in SPLITS
    }
    means = {split: metric_means(table, split) for split in SPLITS}
    rng = numpy_stream("measure", config.seed, "seeds")
    seed_draws = statistics.draw_seeds(len(design.seeds), config.bootstrap, rng)
    gold = gold_scores(table, "test", nodes, design.trained, config)
    judged, same = frozenset(judged_tasks(table)), frozenset(same_judge(table))
    right = solved(table, nodes, [task for task in design.trained if task not in judged])
    return Evidence(
        design, config, tasks, scores, means, seed_draws, judged, same, gold, right, prompts or {}
    )
