"""Which tokens learn, by what their distribution was before the update: entropy, nucleus, discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config.values import Source
from trainorder.rl.registry import term, weight
from trainorder.rl.tokens import above_own_quantile, counted, most_important, quantile, row_mean
from trainorder.rl.types import Live, Roll, State

ENTROPY = frozenset({"entropy"})
ANCHOR, GAP = "siren/anchor", "siren/gap"


@weight(scope="batch", needs=ENTROPY)
def forking_tokens(roll: Roll, state: State, *, share: float = 0.2) -> Float[Tensor, "row token"]:
    """1 for the batch's `share` of tokens of highest entropy, else 0 (80/20, arXiv:2506.01939).

    H >= the quantile 1 - share over all tokens of the batch. share .2 is the paper's, on DAPO. With `denominator: mask`
    (TRL, the paper's form) the loss is still divided by all tokens; with `weight` by the kept ones, a step five times as long.
    """
    mask = counted(roll)
    if not mask.any():
        return torch.ones_like(roll.loss_mask)
    return ((roll.entropy >= quantile(roll.entropy[mask], 1 - share)) & mask).to(
        roll.loss_mask.dtype
    )


@weight(needs=ENTROPY)
def forking_tokens_of_row(
    roll: Roll, state: State, *, share: float = 0.2
) -> Float[Tensor, "row token"]:
    """1 for each answer's `share` of tokens of highest entropy, at least one, else 0 (SPINE, arXiv:2511.17938; share from a survey of it)."""
    return most_important(roll.entropy, roll.loss_mask > 0, share).to(roll.loss_mask.dtype)


@term(needs=frozenset({"entropy", "old.entropy"}))
def entropy_band(
    live: Live, roll: Roll, state: State, *, low: float = 0.1, high: float = 0.5, share: float = 0.2
) -> Float[Tensor, "row token"]:
    """relu(H - q_high) + relu(q_low - H), quantiles of the entropies of the answer's forking tokens (SPINE, arXiv:2511.17938).

    Quantiles of the entropies before the update, of the row's `share` of tokens of highest entropy; goes with the weight
    `forking_tokens_of_row` of the same share. 10 and 50 percent are a survey's account of the paper; the coefficient was
    not found.
    """
    forks = forking_tokens_of_row(roll, state, share=share) > 0
    loss = torch.zeros_like(live.logps)
    for row in forks.any(1).nonzero().flatten().tolist():
        own = roll.entropy[row][forks[row]].to(live.logps.dtype)
        over = (live.entropy[row] - quantile(own, high)).relu()
        under = (quantile(own, low) - live.entropy[row]).relu()
        loss[row] = torch.where(forks[row], over + under, 0.0)
    return loss


def _nucleus(options: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({f"nucleus_entropy:{options['top_p']}"})


@weight(needs=_nucleus)
def entropy_peaks(
    roll: Roll, state: State, *, top_p: float = 0.8, above: float = 0.8
) -> Float[Tensor, "row token"]:
    """1 for tokens whose nucleus entropy is at or above the answer's own quantile `above`, else 0 (SIREN, arXiv:2509.25133).

    The nucleus holds the fewest tokens with top_p of the probability, that which crosses it included, as in the paper's
    text; the authors' code leaves it out, which makes the entropy of any token with p >= top_p zero. Notes for the term
    `siren` how far the mean over peaks (of each row, then of rows) is from that of the phase's first step.
    """
    values = roll.token_facts[f"nucleus_entropy:{top_p}"]
    kept = above_own_quantile(values, counted(roll).to(roll.loss_mask.dtype), above)
    rows = kept.any(1)
    if rows.any():
        found = float(row_mean(values, kept)[rows].mean())
        state.mem[GAP] = found - state.mem.setdefault(ANCHOR, found)
    return kept


@term(needs=_nucleus)
def siren(
    live: Live, roll: Roll, state: State, *, top_p: float = 0.8
) -> Float[Tensor, "row token"]:
    """(mean peak entropy - its value at step 1)^2, linear in each token: gap^2 + 2 gap (H - sg H) (SIREN, arXiv:2509.25133).

    H is the nucleus entropy under the weights being trained; the gap is that of the whole batch before the update, so that
    no micro-batch changes it: the square's own gradient in the first update. Goes with `weight: [entropy_peaks]`,
    `reduction: sequence` and `denominator: weight`, and the authors' coefficient .005.
    """
    gap = state.mem.get(GAP, 0.0)
    found = torch.where(roll.loss_mask > 0, live.facts[f"nucleus_entropy:{top_p}"], 0.0)
    return gap**2 + 2 * gap * (found - found.detach())


def discriminator(roll: Roll) -> Float[Tensor, "row token"]:
    """S = p (H + ln p): minus the derivative of the entropy by the sampled token's logit (arXiv:2602.03392)."""
    return roll.old_logps.exp() * (roll.entropy + roll.old_logps)


@weight(scope="batch", needs=ENTROPY)
def clip_b(roll: Roll, state: State, *, sigmas: float = 2.5) -> Float[Tensor, "row token"]:
    """0 for tokens of negative advantage whose discriminator lies over `sigmas` below the batch's mean (Clip_B, arXiv:2602.03392).

    S = p (H + ln p); dropped where A < 0 and S - mean S < -sigmas * std S (over the batch's tokens, population). Tokens of
    positive advantage always stay. 2.5 is that of the authors' fork.
    """
    mask = counted(roll)
    if not mask.any():
        return torch.ones_like(roll.loss_mask)
    found = torch.where(mask, discriminator(roll), 0.0)
    kept = found[mask]
    far = found - kept.mean() < -sigmas * kept.std(unbiased=False)
    return (~(far & mask & (roll.advantages < 0))).to(roll.loss_mask.dtype)


@weight(scope="batch", needs=frozenset({"entropy", "expected_discriminator"}))
def clip_v(
    roll: Roll, state: State, *, sigmas: float = 8.5, max_share: float = 1e-4
) -> Float[Tensor, "row token"]:
    """0 for the worst tokens of negative advantage by D = sum p S - S, the expected discriminator less the own (Clip_V, arXiv:2602.03392).

    Dropped where A < 0 and D > sigmas * std D (over the batch's tokens, population), of these at most `max_share` of the
    batch's tokens and at least one, the largest D first. 8.5 and 1e-4 are the defaults of the authors' fork, whose
    constructor has 2.0: tune it.
    """
    mask = counted(roll)
    if not mask.any():
        return torch.ones_like(roll.loss_mask)
    expected = roll.token_facts["expected_discriminator"]
    found = torch.where(mask, expected - discriminator(roll), 0.0)
    bad = mask & (roll.advantages < 0) & (found > sigmas * found[mask].std(unbiased=False))
    number = max(1, int(max_share * int(mask.sum())))
    if int(bad.sum()) > number:
        bad &= found >= found[bad].topk(number).values[-1]
    return (~bad).to(roll.loss_mask.dtype)


@weight(scope="batch", needs=ENTROPY)
def surprising_tokens(
    roll: Roll,
    state: State,
    *,
    keep: float = 0.8,
    discount: float = 0.8,
    source: Source = "expert",
) -> Float[Tensor, "row token"]:
    """1 for the share `keep` of the source's tokens of largest -log p - discount * H, else 0 (Entropy-SFT of Light-IF, arXiv:2508.03178).

    Tokens that the policy finds unlikely though it is sure of itself are learned first. Over all tokens of the batch, under
    the policy before the update. A weight of the term `nll` on expert rows, with `denominator: weight`. .8 and .8 are
    those of the authors' cold start; the defaults of their function are .2 and 1.
    """
    mask = counted(roll) & roll.is_from(source)[:, None]
    if not mask.any():
        return torch.zeros_like(roll.loss_mask)
    found = -roll.old_logps - discount * roll.entropy
    return ((found >= quantile(found[mask], 1 - keep)) & mask).to(roll.loss_mask.dtype)
