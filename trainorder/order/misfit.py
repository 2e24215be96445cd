"""How far a model of orders is off, from the orders that were measured: its scale, and what is left to be off elsewhere.

The model predicts every order; some orders were measured too. Predicted minus measured is noise, which resamples show,
minus the model's own error at that order. Errors of the model are normal with an unknown scale. Given the scale, what
was measured says what the errors of the orders that were not measured, and of the gains, may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy import linalg

from trainorder.metrics.statistics import ROUNDING
from trainorder.order.search import ENUMERATED, before, every_order, row_of, upper

Array = np.ndarray

MIN_ORDERS = 3
"""Different measured orders below which nothing can be said about the model's error, and so no order is identified."""
STRUCTURED = 0.5
"""Share of the model error's variance that errors of single gains make; the rest is each order's own."""


@dataclass(frozen=True)
class Prior:
    """What is believed of the model's error before an order is measured."""

    exact: float
    """Probability that it is 0."""
    density: Callable[[Float[Array, " grid"]], Float[Array, " grid"]]
    """Density of its standard deviation if it is not, in units of how much the orders' values differ and of the noise."""


LOSSES = Prior(0.85, lambda x: 1 / (1 + x**2))
"""A half-Cauchy. With it the expected regret is calibrated in simulated worlds where the model is exact and where it is not
(benchmarks/planted_worlds.py)."""
PROBABILITIES = Prior(0.25, lambda x: x**4 / (1 + x**2) ** 3)
"""So that P(optimal) is too high in none of these worlds. Four orders leave three contrasts, which say little of the
error's size, and P(optimal) is convex in it: averaged over a half-Cauchy posterior it is too high wherever the error is
large, and with LOSSES' weight on exactness also where the error hides in the noise. A density that vanishes at 0 (a
non-local prior: Johnson and Rossell, JRSS B 72, 2010) leaves small errors to `exact`."""


@dataclass(frozen=True)
class Misfit:
    """By how much measured orders missed their prediction; an error common to all orders moves none of them."""

    orders: tuple[tuple[int, ...], ...]
    """The different measured orders, as row numbers of the gain matrix."""
    errors: Float[Array, "draw order"]
    """Predicted minus measured final mean in points of the final mean; draw 0 is the data, the others its resamples.
    A draw is the same resample as that draw of the gains."""

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

    def scale(self, typical: float, prior: Prior = LOSSES) -> Scale:
        """The posterior of the error's standard deviation.

        Contrasts of the errors are normal with covariance tau^2 K + V. V is the noise that resamples of problems and
        seeds show. K is that of errors of single gains (Kendall's rank correlation of two orders: -1 for a reverse,
        so two reverse pairs count as two errors, not four) and of each order's own error, mixed by `structured`.
        `typical` is how much the orders' values differ.
        """
        tau, likelihood, zero, noise = self._fit
        density = np.gradient(tau) * prior.density(tau / math.hypot(typical, noise))
        p = density / density.sum() * likelihood
        off = (1 - prior.exact) * float(p.sum())
        return Scale(tau, p / p.sum(), prior.exact * zero / (prior.exact * zero + off))

    @cached_property
    def _contrast(self) -> Float[Array, "contrast order"]:
        n = len(self.orders)
        return np.eye(n)[1:] - 1 / n

    @cached_property
    def _axes(self) -> tuple[Float[Array, "contrast axis"], Float[Array, " axis"], float]:
        """Axes on which the noise has variance 1 and the model's error tau^2 times a number each; the noise's unit."""
        contrast = self._contrast
        share = structured(len(self.orders[0]))
        own = np.eye(len(self.orders))
        kernel = contrast @ (share * _kendall(self.orders) + (1 - share) * own) @ contrast.T
        noise = np.atleast_2d(np.cov((self.errors[1:] @ contrast.T).T))
        floor = max(float(np.trace(noise)) / len(self.orders), ROUNDING**2)
        numbers, axes = map(
            np.asarray, linalg.eigh(kernel, noise + 1e-6 * floor * np.eye(len(noise)))
        )
        unit = math.sqrt(float(np.trace(noise)) / max(float(np.trace(kernel)), ROUNDING))
        return axes, np.maximum(numbers, 0.0), max(unit, ROUNDING)

    @cached_property
    def _fit(self) -> tuple[Float[Array, " grid"], Float[Array, " grid"], float, float]:
        """Standard deviations tau of the model's error, their likelihoods, that of 0, and the scale of the noise."""
        axes, numbers, unit = self._axes
        seen = (axes.T @ self._contrast @ self.errors[0]) ** 2
        tau = unit * np.geomspace(0.05, max(100.0, 20 * self.spread / unit), 100)
        variance = 1 + tau[:, None] ** 2 * numbers
        log = -0.5 * (np.log(variance) + seen / variance).sum(1)
        zero = -0.5 * float(seen.sum())
        top = max(float(log.max()), zero)
        return tau, np.exp(log - top), math.exp(zero - top), unit

    def update(
        self,
        gain: Float[Array, "draw phase phase"],
        own: Float[Array, "draw order"] | None,
        noise: Float[Array, "draw phase phase"],
        scale: Float[Array, " draw"],
    ) -> tuple[Float[Array, "draw phase phase"], Float[Array, "draw order"] | None]:
        """Errors of gains and of every order as drawn from their prior -> as they may be given what was measured.

        `gain` and `own` have standard deviations by `scale`; `noise` is the resamples' error of the gains. Every draw is
        moved by what its own measured orders would have missed less than those that were measured (Matheron's rule), so
        no covariance of all orders is needed.
        """
        axes, numbers, _ = self._axes
        contrast, n = self._contrast, gain.shape[-1]
        pairs = before(np.array(self.orders)).reshape(len(self.orders), n * n)
        rows = [] if own is None else [row_of(order) for order in self.orders]
        flat = noise.reshape(len(noise), n * n)
        model = gain.reshape(len(gain), n * n) @ pairs.T
        if own is not None:
            model = model + own[:, rows]
        around = self.errors[1:] - self.errors[0]
        missed = (model - around) @ contrast.T + contrast @ self.errors[0]
        missed = (missed @ axes) / (1 + scale[:, None] ** 2 * numbers) @ axes.T @ contrast
        together = (flat - flat.mean(0)).T @ (around - around.mean(0)) / max(len(flat) - 1, 1)
        of_gain = (scale * _per_gain(n))[:, None] ** 2 * (missed @ pairs)
        moved = gain - (missed @ together.T + of_gain).reshape(gain.shape)
        if own is not None:
            own = own.copy()
            own[:, rows] -= (1 - structured(n)) * scale[:, None] ** 2 * missed
        return moved, own


@dataclass(frozen=True)
class Scale:
    """What is known of the standard deviation of a model's error."""

    tau: Float[Array, " grid"]
    p: Float[Array, " grid"]
    """Their probabilities if the model is off."""
    exact: float
    """Probability that it is not."""

    @property
    def expected(self) -> float:
        """Expected standard deviation of the model's own error, without the noise of what was measured."""
        return float((1 - self.exact) * (self.tau * self.p).sum())

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[Float[Array, " draw"], Float[Array, " draw"]]:
        """Two samples: if the model is off, and with the chance that it is not."""
        off = rng.choice(self.tau, p=self.p, size=count)
        return off, np.where(rng.random(count) < self.exact, 0.0, off)


def drawn(
    scale: Float[Array, " draw"], n: int, rng: np.random.Generator
) -> tuple[Float[Array, "draw phase phase"], Float[Array, "draw order"] | None]:
    """Errors of gains and, up to ENUMERATED phases, of each order, in the sequence of `every_order`.

    Their standard deviation over orders, around the orders' common mean, is `scale`.
    """
    gain = (scale * _per_gain(n))[:, None, None] * rng.normal(size=(len(scale), n, n))
    if n > ENUMERATED:
        return gain, None
    own = math.sqrt(1 - structured(n)) * scale[:, None]
    return gain, own * rng.normal(size=(len(scale), len(every_order(n))))


def structured(n: int) -> float:
    """STRUCTURED where every order is looked at; beyond, an order's own error cannot be searched over."""
    return STRUCTURED if n <= ENUMERATED else 1.0


def _per_gain(n: int) -> float:
    """Independent errors of every gain with variance t spread the values of n phases' orders by n (n - 1) / 4 t."""
    return math.sqrt(4 * structured(n) / max(n * (n - 1), 1))


def _kendall(orders: Sequence[Sequence[int]]) -> Float[Array, "order order"]:
    """Kendall's rank correlation of every two orders.

    >>> _kendall([(0, 1, 2), (2, 1, 0), (0, 2, 1)]).round(2).tolist()[0]
    [1.0, -1.0, 0.33]
    """
    ranks = np.argsort(np.array(orders), axis=1)
    first, second = upper(ranks.shape[1])
    signs = np.sign(ranks[:, second] - ranks[:, first]).astype(float)
    return signs @ signs.T / max(len(first), 1)
