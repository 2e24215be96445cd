"""How sure a measured difference is: intervals over problems and training seeds, and small exact formulas.

Every checkpoint answers the same problems, so arms are compared in pairs: one draw of problems serves all of them. A
*draw* is a reweighting of problems and seeds; draw 0 is the data itself, the others are bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special

FEW_SEEDS = 5
"""Below this number of seeds their variance is hardly known, so an interval also covers Student's over the seeds."""
ROUNDING = 1e-9
"""An interval that ends this close to a number touches it: equal scores may differ in their last bits."""

Pair = tuple[float, float]


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


def over_seeds(
    values: Float[np.ndarray, "seed draw ..."], seeds: Float[np.ndarray, "draw seed"]
) -> Float[np.ndarray, "draw ..."]:
    """Mean over seeds within each draw, with that draw's weights of the seeds."""
    return np.einsum("sd...,ds->d...", values, seeds)


def interval(
    values: Float[np.ndarray, "seed draw"],
    seeds: Float[np.ndarray, "draw seed"],
    *,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean over seeds, from draws of problems that all seeds share.

    One seed: percentiles over draws, for problems only. Two or more: value +- t(df) x standard error, whose variance is
    that of the seeds' means / S plus that over problems, less the part that both contain; df by Satterthwaite, since
    few seeds tell their variance badly. Below 5 seeds it is widened to Student's interval over the seeds' own values.
    `bootstrap` holds the plain percentiles over draws of seeds and problems, to compare.
    """
    means = over_seeds(values, seeds)
    tails = [(1 - level) / 2, (1 + level) / 2]
    edges = np.quantile(means[1:], tails)
    bootstrap = float(edges[0]), float(edges[1])
    by_seed = tuple(float(x) for x in values[:, 0])
    value = float(np.mean(by_seed))
    if len(by_seed) == 1:
        error = float(means[1:].std())
        p = _two_sided(value, error, math.inf)
        return Interval(value, bootstrap[0], bootstrap[1], by_seed, bootstrap, None, p)
    error, freedom = mean_error(values)
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    t = t_interval(values[:, 0], level=level)
    p = _two_sided(value, error, freedom)
    low, high = value - half, value + half
    if len(by_seed) < FEW_SEEDS:
        low, high = min(low, t[0]), max(high, t[1])
        p = max(p, _two_sided(value, standard_error(values[:, 0]), len(by_seed) - 1))
    return Interval(value, low, high, by_seed, bootstrap, t, p)


def mean_error(values: Float[np.ndarray, "seed draw"]) -> Pair:
    """Standard error of the mean over two or more seeds and its degrees of freedom.

    Seeds answer the same problems: the variance over draws of the mean holds what problems have in common, the variance
    between seeds what runs differ in; the noise of a seed on a problem is in both and counted once.
    """
    num_seeds = len(values)
    mean = values[:, 1:].mean(0)
    of_seeds = float(values[:, 0].var(ddof=1)) / num_seeds
    of_problems = float(mean.var())
    shared = float((values[:, 1:] - mean).var(axis=1).sum()) / (num_seeds * (num_seeds - 1))
    variance = max(of_seeds + of_problems - shared, of_seeds, of_problems)
    if variance <= ROUNDING**2:
        return 0.0, math.inf
    weight = variance / of_seeds if of_seeds > 0 else math.inf
    return math.sqrt(variance), min((num_seeds - 1) * weight**2, 1e9)


def _two_sided(value: float, error: float, freedom: float) -> float:
    if error <= ROUNDING:
        return 0.0 if abs(value) > ROUNDING else 1.0
    ratio = -abs(value) / error
    return 2 * float(special.ndtr(ratio) if math.isinf(freedom) else special.stdtr(freedom, ratio))


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


def paired_bootstrap(
    differences: Float[np.ndarray, "seed problem"],
    *,
    count: int = 2000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """Interval of the mean of paired differences, over seeds and problems.

    >>> same = np.full((1, 4), 0.25)
    >>> paired_bootstrap(same, rng=np.random.default_rng(0)).bootstrap
    (0.25, 0.25)
    """
    num_seeds, num_problems = differences.shape
    problems = draw_problems(num_problems, count, rng)
    return interval(differences @ problems.T, draw_seeds(num_seeds, count, rng), level=level)


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


def mcnemar(only_first: int, only_second: int) -> Pair:
    """McNemar's test of paired yes/no answers: statistic (b - c)^2 / (b + c) and its p-value (chi-square, 1 df).

    `only_first` counts problems that only the first arm solves. Without any such problem p is 1.

    >>> statistic, p = mcnemar(30, 10)
    >>> statistic, round(p, 4)
    (10.0, 0.0016)
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 0.0, 1.0
    statistic = (only_first - only_second) ** 2 / discordant
    return statistic, float(special.chdtrc(1, statistic))


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


def minimum_detectable_effect(
    discordance: float, num_problems: int, *, level: float = 0.95, power: float = 0.8
) -> float:
    """Smallest paired difference found with this power: (z_level + z_power) sqrt(q / n).

    `discordance` q is the share of problems on which two arms disagree; sqrt(q / n) is then about the standard error.

    >>> round(minimum_detectable_effect(0.2, 500), 3)
    0.056
    """
    quantiles = special.ndtri((1 + level) / 2) + special.ndtri(power)
    return float(quantiles) * math.sqrt(discordance / num_problems)
