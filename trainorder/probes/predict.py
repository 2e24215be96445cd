"""Do probes predict forgetting? Over all checkpoints of an experiment, rank correlations with what was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trainorder import paths
from trainorder.config import DEFAULT
from trainorder.metrics.correlation import (
    MIN_ITEMS,
    MIN_ITEMS_INTERVAL,
    edges,
    resampled_spearman,
    spearman,
)
from trainorder.probes.base import ALL, PAIRED, Checkpoint, mean
from trainorder.probes.headlines import HEADLINES, Headline, Measures, by_pair
from trainorder.streams import numpy_stream

if TYPE_CHECKING:
    import pandas as pd

    from trainorder.plan import Plan

TRANSFER = Headline("transfer from the base", "transfer", ALL, "from_base")
"""What the phase alone, trained from the base with the same seed, changed: no probe, but a signal beside them."""
SIGNALS = (*HEADLINES, TRANSFER)
OUTCOMES = ("others", "earlier", "each")
"""Mean loss of score on all tasks that a phase does not train; on those that phases before it trained; and that on each
task that it does not train, one value per task."""
ROLES = ("all", "new", "same")
"""Where a signal looks at tasks: the mean over all, that of the tasks that the phase trains, and of those whose loss it is
to predict."""
SIDES = ("all", "within", "place")
"""All phases as they are; minus the mean of the same phase; minus that of the same phase after as many others."""
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
    seed: int = 0
    branch: str = ""
    """The first node after the base on the way to it: steps of different branches share the base alone."""
    single: tuple[str, str] | None = None
    """(the base, the same phase trained from it with the same seed), where both are evaluated."""


def steps(plan: Plan, variant: str = DEFAULT) -> tuple[list[Step], int]:
    """The trained nodes of a variant that are evaluated, like their parents; and how many are not. In order of parents."""
    params = plan.params.variant(variant)
    found, missing = [], 0
    singles: dict[tuple[str, int, str], str] = {}
    for node in plan.nodes.values():
        if node.phase is None or node.variant != variant or not node.parents:
            continue
        parent = node.parents[0]
        ways, at = [node], plan.nodes[parent]
        while at.parents and at.phase is not None:
            ways.append(at)
            at = plan.nodes[at.parents[0]]
        if len(ways) == 1 and _evaluated(node.id) and _evaluated(parent):
            singles[parent, node.seed, node.phase] = node.id
        if not _evaluated(node.id) or not _evaluated(parent):
            missing += 1
            continue
        new = frozenset(params.phases[node.phase].tasks)
        before = frozenset(t for n in ways[1:] for t in params.phases[n.phase or ""].tasks)
        found.append((node, parent, at.id, ways[-1].id, new, before - new, len(ways) - 1))
    made = []
    for node, parent, base, branch, new, earlier, place in found:
        phase = node.phase or ""
        alone = singles.get((base, node.seed, phase))
        single = None if alone is None else (base, alone)
        made.append(Step(node.id, parent, phase, new, earlier, place, node.seed, branch, single))
    return sorted(made, key=lambda step: step.parent), missing


def _evaluated(node: str) -> bool:
    return paths.evaluation(node).is_file() and paths.checkpoint(node).is_dir()


def losses(known: Sequence[Step]) -> list[dict[str, float]]:
    """Of every step each task's mean test score before the phase minus that after it."""
    means = _means({node for step in known for node in (step.node, step.parent)}, "test")
    return [
        {
            task: means[step.parent][task] - after
            for task, after in means[step.node].items()
            if task in means[step.parent]
        }
        for step in known
    ]


def transfer(known: Sequence[Step]) -> pd.DataFrame:
    """What each step's phase changed on every task when it was trained from the base, as rows of the long table.

    Measured on dev, so that it shares no problem with the forgetting that it is to predict; nothing of a first phase, which is that
    training itself. It needs no training beside one run per phase (Omni-Thinker's matrix, arXiv 2507.14783).
    """
    import pandas as pd

    from trainorder.probes.run import COLUMNS

    later = [step for step in known if step.place and step.single]
    means = _means({node for step in later for node in step.single or ()}, "dev")
    rows = [
        (
            TRANSFER.probe,
            step.node,
            step.parent,
            task,
            ALL,
            TRANSFER.measure,
            value - means[base][task],
        )
        for step in later
        for base, alone in (step.single or ("", ""),)
        for task, value in means[alone].items()
        if task in means[base]
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": "float64"})


def _means(nodes: set[str], split: str) -> dict[str, dict[str, float]]:
    """Node -> task -> mean score."""
    found = {}
    for node in sorted(nodes):
        table = Checkpoint(node).table
        rows = table[(table["metric"] == "score") & (table["split"] == split)]
        means = rows.groupby("task", observed=True)["value"].mean()
        found[node] = {str(task): float(value) for task, value in means.items()}
    return found


def forgetting(step: Step, lost: Mapping[str, float]) -> dict[str, float]:
    """Outcome -> mean over its tasks of their losses; without outcomes of no task.

    >>> step = Step("n", "base", "a", frozenset({"math"}), frozenset({"qa"}), 1)
    >>> forgetting(step, {"math": -0.5, "qa": 0.1, "code": 0.3})
    {'others': 0.2, 'earlier': 0.1}
    """
    return {
        outcome: mean([lost[task] for task in sorted(tasks)])
        for outcome, tasks in _items(step, lost)
        if outcome != "each"
    }


class _Point(NamedTuple):
    """A signal beside a loss."""

    step: int
    tasks: frozenset[str] | None
    """The one task that it is of, where each has its own."""
    value: float
    lost: float


def _items(step: Step, lost: Mapping[str, float]) -> Iterator[tuple[str, frozenset[str]]]:
    """Every outcome with the tasks whose loss it is."""
    others = frozenset(lost) - step.new
    for name, tasks in (("others", others), ("earlier", others & step.earlier)):
        if tasks:
            yield name, tasks
    for task in sorted(others):
        yield "each", frozenset({task})


def predict(
    table: pd.DataFrame,
    known: Sequence[Step],
    lost: Sequence[Mapping[str, float]],
    *,
    count: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Of every signal, role and outcome the Spearman correlation with forgetting: over all steps, within phases, within places.

    Within: both sides minus their phase's mean, so that a difference between phases (creative ones move more than others)
    predicts nothing; `place`: minus the mean of the same phase after as many phases, so that neither does that first
    phases move the model more and have more to gain. Of the outcome `each` the means are those of the phase and the task. `seeds` has the same of every
    seed alone. `strongest` is the share of resamples in which no other row of the outcome has a larger absolute value.

    Intervals resample branches of the plan (a seed's first phase and all that was trained on top of it), which share the base and
    nothing else, where there are `MIN_ITEMS_INTERVAL` of them, as with four phases and two seeds; otherwise steps, which share what they were trained
    from, so that those intervals are too narrow. Many measures are asked, of which 1 - level exclude 0 by chance.

    Args:
        table: the long table of probes, and of `transfer`.
        known: steps with (node, parent) in it.
        lost: `losses` of each.
        count: resamples.
        level: coverage of the intervals.
        seed: of the resampling.
    """
    pairs = by_pair(table)
    cluster = clusters(known)
    rng = numpy_stream("predict", seed)
    draws = rng.multinomial(max(len(set(cluster)), 1), _even(len(set(cluster))), size=count)
    found = []
    for outcome in OUTCOMES:
        of = [
            (i, tasks)
            for i, step in enumerate(known)
            for name, tasks in _items(step, lost[i])
            if name == outcome
        ]
        rows, resampled = list[dict[str, Any]](), list[dict[str, np.ndarray]]()
        for signal in SIGNALS:
            for role in ROLES:
                points = []
                for i, tasks in of:
                    step = known[i]
                    measures = pairs.get((step.node, step.parent), {})
                    value = _value(signal, role, measures, step, tasks)
                    if value is not None:
                        loss = mean([lost[i][task] for task in sorted(tasks)])
                        points.append(_Point(i, tasks if outcome == "each" else None, value, loss))
                if len(points) < MIN_ITEMS:
                    continue
                row: dict[str, Any] = {
                    "probe": signal.probe,
                    "measure": signal.measure,
                    "label": signal.label,
                    "role": role,
                    "outcome": outcome,
                    "steps": len({point.step for point in points}),
                }
                drawn = {}
                for side in SIDES:
                    kept, x, y = _sides(points, known, side)
                    counts = draws[:, [cluster[i] for i in kept]].astype(float)
                    drawn[side] = _resampled(x, y, counts)
                    low, high = edges(drawn[side], level)
                    row[side] = {"spearman": _spearman(x, y), "low": low, "high": high}
                    row[side]["seeds"] = _by_seed(x, y, [known[i].seed for i in kept])
                rows.append(row)
                resampled.append(drawn)
        for side in SIDES:
            for row, share in zip(rows, _strongest([d[side] for d in resampled]), strict=True):
                row[side]["strongest"] = share
        found += rows
    return found


def clusters(known: Sequence[Step]) -> list[int]:
    """Of every step the number of what is resampled as one: its branch, or itself where branches are too few."""
    names = [step.branch for step in known]
    if len(set(names)) < MIN_ITEMS_INTERVAL:
        return list(range(len(known)))
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return [numbers[name] for name in names]


def _even(count: int) -> np.ndarray:
    return np.full(max(count, 1), 1 / max(count, 1))


def _sides(
    points: Sequence[_Point], known: Sequence[Step], side: str
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Steps, values and losses as one of SIDES compares them."""
    groups: list[tuple[Any, ...]] = []
    for point in points:
        step = known[point.step]
        by_place = (step.place,) if side == "place" else ()
        groups.append((step.phase, point.tasks, *by_place))
    values, lost = (np.array([p[k] for p in points], dtype=float) for k in (2, 3))
    if side == "all":
        return [point.step for point in points], values, lost
    sizes = Counter(groups)
    kept = [p.step for p, group in zip(points, groups, strict=True) if sizes[group] > 1]
    return kept, _within(values, groups), _within(lost, groups)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return spearman(x, y) if len(x) >= MIN_ITEMS else math.nan


def _resampled(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The correlation of every resample; nan where there are too few values for an interval."""
    if len(x) < MIN_ITEMS_INTERVAL or math.isnan(spearman(x, y)):
        return np.full(len(counts), math.nan)
    return resampled_spearman(x, y, counts)


def _by_seed(x: np.ndarray, y: np.ndarray, seeds: Sequence[int]) -> dict[str, float]:
    of = np.array(seeds)
    return {str(seed): _spearman(x[of == seed], y[of == seed]) for seed in sorted(set(seeds))}


def _strongest(drawn: Sequence[np.ndarray]) -> list[float]:
    """Of every row the share of resamples in which it has the largest absolute value; equal ones divide it.

    >>> _strongest([np.array([0.1, -0.9]), np.array([0.5, 0.2]), np.array([-0.5, math.nan])])
    [0.5, 0.25, 0.25]
    """
    if not drawn:
        return []
    sizes = np.nan_to_num(np.abs(np.stack(drawn)), nan=-1.0)
    sizes = sizes[:, sizes.max(0) >= 0]
    first = sizes >= sizes.max(0) - 1e-9
    shares = (first / first.sum(0)).sum(1) / max(sizes.shape[1], 1)
    return [float(share) for share in shares]


def _value(
    signal: Headline, role: str, found: Measures, step: Step, tasks: frozenset[str]
) -> float | None:
    """On which tasks the role says; of pairs of tasks, between those that the phase trains and those whose loss is asked for."""
    own = signal.by_task(found)
    if signal.measure in SCORED and role != "new":  # a loss of score would be predicted by itself
        return None
    if role == "all":
        return signal.value(found)
    if any(PAIRED in task for task in own):
        wanted = {frozenset((a, b)) for a in step.new for b in tasks} if role == "same" else set()
        chosen = [v for task, v in own.items() if frozenset(task.split(PAIRED)) in wanted]
    else:
        wanted = step.new if role == "new" else tasks
        chosen = [v for task, v in own.items() if task in wanted]
    return mean(chosen) if chosen else None


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
