"""Named ways to choose an order from a measured transfer matrix; RULES lists them.

`change[k, j]` is what training phase k does to the tasks of phase j, in points of the final mean: the transpose of
`gains`; the diagonal counts for nothing. A rule of RULES sees that matrix alone, so all rules can be compared on the same
measurement; one of TEXT_RULES sees how alike the phases' prompts are, and no measurement. To add one, write a function and list it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from trainorder.metrics.words import tf_idf
from trainorder.order.search import best_order, heuristic_order

Array = np.ndarray
Rule = Callable[[Float[Array, "phase phase"]], tuple[int, ...]]


def exact(change: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """The best order under additive effects (a linear ordering problem): the later phases harm the earlier least.

    >>> exact(HAND)
    (0, 1, 2)
    """
    return best_order(change.T)


def becker(change: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """Becker's ratio rule with insertion (what `exact` does beyond 12 phases, without its restarts)."""
    return heuristic_order(change.T)


def borda(change: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """First the phase that harms the others most and suffers least from them: the largest difference of sums.

    >>> borda(HAND)
    (0, 1, 2)
    """
    suffers, does = _off_diagonal(change).sum(0), _off_diagonal(change).sum(1)
    return _descending(suffers - does)


def omni_greedy(change: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """Omni-Thinker's scheduler as its reviewers describe it: greedy on the mean score of the tasks that remain.

    Of the phases left, next comes the one whose training raises the others left the most (or costs them the least).
    The paper (arXiv 2507.14783) does not spell the rule out, so this reading is ours.

    >>> omni_greedy(HAND)
    (2, 1, 0)
    """
    left, order = list(range(len(change))), []
    while left:
        means = [_mean([change[k, j] for j in left if j != k]) for k in left]
        order.append(left.pop(int(np.argmax(means))))
    return tuple(order)


def least_forgettable_first(change: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """Forgettability of j: what the other phases cost it on average; the least forgettable is trained first.

    What is forgotten easily then comes last, where little follows it (Omni-Thinker's argument for writing last).

    >>> least_forgettable_first(HAND)
    (0, 1, 2)
    """
    n = max(len(change) - 1, 1)
    return _descending(_off_diagonal(change).sum(0) / n)


def most_forgettable_first(change: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """The opposite of `least_forgettable_first`: a control, as a rule that predicts must beat its reverse."""
    return least_forgettable_first(change)[::-1]


def near_first(change: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """After each phase the one most like it: a curriculum by similarity (arXiv:2211.15470, of which the abstract alone was read).

    Two phases are the more alike the better they do each other, (change[j, k] + change[k, j]) / 2, where the paper compares features
    of classes, as `near_first_by_text` does. First comes the phase most like all others.

    >>> near_first(HAND)
    (1, 2, 0)
    """
    return _chain(_likeness(change))


def far_first(change: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """After each phase the one least like it; first the one least like all others (see `near_first`).

    >>> far_first(HAND)
    (0, 2, 1)
    """
    return _chain(-_likeness(change))


def near_first_by_text(likeness: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """As `near_first`, with features in place of measured transfer: how alike the prompts of two phases are (`word_likeness`).

    >>> near_first_by_text(np.array([[1.0, 0.1, 0.6], [0.1, 1.0, 0.2], [0.6, 0.2, 1.0]]))
    (2, 0, 1)
    """
    return _chain(_likeness(likeness))


def far_first_by_text(likeness: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """After each phase the one whose prompts are least like its own (see `near_first_by_text`).

    >>> far_first_by_text(np.array([[1.0, 0.1, 0.6], [0.1, 1.0, 0.2], [0.6, 0.2, 1.0]]))
    (1, 0, 2)
    """
    return _chain(-_likeness(likeness))


def word_likeness(texts: Sequence[Sequence[str]]) -> Float[Array, "group group"]:
    """Cosine of the mean TF-IDF vectors of every two groups of texts: rows are texts, words are split at spaces.

    >>> word_likeness([["add one", "add two"], ["add one"], ["write a poem"]]).round(2).tolist()
    [[1.0, 0.82, 0.0], [0.82, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    every = [text for group in texts for text in group]
    rows = tf_idf(every)
    ends = np.cumsum([len(group) for group in texts])[:-1]
    means = np.stack([part.mean(0) for part in np.split(rows, ends)])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means @ means.T


def random(change: Float[Array, "phase phase"], *, seed: int = 0) -> tuple[int, ...]:
    """A random order: what a rule must beat; equal seeds give equal orders."""
    return tuple(int(i) for i in np.random.default_rng(seed).permutation(len(change)))


RULES: Mapping[str, Rule] = {
    "exact": exact,
    "becker": becker,
    "borda": borda,
    "omni_greedy": omni_greedy,
    "least_forgettable_first": least_forgettable_first,
    "most_forgettable_first": most_forgettable_first,
    "near_first": near_first,
    "far_first": far_first,
    "random": random,
}
"""Name -> rule."""
TEXT_RULES: Mapping[str, Rule] = {
    "near_first_by_text": near_first_by_text,
    "far_first_by_text": far_first_by_text,
}
"""Name -> rule that sees how alike the prompts of two phases are."""

HAND = np.array([[0.3, -0.1, -0.1], [-0.02, 0.3, -0.04], [-0.06, 0.01, 0.3]])
"""Three phases: the matrix of the doctests above. Phase 0 harms both others most, so it should not follow them."""


def _off_diagonal(change: Float[Array, "phase phase"]) -> Float[Array, "phase phase"]:
    return change - np.diag(np.diag(change))


def _likeness(change: Float[Array, "phase phase"]) -> Float[Array, "phase phase"]:
    both = _off_diagonal(change)
    return (both + both.T) / 2


def _chain(likeness: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """Begins at the largest sum and goes on to the largest entry among those left; of equals the first."""
    left = list(range(len(likeness)))
    order = [left.pop(int(np.argmax(likeness.sum(1))))]
    while left:
        order.append(left.pop(int(np.argmax(likeness[order[-1], left]))))
    return tuple(order)


def _descending(values: Float[Array, " phase"]) -> tuple[int, ...]:
    return tuple(int(k) for k in np.argsort(-values, kind="stable"))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
