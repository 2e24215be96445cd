"""Reward channels and what they say."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.helpers import equal_in_group, gstd
from trainorder.rl.registry import metric, reward
from trainorder.rl.types import Roll, State


@reward
def graded(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """The grade of the task's verifier or of the judge, in [0, 1]."""
    return roll.row_facts["graded"]


@metric
def reward_spread(roll: Roll, state: State) -> dict[str, float]:
    """Mean over rows of the group's reward standard deviation: what there is to learn from."""
    spread = gstd(roll.rewards, roll.group, roll.scored)
    spread = torch.where(equal_in_group(roll.rewards, roll.group, roll.scored), 0.0, spread)
    return {"reward_spread": float(spread.mean())}
