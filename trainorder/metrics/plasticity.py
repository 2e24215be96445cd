"""Plasticity: whether a checkpoint still learns as the base does.

The probe: train the same short phase from the checkpoint and from the base, and compare the two learning curves. Here
every phase of an order is such a probe, since the same phase was also trained from the base.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
