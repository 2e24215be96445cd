"""Advantage estimators: what a row earns against the others of its group or of the batch."""

from __future__ import annotations

from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.reading import ParamsError
from trainorder.rl.helpers import centred, gcnt, gmean, gstd
from trainorder.rl.registry import advantage
from trainorder.rl.types import Roll, State


@advantage
def grpo(roll: Roll, state: State, *, eps: float = 1e-6) -> Float[Tensor, " row"]:
    """(r - mean of group) / (std of group + eps), std unbiased (GRPO, arXiv:2402.03300).

    Equal rewards give exactly 0, and so does a group with one scored row: a lone rollout is its own
    baseline. eps is that of verl.
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


@advantage(scope="batch")
def reinforce_plus_plus(
    roll: Roll, state: State, *, gamma: float = 1.0, eps: float = 1e-8
) -> Float[Tensor, "row token"]:
    """gamma^(tokens to come) r, whitened over all tokens of the batch (REINFORCE++, arXiv:2501.03262).

    No baseline of the prompt: groups compare with the whole batch. The KL penalty that the paper puts
    into the rewards is the term `kl` here. gamma and eps are those of verl.
    """
    places = torch.arange(roll.loss_mask.shape[1])
    left = (roll.lengths()[:, None] - 1 - places).clamp(min=0)
    return whitened(roll.rewards.double()[:, None] * gamma ** left.double(), roll, eps)


@advantage(scope="batch")
def reinforce_plus_plus_baseline(
    roll: Roll, state: State, *, eps: float = 1e-8
) -> Float[Tensor, "row token"]:
    """Distance r - mean of group, whitened over all tokens of the batch (REINFORCE++-baseline, arXiv:2501.03262).

    Its scale is the batch's, so that a group of small spread is not blown up as in `grpo`. Where the
    answers of a batch differ in length, so does their weight in the mean that whitening subtracts. eps is that of verl.
    """
    credit = centred(roll.rewards, roll.group, roll.scored)
    return whitened(credit[:, None].expand_as(roll.loss_mask), roll, eps)


def whitened(
    values: Float[Tensor, "row token"], roll: Roll, eps: float
) -> Float[Tensor, "row token"]:
    """(x - mean) / sqrt(variance + eps) over the learning tokens of scored rows, variance unbiased.

    Exactly 0 where all are equal or there is but one token, and elsewhere.
    """
    counted = (roll.loss_mask > 0) & roll.scored[:, None]
    kept = values[counted]
    if len(kept) < 2 or kept.min() == kept.max():
        return torch.zeros_like(values)
    return torch.where(counted, (values - kept.mean()) / (kept.var() + eps).sqrt(), 0.0)


@advantage(scope="batch")
def bnpo(
    roll: Roll, state: State, *, low: float = 0.0, high: float = 1.0, max_factor: float = 1e6
) -> Float[Tensor, " row"]:
    """(r - p) / Beta(p; a, b), p the group's mean reward (BNPO, arXiv:2506.02864).

    Rewards are mapped from [low, high] to [0, 1]. The Beta distribution of pass rates is fitted to the
    batch's prompts by moments: k = m (1 - m) / v - 1 with m and v mean and unbiased variance of p,
    a = max(1, 1 + k m / 3), b = max(1, 1 + k (1 - m) / 3). `max_factor` bounds 1 / density as the
    authors' code does. One prompt gives a = b = 1, which is `dr_grpo`, and so do equal pass rates, where
    that code divides by zero (our choice). TRL's loss_type "bnpo" has no Beta normalisation.

    Raises:
        ParamsError: a group's mean reward lies outside of [low, high].
    """
    group = (roll.group, roll.scored)
    rewards = (roll.rewards.double() - low) / (high - low)
    rate = gmean(rewards, *group)
    if ((rate < -1e-6) | (rate > 1 + 1e-6)).any():
        found = gmean(roll.rewards, *group)
        raise ParamsError(
            f"method.advantage.bnpo: mean rewards of prompts go from {float(found.min()):g} to {float(found.max()):g}, and it "
            f"takes those within [{low:g}, {high:g}]: set its low and high to the range of the summed reward channels"
        )
    rate = rate.clamp(0, 1)
    scored = zip(roll.group[roll.scored].tolist(), rate[roll.scored].tolist(), strict=True)
    rates = rate.new_tensor([next(rows)[1] for _, rows in groupby(sorted(scored), lambda r: r[0])])
    if len(rates) < 2 or rates.min() == rates.max():
        return centred(rewards, *group)
    mean, variance = rates.mean(), rates.var()
    k = mean * (1 - mean) / variance - 1
    a, b = (1 + k * mean / 3).clamp(min=1), (1 + k * (1 - mean) / 3).clamp(min=1)
    density = torch.distributions.Beta(a, b, validate_args=False).log_prob(rate).exp()
    return centred(rewards, *group) * (1 / density).clamp(max=max_factor)
