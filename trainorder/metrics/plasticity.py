"""Plasticity: whether a checkpoint still learns as the base does, and what in its network says so.

The probe: train the same short phase from the checkpoint and from the base, and compare the two learning curves. Here
every phase of an order is such a probe, since the same phase was also trained from the base.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

DORMANT = 0.025
"""A unit below this share of its layer's mean activation is dormant (Sokar et al., arXiv 2302.12902)."""


def area_ratio(curve: Sequence[float], base_curve: Sequence[float]) -> float:
    """Area under the learning curve over that from the base: below 1, the checkpoint learns less in the same steps.

    nan where the base's area is 0 or a curve is empty.

    >>> round(area_ratio([.2, .4, .6], [.4, .6, .8]), 3)  # .4 / .6
    0.667
    """
    if not curve or not base_curve:
        return float("nan")
    base = float(np.mean(base_curve))
    return float(np.mean(curve)) / base if base else float("nan")


def steps_to_threshold(curve: Sequence[float], threshold: float) -> int | None:
    """Index of the first value that reaches the threshold; None if none does.

    >>> steps_to_threshold([.2, .4, .6], .4), steps_to_threshold([.2, .4], .9)
    (1, None)
    """
    return next((step for step, value in enumerate(curve) if value >= threshold), None)


def dormant_fraction(
    activations: Float[np.ndarray, "sample unit"], *, threshold: float = DORMANT
) -> float:
    """Share of a layer's units whose mean |activation| is at most `threshold` of the layer's mean.

    >>> dormant_fraction(np.array([[0., 1., 1., 2.]]))
    0.25
    """
    score = np.abs(activations).mean(0)
    mean = score.mean()
    return float((score <= threshold * mean).mean()) if mean > 0 else 1.0


def effective_rank(singular_values: Float[np.ndarray, " value"], *, delta: float = 0.01) -> int:
    """srank: the fewest largest singular values that hold 1 - delta of their sum (Kumar et al., arXiv 2010.14498).

    >>> effective_rank(np.array([3., 1., 0.]), delta=0.3), effective_rank(np.array([3., 1., 0.]))
    (1, 2)
    """
    values = np.sort(np.asarray(singular_values, dtype=float))[::-1]
    total = values.sum()
    if total <= 0:
        return 0
    return int((np.cumsum(values) < (1 - delta) * total - 1e-12).sum()) + 1
