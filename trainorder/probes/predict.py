"""Do probes predict forgetting? Over all checkpoints of an experiment, rank correlations with what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainorder import paths
from trainorder.config import DEFAULT
from trainorder.metrics.correlation import MIN_ITEMS, correlations
from trainorder.probes.base import ALL, Checkpoint, mean
from trainorder.probes.headlines import HEADLINES, Headline, Measures, by_pair
from trainorder.streams import numpy_stream

if TYPE_CHECKING:
    import pandas as pd

    from trainorder.plan import Plan

OUTCOMES = ("others", "earlier")
"""Mean loss of score on all tasks that a phase does not train, and on those that phases before it trained."""
ROLES = ("all", "new", "others")
"""Where a probe looks at tasks: the mean over all, that of the tasks that the phase trains, and of the others."""
SCORED = {"gained", "lost", "above.change", "gain_form"}
"""Measures of the same scores that forgetting is computed from: of the new task alone they say something else."""


@dataclass(frozen=True)
class Step:
    """One phase on top of a checkpoint."""

    node: str
    parent: str
    phase: str
    new: frozenset[str]
    """The tasks that the phase trains."""
    earlier: frozenset[str]
    """Those that phases before it trained."""
    place: int = 0
    """How many phases came before it."""


def steps(plan: Plan, variant: str = DEFAULT) -> tuple[list[Step], int]:
    """The trained nodes of a variant that are evaluated, like their parents; and how many are not."""
    params = plan.params.variant(variant)
    found, missing = [], 0
    for node in plan.nodes.values():
        if node.phase is None or node.variant != variant or not node.parents:
            continue
        parent = node.parents[0]
        if not all(
            paths.evaluation(n).is_file() and paths.checkpoint(n).is_dir()
            for n in (node.id, parent)
        ):
            missing += 1
            continue
        phases, at = list[str](), plan.nodes[parent]
        while at.parents and at.phase is not None:
            phases.append(at.phase)
            at = plan.nodes[at.parents[0]]
        new = frozenset(params.phases[node.phase].tasks)
        before = frozenset(t for phase in phases for t in params.phases[phase].tasks)
        found.append(Step(node.id, parent, node.phase, new, before - new, len(phases)))
    return found, missing


def forgetting(step: Step) -> dict[str, float]:
    """Outcome -> mean over its tasks of the test score before the phase minus that after it; without outcomes of no task."""
    before, after = (_means(Checkpoint(node)) for node in (step.parent, step.node))
    tasks = [task for task in after if task in before]
    sets = {
        "others": [t for t in tasks if t not in step.new],
        "earlier": [t for t in tasks if t in step.earlier],
    }
    return {name: mean([before[t] - after[t] for t in own]) for name, own in sets.items() if own}


def _means(checkpoint: Checkpoint) -> dict[str, float]:
    table = checkpoint.table
    rows = table[(table["metric"] == "score") & (table["split"] == "test")]
    return {str(task): float(value) for task, value in rows.groupby("task")["value"].mean().items()}


def predict(
    table: pd.DataFrame,
    known: Sequence[Step],
    losses: Sequence[Mapping[str, float]],
    *,
    count: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Of every headline, role and outcome the Spearman correlation with forgetting: over all steps, within phases, within places.

    Within: both sides minus their phase's mean, so that a difference between phases (creative ones move more than others)
    predicts nothing; `place`: minus the mean of the same phase after as many phases, so that neither does that first
    phases move the model more and have more to gain. Steps share what they were trained from, so that percentile intervals over steps are rather too narrow;
    many measures are asked, of which 1 - level exclude 0 by chance.

    Args:
        table: the long table of probes.
        known: steps with (node, parent) in it.
        losses: `forgetting` of each.
        count: resamples.
        level: coverage of the intervals.
        seed: of the resampling.
    """
    pairs = by_pair(table)
    found = []
    for headline in HEADLINES:
        for role in ROLES:
            values = [_value(headline, role, pairs.get((s.node, s.parent), {}), s) for s in known]
            for outcome in OUTCOMES:
                used = [i for i, v in enumerate(values) if v is not None and outcome in losses[i]]
                if len(used) < MIN_ITEMS:
                    continue
                x = np.array([values[i] for i in used], dtype=float)
                y = np.array([losses[i][outcome] for i in used])
                phases = [(known[i].phase,) for i in used]
                places = [(known[i].phase, known[i].place) for i in used]
                row: dict[str, Any] = {
                    "probe": headline.probe,
                    "measure": headline.measure,
                    "label": headline.label,
                    "role": role,
                    "outcome": outcome,
                    "steps": len(used),
                }
                key = (headline.probe, headline.measure, role, outcome)
                sides = {
                    "all": (x, y),
                    "within": (_within(x, phases), _within(y, phases)),
                    "place": (_within(x, places), _within(y, places)),
                }
                for name, (a, b) in sides.items():
                    rng = numpy_stream("predict", seed, *key, name)
                    if len(a) < MIN_ITEMS:
                        row[name] = {"spearman": math.nan, "low": math.nan, "high": math.nan}
                        continue
                    one = correlations(a, b, count=count, level=level, rng=rng)["spearman"]
                    row[name] = {"spearman": one.value, "low": one.low, "high": one.high}
                found.append(row)
    return found


def _value(headline: Headline, role: str, found: Measures, step: Step) -> float | None:
    own = headline.by_task(found)
    if headline.measure in SCORED and role != "new":  # a loss of score would be predicted by itself
        return None
    if role == "all":
        return headline.value(found)
    chosen = [v for t, v in own.items() if t != ALL and (t in step.new) == (role == "new")]
    return mean(chosen) if chosen and not any("+" in task for task in own) else None


def _within(values: np.ndarray, groups: Sequence[tuple[str | int, ...]]) -> np.ndarray:
    """Minus the mean of the own group, without those that are alone in theirs.

    >>> _within(np.array([1.0, 3.0, 5.0]), [("a",), ("a",), ("b",)]).tolist()
    [-1.0, 1.0]
    """
    members: dict[tuple[str | int, ...], list[float]] = {}
    for value, group in zip(values.tolist(), groups, strict=True):
        members.setdefault(group, []).append(value)
    found = [
        value - mean(members[group])
        for value, group in zip(values.tolist(), groups, strict=True)
        if len(members[group]) > 1
    ]
    return np.round(np.array(found), 12)  # equal ones stay equal
