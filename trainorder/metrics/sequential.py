"""Levels of intervals that are looked at again and again while seeds are added (group-sequential alpha spending).

Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 1983: of the allowed error alpha, the share
1 - 2 / S is spent once S seeds were looked at, whatever number of looks there are and however many follow. What a look may
spend becomes its level through the joint distribution of all looks (Armitage, McPherson and Rowe, 1969): a mean over S seeds
moves as Brownian motion does at time S. Problems are the same at every look, which makes looks more alike and errors rarer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
from scipy import optimize, special

PAIRS = 45
"""Of these many pairs (ten arms) one is looked at with alpha / PAIRS; rarer errors gain more by looking again."""
GRID = 501


def spent(seeds: int) -> float:
    """Share of the allowed error that may be spent by the time that many seeds are looked at.

    >>> [round(spent(seeds), 2) for seeds in (1, 2, 3, 6, 12)]
    [0.0, 0.0, 0.33, 0.67, 0.83]
    """
    return max(0.0, 1 - 2 / seeds)


def level_at(level: float, looks: Iterable[int], seeds: int) -> float:
    """The level of an interval at `seeds` seeds, so that it and those at all other `looks` hold at `level` together.

    Without looks it is `level`. A number of seeds that is in no look is one more. With two seeds or one nothing may be spent: the
    level is 1, and no interval excludes anything. Between two looks (seeds were taken away) it is the strictest level.

    >>> [round(level_at(0.95, [3, 4, 5], seeds), 4) for seeds in (2, 3, 4, 5)]
    [1.0, 0.9833, 0.9873, 0.9907]
    """
    numbers = sorted(set(looks))
    if not numbers:
        return level
    everything = sorted({*numbers, seeds})
    levels = [1 - (1 - level) * share for share in shares(tuple(everything), (1 - level) / PAIRS)]
    passed_by = seeds < numbers[-1] and seeds not in numbers
    return max(levels) if passed_by else levels[everything.index(seeds)]


@lru_cache(maxsize=64)
def shares(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """Two-sided error of each look alone, as a share of alpha; looks are numbers of seeds, ascending."""
    result: list[float] = []
    x = density = np.zeros(0)
    before = 0
    for seeds in looks:
        allowed = alpha * (spent(seeds) - (spent(before) if before else 0.0))
        if allowed <= 0:
            result.append(0.0)
            continue
        scale = math.sqrt(seeds)
        if not len(x):  # the first look that may spend anything
            bound = float(-special.ndtri(allowed / 2)) * scale
            x = np.linspace(-bound, bound, GRID)
            density = np.exp(-(x**2) / (2 * seeds)) / math.sqrt(2 * math.pi * seeds)
        else:
            step = math.sqrt(seeds - before)
            weights = density * (x[1] - x[0])
            weights[[0, -1]] /= 2

            def beyond(bound: float, x=x, weights=weights, step=step) -> float:
                tails = special.ndtr((-bound - x) / step) + special.ndtr((x - bound) / step)
                return float(weights @ tails)

            bound = _root(beyond, allowed, 20 * scale)
            end = np.linspace(-bound, bound, GRID)
            kernel = np.exp(-((end[:, None] - x) ** 2) / (2 * step**2))
            density = kernel @ weights / (math.sqrt(2 * math.pi) * step)
            x = end
        before = seeds
        result.append(2 * float(special.ndtr(-bound / scale)) / alpha)
    return tuple(result)


def _root(beyond: Callable[[float], float], allowed: float, most: float) -> float:
    """The bound beyond which `allowed` lies, at most `most`."""
    return optimize.root_scalar(lambda b: beyond(b) - allowed, bracket=(0.0, most)).root
