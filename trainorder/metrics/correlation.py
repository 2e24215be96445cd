"""Correlation of predicted with measured values, with intervals over the choice of items."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

MIN_ITEMS = 3
"""Below this number of items a correlation says nothing."""
MIN_ITEMS_INTERVAL = 8
"""Below this number of items a percentile interval covers too little: in simulation 65 % at 5 items and a true .95."""


@dataclass(frozen=True)
class Correlation:
    """A correlation; the interval is nan below MIN_ITEMS_INTERVAL items or where one side does not vary."""

    value: float
    low: float
    high: float


def pearson(x: Float[np.ndarray, " item"], y: Float[np.ndarray, " item"]) -> float:
    """Linear correlation; nan where one side does not vary.

    >>> round(pearson(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])), 4)
    0.5
    """
    dx, dy = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(dx @ dx) * float(dy @ dy))
    return float(dx @ dy) / scale if scale > 1e-15 else math.nan


def spearman(x: Float[np.ndarray, " item"], y: Float[np.ndarray, " item"]) -> float:
    """Rank correlation; equal values share their mean rank.

    >>> round(spearman(np.array([1.0, 2.0, 90.0]), np.array([1.0, 2.0, 3.0])), 4)
    1.0
    """
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: Float[np.ndarray, " item"]) -> Float[np.ndarray, " item"]:
    _, group, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def correlations(
    x: Float[np.ndarray, " item"],
    y: Float[np.ndarray, " item"],
    *,
    count: int = 2000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> dict[str, Correlation]:
    """`pearson` and `spearman`, with percentile intervals over `count` resamples of the items.

    The items' noise is in the data, and is not added a second time: that would pull every resample towards 0. Items
    that share training (orders with a common beginning) are not independent, so the interval is rather too narrow.
    """
    found = {"pearson": pearson(x, y), "spearman": spearman(x, y)}
    items = len(x)
    if items < MIN_ITEMS_INTERVAL or any(math.isnan(v) for v in found.values()):
        return {name: Correlation(value, math.nan, math.nan) for name, value in found.items()}
    picks = rng.integers(items, size=(count, items))
    counts = np.stack([np.bincount(row, minlength=items) for row in picks])
    drawn = {"pearson": _rows(x, y, counts), "spearman": resampled_spearman(x, y, counts)}
    return {name: Correlation(found[name], *edges(drawn[name], level)) for name in found}


def edges(drawn: Float[np.ndarray, " draw"], level: float) -> tuple[float, float]:
    """Percentile interval of resampled values; nan of none."""
    if np.isnan(drawn).all():
        return math.nan, math.nan
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_spearman(
    x: Float[np.ndarray, " item"],
    y: Float[np.ndarray, " item"],
    counts: Num[np.ndarray, "draw item"],
) -> Float[np.ndarray, " draw"]:
    """Rank correlation of every resample, which holds item i `counts[draw, i]` times; nan where one side does not vary.

    >>> x, y = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
    >>> resampled_spearman(x, y, np.array([[1, 1, 1], [1, 0, 2]])).round(4).tolist()
    [0.5, 1.0]
    """
    return _rows(_mean_ranks(x, counts), _mean_ranks(y, counts), counts)


def _rows(
    x: Float[np.ndarray, "*draw item"],
    y: Float[np.ndarray, "*draw item"],
    counts: Num[np.ndarray, "draw item"],
) -> Float[np.ndarray, " draw"]:
    """Linear correlation of every resample; nan where one side does not vary."""
    size = np.maximum(counts.sum(1, keepdims=True), 1)
    dx, dy = (side - (counts * side).sum(1, keepdims=True) / size for side in (x, y))
    scale = np.sqrt((counts * dx**2).sum(1) * (counts * dy**2).sum(1))
    known = scale > 1e-15
    return np.where(known, (counts * dx * dy).sum(1) / np.where(known, scale, 1.0), np.nan)


def _mean_ranks(
    x: Float[np.ndarray, " item"], counts: Num[np.ndarray, "draw item"]
) -> Float[np.ndarray, "draw item"]:
    """Ranks within every resample; equal values share their mean rank."""
    _, group, sizes = np.unique(x, return_inverse=True, return_counts=True)
    upto = counts[:, np.argsort(group, kind="stable")].cumsum(1)[:, sizes.cumsum() - 1]
    own = np.diff(upto, prepend=0)
    return (upto - (own - 1) / 2)[:, group]
