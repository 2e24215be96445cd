"""Advantage estimators: what a row earns against the others of its group or of the batch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from trainorder.rl.helpers import centred, gcnt, gstd
from trainorder.rl.registry import advantage
from trainorder.rl.types import Roll, State


@advantage
def grpo(roll: Roll, state: State, *, eps: float = 1e-6) -> Float[Tensor, " row"]:
    """(r - mean of group) / (std of group + eps), std unbiased (GRPO, arXiv:2402.03300).

    Equal rewards give exactly 0, and so does a group with one scored row: a lone rollout is its own
    baseline.
    """
    group = (roll.group, roll.scored)
    return centred(roll.rewards, *group) / (gstd(roll.rewards, *group) + eps)


@advantage
def dr_grpo(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """Plain r - mean of group (Dr.GRPO, arXiv:2503.20783; goes with `reduction: constant`)."""
    return centred(roll.rewards, roll.group, roll.scored)


@advantage
def rloo(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """Margin r - mean of the others = (r - mean) n / (n - 1) (RLOO, arXiv:2402.14740)."""
    n = gcnt(roll.group, roll.scored)
    return centred(roll.rewards, roll.group, roll.scored) * n / (n - 1).clamp(min=1)
