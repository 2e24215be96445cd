"""Which mixture of tasks a joint phase should have: a quadratic surrogate from mixtures to scores (MoDoMoDo, arXiv:2505.24871).

Some joint phases of different `tasks:` weights are trained and measured; a quadratic function of the weights is fitted to
their scores and its best point on the simplex is the next mixture to try. The form is the paper's; the ridge and the search are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RIDGE = 1e-6
GRID = 20
"""Parts that a weight is cut into in the search for the best mixture."""


@dataclass(frozen=True)
class Surrogate:
    """score(w) = a + b w + w' C w over the shares w of the tasks, which sum to 1."""

    tasks: tuple[str, ...]
    coefficients: Float[np.ndarray, " term"]
    explained: float
    """R^2 of the left-out mixture, each in turn; below 0 where the mean would have said more."""

    def predict(self, mixture: Mapping[str, float]) -> float:
        """The score that a mixture should reach."""
        return float(_terms(_share(mixture, self.tasks)) @ self.coefficients)

    def best(self) -> dict[str, float]:
        """The mixture of the highest predicted score, on a grid of twentieths; the first of several."""
        points = list(_grid(len(self.tasks), GRID))
        scores = [float(_terms(np.array(p) / GRID) @ self.coefficients) for p in points]
        found = points[int(np.argmax(scores))]
        return {task: part / GRID for task, part in zip(self.tasks, found, strict=True)}


def fit(
    mixtures: Sequence[Mapping[str, float]], scores: Sequence[float], ridge: float = RIDGE
) -> Surrogate:
    """The surrogate of measured mixtures, each task -> weight on any scale.

    As shares sum to 1, the constant and the linear part follow from products of two shares, of which k tasks have
    k (k + 1) / 2: so many mixtures at least determine it.

    >>> mixtures = [{"a": 1, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}, {"a": 3, "b": 1}]
    >>> found = fit(mixtures, [0.4, 0.2, 0.55, 0.5375])  # .2 + .2 a + a b
    >>> round(found.predict({"a": 1, "b": 3}), 2), found.best()
    (0.44, {'a': 0.6, 'b': 0.4})

    Raises:
        ValueError: fewer mixtures than the surrogate has terms, or not a score of each.
    """
    tasks = tuple(sorted({task for mixture in mixtures for task in mixture}))
    needed = len(tasks) * (len(tasks) + 1) // 2
    if len(mixtures) != len(scores) or len(mixtures) < needed:
        raise ValueError(
            f"a quadratic surrogate of {len(tasks)} tasks needs at least {needed} measured mixtures and a score of each, "
            f"got {len(mixtures)} mixtures and {len(scores)} scores"
        )
    rows = np.stack([_terms(_share(mixture, tasks)) for mixture in mixtures])
    wanted = np.array(scores, dtype=np.float64)
    left_out = []
    for i in range(len(rows)):
        kept = np.arange(len(rows)) != i
        left_out.append(float(rows[i] @ _solve(rows[kept], wanted[kept], ridge)))
    spread = float(((wanted - wanted.mean()) ** 2).sum())
    missed = float(((wanted - np.array(left_out)) ** 2).sum())
    explained = 1 - missed / spread if spread > 0 else 0.0
    return Surrogate(tasks, _solve(rows, wanted, ridge), explained)


def _solve(rows: np.ndarray, wanted: np.ndarray, ridge: float) -> np.ndarray:
    size = rows.shape[1]
    return np.linalg.solve(rows.T @ rows + ridge * np.eye(size), rows.T @ wanted)


def _share(mixture: Mapping[str, float], tasks: Sequence[str]) -> np.ndarray:
    weights = np.array([mixture.get(task, 0.0) for task in tasks], dtype=np.float64)
    return weights / weights.sum()


def _terms(share: np.ndarray) -> np.ndarray:
    """Products of two shares: squares and pairs."""
    pairs = itertools.combinations_with_replacement(range(len(share)), 2)
    return np.array([share[i] * share[j] for i, j in pairs])


def _grid(tasks: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to give `parts` parts to the tasks."""
    if tasks == 1:
        yield (parts,)
        return
    for first in range(parts + 1):
        for rest in _grid(tasks - 1, parts - first):
            yield (first, *rest)
