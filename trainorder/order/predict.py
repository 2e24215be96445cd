"""What an order will score: the gain matrix of the additive model, and final scores under several assumptions.

Every predictor is a function of measured scores and an order of phases; PREDICTORS lists them. They differ in what they
keep of Omni-Thinker's two assumptions (transfer does not depend on the start; training a task restores its best).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

Array = np.ndarray
FLOOR = 0.02
"""Added to both sides of a ratio of scores, so that a task near 0 does not multiply others' noise."""
PRIOR = 1e-3
"""Weight of the additive model in the slopes of `stage_delta`, as a sum of squared score changes (about .03 squared)."""


@dataclass(frozen=True)
class Step:
    """One measured phase: the scores before and after it; `phase` was trained on top of `before`."""

    phase: str
    before: Float[Array, "*draw task"]
    after: Float[Array, "*draw task"]
    node: str = ""
    """The checkpoint it led to; a predictor leaves out the steps of the order that it predicts."""


@dataclass(frozen=True)
class Measured:
    """What was measured of single phases, pairs and longer sequences."""

    base: Float[Array, "*draw task"]
    after: Mapping[str, Float[Array, "*draw task"]]
    """Phase -> scores once it alone was trained from the base."""
    phase_tasks: Mapping[str, Sequence[int]]
    """Phase -> columns of the tasks it trains."""
    pairs: Mapping[tuple[str, str], Float[Array, "*draw task"]] = field(default_factory=dict)
    """(j, k) -> what phase k changed when it was trained right after j, which was trained from the base."""
    steps: Sequence[Step] = ()
    """Phases trained from another checkpoint than the base."""


Predictor = Callable[[Measured, Sequence[str], frozenset[str]], Float[Array, "*draw task"] | None]
"""(what was measured, order, nodes of that order to leave out) -> final scores, None if too little was measured."""


def gains(
    base: Float[Array, "*draw task"],
    after: Float[Array, "*draw phase task"],
    phase_tasks: Sequence[Sequence[int]],
) -> Float[Array, "*draw phase phase"]:
    """gain[j, k]: what training phase k after phase j adds to the mean final score of all tasks that phases train.

    The sum over the tasks t of j (those that k does not train itself) of after[k, t] - base[t], divided by the number
    of tasks trained by any phase: so an order's value is in points of the final mean.

    >>> base, after = np.array([.4, .5]), np.array([[.8, .5], [.3, .9]])
    >>> gains(base, after, [[0], [1]]).round(4).tolist()
    [[0.0, -0.05], [0.0, 0.0]]
    """
    n = len(phase_tasks)
    num_tasks = len({task for tasks in phase_tasks for task in tasks})
    change = after - base[..., None, :]
    gain = np.zeros((*change.shape[:-2], n, n))
    for j in range(n):
        for k in range(n):
            touched = [task for task in phase_tasks[j] if task not in phase_tasks[k]]
            gain[..., j, k] = change[..., k, touched].sum(-1) / num_tasks
    return gain


def additive(
    measured: Measured, order: Sequence[str], without: frozenset[str] = frozenset()
) -> Float[Array, "*draw task"]:
    """Both assumptions: the score after its own last phase from the base, plus each later phase's change from the base.

    >>> m = Measured(np.array([.4, .5]), {"a": np.array([.8, .5]), "b": np.array([.3, .9])}, {"a": [0], "b": [1]})
    >>> additive(m, ["a", "b"]).round(4).tolist(), additive(m, ["b", "a"]).round(4).tolist()
    ([0.7, 0.9], [0.8, 0.9])
    """
    final = np.array(measured.base, dtype=float)
    for phase in order:
        own = list(measured.phase_tasks[phase])
        moved = final + (measured.after[phase] - measured.base)
        moved[..., own] = measured.after[phase][..., own]
        final = moved
    return final


def multiplicative(
    measured: Measured, order: Sequence[str], without: frozenset[str] = frozenset()
) -> Float[Array, "*draw task"]:
    """As `additive`, but a later phase keeps the same share of a score instead of taking the same points.

    A ratio is (after + FLOOR) / (base + FLOOR); scores are held within [0, 1].

    >>> m = Measured(np.array([.4, .5]), {"a": np.array([.8, .5]), "b": np.array([.2, .9])}, {"a": [0], "b": [1]})
    >>> multiplicative(m, ["a", "b"]).round(3).tolist()  # .22 / .42 of .82, less the .02
    [0.41, 0.9]
    """
    final = np.array(measured.base, dtype=float)
    for phase in order:
        own = list(measured.phase_tasks[phase])
        kept = (measured.after[phase] + FLOOR) / (measured.base + FLOOR)
        moved = np.clip((final + FLOOR) * kept - FLOOR, 0.0, 1.0)
        moved[..., own] = measured.after[phase][..., own]
        final = moved
    return final


def two_stage(
    measured: Measured, order: Sequence[str], without: frozenset[str] = frozenset()
) -> Float[Array, "*draw task"] | None:
    """As `additive`, but with the change that a phase makes to a task right after that task was trained.

    Omni-Thinker's matrix is measured from the base, where a task is not trained yet, and its signs can differ. Needs
    every pair j, k of the order with j first; None without. Tasks that no phase of the order trains add up from the base.
    """
    final = np.array(measured.base, dtype=float)
    owner: dict[int, str] = {}
    for phase in order:
        own = set(measured.phase_tasks[phase])
        moved = final + (measured.after[phase] - measured.base)
        for task in range(final.shape[-1]):
            earlier = owner.get(task)
            if task in own:
                moved[..., task] = measured.after[phase][..., task]
            elif earlier is not None:
                change = measured.pairs.get((earlier, phase))
                if change is None:
                    return None
                moved[..., task] = final[..., task] + change[..., task]
        owner.update(dict.fromkeys(own, phase))
        final = moved
    return final


def stage_delta(
    measured: Measured, order: Sequence[str], without: frozenset[str] = frozenset()
) -> Float[Array, "*draw task"]:
    """Each phase's change from the base, extrapolated to where the order stands (after FUT, arXiv 2505.22042).

    The change of a phase is its change from the base plus slope x (score now - score of the base). One slope for a
    phase's own tasks and one for the others are fitted by least squares to the measured steps that are not part of
    this order. Own slope -1 and other slope 0 are Omni-Thinker's assumptions, and what is used without such steps.
    """
    own_slope, other_slope = slopes(measured, without)
    return extrapolate(measured, order, own_slope, other_slope)


def extrapolate(
    measured: Measured,
    order: Sequence[str],
    own_slope: Float[Array, "*draw"] | float,
    other_slope: Float[Array, "*draw"] | float,
) -> Float[Array, "*draw task"]:
    """Final scores from single phases with a change that is linear in the score it starts from.

    >>> base = np.array([0.0])  # a quadratic loss pulls half of the way to 1 (a) or to 3 (b): slope -1/2
    >>> m = Measured(base, {"a": np.array([.5]), "b": np.array([1.5])}, {"a": [0], "b": [0]})
    >>> float(extrapolate(m, ["a", "b"], -.5, 0)[0]), float(extrapolate(m, ["b", "a"], -.5, 0)[0])
    (1.75, 1.25)
    """
    final = np.array(measured.base, dtype=float)
    for phase in order:
        own = list(measured.phase_tasks[phase])
        slope = np.empty(final.shape)
        slope[...] = np.asarray(other_slope)[..., None]
        slope[..., own] = np.asarray(own_slope)[..., None]
        final = final + (measured.after[phase] - measured.base) + slope * (final - measured.base)
    return final


def slopes(
    measured: Measured, without: frozenset[str] = frozenset()
) -> tuple[Float[Array, "*draw"], Float[Array, "*draw"]]:
    """(own, other): how a phase's change of a task depends on the score the task starts from, per point of score.

    Least squares through 0 of (change - change from the base) on (start - base), pulled to (-1, 0) by PRIOR. Noise of
    the starting score enters both sides and pulls a slope towards -1.
    """
    shape = measured.base.shape[:-1]
    sums = {name: [np.full(shape, PRIOR), np.full(shape, PRIOR * p)] for name, p in ASSUMED.items()}
    for step in measured.steps:
        if step.node in without or step.phase not in measured.after:
            continue
        own = set(measured.phase_tasks[step.phase])
        x = step.before - measured.base
        y = (step.after - step.before) - (measured.after[step.phase] - measured.base)
        for task in range(x.shape[-1]):
            total = sums["own" if task in own else "other"]
            total[0] = total[0] + x[..., task] ** 2
            total[1] = total[1] + x[..., task] * y[..., task]
    return sums["own"][1] / sums["own"][0], sums["other"][1] / sums["other"][0]


ASSUMED = {"own": -1.0, "other": 0.0}
"""The slopes that Omni-Thinker assumes: training restores the same score; transfer does not depend on the start."""

PREDICTORS: Mapping[str, Predictor] = {
    "additive": additive,
    "multiplicative": multiplicative,
    "two_stage": two_stage,
    "stage_delta": stage_delta,
}
"""Name -> predictor."""
