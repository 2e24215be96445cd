"""Continual-learning measures of a reward matrix: what training one phase after another gained and lost.

`scores[..., i, j]` is the score on task j after stage i, both counted from 0 and in training order, so the diagonal is
each task's score just after its own stage. The scores before any stage are `base[..., j]`: a language model starts far
above chance, so its own scores stand where the original papers put a random initialisation. Leading axes (seeds,
resamples) are kept. Measures that need a second stage are nan for one stage.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray
Measure = Float[Array, "*batch"] | np.float64
"""One number per leading index; numpy makes a scalar of it where there is none."""

EXAMPLE = np.array([[0.8, 0.3, 0.2], [0.7, 0.9, 0.4], [0.6, 0.8, 0.7]])
"""Three stages, three tasks: the matrix of every doctest below."""
EXAMPLE_BASE = np.array([0.1, 0.2, 0.3])
"""The scores before the first stage of EXAMPLE."""


def accuracy(scores: Float[Array, "*batch stage task"]) -> Measure:
    """ACC: mean over tasks of the score after the last stage (Lopez-Paz & Ranzato, arXiv 1706.08840).

    >>> float(accuracy(EXAMPLE).round(4))
    0.7
    """
    return scores[..., -1, :].mean(-1)


def backward_transfer(scores: Float[Array, "*batch stage task"]) -> Measure:
    """BWT: mean over all but the last task of R[T,j] - R[j,j] (Lopez-Paz & Ranzato, arXiv 1706.08840).

    Negative: later stages cost earlier tasks. Differs from `backward_transfer_all`, with which it is often confused.

    >>> float(backward_transfer(EXAMPLE).round(4))
    -0.15
    """
    return _mean((scores[..., -1, :] - _diagonal(scores))[..., :-1])


def forward_transfer(
    scores: Float[Array, "*batch stage task"], base: Float[Array, "*batch task"]
) -> Measure:
    """FWT: mean over all but the first task of R[j-1,j] - b[j] (Lopez-Paz & Ranzato, arXiv 1706.08840).

    >>> float(forward_transfer(EXAMPLE, EXAMPLE_BASE).round(4))
    0.1
    """
    before = np.diagonal(scores, offset=1, axis1=-2, axis2=-1)
    return _mean(before - base[..., 1:])


def average_accuracy(scores: Float[Array, "*batch stage task"]) -> Measure:
    """A: mean of R[i,j] over i >= j, the tasks already met (Diaz-Rodriguez et al., arXiv 1810.13166).

    >>> float(average_accuracy(EXAMPLE).round(4))
    0.75
    """
    later, earlier = np.tril_indices(scores.shape[-1])
    return scores[..., later, earlier].mean(-1)


def backward_transfer_all(scores: Float[Array, "*batch stage task"]) -> Measure:
    """BWT_D: mean of R[i,j] - R[j,j] over all i > j (Diaz-Rodriguez et al., arXiv 1810.13166).

    >>> float(backward_transfer_all(EXAMPLE).round(4))
    -0.1333
    """
    later, earlier = np.tril_indices(scores.shape[-1], k=-1)
    return _mean(scores[..., later, earlier] - scores[..., earlier, earlier])


def remembering(scores: Float[Array, "*batch stage task"]) -> Measure:
    """REM = 1 - |min(BWT_D, 0)| (Diaz-Rodriguez et al., arXiv 1810.13166).

    >>> float(remembering(EXAMPLE).round(4))
    0.8667
    """
    return 1.0 - np.abs(np.minimum(backward_transfer_all(scores), 0.0))


def positive_backward_transfer(scores: Float[Array, "*batch stage task"]) -> Measure:
    """BWT+ = max(BWT_D, 0) (Diaz-Rodriguez et al., arXiv 1810.13166).

    >>> float(positive_backward_transfer(EXAMPLE))
    0.0
    """
    return np.maximum(backward_transfer_all(scores), 0.0)


def forward_transfer_all(
    scores: Float[Array, "*batch stage task"], base: Float[Array, "*batch task"] | None = None
) -> Measure:
    """FWT_D: mean of R[i,j] over i < j (Diaz-Rodriguez et al., arXiv 1810.13166), minus b[j] where a base is given.

    >>> float(forward_transfer_all(EXAMPLE).round(4)), float(forward_transfer_all(EXAMPLE, EXAMPLE_BASE).round(4))
    (0.3, 0.0333)
    """
    earlier, later = np.triu_indices(scores.shape[-1], k=1)
    ahead = scores[..., earlier, later]
    return _mean(ahead if base is None else ahead - base[..., later])


def forgetting(
    scores: Float[Array, "*batch stage task"], base: Float[Array, "*batch task"] | None = None
) -> Measure:
    """F: mean over all but the last task of max_{j<=l<T} R[l,j] - R[T,j] (Chaudhry et al., arXiv 1801.10112).

    The maximum starts at the task's own stage (l >= j), as in the authors' code; with `base` it is over all stages
    before the last and the base, as some papers have it. A maximum of noisy scores is biased upwards: identical models
    show a little "forgetting".

    >>> float(forgetting(EXAMPLE).round(4)), float(forgetting(EXAMPLE, EXAMPLE_BASE).round(4))
    (0.15, 0.15)
    """
    stages = scores.shape[-2]
    own = np.tril(np.ones((stages, stages), dtype=bool)) if base is None else True
    best = np.where(own, scores, -np.inf)[..., :-1, :].max(-2, initial=-np.inf)
    if base is not None:
        best = np.maximum(best, base)
    return _mean((best - scores[..., -1, :])[..., :-1])


def intransigence(
    scores: Float[Array, "*batch stage task"], reference: Float[Array, "*batch task"]
) -> Float[Array, "*batch task"]:
    """I[j] = a[j] - R[j,j]: what was not learned although a reference model did (Chaudhry et al., arXiv 1801.10112).

    `reference` is the joint model's score or the single-task specialist's. The paper's reference for task j was trained
    jointly on tasks 1 to j; here the joint model was trained on all tasks, later ones included.

    >>> intransigence(EXAMPLE, np.array([.85, .95, .9])).round(4).tolist()
    [0.05, 0.05, 0.2]
    """
    return reference - _diagonal(scores)


def retention(final: Float[Array, "*batch task"], base: Float[Array, "*batch task"]) -> Measure:
    """Mean over held-out tasks of the final score minus the base's: what no stage trained. Never part of BWT.

    >>> float(retention(np.array([.38, .52]), np.array([.4, .5])).round(4))
    0.0
    """
    return _mean(final - base)


def _diagonal(scores: Float[Array, "*batch stage task"]) -> Float[Array, "*batch task"]:
    return np.diagonal(scores, axis1=-2, axis2=-1)


def _mean(values: Float[Array, "*batch item"]) -> Measure:
    """Mean over the last axis, nan where it is empty."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    return values.mean(-1)
