"""How token losses become one number. A fixed library function, not a plug-in."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainorder.config import Denominator, Reduction


def reduction_shares(
    weight: Float[Tensor, "row token"],
    mask: Float[Tensor, "row token"],
    group: Int[Tensor, " row"],
    *,
    how: Reduction = "token",
    denominator: Denominator = "mask",
    max_length: Float[Tensor, " row"],
) -> Float[Tensor, "row token"]:
    """Shares c with reduce(x) = sum(c * x): each token's share of the update's loss.

    Shares are computed once on the rows of the whole update, so that any cut into micro-batches adds up exactly:

    | how | share of a token of weight w | what it is |
    |---|---|---|
    | token | w / sum of all d | one mean over tokens (DAPO, arXiv:2503.14476) |
    | sequence | w / (row's sum of d * rows) | mean of row means (GRPO, arXiv:2402.03300) |
    | constant | w / (rows * row's max_length) | no length normalisation (Dr.GRPO, arXiv:2503.20783) |
    | prompt | w / (group's sum of d * groups) | mean of prompt means (arXiv:2510.13786) |

    d is the mask (all tokens that may learn), or with denominator `weight` the weighted mask (those that kept weight); rows
    and groups without any d are not counted, and a row without credit is. `max_length` is the longest answer in tokens that
    the row's task allows: a task's rows weigh the same whichever tasks stand beside it.
    """
    weighted = weight * mask
    counted = mask if denominator == "mask" else weighted
    if how == "token":
        return _divide(weighted, counted.sum())
    if how == "sequence":
        per_row = counted.sum(1, keepdim=True)
        return _divide(weighted, per_row * (per_row > 0).sum())
    if how == "constant":
        return weighted / (len(mask) * max_length[:, None])
    if how == "prompt":
        groups, dense = group.unique(return_inverse=True)
        per_group = counted.new_zeros(len(groups)).index_add_(0, dense, counted.sum(1))
        return _divide(weighted, (per_group * (per_group > 0).sum())[dense, None])
    raise ValueError(f"reduction {how!r} is unknown; use token, sequence, constant or prompt")


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, 0.0)
