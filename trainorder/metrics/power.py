"""How many seeds and problems detect a difference of two arms, from the variance that an experiment has shown.

An experiment of other size is simulated from that variance and judged by the intervals that judge the real one
(trainorder/metrics/statistics.py), so the answer holds for the verdict as it is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy import special

from trainorder.metrics import statistics

Array = np.ndarray
DIFFERENCES = (0.01, 0.02, 0.03, 0.05)
"""Differences of mean scores that are asked for by default."""
POWER = 0.8
MAX_SEEDS = 30
"""More seeds than this are not looked for."""
FINE = 8
"""Numbers of problems are looked for in steps of 2 ** (1 / FINE)."""
LARGEST = 6
"""At most 2 ** LARGEST times the present problems are looked for."""
DRAWS = 150
SAMPLES = 240
"""Simulated differences behind a share; its standard error is about .02."""


@dataclass(frozen=True)
class Noise:
    """Variances of the difference of two typical arms, of one seed and the present problems."""

    runs: float | None
    """Between runs, beyond what problems explain; None with one seed."""
    problems: float
    """By the choice of problems, where all seeds answer the same; with one seed its answers' noise too."""
    answers: float
    """By a run's own answers to the problems; 0 with one seed."""
    arms: int
    """Different arms that are compared at once."""
    seeds: int
    num_problems: int

    def error(self, seeds: int, num_problems: int) -> float:
        """Standard deviation of a measured difference; with one seed measured, of problems alone.

        >>> round(Noise(0.0004, 0.0002, 0.0, 4, 3, 100).error(2, 100), 3)
        0.02
        """
        share = self.num_problems / num_problems
        variance = (self.runs or 0.0) / seeds + share * (self.problems + self.answers / seeds)
        return math.sqrt(variance)


def noise(values: Float[Array, "arm seed draw"], num_problems: int) -> Noise:
    """The variances that scores of two or more different arms show; draws are resamples of problems, draw 0 the data."""
    num_arms, num_seeds = values.shape[:2]
    if num_arms < 2:
        raise ValueError(f"a difference needs 2 or more arms, got {num_arms}")
    first, second = np.triu_indices(num_arms, k=1)
    pairs = values[first] - values[second]
    of_mean = float(pairs[..., 1:].mean(-2).var(axis=-1).mean())
    if num_seeds == 1:
        return Noise(None, of_mean, 0.0, num_arms, 1, num_problems)
    shared = float(statistics.own_variance(pairs).mean())
    answers = num_seeds * shared
    between = float(pairs[..., 0].var(axis=-1, ddof=1).mean())
    runs, problems = max(between - answers, 0.0), max(of_mean - shared, 0.0)
    return Noise(runs, problems, answers, num_arms, num_seeds, num_problems)


def simulated(
    noise: Noise, seeds: int, num_problems: int, worlds: int, rng: np.random.Generator
) -> Float[Array, "world arm seed draw"]:
    """Scores of equal arms in experiments of that size, as `measure` sees them."""
    share = noise.num_problems / num_problems
    size = (worlds, noise.arms)
    runs = rng.normal(size=(*size, seeds, 1)) * math.sqrt((noise.runs or 0.0) / 2)
    shared = rng.normal(size=(*size, 1, DRAWS + 1)) * math.sqrt(share * noise.problems / 2)
    answers = rng.normal(size=(*size, seeds, DRAWS + 1)) * math.sqrt(share * noise.answers / 2)
    found = runs + shared + answers
    found[..., 1:] += found[..., :1] - runs  # draws move around the data
    return found


def reached(
    noise: Noise,
    seeds: int,
    num_problems: int,
    differences: Iterable[float],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> list[float]:
    """Share of experiments of that size that detect each difference of two of their arms, with its sign."""
    rng = np.random.default_rng([seed, seeds])
    arms = noise.arms - noise.arms % 2
    worlds = math.ceil(2 * SAMPLES / arms)
    scores = simulated(noise, seeds, num_problems, worlds, rng)
    half = statistics.simultaneous(scores, num_problems=num_problems, level=level, rng=rng)
    pairs = (scores[:, 0:arms:2] - scores[:, 1:arms:2]).reshape(-1, seeds, DRAWS + 1)
    found = statistics.intervals(pairs, statistics.draw_seeds(seeds, DRAWS, rng), level=level)
    wide = half[:, np.arange(0, arms, 2), np.arange(1, arms, 2)].ravel()
    ends = [(one.low, one.high) for one in map(statistics.Interval.widened, found, wide.tolist())]
    low, high = np.array(
        ends
    ).T  # of a difference of 0; d moves both, and either sign may be the true one
    return [float(((low + d > 0).mean() + (high - d < 0).mean()) / 2) for d in differences]


@dataclass
class Sizing:
    """What detects a difference, at one level and power."""

    noise: Noise
    level: float = 0.95
    power: float = POWER
    differences: tuple[float, ...] = DIFFERENCES
    _known: dict[tuple[int, int], list[float]] = field(default_factory=dict, repr=False)

    def at(self, seeds: int, num_problems: int) -> list[float]:
        """`reached` by every difference."""
        key = seeds, num_problems
        if key not in self._known:
            self._known[key] = reached(self.noise, *key, self.differences, level=self.level)
        return self._known[key]

    def seeds(self, i: int) -> int | None:
        """The fewest seeds that detect difference `i` with the present problems.

        None: one seed was measured, or MAX_SEEDS are too few.
        """
        if self.noise.runs is None:
            return None
        problems = self.noise.num_problems
        found = self._first(i, [(n, problems) for n in range(2, MAX_SEEDS + 1)])
        return found and found[0]

    def problems(self, i: int) -> int | None:
        """The fewest problems, of all trained tasks together, that detect difference `i` with the present seeds.

        None: no number does, or none that is at most 2 ** LARGEST times the present one.
        """
        steps = range(-FINE * LARGEST, FINE * LARGEST + 1)
        counts = [max(2, round(self.noise.num_problems * 2 ** (k / FINE))) for k in steps]
        found = self._first(i, [(self.noise.seeds, count) for count in dict.fromkeys(counts)])
        return found and found[1]

    def _first(self, i: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
        """The first of growing sizes that reaches the power.

        Below the size that would do for two arms and a known variance none does; small sizes are tried before large ones.
        """
        least = float(special.ndtri((1 + self.level) / 2) + special.ndtri(self.power))
        possible = [n for n in sizes if least * self.noise.error(*n) <= self.differences[i]]
        low, end, step = 0, 0, 1
        if not possible:
            return None
        while self.at(*possible[end])[i] < self.power:
            if end == len(possible) - 1:
                return None
            low, end, step = end + 1, min(end + step, len(possible) - 1), 2 * step
        while low < end:
            middle = (low + end) // 2
            enough = self.at(*possible[middle])[i] >= self.power
            low, end = (low, middle) if enough else (middle + 1, end)
        return possible[end]
