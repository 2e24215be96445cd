"""Rewards that read the entropy of an answer's parts: the thought and what follows (PEAR), words that explore (ARES)."""

from __future__ import annotations

import math
import re
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.helpers import gmean
from trainorder.rl.registry import reward
from trainorder.rl.tokens import quantile, row_mean
from trainorder.rl.types import Roll, State

NEEDS = frozenset({"entropy", "spans"})
WORDS = ["wait", "however", "alternatively", "hmm", "but", "maybe", "let me check"]
"""The authors' list of words is a file that was not read; these are ours."""
EASY, MEDIUM, HARD = 0, 1, 2
MARGIN, KAPPA, SOFT = (0.15, 0.25, 0.35), (2.0, 3.0, 4.0), (2.0, 2.5, 3.0)
CAP, WRONG = (1.0, 1.0, 1.2), (0.6, 0.8, 1.0)
"""By difficulty; those of the authors' code."""


@reward(needs=NEEDS)
def pear(
    roll: Roll,
    state: State,
    *,
    alpha: float = 1.0,
    best: float = 1.0,
    wrong: float = 0.0,
    end: str = "</think>",
) -> Float[Tensor, " row"]:
    """min(1, best - P) for right answers, `wrong` for others; P = max(0, H of the thought - alpha H of the rest) (PEAR, arXiv:2510.08026).

    Means of token entropies before the update, nats, before and after the first `end` in the text; without one all is
    thought and the rest has 0. Right is graded above one half. In place of `graded`, whose value it replaces. From a note on the paper:
    alpha is its 1; `best` and `wrong` are constants there that it does not give, 1 and 0 are ours.
    """
    thought, rest = torch.zeros_like(roll.loss_mask), torch.zeros_like(roll.loss_mask)
    start = roll.token_facts["char_start"]
    for row, text in enumerate(roll.text):
        place = text.find(end)
        mine = roll.loss_mask[row] > 0
        before = mine if place < 0 else mine & (start[row] < place)
        thought[row] = before.to(thought.dtype)
        if place >= 0:
            rest[row] = (mine & (start[row] >= place + len(end))).to(rest.dtype)
    penalty = (row_mean(roll.entropy, thought) - alpha * row_mean(roll.entropy, rest)).clamp(min=0)
    right = (best - penalty).clamp(max=1.0)
    return torch.where(roll.row_facts["graded"] > 0.5, right, wrong).to(roll.rewards.dtype)


@reward(needs=NEEDS)
def ares(
    roll: Roll,
    state: State,
    *,
    words: list[str] | None = None,
    window: int = 4,
    percentile: float = 0.98,
    strength: float = 0.5,
) -> Float[Tensor, " row"]:
    """Rewards the right number of explorations by the prompt's difficulty (ARES, arXiv:2510.08457).

    An exploration is a word of the list (null: ours) after which the next `window` tokens have a mean entropy of at least
    theta: a moving average (.99) of the batch's median of each answer's `percentile` of windows. A prompt is easy from two
    thirds of right answers on, medium from one third, else hard; the number aimed at is the mean over answers of that
    difficulty. What an answer with n of them earns: `exploration_bonus`. The authors' adaptive strength and their dynamic
    KL by difficulty are left out: their targets were not found.
    """
    means = windows(roll, window)
    found = [float(quantile(values, percentile)) for values in means if len(values)]
    theta = state.ema("ares/theta", median(found), beta=0.99) if found else math.inf
    chosen = pattern_of(WORDS if words is None else words)
    explored = [explorations(roll, row, means[row], theta, chosen) for row in range(len(roll))]
    right = (roll.row_facts["graded"] > 0.5) & roll.scored
    rate = gmean(right.double(), roll.group, roll.scored).tolist()
    level = [EASY if value >= 2 / 3 else MEDIUM if value >= 1 / 3 else HARD for value in rate]
    aims = {
        kind: math.fsum(n for n, own in zip(explored, level, strict=True) if own == kind)
        / level.count(kind)
        for kind in set(level)
    }
    rewards = [
        exploration_bonus(n, aims[kind], kind, ok, strength)
        for n, kind, ok in zip(explored, level, right.tolist(), strict=True)
    ]
    return roll.rewards.new_tensor(rewards)


def exploration_bonus(
    count: float, aim: float, level: int, right: bool, strength: float = 0.5
) -> float:
    """What an answer with `count` explorations earns where `aim` is right, by difficulty 0 easy, 1 medium, 2 hard.

    With d = count - aim, margin m = max(1, share * aim), over = max(0, d - m): right and easy -min(cap, H(over) / (m + kappa)
    * cap); right and medium the same of |d|; right and hard +cap * sigmoid((d + m) / soft) where d >= -m, else
    -cap / 10 (ours); wrong +cap * sigmoid(over / soft) * factor, which is positive also where nothing was explored, as their code.
    H is Huber's function over kappa.

    >>> [round(exploration_bonus(15, 10, 0, right), 5) for right in (True, False)]
    [-0.35714, 0.25559]
    >>> exploration_bonus(11, 10, 0, True), round(exploration_bonus(15, 10, 2, True), 4)
    (-0.0, 0.5667)
    """
    d, margin, kappa = count - aim, max(1.0, MARGIN[level] * aim), KAPPA[level]
    cap = strength * CAP[level]
    over = max(0.0, (abs(d) if level == MEDIUM else d) - margin)
    if not right:
        return cap * WRONG[level] / (1 + math.exp(-max(0.0, d - margin) / SOFT[level]))
    if level == HARD:
        return cap / (1 + math.exp(-(d + margin) / SOFT[level])) if d >= -margin else -cap / 10
    huber = over - kappa / 2 if over > kappa else over**2 / (2 * kappa)
    return -min(cap, huber / (margin + kappa) * cap)


def windows(roll: Roll, window: int) -> list[Float[Tensor, " place"]]:
    """Mean entropy of the next `window` tokens after each place of each row that has as many."""
    means = []
    for row, length in enumerate(roll.lengths().tolist()):
        values = roll.entropy[row, :length]
        if length <= window:
            means.append(values[:0])
        else:
            means.append(values[1:].unfold(0, window, 1).mean(1))
    return means


def pattern_of(words: list[str]) -> re.Pattern[str] | None:
    """Any of the words, in any case: the text itself is searched, as lower case may have more characters."""
    text = "|".join(rf"\b{re.escape(word)}\b" for word in words)
    return re.compile(text, re.IGNORECASE) if text else None


def explorations(
    roll: Roll, row: int, means: Tensor, theta: float, pattern: re.Pattern[str] | None
) -> float:
    """How many of the words in the row's text are followed by a window of at least theta."""
    if pattern is None or not len(means):
        return 0.0
    ends = roll.token_facts["char_end"][row]
    count = 0
    for match in pattern.finditer(roll.text[row]):
        after = (ends >= match.end()).nonzero().flatten()
        place = int(after[0]) if len(after) else len(means)
        count += place < len(means) and float(means[place]) >= theta
    return float(count)
