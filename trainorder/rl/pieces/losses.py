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


@term(scales_with_advantage=True)
def gppo(
    live: Live,
    roll: Roll,
    state: State,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Float[Tensor, "row token"]:
    """PPO's clipped loss whose clipped tokens keep a bounded gradient (GPPO, arXiv:2508.07629).

    The bounds 1 - clip_low and 1 + clip_high are multiplied by r / sg(r): the same loss as `clipped_surrogate`,
    and the gradient -(1 - clip_low) A or -(1 + clip_high) A where that has none. The paper's beta_1 and beta_2
    are 1; its supervised loss on correct answers is not part of the term.
    """
    change = log_ratio(live.logps, roll.old_logps, roll.loss_mask)
    ratio = safe_exp(change)
    bound = ratio.detach().clamp(1 - clip_low, 1 + clip_high) * (change - change.detach()).exp()
    free = -roll.advantages * ratio
    loss = torch.maximum(free, -roll.advantages * bound)
    live.log["clip_fraction"] = (loss != free).detach().to(loss.dtype)
    return loss


@term(scales_with_advantage=True)
def cispo(
    live: Live, roll: Roll, state: State, *, low: float = 0.0, cap: float = 5.0
) -> Float[Tensor, "row token"]:
    """-sg(clip(r, low, cap)) A log p, r = p / p_old: the weight is clipped, never the gradient (CISPO, arXiv:2506.13585).

    `low` and `cap` are bounds of r itself, not distances from 1. The paper has no lower bound and gives no value for
    the upper one; 5 is ScaleRL's (arXiv:2510.13786) and TRL's. Logs the share of clipped weights as `clip_fraction`.
    """
    ratio = safe_exp(log_ratio(live.logps, roll.old_logps, roll.loss_mask)).detach()
    clipped = ratio.clamp(low, cap)
    live.log["clip_fraction"] = (clipped != ratio).to(ratio.dtype)
    return -clipped * roll.advantages * torch.where(roll.loss_mask > 0, live.logps, 0.0)


@term(scales_with_advantage=True)
def gspo(
    live: Live,
    roll: Roll,
    state: State,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Float[Tensor, "row token"]:
    """PPO's clipped loss on the ratio of the whole answer, s = exp(mean of log p - log p_old) (GSPO, arXiv:2507.18071).

    Every token of a row has the loss of s; its gradient is that of its own log p, by sg(s) exp(log p - sg(log p))
    (GSPO-token, so that advantages may differ within a row). Goes with `reduction: sequence` and several updates per
    batch; the paper's bounds are 3e-4 and 4e-4. Logs the share of clipped tokens as `clip_fraction`.
    """
    change = log_ratio(live.logps, roll.old_logps, roll.loss_mask)
    tokens = roll.loss_mask.sum(1, keepdim=True).clamp(min=1)
    mean = (change * roll.loss_mask).sum(1, keepdim=True) / tokens
    ratio = safe_exp(mean).detach() * (change - change.detach()).exp()
    free = -roll.advantages * ratio
    loss = torch.maximum(free, -roll.advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
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
    joschu.net/blog/kl-approx.html; k3 to the parent is that of GRPO, arXiv:2402.03300). As a loss, k2 has the gradient of the true KL on policy; k1 has
    a gradient of mean zero, k3 a biased one.
    """
    other = roll.old_logps if against == "old" else roll.ref_logps
    d = -log_ratio(live.logps, other, roll.loss_mask)
    if kind == "k1":
        return -d
    return d**2 / 2 if kind == "k2" else k3(d)
