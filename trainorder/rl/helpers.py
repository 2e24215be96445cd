"""Statistics over groups and over masked tokens: what makes each piece a few lines.

Group statistics are taken over scored rows only, in float64, whatever the order of the rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) = 5e8 is far beyond any useful ratio and still squares within float32."""


def gsum(
    x: Float[Tensor, " row"], group: Int[Tensor, " row"], scored: Bool[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Each row's group sum over scored rows, float64.

    >>> all_scored = torch.tensor([True, True, True])
    >>> gsum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 0]), all_scored).tolist()
    [5.0, 2.0, 5.0]
    """
    values = torch.where(scored, x.double(), 0.0)
    _, dense = group.unique(return_inverse=True)
    return values.new_zeros(len(x)).index_add_(0, dense, values)[dense]


def gcnt(group: Int[Tensor, " row"], scored: Bool[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Scored rows in each row's group, at least 1 so that it can divide."""
    return gsum(scored.double(), group, scored).clamp(min=1)


def gmean(
    x: Float[Tensor, " row"], group: Int[Tensor, " row"], scored: Bool[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Each row's group mean over scored rows, float64."""
    return gsum(x, group, scored) / gcnt(group, scored)


def gstd(
    x: Float[Tensor, " row"], group: Int[Tensor, " row"], scored: Bool[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Each row's group standard deviation (ddof 1); 1 where fewer than two rows are scored."""
    n = gcnt(group, scored)
    square = gsum((x.double() - gmean(x, group, scored)) ** 2, group, scored)
    return torch.where(n > 1, (square / (n - 1).clamp(min=1)).sqrt(), 1.0)


def equal_in_group(
    x: Float[Tensor, " row"], group: Int[Tensor, " row"], scored: Bool[Tensor, " row"]
) -> Bool[Tensor, " row"]:
    """True for rows of groups whose scored values are all equal (or that hold fewer than two)."""
    return gspread(x, group, scored) <= 0


def gspread(
    x: Float[Tensor, " row"], group: Int[Tensor, " row"], scored: Bool[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Largest minus smallest scored value of each row's group; -inf where none is scored."""
    _, dense = group.unique(return_inverse=True)
    low = torch.full((len(x),), torch.inf, dtype=x.dtype)
    high = low.neg().scatter_reduce(0, dense, torch.where(scored, x, -torch.inf), "amax")
    low = low.scatter_reduce(0, dense, torch.where(scored, x, torch.inf), "amin")
    return (high - low)[dense]


def gdeviation(
    x: Float[Tensor, " row"], group: Int[Tensor, " row"], scored: Bool[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """As gstd, but exactly 0 in flat groups and where fewer than two rows are scored."""
    return torch.where(equal_in_group(x, group, scored), 0.0, gstd(x, group, scored))


def levelled(
    x: Float[Tensor, " row"],
    group: Int[Tensor, " row"],
    scored: Bool[Tensor, " row"],
    floor: Float[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """The values, each replaced by its group's mean where the group's spread is below the row's `floor`.

    >>> reward, group, scored = torch.tensor([0.5, 0.75, 0.5, 1.0]), torch.tensor([0, 0, 1, 1]), torch.ones(4) > 0
    >>> levelled(reward, group, scored, torch.full((4,), 0.4)).tolist()
    [0.625, 0.625, 0.5, 1.0]
    """
    close = scored & (gspread(x, group, scored) < floor)
    return torch.where(close, gmean(x, group, scored).to(x.dtype), x)


def centred(
    x: Float[Tensor, " row"], group: Int[Tensor, " row"], scored: Bool[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Distance x - mean of group, in float64.

    Exactly 0 for unscored rows, and in flat groups, where rounding would leave dust.
    """
    unmoved = equal_in_group(x, group, scored) | ~scored
    return torch.where(unmoved, 0.0, x.double() - gmean(x, group, scored))


def mmean(x: Tensor, mask: Tensor) -> Float[Tensor, ""]:
    """Mean of x where mask is 1; 0 where there is nothing to average.

    >>> mmean(torch.tensor([[1.0, 9.0], [3.0, 5.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])).item()
    3.0
    """
    return torch.where(mask > 0, x * mask, 0.0).sum() / mask.sum().clamp(min=1)


def log_ratio(
    logps: Float[Tensor, "row token"],
    other: Float[Tensor, "row token"],
    mask: Float[Tensor, "row token"],
) -> Float[Tensor, "row token"]:
    """Difference logps - other, 0 where masked: the mask comes before exp, as inf * 0 is nan."""
    kept = mask > 0
    return torch.where(kept, logps, 0.0) - torch.where(kept, other, 0.0)


def k3(d: Tensor) -> Tensor:
    """Schulman's estimate exp(d) - 1 - d of a KL divergence, d = log p_other - log p; >= 0."""
    bounded = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return bounded.expm1() - d


def safe_exp(log_ratio: Tensor) -> Tensor:
    """Exponential with its argument bounded by MAX_LOG_RATIO."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
