"""Planning and execution: which tokens of an answer stand in strategic phrases, and what credit and entropy they get.

A strategic gram is a phrase of three to five words that many right answers share ("let us first find"). Tokens inside one
are planning tokens, all others execution (arXiv:2509.03646).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainorder.rl.helpers import mmean
from trainorder.rl.registry import advantage, edit, metric
from trainorder.rl.types import Roll, Rollouts, State

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
GRAMS = "strategic_grams"
"""Key in State.mem: the grams of right answers with the number of answers that hold each."""
PHASES = "two_phases"


@edit
def mine_grams(
    roll: Roll,
    state: State,
    rollouts: Rollouts,
    *,
    shortest: int = 3,
    longest: int = 5,
    right: float = 1.0,
    capacity: int = 2000,
) -> Roll:
    """Count the word n-grams of right answers, from which HICRA's pieces take their strategic grams (arXiv:2509.03646); changes no row.

    Grams of `shortest` to `longest` words (paper: 3 to 5) within a sentence, numbers and symbols between words end a gram;
    answers graded at least `right` count, each once. At most `capacity` grams are kept, the most frequent ones. The paper
    joins grams of like meaning by sentence embeddings and mines once, before training; here each gram stands for itself
    and mining goes on with every step (ours). What is counted is part of the state that is saved.
    """
    counts = Counter[str](state.mem.get(GRAMS, {}))
    rows = zip(roll.text, roll.row_facts["graded"].tolist(), roll.scored.tolist(), strict=True)
    for text, grade, scored in rows:
        if scored and grade >= right - 1e-9:
            counts.update(set(_grams(text, shortest, longest)))
    state.mem[GRAMS] = {gram: counts[gram] for gram in _most_frequent(counts)[:capacity]}
    return roll


@advantage(needs=frozenset({"spans"}))
def hicra(
    roll: Roll, state: State, *, alpha: float = 0.2, grams: list[str] | None = None
) -> Float[Tensor, "row token"]:
    """A + alpha |A| on planning tokens, A elsewhere: hierarchy-aware credit (HICRA, arXiv:2509.03646).

    A shaper: it stands behind an estimator; the paper's is `dr_grpo`. `grams` are the strategic phrases; null takes
    the most frequent fifth of those that the edit `mine_grams` counted, and without either A stays. alpha is the paper's.
    The authors' training code is not released; a third party's port says that it amplified tokens of high entropy
    instead, which we could not verify.
    """
    raised = roll.advantages + alpha * roll.advantages.abs()
    return torch.where(
        state.once(roll, planning_tokens, *_strategic(state, grams)), raised, roll.advantages
    )


@metric(needs=frozenset({"entropy", "spans"}))
def planning(roll: Roll, state: State, *, grams: list[str] | None = None) -> dict[str, float]:
    """Share of planning tokens, and mean entropy in nats of planning and of execution tokens (arXiv:2509.03646).

    Also the perplexity exp(-mean log p) of execution tokens, whose fall marks the first phase of learning.
    """
    return state.once(roll, _planning, *_strategic(state, grams))


@metric
def semantic_entropy(
    roll: Roll, state: State, *, grams: list[str] | None = None
) -> dict[str, float]:
    """Shannon entropy in nats of the strategic grams' counts over the step's answers (arXiv:2509.03646).

    How varied the plans are, where token entropy mostly sees execution. The paper counts clusters of grams.
    """
    return {"semantic_entropy": state.once(roll, _semantic, *_strategic(state, grams))}


@metric(needs=frozenset({"entropy", "spans"}))
def two_phases(
    roll: Roll, state: State, *, grams: list[str] | None = None, drop: float = 0.9
) -> dict[str, float]:
    """Which phase of learning this is: 1, execution is being learned; 2, strategies are explored (arXiv:2509.03646).

    `phase_turn` is the first step by which the perplexity of execution tokens had fallen by `drop` of all that it has
    fallen so far; `learning_phase` is 2 once the semantic entropy since then rises, its slope more than two standard
    errors above 0 over three steps or more. `drop` and this test are ours; the paper reads the phases off curves.
    """
    known = _strategic(state, grams)
    seen = state.mem.setdefault(PHASES, {"perplexity": [], "semantic": []})
    seen["perplexity"].append(state.once(roll, _planning, *known)["execution_perplexity"])
    seen["semantic"].append(state.once(roll, _semantic, *known))
    turn, slope, error = phases(seen["perplexity"], seen["semantic"], drop)
    phase = 2.0 if slope - 2 * error > 0 else 1.0
    return {"learning_phase": phase, "phase_turn": float(turn), "semantic_slope": slope}


def phases(
    perplexity: Sequence[float], semantic: Sequence[float], drop: float = 0.9
) -> tuple[int, float, float]:
    """The turn, and the least-squares slope of the semantic entropy from there on with its standard error.

    >>> turn, slope, error = phases([1, 0.6, 0.42, 0.4, 0.4], [0, 0, 0.5, 0.6, 0.7])  # 1 - .9 * .6 = .46
    >>> turn, round(slope, 6), round(error, 6)
    (2, 0.1, 0.0)
    """
    bound = perplexity[0] - drop * (perplexity[0] - min(perplexity))
    turn = next(step for step, value in enumerate(perplexity) if value <= bound + 1e-12)
    values = semantic[turn:]
    count = len(values)
    if count < 3:
        return turn, 0.0, math.inf
    middle, mean = (count - 1) / 2, math.fsum(values) / count
    spread = math.fsum((t - middle) ** 2 for t in range(count))
    slope = math.fsum((t - middle) * value for t, value in enumerate(values)) / spread
    off = [value - mean - slope * (t - middle) for t, value in enumerate(values)]
    error = math.sqrt(math.fsum(value**2 for value in off) / (count - 2) / spread)
    return turn, slope, error


def planning_tokens(roll: Roll, *grams: str) -> Bool[Tensor, "row token"]:
    """Tokens that may learn and share a character with one of the phrases."""
    start, end = roll.token_facts["char_start"], roll.token_facts["char_end"]
    found = torch.zeros_like(roll.loss_mask, dtype=torch.bool)
    pattern = _pattern(grams)
    for row, text in enumerate(roll.text):
        for first, last in _places(pattern, text):
            found[row] |= (start[row] < last) & (end[row] > first)
    return found & (roll.loss_mask > 0)


def _planning(roll: Roll, *grams: str) -> dict[str, float]:
    inside = planning_tokens(roll, *grams).to(roll.loss_mask.dtype)
    outside = (roll.loss_mask > 0).to(roll.loss_mask.dtype) - inside
    return {
        "planning_share": float(mmean(inside, (inside + outside))),
        "planning_entropy": float(mmean(roll.entropy, inside)),
        "execution_entropy": float(mmean(roll.entropy, outside)),
        "execution_perplexity": math.exp(min(50.0, -float(mmean(roll.old_logps, outside)))),
    }


def _semantic(roll: Roll, *grams: str) -> float:
    pattern = _pattern(grams)
    counts = Counter(
        " ".join(WORD.findall(text[first:last].lower()))
        for text in roll.text
        for first, last in _places(pattern, text)
    )
    return entropy_of_counts(list(counts.values()))


def entropy_of_counts(counts: Sequence[int]) -> float:
    """Shannon entropy of shares, nats.

    >>> round(entropy_of_counts([2, 1, 1]), 4), entropy_of_counts([])
    (1.0397, 0.0)
    """
    total = sum(counts)
    return -math.fsum(n / total * math.log(n / total) for n in counts) if total else 0.0


def _strategic(state: State, grams: Sequence[str] | None) -> list[str]:
    """The given phrases, or the most frequent fifth of the mined ones (at least one)."""
    if grams is not None:
        return list(grams)
    mined = _most_frequent(state.mem.get(GRAMS, {}))
    return mined[: math.ceil(len(mined) / 5)]


def _most_frequent(counts: Mapping[str, int]) -> list[str]:
    """The grams, most frequent first; the order of a dictionary does not survive saving."""
    return sorted(counts, key=lambda gram: (-counts[gram], gram))


def _pattern(grams: Sequence[str]) -> re.Pattern[str] | None:
    """Longest phrases first, as whole words, whatever the spaces and the case; also where they overlap."""
    ordered = sorted(
        {" ".join(gram.lower().split()) for gram in grams} - {""}, key=lambda g: (-len(g), g)
    )
    if not ordered:
        return None
    joined = "|".join(r"\s+".join(map(re.escape, gram.split())) for gram in ordered)
    return re.compile(rf"(?=(?<!\w)({joined})(?!\w))", re.IGNORECASE)


def _places(pattern: re.Pattern[str] | None, text: str) -> Iterator[tuple[int, int]]:
    """First and end character of each phrase found."""
    if pattern is not None:
        yield from (match.span(1) for match in pattern.finditer(text))


def _grams(text: str, shortest: int, longest: int) -> Iterator[str]:
    """Runs of words that nothing but spaces separates."""
    run, end = list[str](), -1
    for match in WORD.finditer(text.lower()):
        if end < 0 or text[end : match.start()].strip():
            run = []
        run.append(match[0])
        end = match.end()
        for size in range(shortest, min(longest, len(run)) + 1):
            yield " ".join(run[-size:])
