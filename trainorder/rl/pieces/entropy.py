"""What the policy's entropy does, and what steers it."""

from __future__ import annotations

from trainorder.rl.helpers import mmean
from trainorder.rl.registry import metric
from trainorder.rl.types import Roll, State


@metric
def entropy_covariance(roll: Roll, state: State) -> dict[str, float]:
    """Cov(log p, A) over tokens: to first order entropy falls at this rate (arXiv:2505.22617)."""
    mask, advantages = roll.loss_mask, roll.advantages
    logps = roll.old_logps - mmean(roll.old_logps, mask)
    covariance = mmean(logps * (advantages - mmean(advantages, mask)), mask)
    return {"entropy_covariance": float(covariance)}
