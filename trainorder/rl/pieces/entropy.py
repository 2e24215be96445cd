"""What the policy's entropy does, and what holds, raises or lowers it: metric, bonus, targets, sides of the advantage."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config import Schedule
from trainorder.rl.helpers import mmean
from trainorder.rl.registry import advantage, metric, term, weight
from trainorder.rl.tokens import mean_entropy
from trainorder.rl.types import Live, Roll, State

ENTROPY = frozenset({"entropy"})


@metric
def entropy_covariance(roll: Roll, state: State) -> dict[str, float]:
    """Cov(log p, A) over tokens: to first order entropy falls at this rate (arXiv:2505.22617)."""
    mask, advantages = roll.loss_mask, roll.advantages
    logps = roll.old_logps - mmean(roll.old_logps, mask)
    covariance = mmean(logps * (advantages - mmean(advantages, mask)), mask)
    return {"entropy_covariance": float(covariance)}


@metric(needs=ENTROPY)
def entropy_law(roll: Roll, state: State) -> dict[str, float]:
    """R = -a exp(H) + b fitted by least squares to all steps so far, with its ceiling b - a at H = 0 (arXiv:2505.22617).

    H is the step's mean entropy in nats, R its mean reward; the paper fits validation scores, which a step does not
    have. Logs a, b, ceiling and the fit's root mean square error from the third step with different entropies on.
    """
    points = state.mem.setdefault("entropy_law", [])
    if roll.scored.any():
        points.append([mean_entropy(roll), float(roll.rewards[roll.scored].mean())])
    return fitted_law(points)


def fitted_law(points: list[list[float]]) -> dict[str, float]:
    """The law of (H, R) pairs; empty for fewer than two different exp(H).

    >>> found = fitted_law([[0.0, 0.5], [0.6931471805599453, 0.3]])
    >>> {name: round(value, 4) for name, value in found.items()}
    {'law_a': 0.2, 'law_b': 0.7, 'law_ceiling': 0.5, 'law_error': 0.0}
    """
    if not points:
        return {}
    x, y = torch.tensor(points, dtype=torch.float64).T
    x = x.exp()
    if x.min() == x.max():  # of a collapsed policy: 1e-17 and 1e-18 nats are one value here
        return {}
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    b = y.mean() - slope * x.mean()
    error = ((y - b - slope * x) ** 2).mean().sqrt()
    a = -slope
    named = {"law_a": a, "law_b": b, "law_ceiling": b - a, "law_error": error}
    return {name: float(value) for name, value in named.items()}


@term(needs=ENTROPY)
def entropy_bonus(live: Live, roll: Roll, state: State) -> Float[Tensor, "row token"]:
    """-H = sum p ln p of the policy being trained, nats over the whole vocabulary (as in A3C, arXiv:1602.01783); `coef` is what a nat is worth."""
    return -torch.where(roll.loss_mask > 0, live.entropy, 0.0)


@weight(scope="batch", needs=ENTROPY)
def entropy_target(
    roll: Roll, state: State, *, target: float = 0.2, step: float = 0.005
) -> Float[Tensor, " row"]:
    """The coefficient of an entropy bonus that holds `target` nats: c where the mean entropy is at most the target, else 0.

    c rises by `step` in every step whose mean entropy is below the target and falls by it elsewhere, from 0 and never
    below (adaptive entropy control of Skywork-OR1, arXiv:2505.22312; target and step are its values, from memory). A
    weight of the term `entropy_bonus`.
    """
    found = mean_entropy(roll)
    before = float(state.mem.get("entropy_target", 0.0))
    now = max(0.0, before + (step if found < target else -step))
    state.mem["entropy_target"] = now
    return torch.full_like(roll.rewards, now if found <= target else 0.0)


@advantage(scope="batch", needs=ENTROPY)
def entrocraft(
    roll: Roll,
    state: State,
    *,
    low_start: float = 0.6,
    low_end: float = 0.4,
    high_start: float = 0.7,
    high_end: float = 0.5,
) -> Float[Tensor, "row token"]:
    """Keep only the advantages that move entropy into a band: those < 0 below it, those > 0 above it (arXiv:2604.26326).

    With m = 1[H > high] - 1[H < low] a token's advantage stays where m A >= 0 and becomes 0 elsewhere; within the band
    all stay. H is the batch's mean entropy in nats. The band goes linearly from (low_start, high_start) to
    (low_end, high_end) over the phase; values of the authors' script. Their code takes raw rewards of +1 and -1 out of
    the band, their algorithm the advantage, as here. A shaper: after an estimator.
    """
    low, high = (
        Schedule(shape="linear", start=start, end=end).at(state.step, state.total)
        for start, end in ((low_start, low_end), (high_start, high_end))
    )
    found = mean_entropy(roll)
    side = float(found > high) - float(found < low)
    return torch.where(side * roll.advantages >= 0, roll.advantages, 0.0)
