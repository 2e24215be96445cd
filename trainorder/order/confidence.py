"""Which order a gain matrix recommends, and whether the data single it out.

The matrix is uncertain in two ways: it was measured on some problems with some seeds (its resamples show that), and the
additive model that turns it into an order is wrong by some amount (the orders that were measured show that). Both go
into every resample, so that P(optimal), the regret and the verdict are about orders, not about the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg

from trainorder.metrics.statistics import ROUNDING
from trainorder.order.rules import RULES
from trainorder.order.search import (
    EXACT,
    TIE_BREAK,
    best_order,
    every_order,
    exact_orders,
    heuristic_order,
    optimality_gap,
    order_value,
)

Array = np.ndarray

HEURISTIC_DRAWS = 100
"""Resamples used beyond EXACT phases, where each takes a local search."""
ENUMERATED = 6
"""Up to this number of phases every order is looked at in every resample."""
MIN_ORDERS = 3
"""Different measured orders below which nothing can be said about the model's error, and so no order is identified."""
ADDITIVE = 0.85
"""Prior probability that gains add up exactly. With it the regret is calibrated in simulated worlds where they do and
where they do not (benchmarks/planted_worlds.py); a verdict never relies on it."""
STRUCTURED = 0.5
"""Share of the model error's variance that errors of single gains make; the rest is each order's own."""


class Reason(StrEnum):
    """Why the data do not single out an order."""

    ONE_PHASE = "one_phase"
    NOT_PROBABLE = "not_probable"
    """P(this order is the best) is below the level, also if the additive model is off as the measured orders allow."""
    GAP_INCLUDES_0 = "gap_includes_0"
    COMMON_BY_CHANCE = "common_by_chance"
    """A world without any order effect shows a gap this large too often."""
    FEW_ORDERS = "few_orders"
    MEASURED_BETTER = "measured_better"
    """Another order was measured to be better than this one."""


@dataclass(frozen=True)
class Misfit:
    """By how much measured orders missed their prediction; an error common to all orders moves none of them."""

    orders: tuple[tuple[int, ...], ...]
    """The different measured orders, as row numbers of the gain matrix."""
    errors: Float[Array, "draw order"]
    """Predicted minus measured final mean in points of the final mean; draw 0 is the data, the others its resamples."""
    freedom: int = 1000
    """Degrees of freedom of the resamples' covariance: seeds - 1, or how many resamples there are with one seed."""

    @property
    def spread(self) -> float:
        """Standard deviation of the errors as they are, sampling noise included; nan below two orders."""
        return float(np.std(self.errors[0], ddof=1)) if len(self.orders) > 1 else math.nan

    @property
    def bias(self) -> float:
        """Mean error: how much too high the model predicts; nan without an order."""
        return float(np.mean(self.errors[0])) if self.orders else math.nan

    @property
    def enough(self) -> bool:
        """Whether enough orders were measured to judge the model."""
        return len(self.orders) >= MIN_ORDERS

    @property
    def sd(self) -> float:
        """Expected standard deviation of the model's own error, without the noise of what was measured; nan if unknown."""
        if not self.enough:
            return math.nan
        tau, p = self._posterior
        return float((1 - self._p_exact) * (tau * p).sum())

    @cached_property
    def _fit(self) -> tuple[Float[Array, " grid"], Float[Array, " grid"], float]:
        """Standard deviations tau of the model's error, their likelihoods, and that of 0.

        Contrasts of the errors are normal with covariance tau^2 K + V. V is the noise that resamples of problems and
        seeds show. K is that of errors of single gains (Kendall's rank correlation of two orders: -1 for a reverse,
        so two reverse pairs count as two errors, not four) and of each order's own error, mixed by `_structured`.
        """
        n = len(self.orders)
        contrast = np.eye(n)[1:] - 1 / n
        share = _structured(len(self.orders[0]))
        kernel = contrast @ (share * _kendall(self.orders) + (1 - share) * np.eye(n)) @ contrast.T
        noise = contrast @ np.cov(self.errors[1:].T) @ contrast.T
        weight = n / (n + self.freedom)  # few seeds know a large covariance badly
        floor = max(float(np.trace(noise)) / n, ROUNDING**2)
        noise = (1 - weight) * noise + weight * floor * np.eye(n - 1) + 1e-6 * floor * np.eye(n - 1)
        scales, axes = linalg.eigh(kernel, noise)
        seen = (axes.T @ contrast @ self.errors[0]) ** 2
        unit = math.sqrt(float(np.trace(noise)) / max(float(np.trace(kernel)), ROUNDING))
        tau = unit * np.geomspace(0.05, max(200.0, 20 * self.spread / unit), 120)
        variance = 1 + tau[:, None] ** 2 * np.maximum(scales, 0.0)
        log = -0.5 * (np.log(variance) + seen / variance).sum(1)
        zero = -0.5 * float(seen.sum())
        top = max(float(log.max()), zero)
        prior = np.gradient(tau) / (1 + (tau / unit) ** 2)  # half-Cauchy at the scale of the noise
        return tau, prior / prior.sum() * np.exp(log - top), math.exp(zero - top)

    @cached_property
    def _posterior(self) -> tuple[Float[Array, " grid"], Float[Array, " grid"]]:
        tau, likelihood, _ = self._fit
        return tau, likelihood / likelihood.sum()

    @cached_property
    def _p_exact(self) -> float:
        """Posterior probability that gains add up exactly."""
        _, likelihood, zero = self._fit
        off = (1 - ADDITIVE) * float(likelihood.sum())
        return ADDITIVE * zero / (ADDITIVE * zero + off)

    def scales(
        self, draws: int, rng: np.random.Generator
    ) -> tuple[Float[Array, " draw"], Float[Array, " draw"]]:
        """Two samples of the error's standard deviation: if the model is off at all, and with the chance that it is not."""
        if not self.enough:
            return np.zeros(draws), np.zeros(draws)
        tau, p = self._posterior
        off = rng.choice(tau, p=p, size=draws)
        return off, np.where(rng.random(draws) < self._p_exact, 0.0, off)


def _kendall(orders: Sequence[Sequence[int]]) -> Float[Array, "order order"]:
    """Kendall's rank correlation of every two orders.

    >>> _kendall([(0, 1, 2), (2, 1, 0), (0, 2, 1)]).round(2).tolist()[0]
    [1.0, -1.0, 0.33]
    """
    ranks = np.argsort(np.array(orders), axis=1)
    first, second = np.triu_indices(ranks.shape[1], k=1)
    signs = np.sign(ranks[:, second] - ranks[:, first]).astype(float)
    return signs @ signs.T / max(len(first), 1)


def _structured(n: int) -> float:
    """STRUCTURED where every order is looked at; beyond, an order's own error cannot be searched over."""
    return STRUCTURED if n <= ENUMERATED else 1.0


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
    p_if_off: float
    """The same if the additive model is off by what the measured orders allow, not exact."""
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
    reasons: tuple[Reason, ...]
    """Why the data do not single out this order; empty when they do."""


def recommend(
    gain: Float[Array, "draw phase phase"],
    *,
    misfit: Misfit | None = None,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Recommendation:
    """The best order of draw 0 (the data), judged by the other draws (bootstrap resamples of the same matrix).

    `misfit` adds the error of the additive model to every draw; None takes the matrix for the truth. `reasons` say
    what speaks against it. COMMON_BY_CHANCE is needed because the order was chosen for its gap: it compares with the
    largest gap of any order in draws centred on zero.
    """
    data, draws = gain[0], gain[1:]
    n = len(data)
    if n > EXACT:
        draws = draws[:HEURISTIC_DRAWS]
    order = best_order(data)
    known = misfit if misfit is not None and n > 1 else None
    off, scale = known.scales(len(draws), rng) if known else (np.zeros(len(draws)),) * 2
    worlds, worst = _Worlds.of(draws, scale, rng), _Worlds.of(draws, off, rng)
    chosen, gaps = worlds.value(order), worst.value(order) - worst.value(order[::-1])
    ranks = np.argsort(worlds.best, axis=1)
    low, high = (float(x) for x in np.quantile(gaps, [(1 - level) / 2, (1 + level) / 2]))
    unique, counts = np.unique(worlds.best, axis=0, return_counts=True)
    gap = float(order_value(data, order) - order_value(data, order[::-1]))
    sampled = order_value(draws, order) - order_value(draws, order[::-1])
    p_none = _p_no_order(worst.gain - data, gap)
    p_if_off = float((worst.best == np.array(order)).all(1).mean())
    p_optimal = float((worlds.best == np.array(order)).all(1).mean())
    against = {
        Reason.NOT_PROBABLE: min(p_optimal, p_if_off) < level,
        Reason.GAP_INCLUDES_0: low <= ROUNDING and high >= -ROUNDING,
        Reason.COMMON_BY_CHANCE: p_none > 1 - level,
        Reason.FEW_ORDERS: misfit is not None and not misfit.enough,
    }
    return Recommendation(
        order=order,
        value=float(order_value(data, order)),
        reverse_value=float(order_value(data, order[::-1])),
        random_value=float(data.sum() - np.trace(data)) / 2,
        p_optimal=p_optimal,
        p_if_off=p_if_off,
        most_probable=tuple(int(k) for k in unique[counts.argmax()]),
        p_most_probable=float(counts.max() / len(draws)),
        regret=float((worlds.best_value - chosen).mean()),
        before=(ranks[:, :, None] < ranks[:, None, :]).mean(0),
        gap=gap,
        gap_low=low,
        gap_high=high,
        p_no_order=p_none,
        by_rule={
            name: (
                found := rule(data.T),
                float(order_value(data, found)),
                float((worlds.best_value - worlds.value(found)).mean()),
            )
            for name, rule in RULES.items()
        },
        optimality_gap=optimality_gap(data, order),
        gap_sd={
            "sampling": float(np.std(sampled)),
            "misfit": math.sqrt(max(float(gaps.var() - np.var(sampled)), 0.0)),
        },
        reasons=(Reason.ONE_PHASE,) if n < 2 else tuple(r for r, holds in against.items() if holds),
    )


@dataclass(frozen=True)
class _Worlds:
    """What every order is worth in every draw, model error included, and which one is best there."""

    gain: Float[Array, "draw phase phase"]
    own: Float[Array, "draw order"] | None
    """Each order's own error, in the sequence of `every_order`; None beyond ENUMERATED phases."""
    best: Int[Array, "draw phase"]
    best_value: Float[Array, " draw"]

    @classmethod
    def of(
        cls,
        draws: Float[Array, "draw phase phase"],
        scale: Float[Array, " draw"],
        rng: np.random.Generator,
    ) -> _Worlds:
        """`draws` with errors whose standard deviation over orders, around their common mean, is `scale`.

        Independent errors of every gain with variance t spread the values of n phases' orders by n (n - 1) / 4 t.
        """
        n = draws.shape[1]
        share = _structured(n)
        of_gain = scale * math.sqrt(4 * share / max(n * (n - 1), 1))
        gain = draws + of_gain[:, None, None] * rng.normal(size=draws.shape)
        if n > ENUMERATED:
            best = _draw_orders(gain + TIE_BREAK * rng.random(gain.shape))
            return cls(gain, None, best, _values(gain, best))
        orders = every_order(n)
        own = (math.sqrt(1 - share) * scale)[:, None] * rng.normal(size=(len(draws), len(orders)))
        values = _all_values(gain) + own
        top = (values + TIE_BREAK * rng.random(values.shape)).argmax(1)
        return cls(gain, own, orders[top], values[np.arange(len(values)), top])

    def value(self, order: Sequence[int]) -> Float[Array, " draw"]:
        """What one order is worth in every draw."""
        value = np.asarray(order_value(self.gain, order))
        if self.own is None:
            return value
        at = int((every_order(len(order)) == np.array(order)).all(1).argmax())
        return value + self.own[:, at]


def _all_values(gain: Float[Array, "draw phase phase"]) -> Float[Array, "draw order"]:
    """`order_value` of every order, in the sequence of `every_order`."""
    n = gain.shape[1]
    ranks = np.argsort(every_order(n), axis=1)
    before = (ranks[:, :, None] < ranks[:, None, :]).reshape(len(ranks), n * n)
    return gain.reshape(len(gain), n * n) @ before.T.astype(float)


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
