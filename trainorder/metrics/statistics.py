"""How sure a measured difference is: intervals over problems and training seeds, and small exact formulas.

Every checkpoint answers the same problems, so arms are compared in pairs: one draw of problems serves all of them. A
*draw* is a reweighting of problems and seeds; draw 0 is the data itself, the others are bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

FEW_SEEDS = 5
"""Below this number of seeds their variance is hardly known, so an interval also covers Student's over the seeds."""
POOLED = 2
"""Degrees of freedom that the mean over pairs weighs in the variance between the runs of a pair."""
INDEPENDENT = 0.3
"""Degrees of freedom that runs of independent, equal arms weigh in the covariance that runs are drawn from."""
ROUNDING = 1e-9
"""An interval that ends this close to a number touches it: equal scores may differ in their last bits."""

Pair = tuple[float, float]


class Verdict(StrEnum):
    """How far a difference is decided; the only words for it in results, page, terminal and artifacts."""

    SETTLED = "settled"
    """It holds over problems and over training runs."""
    PROBLEMS = "on these problems only"
    """It holds over problems; with one seed nothing is known about another training run."""
    OPEN = "open"
    """The data cannot decide."""


def verdict(separated: bool, num_seeds: int) -> Verdict:
    """The verdict on a difference whose interval does (`separated`) or does not exclude 0.

    >>> verdict(True, 3).value, verdict(True, 1).value, verdict(False, 3).value
    ('settled', 'on these problems only', 'open')
    """
    if not separated:
        return Verdict.OPEN
    return Verdict.SETTLED if num_seeds > 1 else Verdict.PROBLEMS


def side(difference: Mapping[str, Any] | None) -> int:
    """1 or -1 where an interval as JSON lies above or below 0; 0 where it holds 0, has no ends, or there is none.

    >>> side({"low": 0.01, "high": 0.03}), side({"low": -0.03, "high": -0.01}), side({"low": None, "high": None}), side(None)
    (1, -1, 0, 0)
    """
    if difference is None or difference["low"] is None:
        return 0
    return int(difference["low"] > ROUNDING) - int(difference["high"] < -ROUNDING)


def identified(found: str) -> bool:
    """Whether a verdict identifies something: one seed never does.

    >>> identified("settled"), identified("on these problems only")
    (True, False)
    """
    return found == Verdict.SETTLED


@dataclass(frozen=True)
class Interval:
    """A measured value with the interval that covers it at the chosen level.

    With one seed the interval covers problems only: it says nothing about another training run.
    """

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    bootstrap: Pair
    t: Pair | None
    """t-interval over the seeds' own values; None with one seed."""
    p: float
    """Two-sided p-value of the value being 0, from the same standard error as the interval."""

    @property
    def covers(self) -> str:
        """What was resampled."""
        return covers(len(self.by_seed))

    def excludes(self, value: float = 0.0) -> bool:
        """Whether `value` lies outside.

        >>> Interval(0.2, 0.1, 0.3, (0.2,), (0.1, 0.3), None, 0.01).excludes(0.0)
        True
        """
        return self.low > value + ROUNDING or self.high < value - ROUNDING

    def widened(self, half: float) -> Interval:
        """The hull of this interval and value +- half."""
        low, high = min(self.low, self.value - half), max(self.high, self.value + half)
        return replace(self, low=low, high=high)

    def negative(self) -> Interval:
        """The interval of the opposite difference.

        >>> flipped = Interval(0.2, 0.1, 0.4, (0.2,), (0.1, 0.4), None, 0.01).negative()
        >>> flipped.value, flipped.low, flipped.high
        (-0.2, -0.4, -0.1)
        """
        return replace(
            self,
            value=-self.value,
            low=-self.high,
            high=-self.low,
            by_seed=tuple(-x for x in self.by_seed),
            bootstrap=_negative(self.bootstrap),
            t=_negative(self.t) if self.t else None,
        )


def _negative(pair: tuple[float, float]) -> tuple[float, float]:
    return -pair[1], -pair[0]


def covers(num_seeds: int) -> str:
    """What an interval from that many seeds covers.

    >>> covers(1), covers(3)
    ('problems', 'seeds and problems')
    """
    return "problems" if num_seeds == 1 else "seeds and problems"


def draw_problems(
    num_problems: int, count: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw problem"]:
    """Weights of the problems in draw 0 (all equal) and in `count` bootstrap resamples; rows sum to 1."""
    picks = rng.integers(num_problems, size=(count, num_problems))
    flat = (picks + num_problems * np.arange(count)[:, None]).ravel()
    counts = np.bincount(flat, minlength=count * num_problems).reshape(count, num_problems)
    return np.vstack([np.ones(num_problems), counts]) / num_problems


def draw_seeds(
    num_seeds: int, count: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw seed"]:
    """Weights of the seeds in draw 0 (all equal) and in `count` bootstrap resamples; rows sum to 1.

    A plain bootstrap of S seeds shows (S - 1) / S of their variance, which is half of it with two seeds; so deviations
    from equal weights are stretched by sqrt(S / (S - 1)).
    """
    weights = draw_problems(num_seeds, count, rng)
    stretch = math.sqrt(num_seeds / (num_seeds - 1)) if num_seeds > 1 else 0.0
    return 1 / num_seeds + stretch * (weights - 1 / num_seeds)


def run_error(values: Float[np.ndarray, "seed draw item"]) -> float:
    """Standard error of means over seeds that runs alone make, pooled over items of one kind; 0 with one seed.

    Draws of problems show the rest: that of problems, which the mean over seeds of every draw holds.
    """
    num_seeds = len(values)
    if num_seeds == 1 or not values.shape[2]:
        return 0.0
    of_seeds = float(values[:, 0].var(axis=0, ddof=1).mean()) / num_seeds
    shared = float(own_variance(np.moveaxis(values, -1, 0)).mean())
    return math.sqrt(max(of_seeds - shared, 0.0))


def interval(
    values: Float[np.ndarray, "seed draw"],
    seeds: Float[np.ndarray, "draw seed"],
    *,
    level: float = 0.95,
) -> Interval:
    """`intervals` of one value."""
    return intervals(values[None], seeds, level=level)[0]


def intervals(
    values: Float[np.ndarray, "item seed draw"],
    seeds: Float[np.ndarray, "draw seed"],
    *,
    level: float = 0.95,
) -> list[Interval]:
    """Interval of every item's mean over seeds, from draws of problems that all seeds share.

    One seed: percentiles over draws, for problems only. Two or more: value +- t(df) x standard error, whose variance is
    that of the seeds' means / S plus that over problems, less the part that both contain; df by Satterthwaite, since
    few seeds tell their variance badly. Below 5 seeds it is widened to Student's interval over the seeds' own values.
    `bootstrap` holds the plain percentiles over draws of seeds and problems, to compare.
    """
    if not len(values):
        return []
    own, num_seeds = values[..., 0], values.shape[1]
    means = np.einsum("isd,ds->id", values, seeds)
    low, high = bootstrap = np.quantile(means[:, 1:], [(1 - level) / 2, (1 + level) / 2], axis=1)
    value, t = own.mean(1), None
    if num_seeds == 1:
        p = _two_sided(value, means[:, 1:].std(1), np.full(len(value), math.inf))
    else:
        error, freedom = mean_error(values)
        half = special.stdtrit(freedom, (1 + level) / 2) * error
        p = _two_sided(value, error, freedom)
        low, high = value - half, value + half
        error = own.std(1, ddof=1) / math.sqrt(num_seeds)
        half = float(special.stdtrit(num_seeds - 1, (1 + level) / 2)) * error
        t = np.stack([value - half, value + half])
        if num_seeds < FEW_SEEDS:
            low, high = np.minimum(low, t[0]), np.maximum(high, t[1])
            p = np.maximum(p, _two_sided(value, error, np.full(len(value), num_seeds - 1.0)))
    return [
        Interval(
            float(value[i]),
            float(low[i]),
            float(high[i]),
            tuple(own[i].tolist()),
            _pair(bootstrap[:, i]),
            None if t is None else _pair(t[:, i]),
            float(p[i]),
        )
        for i in range(len(value))
    ]


def _pair(ends: Float[np.ndarray, " 2"]) -> Pair:
    return float(ends[0]), float(ends[1])


def mean_error(
    values: Float[np.ndarray, "*item seed draw"],
) -> tuple[Float[np.ndarray, "*item"], Float[np.ndarray, "*item"]]:
    """Standard error of the mean over two or more seeds and its degrees of freedom.

    Seeds answer the same problems: the variance over draws of the mean holds what problems have in common, the variance
    between seeds what runs differ in; the noise of a seed on a problem is in both and counted once.
    """
    num_seeds = values.shape[-2]
    of_seeds = values[..., 0].var(axis=-1, ddof=1) / num_seeds
    of_problems = values[..., 1:].mean(-2).var(axis=-1)
    variance = np.maximum(of_seeds + of_problems - own_variance(values), of_seeds)
    variance = np.maximum(variance, of_problems)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.minimum((num_seeds - 1) * (variance / of_seeds) ** 2, 1e9)
    known = variance > ROUNDING**2
    return np.where(known, np.sqrt(variance), 0.0), np.where(known, freedom, math.inf)


def own_variance(values: Float[np.ndarray, "*item seed draw"]) -> Float[np.ndarray, "*item"]:
    """Variance of the mean over two or more seeds by each seed's own noise on problems: in draws and between seeds alike."""
    num_seeds = values.shape[-2]
    around = values[..., 1:] - values[..., 1:].mean(-2, keepdims=True)
    return around.var(axis=-1).sum(-1) / (num_seeds * (num_seeds - 1))


def _of_pairs(values: Float[np.ndarray, "*batch arm seed"]) -> Float[np.ndarray, "*batch pair"]:
    """Variance between runs of every pair's difference."""
    num_arms, num_seeds = values.shape[-2:]
    first, second = np.triu_indices(num_arms, k=1)
    around = values - values.mean(-1, keepdims=True)
    around = around - around.mean(-2, keepdims=True)
    covariance = around @ np.swapaxes(around, -1, -2) / (num_seeds - 1)
    own = np.einsum("...ii->...i", covariance)
    return np.maximum(own[..., first] + own[..., second] - 2 * covariance[..., first, second], 0.0)


def _moderated(
    own: Float[np.ndarray, "*batch pair"], num_seeds: int
) -> Float[np.ndarray, "*batch pair"]:
    """Variances of pairs, pulled to their mean with the weight of POOLED degrees of freedom.

    Few seeds know a pair's variance badly (moderated t; Smyth 2004, doi:10.2202/1544-6115.1027).
    """
    return (POOLED * own.mean(-1, keepdims=True) + (num_seeds - 1) * own) / (POOLED + num_seeds - 1)


def _drawn_runs(
    values: Float[np.ndarray, "*world arm seed"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "*world draw arm seed"]:
    """Runs of equal arms, from the arms' own covariance over seeds, pulled a little to that of independent arms."""
    num_arms, num_seeds = values.shape[-2:]
    around = values - values.mean(-1, keepdims=True)
    around = around - around.mean(-2, keepdims=True)
    pooled = (around**2).sum((-2, -1)) / ((num_arms - 1) * (num_seeds - 1))
    lead = (*values.shape[:-2], count)
    alike = around[..., None, :, :] @ rng.normal(size=(*lead, num_seeds, num_seeds))
    alone = np.sqrt(INDEPENDENT * pooled)[..., None, None, None]
    alone = alone * rng.normal(size=(*lead, num_arms, num_seeds))
    return (alike + alone) / math.sqrt(INDEPENDENT + num_seeds - 1)


def simultaneous(
    values: Float[np.ndarray, "*world arm seed draw"],
    *,
    num_problems: int,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Float[np.ndarray, "*world arm arm"]:
    """Half widths of intervals that cover all paired differences of arms at once (Tukey's, by max |t|).

    A pairwise interval does not cover the difference from an arm that was picked because it scored highest; these do.
    The critical value is a quantile of the largest |t| of any pair, by parametric bootstrap for unequal variances
    (Krishnamoorthy, Lu and Mathew, Computational Statistics & Data Analysis 51, 2007). Each draw of problems moves the arms' runs too and estimates
    every variance again, so arms that vary more, few seeds, few problems and few draws widen what they make uncertain.
    Arms that share checkpoints (orders with a common beginning, merges of the same nodes) move together: runs are drawn
    from the arms' covariance, and a pair's variance is its own. Equal arms have half width 0.
    """
    num_arms, num_seeds, num_draws = values.shape[-3:]
    half = np.zeros((*values.shape[:-3], num_arms, num_arms))
    if num_arms < 2:
        return half
    first, second = np.triu_indices(num_arms, k=1)

    moved = values[..., 1:].mean(-2)
    moved = moved - moved.mean(-1, keepdims=True)
    moved = moved[..., first, :] - moved[..., second, :]
    freedom = 1 / (1 / max(num_problems - 1, 1) + 1 / max(num_draws - 2, 1))
    variance = moved.var(axis=-1, keepdims=True) * num_problems / max(num_problems - 1, 1)
    again = variance * rng.chisquare(freedom, size=(*moved.shape[:-2], 1, num_draws - 1)) / freedom
    if num_seeds > 1:
        own = own_variance(values)
        shared = (own[..., first] + own[..., second])[..., None]
        own = _of_pairs(values[..., 0])
        of_runs = _moderated(own, num_seeds)[..., None] / num_seeds
        variance = np.maximum(variance + np.maximum(of_runs - shared, 0.0), of_runs)
        runs = _drawn_runs(values[..., 0], num_draws - 1, rng)
        weight = INDEPENDENT + num_seeds - 1
        drawn = INDEPENDENT * own.mean(-1, keepdims=True) + (num_seeds - 1) * own
        drawn = drawn[..., None] / (weight * num_seeds)
        share = np.sqrt(np.maximum(drawn - shared, 0.0) / np.maximum(drawn, ROUNDING**2))
        run = np.swapaxes(runs.mean(-1), -1, -2)
        moved = moved + (run[..., first, :] - run[..., second, :]) * share
        of_runs = np.swapaxes(_moderated(_of_pairs(runs), num_seeds), -1, -2) / num_seeds
        again = np.maximum(again + np.maximum(of_runs - shared, 0.0), of_runs)
    known = variance > ROUNDING**2
    known &= (values[..., first, :, :] != values[..., second, :, :]).any((-2, -1))[..., None]
    t = np.where(known, np.abs(moved) / np.sqrt(np.maximum(again, ROUNDING**2)), 0.0).max(-2)
    rank = min(math.ceil(level * num_draws), num_draws - 1) - 1
    critical = np.partition(t, rank, axis=-1)[..., rank, None]
    found = critical * np.sqrt(np.where(known, variance, 0.0))[..., 0]
    half[..., first, second] = half[..., second, first] = found
    return half


def _two_sided(
    value: Float[np.ndarray, " item"],
    error: Float[np.ndarray, " item"],
    freedom: Float[np.ndarray, " item"],
) -> Float[np.ndarray, " item"]:
    ratio = -np.abs(value) / np.maximum(error, ROUNDING)
    tail = np.where(np.isinf(freedom), special.ndtr(ratio), special.stdtr(freedom, ratio))
    return np.where(error > ROUNDING, 2 * tail, np.where(np.abs(value) > ROUNDING, 0.0, 1.0))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: below 1 - level for some name is a false claim in that share of families at most.

    >>> holm({"a": .01, "b": .04, "c": .03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, value) in enumerate(sorted(p.items(), key=lambda entry: entry[1])):
        largest = max(largest, min(1.0, (len(p) - rank) * value))
        adjusted[name] = largest
    return adjusted


def t_interval(values: Float[np.ndarray, " seed"], *, level: float = 0.95) -> Pair:
    """Student's interval of the mean: mean +- t(n - 1) sd / sqrt(n).

    >>> low, high = t_interval(np.array([0.052, 0.027, 0.049]))
    >>> round(low, 4), round(high, 4)
    (0.0088, 0.0766)
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"a t-interval needs 2 or more values, got {n}: add seeds")
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * standard_error(values)
    return float(values.mean()) - half, float(values.mean()) + half


def standard_error(differences: Float[np.ndarray, " problem"]) -> float:
    """Standard error of a mean of paired differences: sd / sqrt(n).

    >>> round(standard_error(np.array([1.0, 1.0, 0.0, -1.0])), 4)
    0.4787
    """
    return float(differences.std(ddof=1)) / math.sqrt(len(differences))


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased pass@k: 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"pass@k needs 1 <= k <= samples and 0 <= correct <= samples, "
            f"got k={k}, samples={num_samples}, correct={num_correct}"
        )
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
