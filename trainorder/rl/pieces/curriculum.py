"""How much a problem counts: answers in proportion to what they teach, weights of groups by their difficulty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from trainorder.rewards import format
from trainorder.rl.helpers import gmean
from trainorder.rl.items import expected_rate
from trainorder.rl.registry import plan, weight
from trainorder.rl.types import Roll, State
from trainorder.rollout import Request


@plan(needs=frozenset({"known"}))
def cures_allocation(requests: list[Request], state: State, *, least: int = 2) -> list[Request]:
    """Answers per problem in proportion to sigma = sqrt(p (1 - p)), as many in all as before (CurES, arXiv:2510.01037).

    Largest remainder, `least` for every problem. sigma is the paper's for gradients of equal norms. The authors' code rounds,
    which can leave a problem without an answer; `least` 2 is ours, a lone answer teaches nothing.
    """
    known = state.mem.get("known", {})
    spread = []
    for request in requests:
        problem = request.problem
        own = {} if problem is None else known.get(problem.task, {}).get(problem.id, {})
        rate = expected_rate(own)
        spread.append(math.sqrt(rate * (1 - rate)))
    counts = allocated(spread, sum(request.samples for request in requests), least)
    return [replace(request, samples=n) for request, n in zip(requests, counts, strict=True)]


def allocated(shares: Sequence[float], total: int, least: int) -> list[int]:
    """`total` in proportion to `shares` by largest remainder, each at least `least` where the total allows it.

    >>> allocated([2.0, 1.0, 1.0], 8, 0), allocated([1.0, 0.0], 8, 2)
    ([4, 2, 2], [6, 2])
    """
    least = min(least, total // len(shares))
    counts, open_ = [least] * len(shares), set(range(len(shares)))
    while True:  # those whose share is below `least` have it; the others share what is left
        mass = math.fsum(shares[i] for i in open_)
        left = total - least * (len(shares) - len(open_))
        exact = {i: left * (shares[i] / mass if mass > 0 else 1 / len(open_)) for i in open_}
        low = {i for i in open_ if exact[i] < least}
        if not low:
            break
        open_ -= low
    for i in open_:
        counts[i] = math.floor(exact[i] + 1e-9)
    ordered = sorted(open_, key=lambda i: (counts[i] - exact[i], i))
    for i in ordered[: total - sum(counts)]:
        counts[i] += 1
    return counts


@weight
def puzzlecraft(
    roll: Roll, state: State, *, scale: float = 4.0, gamma: float = 0.5, options: int = 0
) -> Float[Tensor, " row"]:
    """Scale d (1 - d) disp^gamma for all rows of a group, d its mean reward in 0 ... 1 (PuzzleCraft, arXiv:2512.14944).

    disp is how widely its answers differ: with `options` K of a closed question, entropy of the final answers / ln K; with 0,
    (M - 1) / (G - 1) of M different answers of G. scale 4 and gamma .5 are the paper's; that gamma is of disp alone is a
    reading of its text. The paper has no standard deviation in the advantage (`dr_grpo`) and no KL. Answers are compared as
    text after the format's tags.
    """
    means = gmean(roll.rewards.double(), roll.group, roll.scored)
    answers: dict[int, list[str]] = {}
    rows = zip(roll.group.tolist(), roll.scored.tolist(), roll.text, strict=True)
    for group, scored, text in rows:
        if scored:
            answers.setdefault(group, []).append(format.answer(text) or text.strip())
    spread = {group: dispersion(found, options) for group, found in answers.items()}
    d = means.clamp(0, 1).tolist()
    weights = [
        scale * p * (1 - p) * spread.get(group, 0.0) ** gamma
        for p, group in zip(d, roll.group.tolist(), strict=True)
    ]
    return roll.rewards.new_tensor(weights)


def dispersion(answers: Sequence[str], options: int) -> float:
    """How widely answers differ, 0 to 1.

    >>> round(4 * 1 / 8 * 7 / 8 * dispersion("ABBBBBBB", 6) ** 0.5, 4)
    0.2006
    >>> round(4 * 1 / 8 * 7 / 8 * dispersion("ABBCCDEF", 6) ** 0.5, 4), round(dispersion("AABBBBBC", 0), 4)
    (0.4303, 0.2857)
    """
    if len(answers) < 2:
        return 0.0
    counts = [answers.count(answer) for answer in dict.fromkeys(answers)]
    if not options:
        return (len(counts) - 1) / (len(answers) - 1)
    shares = [count / len(answers) for count in counts]
    entropy = -math.fsum(p * math.log(p) for p in shares)
    return min(1.0, entropy / math.log(options)) if options > 1 else 0.0


@weight
def answer_reranking(
    roll: Roll, state: State, *, steps: int | None = None, anti: bool = False
) -> Float[Tensor, " row"]:
    """D (1 - e / m) + e / m for all rows of a group up to step m, then 1 (answer re-ranking curriculum, arXiv:2004.14269).

    D is how easy a problem is: (s+ - s- + 1) / 2, the mean grades of the upper and of the lower half of its answers, as the
    paper's scores of right and wrong answers; `anti` takes 1 - D. m is 20 epochs in the paper's code; here `steps`, null for
    half of the phase (ours).
    """
    last = steps if steps is not None else max(1, state.total // 2)
    moved = min(1.0, state.step / max(1, last))
    grades: dict[int, list[float]] = {}
    rows = zip(
        roll.group.tolist(), roll.scored.tolist(), roll.row_facts["graded"].tolist(), strict=True
    )
    for group, scored, grade in rows:
        if scored:
            grades.setdefault(group, []).append(grade)
    ease = {group: ease_of(found) for group, found in grades.items()}
    weights = []
    for group in roll.group.tolist():
        d = ease.get(group, 0.5)
        weights.append(blended(1 - d if anti else d, moved))
    return roll.rewards.new_tensor(weights)


def ease_of(grades: Sequence[float]) -> float:
    """(s+ - s- + 1) / 2.

    >>> ease_of([1.0, 0.0]), ease_of([0.5, 0.5]), ease_of([1.0])
    (1.0, 0.5, 0.5)
    """
    half, ordered = len(grades) // 2, sorted(grades)
    if not half:
        return 0.5
    return (math.fsum(ordered[-half:]) / half - math.fsum(ordered[:half]) / half + 1) / 2


def blended(ease: float, moved: float) -> float:
    """The weight at a share `moved` of the way.

    >>> round(blended(0.3, 5 / 20), 3), blended(0.3, 1.0)
    (0.475, 1.0)
    """
    return ease * (1 - moved) + moved
