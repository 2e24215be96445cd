"""Control of the length of answers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from trainorder.rl.registry import weight
from trainorder.rl.types import Roll, State


@weight
def finished_only(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """0 for rollouts cut off at the length limit (overlong filtering of DAPO, arXiv:2503.14476)."""
    return roll.row_facts["finished"]
