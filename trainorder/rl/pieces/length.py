"""Control of the length of answers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from trainorder.rl.registry import reward, weight
from trainorder.rl.types import Roll, State


@weight
def finished_only(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """0 for rollouts cut off at the length limit (overlong filtering of DAPO, arXiv:2503.14476)."""
    return roll.row_facts["finished"]


@reward
def overlong_penalty(
    roll: Roll, state: State, *, max_length: int = 20480, buffer: int = 4096
) -> Float[Tensor, " row"]:
    """0 up to max_length - buffer tokens, from there a line down to -1 at max_length (DAPO, arXiv:2503.14476).

    Tokens of the answer. The defaults are the paper's: set `max_length` to the longest answer that the task allows.
    """
    over = roll.lengths() - (max_length - buffer)
    return -(over / buffer).clamp(0, 1).to(roll.rewards.dtype)
