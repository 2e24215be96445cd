"""Which order a gain matrix recommends, and whether the data single it out.

The matrix is uncertain in two ways: it was measured on some problems with some seeds (its resamples show that), and the
additive model that turns it into an order is wrong by some amount (the orders that were measured show that). Both go
into every resample, so that P(optimal), the regret and the verdict speak of orders, not of the matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from trainorder.metrics.statistics import ROUNDING
from trainorder.order.rules import RULES
from trainorder.order.search import (
    EXACT,
    TIE_BREAK,
    best_order,
    exact_orders,
    heuristic_order,
    optimality_gap,
    order_value,
)

Array = np.ndarray

HEURISTIC_DRAWS = 100
"""Resamples used beyond EXACT phases, where each takes a local search."""
MIN_ORDERS = 3
"""Different measured orders below which nothing can be said about the model's error, and so no order is identified."""


@dataclass(frozen=True)
class Misfit:
    """By how much measured orders missed their prediction; an error common to all orders moves none of them."""

    errors: tuple[float, ...]
    """Predicted minus measured final mean of every different measured order, in points of the final mean."""

    @property
    def sd(self) -> float:
        """Standard deviation of the errors; nan below two orders.

        >>> round(Misfit((0.03, 0.01, 0.02)).sd, 4)
        0.01
        """
        return float(np.std(self.errors, ddof=1)) if len(self.errors) > 1 else math.nan

    @property
    def enough(self) -> bool:
        """Whether enough orders were measured to judge the model."""
        return len(self.errors) >= MIN_ORDERS

    def perturb(
        self, draws: int, n: int, rng: np.random.Generator
    ) -> Float[Array, "draw phase phase"]:
        """Errors of n phases' gains that would miss measured orders like this.

        Independent normal errors of every gain with variance t spread the values of orders by n (n - 1) / 4 t around
        their common mean; t is set so that this is the errors' variance, itself drawn from its uncertainty
        (scaled inverse chi-square with one degree less than orders).
        """
        if n < 2 or not self.enough or not self.sd > 0:
            return np.zeros((draws, n, n))
        freedom = len(self.errors) - 1
        variance = self.sd**2 * freedom / rng.chisquare(freedom, size=draws)
        scale = np.sqrt(4 * variance / (n * (n - 1)))
        return scale[:, None, None] * rng.normal(size=(draws, n, n))


@dataclass(frozen=True)
class Recommendation:
    """The best order of a gain matrix and how far the data identify it; orders are tuples of row numbers."""

    order: tuple[int, ...]
    value: float
    """Sum of gains that the order collects: the change of the final mean score that the order causes."""
    reverse_value: float
    random_value: float
    """Mean over all orders."""
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
    by_rule: dict[str, tuple[tuple[int, ...], float, float]]
    """Rule -> its order, the order's value, and its mean regret over resamples."""
    optimality_gap: float
    """How much better another order can be on the data; 0 where the search is exact."""
    gap_sd: dict[str, float]
    """Standard deviation of the gap from each source of uncertainty: `sampling` (problems and seeds), `misfit`."""
    reasons: tuple[str, ...]
    """Why the order is not identified; empty when it is."""

    @property
    def identified(self) -> bool:
        """Whether the data single out this order."""
        return not self.reasons


def recommend(
    gain: Float[Array, "draw phase phase"],
    *,
    misfit: Misfit | None = None,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Recommendation:
    """The best order of draw 0 (the data), judged by the other draws (bootstrap resamples of the same matrix).

    `misfit` adds the error of the additive model to every draw; None takes the matrix for the truth. Not identified
    when no order is best in half of the draws, when the gap between the order and its reverse may be 0, when a world
    without order effects would show such a gap too often, or when too few orders were measured to know the misfit.
    The third test is needed because the order was chosen for its gap: it compares with the largest gap of any order
    in draws centred on zero.
    """
    data, draws = gain[0], gain[1:]
    n = len(data)
    if n > EXACT:
        draws = draws[:HEURISTIC_DRAWS]
    order = best_order(data)
    sampled_gaps = _gap(draws, order)
    errors = np.zeros_like(draws) if misfit is None else misfit.perturb(len(draws), n, rng)
    draws = draws + errors
    bests = _draw_orders(draws + TIE_BREAK * rng.random(draws.shape))
    best_values = _values(draws, bests)
    ranks = np.argsort(bests, axis=1)
    chosen = np.asarray(order_value(draws, order))
    gap = float(_gap(data, order))
    low, high = (
        float(x) for x in np.quantile(_gap(draws, order), [(1 - level) / 2, (1 + level) / 2])
    )
    unique, counts = np.unique(bests, axis=0, return_counts=True)
    p_most = float(counts.max() / len(bests))
    p_none = _p_no_order(draws - data, gap)
    rules = {name: rule(data.T) for name, rule in RULES.items()}
    return Recommendation(
        order=order,
        value=float(order_value(data, order)),
        reverse_value=float(order_value(data, order[::-1])),
        random_value=float(data.sum() - np.trace(data)) / 2,
        p_optimal=float((bests == np.array(order)).all(1).mean()),
        most_probable=tuple(int(k) for k in unique[counts.argmax()]),
        p_most_probable=p_most,
        regret=float((best_values - chosen).mean()),
        before=(ranks[:, :, None] < ranks[:, None, :]).mean(0),
        gap=gap,
        gap_low=low,
        gap_high=high,
        p_no_order=p_none,
        by_rule={
            name: (
                found,
                float(order_value(data, found)),
                float((best_values - order_value(draws, found)).mean()),
            )
            for name, found in rules.items()
        },
        optimality_gap=optimality_gap(data, order),
        gap_sd={"sampling": float(sampled_gaps.std()), "misfit": float(_gap(errors, order).std())},
        reasons=_reasons(n, p_most, (low, high), p_none, level, misfit),
    )


def _gap(gain: Float[Array, "*draw phase phase"], order: tuple[int, ...]) -> Float[Array, "*draw"]:
    """Value of the order minus value of its reverse."""
    return np.asarray(order_value(gain, order) - order_value(gain, order[::-1]))


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
    n: int,
    p_most: float,
    gap: tuple[float, float],
    p_none: float,
    level: float,
    misfit: Misfit | None,
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
    if misfit is not None and not misfit.enough:
        reasons.append(
            f"{len(misfit.errors)} different orders of these phases were measured: how far the additive model is off "
            f"cannot be told below {MIN_ORDERS}"
        )
    return tuple(reasons)
