"""Which order a gain matrix recommends, and whether the data single it out.

The matrix is uncertain in two ways: it was measured on some problems with some seeds (its resamples show that), and the
additive model that turns it into an order is wrong by some amount (the orders that were measured show that). Both go
into every resample, and every resample agrees with the orders that were measured, so that P(optimal), the regret and the
verdict are about orders, not about the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from trainorder.metrics.statistics import ROUNDING
from trainorder.order.misfit import PROBABILITIES, Misfit, drawn
from trainorder.order.rules import RULES, TEXT_RULES
from trainorder.order.search import (
    EXACT,
    TIE_BREAK,
    all_values,
    best_order,
    every_order,
    exact_orders,
    heuristic_order,
    optimality_gap,
    order_value,
    row_of,
    upper,
    value_spread,
)

Array = np.ndarray

HEURISTIC_DRAWS = 100
"""Resamples used beyond EXACT phases, where each takes a local search."""


class Reason(StrEnum):
    """Why the data do not single out an order."""

    ONE_PHASE = "one_phase"
    NOT_PROBABLE = "not_probable"
    """P(this order is the best) is below the level, as regret sees it or if the additive model is off as the measured orders
    allow. What passes is right in 99 of 100 simulated worlds (docs/findings.md), so `p_optimal` may be lower."""
    GAP_INCLUDES_0 = "gap_includes_0"
    COMMON_BY_CHANCE = "common_by_chance"
    """A world without any order effect shows a gap this large too often."""
    FEW_ORDERS = "few_orders"
    MEASURED_BETTER = "measured_better"
    """Another order was measured to be better than this one."""


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
    """Probability that this order is the best one, with the doubts of PROBABILITIES; ties are broken at random."""
    most_probable: tuple[int, ...]
    p_most_probable: float
    regret: float
    """Mean over resamples of what this order loses against the resample's best, under LOSSES."""
    before: Float[Array, "phase phase"]
    """before[i, j]: probability that the best order has i before j, as `p_optimal`."""
    gap: float
    gap_low: float
    gap_high: float
    """Value of the order minus value of its reverse, with its percentile interval."""
    p_no_order: float
    """How often resamples of a world without any order effect show a best order with a gap as large as this one."""
    optimality_gap: float
    """How much better another order can be on the data; 0 where the search is exact."""
    gap_sd: dict[str, float]
    """Standard deviation of the gap from each source of uncertainty: `sampling` (problems and seeds), `misfit`."""
    misfit_sd: float
    """Expected standard deviation of the model's own error over orders; nan if unknown."""
    reasons: tuple[Reason, ...]
    """Why the data do not single out this order; empty when they do."""
    _gain: Float[Array, "phase phase"] = field(repr=False, compare=False)
    _worlds: _Worlds = field(repr=False, compare=False)

    def by_rule(
        self, likeness: Float[Array, "phase phase"] | None = None
    ) -> dict[str, tuple[tuple[int, ...], float, float]]:
        """Rule -> its order, the order's value, and its mean regret over resamples; TEXT_RULES where the `likeness` of prompts is known."""
        best, result = self._worlds.best_value, {}
        orders = {name: rule(self._gain.T) for name, rule in RULES.items()}
        if likeness is not None:
            orders |= {name: rule(likeness) for name, rule in TEXT_RULES.items()}
        for name, order in orders.items():
            regret = float((best - self._worlds.value(order)).mean())
            result[name] = order, float(order_value(self._gain, order)), regret
        return result


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
    noise = draws - data
    known, misfit_sd = None, math.nan
    off = scale = np.zeros(len(draws))
    spread = value_spread(data)
    if misfit is not None and misfit.enough and n > 1:
        known = replace(misfit, errors=misfit.errors[: len(draws) + 1])
        posterior = known.scale(spread)
        off, scale = posterior.draw(len(draws), rng)
        misfit_sd = posterior.expected
    shrunk = _shrunk(data, noise, known)
    worlds, _ = _worlds(data, *shrunk, scale, rng)
    worst, error = _worlds(data, noise, known, off, rng)
    probable = worlds
    if known is not None:
        _, doubted = known.scale(spread, PROBABILITIES).draw(len(draws), rng)
        probable, _ = _worlds(data, *shrunk, doubted, rng)
    chosen, gaps = worlds.value(order), worst.value(order) - worst.value(order[::-1])
    ranks = np.argsort(probable.best, axis=1)
    low, high = (float(x) for x in np.quantile(gaps, [(1 - level) / 2, (1 + level) / 2]))
    unique, counts = np.unique(probable.best, axis=0, return_counts=True)
    gap = float(order_value(data, order) - order_value(data, order[::-1]))
    sampled = order_value(noise, order) - order_value(noise, order[::-1])
    of_model = error.value(order) - error.value(order[::-1])
    p_none = _p_no_order(noise + error.gain, gap)
    p_optimal, *p_needed = (
        float((of.best == np.array(order)).all(1).mean()) for of in (probable, worlds, worst)
    )
    against = {
        Reason.NOT_PROBABLE: min(p_needed) < level,
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
        most_probable=tuple(int(k) for k in unique[counts.argmax()]),
        p_most_probable=float(counts.max() / len(draws)),
        regret=float((worlds.best_value - chosen).mean()),
        before=(ranks[:, :, None] < ranks[:, None, :]).mean(0),
        gap=gap,
        gap_low=low,
        gap_high=high,
        p_no_order=p_none,
        optimality_gap=optimality_gap(data, order),
        gap_sd={"sampling": float(np.std(sampled)), "misfit": float(np.std(of_model))},
        misfit_sd=misfit_sd,
        reasons=(Reason.ONE_PHASE,) if n < 2 else tuple(r for r, holds in against.items() if holds),
        _gain=data,
        _worlds=worlds,
    )


@dataclass(frozen=True)
class _Worlds:
    """What every order is worth in every draw, and which one is best there."""

    gain: Float[Array, "draw phase phase"]
    own: Float[Array, "draw order"] | None
    """What each order is worth beside its gains, in the sequence of `every_order`; None beyond ENUMERATED phases."""

    @cached_property
    def _best(self) -> tuple[Int[Array, "draw phase"], Float[Array, " draw"]]:
        if self.own is None:
            best = _draw_orders(self.gain)
            return best, _values(self.gain, best)
        values = all_values(self.gain) + self.own
        top = values.argmax(1)
        return every_order(self.gain.shape[1])[top], values[np.arange(len(values)), top]

    @property
    def best(self) -> Int[Array, "draw phase"]:
        """The best order of every draw."""
        return self._best[0]

    @property
    def best_value(self) -> Float[Array, " draw"]:
        """What it is worth."""
        return self._best[1]

    def value(self, order: Sequence[int]) -> Float[Array, " draw"]:
        """What one order is worth in every draw."""
        value = np.asarray(order_value(self.gain, order))
        return value if self.own is None else value + self.own[:, row_of(order)]


def _shrunk(
    data: Float[Array, "phase phase"],
    noise: Float[Array, "draw phase phase"],
    misfit: Misfit | None,
) -> tuple[Float[Array, "draw phase phase"], Misfit | None]:
    """The noise of the gains, given that order effects are normal around 0 (empirical Bayes).

    Effects that are no larger than their noise are mostly noise, so the best of many orders is no better than it looks by
    chance. Only what distinguishes j before k from k before j is shrunk, and only where the
    model is judged by measured orders.
    """
    if misfit is None:
        return noise, None
    effects = (data - data.T) / 2
    seen, chance = float((effects**2).mean()), float(((noise - noise.mT) ** 2).mean()) / 4
    kept = max(1 - chance / seen, 0.0) if seen > 0 else 0.0
    moved = (1 - kept) * effects + math.sqrt(kept) * noise
    errors = misfit.errors.copy()
    errors[1:] += np.stack([order_value(moved - noise, o) for o in misfit.orders], axis=-1)
    return moved, replace(misfit, errors=errors)


def _worlds(
    data: Float[Array, "phase phase"],
    noise: Float[Array, "draw phase phase"],
    misfit: Misfit | None,
    scale: Float[Array, " draw"],
    rng: np.random.Generator,
) -> tuple[_Worlds, _Worlds]:
    """Worlds that agree with what was measured, and the model's errors of that `scale` as they were before."""
    error = drawn(scale, len(data), rng)
    gain, own = error if misfit is None else misfit.update(*error, noise, scale)
    gain = data - noise + gain
    if own is None:
        gain = gain + TIE_BREAK * rng.random(gain.shape)
    else:
        own = own + TIE_BREAK * rng.random(own.shape)
    return _Worlds(gain, own), _Worlds(*error)


def _draw_orders(gain: Float[Array, "draw phase phase"]) -> Int[Array, "draw phase"]:
    if gain.shape[1] <= EXACT:
        return exact_orders(gain)
    return np.array([heuristic_order(one) for one in gain])


def _values(
    gain: Float[Array, "draw phase phase"], orders: Int[Array, "draw phase"]
) -> Float[Array, " draw"]:
    first, second = upper(orders.shape[1])
    draws = np.arange(len(gain))[:, None]
    return gain[draws, orders[:, first], orders[:, second]].sum(1)


def _p_no_order(centred: Float[Array, "draw phase phase"], gap: float) -> float:
    """Share of resamples of a world without order effects whose best order has a gap of at least `gap`."""
    values = _values(centred, _draw_orders(centred))
    totals = centred.sum((1, 2)) - np.trace(centred, axis1=1, axis2=2)
    return float((1 + (2 * values - totals >= gap - TIE_BREAK).sum()) / (1 + len(centred)))
