"""How sure a measured difference is: intervals over problems and training seeds, and small exact formulas.

Every checkpoint answers the same problems, so arms are compared in pairs: one draw of problems serves all of them. A
*draw* is a reweighting of problems and seeds; draw 0 is the data itself, the others are bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from jaxtyping import Float
from scipy import special

FEW_SEEDS = 5
"""Below this number of seeds their variance is hardly known, so an interval also covers Student's over the seeds."""
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


def over_seeds(
    values: Float[np.ndarray, "seed draw ..."], seeds: Float[np.ndarray, "draw seed"]
) -> Float[np.ndarray, "draw ..."]:
    """Mean over seeds within each draw, with that draw's weights of the seeds."""
    return np.einsum("sd...,ds->d...", values, seeds)


def resampled(
    values: Float[np.ndarray, "seed draw ..."], seeds: Float[np.ndarray, "draw seed"]
) -> Float[np.ndarray, "draw ..."]:
    """`over_seeds` whose draws vary as the mean over seeds does.

    A draw of problems and a draw of seeds both hold the noise of a seed on a problem, so together they show it twice.
    The deviations from draw 0 are shrunk by one factor for all values.
    """
    drawn = over_seeds(values, seeds)
    num_seeds = len(values)
    shown = float(drawn[1:].var(axis=0).mean())
    if num_seeds == 1 or shown <= ROUNDING**2:
        return drawn
    of_seeds = float(values[:, 0].var(axis=0, ddof=1).mean()) / num_seeds
    together = values[:, 1:].mean(0)
    of_problems = float(together.var(axis=0).mean())
    apart = float((values[:, 1:] - together).var(axis=1).sum(0).mean())
    wanted = max(of_seeds + of_problems - apart / (num_seeds * (num_seeds - 1)), of_problems)
    return drawn[:1] + math.sqrt(min(wanted / shown, 1.0)) * (drawn - drawn[:1])


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


def simultaneous(
    values: Float[np.ndarray, "arm seed draw"],
    *,
    num_problems: int,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Float[np.ndarray, "arm arm"]:
    """Half widths of intervals that cover all paired differences of arms at once (Tukey's, by max |t|).

    A pairwise interval does not cover the difference from an arm that was picked because it scored highest; these do.
    The critical value is a quantile over the draws at hand of the largest |t| of any pair. With two or more seeds the
    arms' runs are moved too, by their residual variance pooled over arms (few seeds know a single pair's badly). The
    quantile is widened for the degrees of freedom of problems, draws and runs. Equal arms have half width 0.
    """
    num_arms, num_seeds, num_draws = values.shape
    half = np.zeros((num_arms, num_arms))
    if num_arms < 2:
        return half
    first, second = np.triu_indices(num_arms, k=1)
    pairs = list(zip(first, second, strict=True))
    moved = values[:, :, 1:].mean(1)
    of_problems = np.array([(moved[i] - moved[j]).var() for i, j in pairs])
    of_problems *= num_problems / max(num_problems - 1, 1)
    freedom_of_problems = 1 / (1 / max(num_problems - 1, 1) + 1 / max(num_draws - 2, 1))
    of_runs, freedom_of_runs, shared = np.zeros_like(of_problems), math.inf, 0.0
    if num_seeds > 1:
        freedom_of_runs = (num_arms - 1) * (num_seeds - 1)
        own = values[:, :, 0]
        residual = own - own.mean(1, keepdims=True) - own.mean(0) + own.mean()
        of_pairs = (own[first] - own[second]).var(axis=1, ddof=1)
        of_runs = np.maximum(of_pairs, 2 * (residual**2).sum() / freedom_of_runs) / num_seeds
        around = values[:, :, 1:] - moved[:, None]
        both = np.array([(around[i] - around[j]).var(axis=1).sum() for i, j in pairs])
        shared = both / (num_seeds * (num_seeds - 1))
    variance = np.maximum(of_runs + of_problems - shared, np.maximum(of_runs, of_problems))
    equal = np.array([np.array_equal(values[i], values[j]) for i, j in pairs])
    known = ~equal & (variance > ROUNDING**2)
    if not known.any():
        return half
    runs = math.sqrt(max(float(np.median((variance - of_problems)[known])) / 2, 0.0))
    moved = moved + runs * rng.normal(size=moved.shape)
    largest = np.zeros(num_draws - 1)
    for i, j in [pair for pair, told in zip(pairs, known, strict=True) if told]:
        t = moved[i] - moved[j]
        np.maximum(largest, np.abs(t - t.mean()) / max(float(t.std()), ROUNDING), out=largest)
    parts = of_runs**2 / freedom_of_runs + of_problems**2 / freedom_of_problems
    freedom = float((variance[known] ** 2 / parts[known]).min())
    largest *= np.sqrt(freedom / rng.chisquare(freedom, size=len(largest)))
    critical = float(np.quantile(largest, level, method="higher"))
    half[first, second] = half[second, first] = critical * np.sqrt(np.where(known, variance, 0.0))
    return half


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
