"""Corrections for an engine that samples with other probabilities than the trainer computes."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from trainorder.rl.helpers import log_ratio, safe_exp
from trainorder.rl.registry import weight
from trainorder.rl.types import Roll, State


@weight
def truncated_importance(
    roll: Roll, state: State, *, cap: float = 2.0, level: Literal["token", "sequence"] = "token"
) -> Float[Tensor, "row token"]:
    """min(p_trainer / p_sampler, cap): makes up for an engine that computes otherwise than the trainer.

    Both before the update, as the engine reported and as the trainer recomputed; 1 where they are one
    (Yao et al. 2025, fengyao.notion.site/off-policy-rl; cap 2 as in verl, 3 in TRL). `sequence` takes
    the product over a row's tokens: unbiased where it is not capped, and noisier.
    """
    d = log_ratio(roll.old_logps, roll.sampler_logps, roll.loss_mask)
    if level == "sequence":
        d = d.sum(1, keepdim=True).expand_as(d)
    return safe_exp(d).clamp(max=cap)


@weight
def sequence_mask(
    roll: Roll, state: State, *, low: float = 0.99, high: float = 1.01
) -> Float[Tensor, " row"]:
    """0 for rows whose geometric mean of p_trainer / p_sampler leaves [low, high], else 1.

    Drops whole answers that sampler and trainer do not agree on, where token weights would only damp
    them (sequence rejection of verl, which takes 0.999 to 1.001 for long answers; Liu et al. 2025).
    """
    d = log_ratio(roll.old_logps, roll.sampler_logps, roll.loss_mask)
    mean = safe_exp(d.sum(1) / roll.loss_mask.sum(1).clamp(min=1))
    return ((mean >= low) & (mean <= high)).to(roll.loss_mask.dtype)
