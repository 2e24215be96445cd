"""The best order of a gain matrix: exact dynamic programming, a heuristic for many phases, and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import permutations

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray

ENUMERATED = 6
"""Up to this number of phases every order is looked at."""
EXACT = 12
"""Largest number of phases that is ordered exactly; dynamic programming takes 2^n n^2 steps per matrix."""
RESTARTS = 50
CHUNK_ENTRIES = 4_000_000
TIE_BREAK = 1e-12


def order_value(
    gain: Float[Array, "*batch phase phase"], order: Sequence[int]
) -> Float[Array, "*batch"] | np.float64:
    """Sum of gain[j, k] over all j before k.

    >>> gain = np.array([[0., 5., 2.], [1., 0., 4.], [3., 1., 0.]])
    >>> float(order_value(gain, (0, 1, 2))), float(order_value(gain, (2, 1, 0)))
    (11.0, 5.0)
    """
    first, second = upper(len(order))
    at = np.asarray(order, dtype=int)
    return gain[..., at[first], at[second]].sum(-1)


@cache
def upper(n: int) -> tuple[Int[Array, " pair"], Int[Array, " pair"]]:
    """Places of the earlier and the later phase of every pair."""
    return np.triu_indices(n, k=1)


def upper_bound(gain: Float[Array, "phase phase"]) -> float:
    """A value that no order exceeds: for every pair the better of its two sequences.

    >>> upper_bound(np.array([[0., 5., 2.], [1., 0., 4.], [3., 1., 0.]]))
    12.0
    """
    first, second = upper(len(gain))
    return float(np.maximum(gain[first, second], gain[second, first]).sum())


def optimality_gap(gain: Float[Array, "phase phase"], order: Sequence[int]) -> float:
    """How much better the best order can be at most: 0 up to EXACT phases if `order` is `best_order`'s.

    Beyond, the distance to `upper_bound`, which is itself out of reach where pairs contradict each other.
    """
    n = len(gain)
    best = order_value(gain, best_order(gain)) if n <= EXACT else upper_bound(gain)
    return max(float(best - order_value(gain, order)), 0.0)


@cache
def every_order(n: int) -> Int[Array, "order phase"]:
    """All n! orders of n phases, n at most 8; the given sequence comes first. Read-only.

    >>> every_order(3).tolist()[:2]
    [[0, 1, 2], [0, 2, 1]]
    """
    if n > 8:
        raise ValueError(f"{n} phases have too many orders to list: at most 8")
    orders = np.array(list(permutations(range(n))), dtype=np.int64).reshape(-1, n)
    orders.flags.writeable = False
    return orders


def row_of(order: Sequence[int]) -> int:
    """Where an order stands in `every_order`.

    >>> row_of((0, 2, 1))
    1
    """
    return int((every_order(len(order)) == np.array(order)).all(1).argmax())


def before(orders: Int[Array, "order phase"]) -> Float[Array, "order phase phase"]:
    """1 where phase j comes before k in an order.

    >>> before(np.array([[1, 0]])).tolist()
    [[[0.0, 0.0], [1.0, 0.0]]]
    """
    ranks = np.argsort(orders, axis=1)
    return (ranks[:, :, None] < ranks[:, None, :]).astype(float)


def all_values(gain: Float[Array, "*batch phase phase"]) -> Float[Array, "*batch order"]:
    """`order_value` of every order, in the sequence of `every_order`."""
    return gain.reshape(*gain.shape[:-2], -1) @ _pairs(gain.shape[-1])


@cache
def _pairs(n: int) -> Float[Array, "pair order"]:
    return before(every_order(n)).reshape(-1, n * n).T


def value_spread(gain: Float[Array, "phase phase"]) -> float:
    """Standard deviation of the values of all orders, for any number of phases.

    >>> gain = np.array([[0., 5., 2.], [1., 0., 4.], [3., 1., 0.]])
    >>> round(value_spread(gain), 6), round(float(all_values(gain).std()), 6)
    (1.825742, 1.825742)
    """
    half = (gain - gain.T) / 2
    return math.sqrt(float((half**2).sum() / 2 + (half.sum(1) ** 2).sum()) / 3)


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
    """The best order of every matrix, among all of them or by dynamic programming over the set of phases already placed.

    best(S) = max over k in S of best(S - k) + sum over i in S - k of gain[i, k]. The diagonal
    adds the same to every order. Among equals the order that keeps the given sequence of phases wins.
    """
    num_draws, n = gain.shape[:2]
    if n > EXACT:
        raise ValueError(f"exact search is for up to {EXACT} phases, got {n}: use heuristic_order")
    few = n <= ENUMERATED
    rows = max(1, CHUNK_ENTRIES // (math.factorial(n) if few else 2**n))
    chunk = _enumerated_chunk if few else _exact_chunk
    return np.concatenate([chunk(gain[i : i + rows]) for i in range(0, num_draws, rows)])


def _enumerated_chunk(gain: Float[Array, "draw phase phase"]) -> Int[Array, "draw phase"]:
    values = all_values(gain)
    best = values.max(1, keepdims=True)
    return every_order(gain.shape[1])[(values >= best - TIE_BREAK * (1 + np.abs(best))).argmax(1)]


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
