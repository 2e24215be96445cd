"""Supervised learning inside of RL: rows of an expert beside those of the policy (CHORD, arXiv:2508.11408)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.reading import ParamsError
from trainorder.rl.registry import edit, metric, term
from trainorder.rl.types import Live, Roll, Rollouts, State


@edit
def expert_rows(roll: Roll, state: State, rollouts: Rollouts, *, share: float = 0.2) -> Roll:
    """Add expert answers to fresh problems of the same tasks, `share` of all rows then (CHORD, arXiv:2508.11408).

    The expert's answer is the problem's gold text: of the built-in tasks a completion that scores 1, of your own rows their
    column `gold`. Each is a group of its own, so that group estimators give it no credit and the policy's rows keep
    theirs; terms with `source: expert` learn from it. share .2 is that of the authors' settings; at 0 nothing is added.

    Raises:
        ParamsError: a problem has no gold text, or `share` is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ParamsError(f"method.edit.expert_rows.share: {share:g} is not in [0, 1)")
    own = roll.is_from("policy").nonzero().flatten().tolist()
    wanted = round(share / (1 - share) * len(own))
    counts = split_count(wanted, Counter(roll.problem[row].task for row in own))
    requests = rollouts.requests(counts) if wanted else []
    if not requests:
        return roll
    golds = [(r.problem.gold if r.problem else "") or "" for r in requests]
    for request, gold in zip(requests, golds, strict=True):
        if not gold and request.problem:
            raise ParamsError(
                f"method.edit.expert_rows: problem {request.problem.id} has no gold text to imitate: give its row one, or "
                "leave the piece out of this phase"
            )
    return Roll.cat([roll, rollouts.given(requests, golds, "expert")])


def split_count(count: int, weights: dict[str, int]) -> dict[str, int]:
    """`count` split in proportion, by largest remainders; names that get none are left out.

    >>> split_count(3, {"math": 4, "qa": 4, "code": 0})
    {'math': 2, 'qa': 1}
    """
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    parts = {name: math.floor(value) for name, value in exact.items()}
    missing = count - sum(parts.values())
    for name in sorted(exact, key=lambda name: parts[name] - exact[name])[:missing]:
        parts[name] += 1
    return {name: part for name, part in parts.items() if part}


@term
def nll(
    live: Live, roll: Roll, state: State, *, token_weight: Literal["one", "p", "phi"] = "one"
) -> Float[Tensor, "row token"]:
    """-w log p: supervised learning, of expert rows with `source: expert` (CHORD, arXiv:2508.11408).

    w = 1 for CHORD-mu, whose coefficient falls on a cosine from .9 to .05 in 200 steps while that of the policy's rows
    rises from .1 to .95; w = p (1 - p), detached, for CHORD-phi (`phi`, coefficient .1), which spares tokens that are
    certain already and those that the policy finds absurd; w = p alone (`p`) is the authors' "sft_is". Goes with
    `reduction: token`.
    """
    logps = torch.where(roll.loss_mask > 0, live.logps, 0.0)
    if token_weight == "one":
        return -logps
    p = logps.detach().exp()
    return -(p * (1 - p) if token_weight == "phi" else p) * logps


@metric
def shift_readapt_overfit(
    roll: Roll, state: State, *, window: int = 1, margin: float = 0.02
) -> dict[str, float]:
    """Where a phase stands on the curve of learning from foreign answers: drop, recovery, decline (arXiv:2508.11408).

    The curve is the mean grade of the policy's rows, averaged over the last `window` steps (the paper reads it off
    evaluations). Logs how deep it fell below its start (`shift_depth`) and at which step (`shift_trough`), the first step
    after that at or above the start (`readapted`, -1 before), the step of its maximum (`peak`), and whether it now lies more
    than `margin` below it (`overfit`, 1 or 0). margin .02 is ours.
    """
    mine = roll.scored & roll.is_from("policy")
    curve = state.mem.setdefault("shift_readapt_overfit", [])
    if mine.any():
        curve.append(float(roll.row_facts["graded"][mine].mean()))
    means = [
        math.fsum(part) / len(part)
        for end in range(1, len(curve) + 1)
        for part in (curve[max(0, end - window) : end],)
    ]
    return phases_of(means or [0.0], margin)


def phases_of(curve: Sequence[float], margin: float = 0.02) -> dict[str, float]:
    """What `shift_readapt_overfit` logs of a curve.

    >>> found = phases_of([0.70, 0.55, 0.60, 0.72, 0.74, 0.73, 0.69])
    >>> {name: round(value, 2) for name, value in found.items()}
    {'shift_depth': 0.15, 'shift_trough': 1, 'readapted': 3, 'peak': 4, 'overfit': 1.0}
    """
    start, fallen, back = curve[0], False, -1
    for step, value in enumerate(curve):
        fallen |= value < start
        if fallen and value >= start:
            back = step
            break
    low = min(curve[: back + 1] if back >= 0 else curve)
    peak = max(curve)
    return {
        "shift_depth": start - low,
        "shift_trough": curve.index(low),
        "readapted": back,
        "peak": curve.index(peak),
        "overfit": float(curve[-1] < peak - margin),
    }
