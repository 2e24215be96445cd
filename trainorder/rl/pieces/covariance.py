"""Control of entropy by the covariance of log-probability and advantage (arXiv:2505.22617)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.helpers import log_ratio, safe_exp
from trainorder.rl.registry import term, weight
from trainorder.rl.tokens import counted, covariance
from trainorder.rl.types import Live, Roll, State


@weight(scope="batch")
def clip_cov(
    roll: Roll, state: State, *, share: float = 2e-4, low: float = 1.0, high: float = 5.0
) -> Float[Tensor, "row token"]:
    """0 for a random `share` of the batch's tokens, drawn from those with low < covariance < high (Clip-Cov, arXiv:2505.22617).

    c = (A - mean A)(log p - mean log p) over the batch. max(1, floor(share * tokens)) candidates lose their loss, all of
    them where there are fewer; share 0 leaves every token (our addition). Defaults are the authors' code; SPEAR takes
    .02, 1, 40. The code leaves tokens that PPO clips out of the candidates: in a step's first update there are none.
    """
    found, kept = covariance(roll), torch.ones_like(roll.loss_mask)
    candidates = ((found > low) & (found < high) & counted(roll)).nonzero()
    number = max(1, int(share * int(counted(roll).sum()))) if share > 0 else 0
    if number and len(candidates):
        values = found[candidates[:, 0], candidates[:, 1]]
        candidates = candidates[values.argsort(stable=True)]  # the rows' order must not matter
        drawn = torch.randperm(len(candidates), generator=state.stream("clip_cov"))[:number]
        kept[candidates[drawn, 0], candidates[drawn, 1]] = 0.0
    return kept


@weight(scope="batch")
def top_covariance(roll: Roll, state: State, *, share: float = 2e-3) -> Float[Tensor, "row token"]:
    """1 for the `share` of the batch's tokens of highest covariance, else 0 (KL-Cov's tokens, arXiv:2505.22617).

    max(1, floor(share * tokens)) of them. share .002 is the paper's for 7B, .0002 its for 32B and verl's default. A
    weight of KL-Cov's penalty (`log_ratio_size`), not of the whole method.
    """
    mask = counted(roll)
    found = torch.where(mask, covariance(roll), -torch.inf)
    number = max(1, int(share * int(mask.sum()))) if share > 0 else 0
    number = min(number, int(mask.sum()))
    if not number:
        return torch.zeros_like(roll.loss_mask)
    least = found.flatten().topk(number).values[-1]
    return ((found >= least) & mask).to(roll.loss_mask.dtype)


@weight(scope="batch")
def covariance_softmax(
    roll: Roll, state: State, *, scale: float = 10.0, cap: float = 5.0
) -> Float[Tensor, "row token"]:
    """min(scale * softmax of covariances over the row, cap): TEA's weight of the entropy bonus (Light-IF, arXiv:2508.03178).

    The authors' released code defines it and cannot reach it; scale and cap are that function's. A third party's form,
    min(softmax(cov / tau), c / T) H on tokens of the thought, is not offered.
    """
    mask = counted(roll)
    shares = torch.where(mask, covariance(roll), -torch.inf).softmax(1).nan_to_num(0.0)
    return (scale * shares).clamp(max=cap)


@term(scales_with_advantage=True)
def unclipped_surrogate(live: Live, roll: Roll, state: State) -> Float[Tensor, "row token"]:
    """-r A, r = p / p_old, without PPO's clipping: the policy loss of KL-Cov (arXiv:2505.22617)."""
    return -roll.advantages * safe_exp(log_ratio(live.logps, roll.old_logps, roll.loss_mask))


@term
def log_ratio_size(live: Live, roll: Roll, state: State) -> Float[Tensor, "row token"]:
    """|log p - log p_old|: KL-Cov's penalty, with weight `top_covariance` and coefficient 1 (arXiv:2505.22617).

    On policy its gradient is 0, as that of the authors' code: it acts from a batch's second update on.
    """
    return log_ratio(live.logps, roll.old_logps, roll.loss_mask).abs()
