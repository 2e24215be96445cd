"""From a transfer matrix to an order of phases: the best one, what it predicts, and whether the data identify it.

Omni-Thinker (arXiv 2507.14783) assumes that transfer does not depend on the starting checkpoint and that training a
task brings it back to its own best. The final score of task t is then its score just after its last own phase plus what
every later phase does to it, and the best order solves a linear ordering problem: maximise the sum over j before k of
gain[j, k], where gain[j, k] is what training k after j does to j. Both are assumptions: see the prediction beside the
measurement before believing them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from trainorder.metrics.statistics import ROUNDING

Array = np.ndarray

EXACT = 12
"""Largest number of phases that is ordered exactly; dynamic programming takes 2^n n^2 steps per matrix."""
RESTARTS = 50
HEURISTIC_DRAWS = 100
"""Resamples used beyond EXACT phases, where each takes a local search."""
CHUNK_ENTRIES = 4_000_000
TIE_BREAK = 1e-12


@dataclass(frozen=True)
class Recommendation:
    """The best order of a gain matrix and how far the data identify it; orders are tuples of row numbers."""

    order: tuple[int, ...]
    value: float
    """Sum of gains that the order collects: the change of the final mean score that the order causes."""
    reverse_value: float
    random_value: float
    """Mean over all orders."""
    borda: tuple[int, ...]
    """The greedy order: largest row sum minus column sum first."""
    borda_value: float
    p_optimal: float
    """Share of resamples in which this order is the best one; ties are broken at random."""
    most_probable: tuple[int, ...]
    p_most_probable: float
    regret: float
    """Mean over resamples of what this order loses against the resample's best."""
    before: Float[Array, "phase phase"]
    """before[i, j]: share of resamples whose best order has i before j."""
    gap: float
    gap_low: float
    gap_high: float
    """Value of the order minus value of its reverse, with its percentile interval."""
    p_no_order: float
    """How often resamples of a world without any order effect show a best order with a gap as large as this one."""
    reasons: tuple[str, ...]
    """Why the order is not identified; empty when it is."""

    @property
    def identified(self) -> bool:
        """Whether the data single out this order."""
        return not self.reasons


def order_value(
    gain: Float[Array, "*batch phase phase"], order: Sequence[int]
) -> Float[Array, "*batch"] | np.float64:
    """Sum of gain[j, k] over all j before k.

    >>> gain = np.array([[0., 5., 2.], [1., 0., 4.], [3., 1., 0.]])
    >>> float(order_value(gain, (0, 1, 2))), float(order_value(gain, (2, 1, 0)))
    (11.0, 5.0)
    """
    first, second = np.triu_indices(len(order), k=1)
    at = np.asarray(order, dtype=int)
    return gain[..., at[first], at[second]].sum(-1)


def best_order(gain: Float[Array, "phase phase"]) -> tuple[int, ...]:
    """The order of largest value: exact up to EXACT phases, else Becker's heuristic with local search.

    >>> best_order(np.array([[0., 5., 2.], [1., 0., 4.], [3., 1., 0.]]))
    (0, 1, 2)
    >>> best_order(np.zeros((3, 3)))
    (0, 1, 2)
    """
    if len(gain) > EXACT:
        return heuristic_order(gain, restarts=RESTARTS)
    return tuple(int(i) for i in exact_orders(gain[None])[0])


def exact_orders(gain: Float[Array, "draw phase phase"]) -> Int[Array, "draw phase"]:
    """The best order of every matrix, by dynamic programming over the set of phases already placed.

    best(S) = max over k in S of best(S - k) + sum over i in S - k of gain[i, k]. The diagonal
    adds the same to every order. Among equals the order that keeps the given sequence of phases wins.
    """
    num_draws, n = gain.shape[:2]
    if n > EXACT:
        raise ValueError(f"exact search is for up to {EXACT} phases, got {n}: use heuristic_order")
    rows = max(1, CHUNK_ENTRIES // 2**n)
    parts = [_exact_chunk(gain[i : i + rows]) for i in range(0, num_draws, rows)]
    return np.concatenate(parts)


def _exact_chunk(gain: Float[Array, "draw phase phase"]) -> Int[Array, "draw phase"]:
    num_draws, n = gain.shape[:2]
    best = np.zeros((2**n, num_draws))
    last = np.zeros((2**n, num_draws), dtype=np.int8)
    for placed in range(1, 2**n):
        members = [k for k in reversed(range(n)) if placed >> k & 1]
        into = gain[:, members, :].sum(1)
        values = np.stack([best[placed ^ 1 << k] + into[:, k] for k in members])
        choice = values.argmax(0)
        best[placed] = values.max(0)
        last[placed] = np.asarray(members, dtype=np.int8)[choice]
    orders = np.zeros((num_draws, n), dtype=np.int64)
    placed, draws = np.full(num_draws, 2**n - 1), np.arange(num_draws)
    for position in reversed(range(n)):
        orders[:, position] = last[placed, draws]
        placed = placed ^ 1 << orders[:, position]
    return orders


def heuristic_order(gain: Float[Array, "phase phase"], *, restarts: int = 0) -> tuple[int, ...]:
    """Becker's ratio rule, then insertion until nothing improves; `restarts` more searches from random orders.

    The rule takes the phase with the largest ratio of row sum to column sum among those left. A constant added to all
    gains changes every order's value alike, so they are first shifted to be positive.
    """
    n = len(gain)
    rng = np.random.default_rng(0)
    starts = [_becker(gain), *(rng.permutation(n).tolist() for _ in range(restarts))]
    found = [_insertion(gain, start) for start in starts]
    return max(found, key=lambda order: float(order_value(gain, order)))


def _becker(gain: Float[Array, "phase phase"]) -> list[int]:
    positive = gain - min(float(gain.min()), 0.0)
    np.fill_diagonal(positive, 0.0)
    left, order = list(range(len(gain))), []
    while left:
        part = positive[np.ix_(left, left)]
        ratios = (part.sum(1) + TIE_BREAK) / (part.sum(0) + TIE_BREAK)
        order.append(left.pop(int(ratios.argmax())))
    return order


def _insertion(gain: Float[Array, "phase phase"], start: Sequence[int]) -> tuple[int, ...]:
    order = [int(k) for k in start]
    improved = True
    while improved:
        improved = False
        for k in list(order):
            others = np.array([i for i in order if i != k], dtype=int)
            here = order.index(k)
            ahead = np.concatenate([[0.0], np.cumsum(gain[others, k])])
            behind = np.concatenate([np.cumsum(gain[k, others][::-1])[::-1], [0.0]])
            there = int((ahead + behind).argmax())
            if (ahead + behind)[there] > (ahead + behind)[here] + TIE_BREAK:
                order = [*others[:there].tolist(), k, *others[there:].tolist()]
                improved = True
    return tuple(order)


def recommend(
    gain: Float[Array, "draw phase phase"],
    *,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Recommendation:
    """The best order of draw 0 (the data), judged by the other draws (bootstrap resamples of the same matrix).

    Not identified when no order is best in half of the resamples, when the gap between the order and its reverse may
    be 0, or when a world without order effects would show such a gap too often. The last test is needed because the
    order was chosen for its gap: it compares with the largest gap of any order in resamples centred on zero.
    """
    data, draws = gain[0], gain[1:]
    n = len(data)
    if n > EXACT:
        draws = draws[:HEURISTIC_DRAWS]
    order = best_order(data)
    bests = _draw_orders(draws + TIE_BREAK * rng.random(draws.shape))
    best_values = _values(draws, bests)
    ranks = np.argsort(bests, axis=1)
    chosen = order_value(draws, order)
    gaps = chosen - order_value(draws, order[::-1])
    gap = float(order_value(data, order) - order_value(data, order[::-1]))
    low, high = np.quantile(gaps, [(1 - level) / 2, (1 + level) / 2])
    unique, counts = np.unique(bests, axis=0, return_counts=True)
    most = tuple(int(k) for k in unique[counts.argmax()])
    p_most = float(counts.max() / len(bests))
    p_none = _p_no_order(draws - data, gap)
    borda = tuple(int(k) for k in np.argsort(data.sum(0) - data.sum(1), kind="stable"))
    off_diagonal = float(data.sum() - np.trace(data))
    return Recommendation(
        order=order,
        value=float(order_value(data, order)),
        reverse_value=float(order_value(data, order[::-1])),
        random_value=off_diagonal / 2,
        borda=borda,
        borda_value=float(order_value(data, borda)),
        p_optimal=float((bests == np.array(order)).all(1).mean()),
        most_probable=most,
        p_most_probable=p_most,
        regret=float((best_values - chosen).mean()),
        before=(ranks[:, :, None] < ranks[:, None, :]).mean(0),
        gap=gap,
        gap_low=float(low),
        gap_high=float(high),
        p_no_order=p_none,
        reasons=_reasons(n, p_most, (float(low), float(high)), p_none, level),
    )


def _draw_orders(gain: Float[Array, "draw phase phase"]) -> Int[Array, "draw phase"]:
    if gain.shape[1] <= EXACT:
        return exact_orders(gain)
    return np.array([heuristic_order(one) for one in gain])


def _values(
    gain: Float[Array, "draw phase phase"], orders: Int[Array, "draw phase"]
) -> Float[Array, " draw"]:
    first, second = np.triu_indices(orders.shape[1], k=1)
    draws = np.arange(len(gain))[:, None]
    return gain[draws, orders[:, first], orders[:, second]].sum(1)


def _p_no_order(centred: Float[Array, "draw phase phase"], gap: float) -> float:
    """Share of resamples of a world without order effects whose best order has a gap of at least `gap`."""
    values = _values(centred, _draw_orders(centred))
    totals = centred.sum((1, 2)) - np.trace(centred, axis1=1, axis2=2)
    return float((1 + (2 * values - totals >= gap - TIE_BREAK).sum()) / (1 + len(centred)))


def _reasons(
    n: int, p_most: float, gap: tuple[float, float], p_none: float, level: float
) -> tuple[str, ...]:
    if n < 2:
        return ("one phase has only one order",)
    reasons = []
    if p_most < 0.5:
        reasons.append(
            f"no order is best in half of the resamples (the most frequent in {p_most:.2f})"
        )
    if gap[0] <= ROUNDING and gap[1] >= -ROUNDING:
        reasons.append(
            f"the predicted gap to the reverse order may be 0 ({gap[0]:+.4f} to {gap[1]:+.4f})"
        )
    if p_none > 1 - level:
        reasons.append(f"chance alone shows an order with such a gap (p = {p_none:.2f})")
    return tuple(reasons)


def gains(
    base: Float[Array, "*draw task"],
    after: Float[Array, "*draw phase task"],
    phase_tasks: Sequence[Sequence[int]],
) -> Float[Array, "*draw phase phase"]:
    """gain[j, k]: what training phase k after phase j adds to the mean final score of all tasks that phases train.

    The sum over the tasks t of j (those that k does not train itself) of after[k, t] - base[t], divided by the number
    of tasks trained by any phase: so an order's value is in points of the final mean.

    >>> base, after = np.array([.4, .5]), np.array([[.8, .5], [.3, .9]])
    >>> gains(base, after, [[0], [1]]).round(4).tolist()
    [[0.0, -0.05], [0.0, 0.0]]
    """
    n = len(phase_tasks)
    num_tasks = len({task for tasks in phase_tasks for task in tasks})
    change = after - base[..., None, :]
    gain = np.zeros((*change.shape[:-2], n, n))
    for j in range(n):
        for k in range(n):
            touched = [task for task in phase_tasks[j] if task not in phase_tasks[k]]
            gain[..., j, k] = change[..., k, touched].sum(-1) / num_tasks
    return gain


def predict(
    base: Float[Array, "*draw task"],
    after: Mapping[str, Float[Array, "*draw task"]],
    order: Sequence[str],
    phase_tasks: Mapping[str, Sequence[int]],
) -> Float[Array, "*draw task"]:
    """Final score of every task if phases only add up: after its last own phase, plus each later phase's change.

    `after[phase]` are the scores once that phase alone was trained from the base.

    >>> base, after = np.array([.4, .5]), {"a": np.array([.8, .5]), "b": np.array([.3, .9])}
    >>> predict(base, after, ["a", "b"], {"a": [0], "b": [1]}).round(4).tolist()
    [0.7, 0.9]
    >>> predict(base, after, ["b", "a"], {"a": [0], "b": [1]}).round(4).tolist()
    [0.8, 0.9]
    """
    final = np.array(base, dtype=float)
    for phase in order:
        own = list(phase_tasks[phase])
        moved = final + (after[phase] - base)
        moved[..., own] = after[phase][..., own]
        final = moved
    return final
