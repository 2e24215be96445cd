"""Policy losses and divergences: the terms that see the gradient."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.helpers import k3, log_ratio, safe_exp
from trainorder.rl.registry import term
from trainorder.rl.types import Live, Roll, State


@term(scales_with_advantage=True)
def clipped_surrogate(
    live: Live,
    roll: Roll,
    state: State,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Float[Tensor, "row token"]:
    """PPO's clipped objective: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = p / p_old.

    `clip_high > clip_low` is DAPO's clip-higher (arXiv:2503.14476). `dual_clip` c bounds the loss
    of tokens with A < 0 by -c A (arXiv:1912.09729; 3 in verl, 10 in DAPO); null leaves it
    unbounded. Logs the share of tokens whose gradient was clipped away as `clip_fraction`.
    """
    ratio = safe_exp(log_ratio(live.logps, roll.old_logps, roll.loss_mask))
    free = -roll.advantages * ratio
    loss = torch.maximum(free, -roll.advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is not None:
        loss = torch.where(
            roll.advantages < 0, torch.minimum(loss, -dual_clip * roll.advantages), loss
        )
    live.log["clip_fraction"] = (loss != free).detach().to(loss.dtype)
    return loss


@term(needs=lambda options: frozenset({"ref_logps"} if options["against"] == "ref" else ()))
def kl(
    live: Live,
    roll: Roll,
    state: State,
    *,
    kind: Literal["k1", "k2", "k3"] = "k3",
    against: Literal["ref", "old"] = "ref",
) -> Float[Tensor, "row token"]:
    """Per-token estimate of KL(policy || other).

    The other is the phase's parent (`ref`) or the policy that sampled (`old`). With d = log p_other
    - log p: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 (Schulman 2020,
    joschu.net/blog/kl-approx.html). As a loss, k2 has the gradient of the true KL on policy; k1 has
    a gradient of mean zero, k3 a biased one.
    """
    other = roll.old_logps if against == "old" else roll.ref_logps
    d = -log_ratio(live.logps, other, roll.loss_mask)
    if kind == "k1":
        return -d
    return d**2 / 2 if kind == "k2" else k3(d)
