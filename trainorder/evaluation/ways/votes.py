"""What the samples that an evaluation draws anyway are worth together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from trainorder.config.values import Samples
from trainorder.evaluation.sitting import Sitting, Values, way
from trainorder.metrics.statistics import pass_at_k
from trainorder.rewards import format
from trainorder.rewards.answers import numbers


@way()
def majority(sitting: Sitting, *, k: Samples = 4) -> Values:
    """`majority_at_K`: worth of the most frequent answer among k samples (self-consistency, arXiv:2203.11171).

    Mean over the floor(n / k) groups of k samples, in the order that they were drawn. A sample without an answer has no vote;
    tied answers count in equal shares, and where nobody votes the worth is that of the samples. `k` is at most
    `evaluation.samples`.
    """
    found = []
    for texts, values in zip(sitting.texts, sitting.values, strict=True):
        starts = range(0, len(texts) - k + 1, k)
        each = [elected(texts[i : i + k], values[i : i + k]) for i in starts]
        kept = [value for value in each if not math.isnan(value)]
        found.append(math.fsum(kept) / len(kept) if kept else math.nan)
    return {f"majority_at_{k}": found}


@way(judged=True)
def pass_at(sitting: Sitting, *, k: Samples = 2) -> Values:
    """`pass_at_K`: chance that one of k samples succeeds, from all that were drawn (unbiased; Chen et al., arXiv:2107.03374).

    Success is a full verifier value, or a win rate above one half. `k` is at most `evaluation.samples`, at which it is the
    metric `pass_at_k` that every evaluation has. nan where fewer than k samples could be graded.
    """
    found = []
    for values in sitting.values:
        known = [value for value in values if value is not None]
        right = sum(value > 0.5 if sitting.judged else value >= 1 for value in known)
        found.append(pass_at_k(len(known), right, k) if len(known) >= k else math.nan)
    return {f"pass_at_{k}": found}


def vote(text: str) -> str:
    """What an answer says, in one spelling; empty for none.

    >>> vote("<answer> 7.0 </answer>") == vote("so the answer is 7.") == "7", vote("seven"), vote("<answer> Lima </answer>")
    (True, '', 'lima')
    """
    said = format.answer(text)
    for value in numbers(said):
        return str(value.normalize() if isinstance(value, Decimal) else value)
    return " ".join(said.casefold().split())


def shares(texts: Sequence[str]) -> dict[str, float]:
    """Answer -> share of all samples that give it; samples without an answer count in the denominator only.

    >>> shares(["<answer> 7 </answer>", "<answer> 7. </answer>", "<answer> 8 </answer>", "?"])
    {'7': 0.5, '8': 0.25}
    """
    votes = Counter(filter(None, map(vote, texts)))
    return {answer: count / len(texts) for answer, count in votes.items()}


def elected(texts: Sequence[str], values: Sequence[float | None]) -> float:
    """Worth of the most frequent answer; nan where none of its samples could be graded.

    >>> elected(["<answer> 7 </answer>", "<answer> 8 </answer>", "<answer> 7 </answer>"], [1.0, 0.0, 1.0])
    1.0
    >>> elected(["<answer> 7 </answer>", "<answer> 8 </answer>"], [1.0, 0.0])  # a tie
    0.5
    """
    found = shares(texts)
    most = max(found.values(), default=0.0)
    winners = [answer for answer, share in found.items() if share == most] or [""]
    worth = []
    for winner in winners:
        own = [v for t, v in zip(texts, values, strict=True) if vote(t) == winner and v is not None]
        worth += [math.fsum(own) / len(own)] if own else []
    return math.fsum(worth) / len(worth) if worth else math.nan
