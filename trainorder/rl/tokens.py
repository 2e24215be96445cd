"""Statistics over the tokens of a step that are learned from, for pieces that choose tokens.

Counted tokens are those that may learn, of rows that could be graded.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainorder.rl.helpers import mmean
from trainorder.rl.types import Roll


def counted(roll: Roll) -> Bool[Tensor, "row token"]:
    """Tokens that may learn, of scored rows."""
    return (roll.loss_mask > 0) & roll.scored[:, None]


def covariance(roll: Roll) -> Float[Tensor, "row token"]:
    """(A - mean A)(log p - mean log p), means over counted tokens; 0 elsewhere.

    Log-probabilities before the update, where the authors of Clip-Cov and KL-Cov take those of the forward that is
    trained: the same in a step's first update, and no micro-batch can change them (arXiv:2505.22617).
    """
    mask = counted(roll).to(roll.loss_mask.dtype)
    logps, credit = _kept(roll.old_logps, mask), _kept(roll.advantages, mask)
    return _kept((credit - mmean(credit, mask)) * (logps - mmean(logps, mask)), mask)


def mean_entropy(roll: Roll) -> float:
    """Mean entropy of the counted tokens before the update, nats."""
    return float(mmean(roll.entropy, counted(roll).to(roll.loss_mask.dtype)))


def row_mean(
    values: Float[Tensor, "row token"], mask: Float[Tensor, "row token"]
) -> Float[Tensor, " row"]:
    """Mean of each row where the mask is 1; 0 for rows without such a token."""
    return _kept(values, mask).sum(1) / (mask > 0).sum(1).clamp(min=1)


def quantile(values: Float[Tensor, " value"], share: float) -> Float[Tensor, ""]:
    """The value below which `share` of them lie, linearly between neighbours.

    torch.quantile refuses more than 16 million values, which a long step has.

    >>> quantile(torch.tensor([0.1, 2.0, 0.2, 1.5, 0.3]), 0.8).item()
    1.600000023841858
    """
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    low = min(int(place), len(ordered) - 1)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def above_own_quantile(
    values: Float[Tensor, "row token"], mask: Float[Tensor, "row token"], share: float
) -> Float[Tensor, "row token"]:
    """1 for each row's tokens at or above the row's own quantile `share`, else 0."""
    kept = torch.zeros_like(mask)
    for row in (mask > 0).any(1).nonzero().flatten().tolist():
        own = mask[row] > 0
        kept[row] = (own & (values[row] >= quantile(values[row][own], share))).to(mask.dtype)
    return kept


def most_important(
    score: Float[Tensor, "row token"], mask: Tensor, keep: float
) -> Float[Tensor, "row token"]:
    """1 for the round(keep * n), at least one, highest of each row's n tokens; of equal ones the first.

    >>> score = torch.tensor([[0.0, 1.0, 1.0, 0.75]])
    >>> most_important(score, torch.ones(1, 4) > 0, 0.75).tolist()
    [[0.0, 1.0, 1.0, 1.0]]
    """
    order = torch.where(mask, score, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    ranked = order.argsort(1)
    count = (keep * mask.sum(1, keepdim=True).double()).round().clamp(min=1)
    return ((ranked < count) & mask).to(score.dtype)


def _kept(values: Float[Tensor, "row token"], mask: Tensor) -> Float[Tensor, "row token"]:
    return torch.where(mask > 0, values, 0.0)
