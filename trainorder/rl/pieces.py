"""Every piece that params.yaml can name under `method:` (slots and signatures: registry.py)."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.helpers import (
    centred,
    equal_in_group,
    gcnt,
    gstd,
    k3,
    log_ratio,
    mmean,
    safe_exp,
)
from trainorder.rl.registry import advantage, edit, metric, reward, term, weight
from trainorder.rl.types import Live, Roll, Rollouts, State


@reward
def graded(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """The grade of the task's verifier or of the judge, in [0, 1]."""
    return roll.row_facts["graded"]


@edit
def dynamic_sampling(roll: Roll, state: State, rollouts: Rollouts, *, max_rounds: int = 10) -> Roll:
    """Replace groups of equal rewards by new prompts of the same task (DAPO, arXiv:2503.14476).

    At most `max_rounds` rounds of generation, the first one included; then the step trains on the
    groups it has. Where no group at all has spread the roll stays as it is (and teaches nothing).
    """
    wanted = _groups_per_task(roll)
    kept, fresh = [], roll
    for round_ in range(max_rounds):
        if round_ > 0:
            missing = wanted - sum(map(_groups_per_task, kept), Counter[str]())
            if not missing:
                break
            fresh = rollouts.sample(rollouts.requests(dict(missing)))
        spread = ~equal_in_group(fresh.rewards, fresh.group, fresh.scored)
        if spread.any():
            kept.append(fresh.rows(spread.nonzero().flatten().tolist()))
    return Roll.cat(kept) if kept else roll


def _groups_per_task(roll: Roll) -> Counter[str]:
    task_of = {int(g): problem.task for g, problem in zip(roll.group, roll.problem, strict=True)}
    return Counter(task_of.values())


@advantage
def grpo(roll: Roll, state: State, *, eps: float = 1e-6) -> Float[Tensor, " row"]:
    """(r - mean of group) / (std of group + eps), std unbiased (GRPO, arXiv:2402.03300).

    Equal rewards give exactly 0, and so does a group with one scored row: a lone rollout is its own
    baseline.
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


@weight
def finished_only(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """0 for rollouts cut off at the length limit (overlong filtering of DAPO, arXiv:2503.14476)."""
    return roll.row_facts["finished"]


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


@metric
def reward_spread(roll: Roll, state: State) -> dict[str, float]:
    """Mean over rows of the group's reward standard deviation: what there is to learn from."""
    spread = gstd(roll.rewards, roll.group, roll.scored)
    spread = torch.where(equal_in_group(roll.rewards, roll.group, roll.scored), 0.0, spread)
    return {"reward_spread": float(spread.mean())}


@metric
def entropy_covariance(roll: Roll, state: State) -> dict[str, float]:
    """Cov(log p, A) over tokens: to first order entropy falls at this rate (arXiv:2505.22617)."""
    mask, advantages = roll.loss_mask, roll.advantages
    logps = roll.old_logps - mmean(roll.old_logps, mask)
    covariance = mmean(logps * (advantages - mmean(advantages, mask)), mask)
    return {"entropy_covariance": float(covariance)}


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
