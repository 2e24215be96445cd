"""Credit from comparisons beyond right and wrong: with halves of the group, with length, right apart from wrong."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.helpers import centred, equal_in_group, gmean, gstd, log_ratio
from trainorder.rl.pieces.advantages import whitened
from trainorder.rl.registry import advantage, term
from trainorder.rl.tokens import row_mean
from trainorder.rl.types import Live, Roll, State


def _needs(options: Any) -> frozenset[str]:
    return frozenset({"entropy"} if options["by"] == "entropy" else ())


@advantage(needs=_needs)
def canon(
    roll: Roll,
    state: State,
    *,
    by: Literal["entropy", "length"] = "entropy",
    mu: float = 0.5,
    alpha: float = 1.0,
) -> Float[Tensor, " row"]:
    """Mu (r - mean of the other half) + (1 - mu)(r - mean of the own half), halves of the group sorted by a metric (CANON, arXiv:2509.23962).

    The metric is an answer's mean entropy or its length. mu = .5 with halves of equal size is `dr_grpo`; above, answers
    compete across the halves, below within them. `alpha` scales the rewards of one half in the comparison across only:
    of the half of low entropy, or of long answers; 1 prefers none. Of an odd group the upper half is the larger. The
    paper's schedules of mu (1 - accuracy, cosine with restarts) are a row per phase. Goes with `reduction: constant`.
    """
    mask = roll.loss_mask
    metric = row_mean(roll.entropy, mask) if by == "entropy" else roll.lengths().double()
    credit = torch.zeros_like(roll.rewards, dtype=torch.float64)
    favoured = 0 if by == "entropy" else 1
    for group in roll.group.unique():
        rows = ((roll.group == group) & roll.scored).nonzero().flatten().tolist()
        # ties by reward and text: the order in which rows stand must not matter
        rows.sort(key=lambda row: (float(metric[row]), float(roll.rewards[row]), roll.text[row]))
        halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        if not halves[0]:
            continue
        rewards = roll.rewards.double()
        means = [rewards[half].mean() for half in halves]
        for side, half in enumerate(halves):
            scale = [alpha if other == favoured else 1.0 for other in (side, 1 - side)]
            across = scale[0] * rewards[half] - scale[1] * means[1 - side]
            credit[half] = mu * across + (1 - mu) * (rewards[half] - means[side])
    flat = equal_in_group(roll.rewards, roll.group, roll.scored) & (alpha == 1.0)
    return torch.where(flat, 0.0, credit)


@advantage(scope="batch")
def lead(
    roll: Roll,
    state: State,
    *,
    right: float = 0.5,
    floor: float = 1000.0,
    max_length: float | None = None,
    alpha: float = 1.0,
    beta: float = 0.95,
    least: float = 0.3,
    eps: float = 1e-6,
) -> Float[Tensor, "row token"]:
    """Correctness and length normalised apart, mixed by how unstable each is, whitened over the batch (LEAD, arXiv:2605.09806).

    A prompt's target length is the mean of its right answers (rewards above `right`), within [floor, max_length], or
    max_length where none is right. e = max(-1, 1 - |length - target| / target). Both are normalised in the group as in
    `grpo`. Instability D = CV / (CV + other's CV) * (1 - mean)^alpha, CV = std / mean over the batch; that of e over right
    answers, mapped to [0, 1]. lambda = moving average of D_c / (D_c + D_e) from .5 on, at least `least`:
    A = whiten(lambda A_c + (1 - lambda) A_e) over tokens. Where both CV are 0 lambda stays. The floor is that of the
    authors' code and makes the target constant for short tasks: lower it there. max_length null is each row's own limit.
    e is the paper's (`max_sym` in the code); the code's default, `max_asym`, is not offered.
    """
    group = (roll.group, roll.scored)
    lengths, correct = roll.lengths().double(), (roll.rewards > right) & roll.scored
    longest = _longest(roll, max_length)
    count = gmean(correct.double(), *group)
    own = gmean(torch.where(correct, lengths, 0.0), *group) / torch.where(count > 0, count, 1.0)
    # a task whose answers are all shorter than the floor has its longest answer as the target
    bounded = torch.minimum(torch.maximum(own, lengths.new_tensor(floor)), longest)
    target = torch.where(count > 0, bounded, longest)
    efficient = (1 - (lengths - target).abs() / target).clamp(min=-1)
    parts = [
        centred(values, *group) / (gstd(values, *group) + eps)
        for values in (correct.double(), efficient)
    ]
    share = _share(correct[roll.scored].double(), (efficient[correct] + 1) / 2, alpha)
    lead = state.mem.setdefault("lead", 0.5)
    if share is not None:
        lead = state.ema("lead", share, beta=beta)
    weight = max(least, lead)
    mixed = weight * parts[0] + (1 - weight) * parts[1]
    return whitened(mixed[:, None].expand_as(roll.loss_mask), roll, 1e-8)


def _share(
    correct: Float[Tensor, " row"], efficient: Float[Tensor, " row"], alpha: float
) -> float | None:
    """D_c / (D_c + D_e); None where neither varies."""
    spreads, means = [], []
    for values in (correct, efficient):
        mean = float(values.mean()) if len(values) else 0.0
        flat = len(values) < 2 or mean <= 0 or bool(values.min() == values.max())
        spreads.append(0.0 if flat else float(values.std(unbiased=False)) / mean)
        means.append(mean)
    unstable = [
        cv / max(1e-12, sum(spreads)) * (1 - mean) ** alpha
        for cv, mean in zip(spreads, means, strict=True)
    ]
    return unstable[0] / sum(unstable) if sum(unstable) > 0 else None


@advantage
def drpo(
    roll: Roll,
    state: State,
    *,
    right: float = 0.5,
    length_weight: float = 0.1,
    temperature: float = 10.0,
    max_length: float | None = None,
) -> Float[Tensor, " row"]:
    """Right answers +w, wrong ones -softmax(s / temperature), each normalised among its own kind, times the group's size (DRPO, arXiv:2510.04474).

    w is exp((1 - length / max_length) / length_weight) over its sum among the group's right answers (rewards above
    `right`), so that a right answer never has negative credit for its length; s is an answer's mean log p. Groups without
    right or without wrong answers have no credit. The same gradient as the paper's -temperature * log sum exp(s / temperature)
    over wrong answers, without whole groups in one micro-batch; as s is that before the update, in a batch's first update.
    Goes with `policy_gradient`, `trust_region` and `reduction: sequence`, whose mean over rows the group's size undoes.
    Values are the authors' code; a large length_weight takes no notice of length.
    """
    longest = _longest(roll, max_length)
    correct = roll.rewards > right
    gain = (1 - roll.lengths().double() / longest) / length_weight
    mean_logp = row_mean(roll.old_logps.double(), roll.loss_mask) / temperature
    credit = torch.zeros_like(gain)
    for group in roll.group.unique():
        mine = (roll.group == group) & roll.scored
        good, bad = mine & correct, mine & ~correct
        if good.any() and bad.any():
            size = int(mine.sum())
            credit[good] = size * gain[good].softmax(0)
            credit[bad] = -size * mean_logp[bad].softmax(0)
    return credit


def _longest(roll: Roll, max_length: float | None) -> Float[Tensor, " row"]:
    """`max_length`, or each row's own limit; without limits the longest answer of the batch."""
    lengths = roll.lengths().double()
    if max_length is not None:
        return torch.full_like(lengths, max_length)
    limit = roll.row_facts.get("limit", torch.full_like(lengths, math.inf)).double()
    return torch.where(limit.isfinite(), limit, lengths.max()).clamp(min=1)


@term(scales_with_advantage=True)
def policy_gradient(live: Live, roll: Roll, state: State) -> Float[Tensor, "row token"]:
    """-A log p: no ratio, no clipping (REINFORCE, Williams 1992)."""
    return -roll.advantages * torch.where(roll.loss_mask > 0, live.logps, 0.0)


@term
def trust_region(
    live: Live, roll: Roll, state: State, *, free: float = 1e-4, strength: float = 1e3
) -> Float[Tensor, "row token"]:
    """sg(max(0, strength (KL - free))) * KL, KL = mean of log p_old - log p over the answer (DRPO, arXiv:2510.04474).

    The paper's KL is the batch's; an answer's own needs no rows beside it. On policy it is 0.
    """
    moved = -log_ratio(live.logps, roll.old_logps, roll.loss_mask)
    mean = moved.sum(1, keepdim=True) / roll.loss_mask.sum(1, keepdim=True).clamp(min=1)
    return (strength * (mean.detach() - free)).clamp(min=0) * moved
