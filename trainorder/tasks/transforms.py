"""Transforms: another problem made of a problem, at a level, with a verifier that stays exact.

A transform is a function (problem, level, rng, others) -> problem. Training asks transformed problems by plan pieces
(trainorder/rl/pieces/levels.py), a probe asks the same ones as a task (`kind: transformed`). `others` are problems of the same
task that it may use. The id stays that of the problem.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from trainorder.reading import ParamsError
from trainorder.rewards import format
from trainorder.tasks.base import Problem, reworded

Transform = Callable[..., Problem]
TRANSFORMS: dict[str, Transform] = {}
SEPARATOR = r"\n+|(?<=[.;])\s+"
ENTITY = r"\b(?:[A-Z][\w'-]+(?: [A-Z][\w'-]+)*|\d[\d.,]*\d|\d+)"
"""Names and numbers."""
MASK = "[mask]"
HIDDEN = "masked"
"""Key in the meta of a masked problem: the texts behind the masks, in order."""
TAG = re.compile(r"\s*</?(?:think|answer)>\s*")


def transform(function: Transform) -> Transform:
    """List a transform."""
    TRANSFORMS[function.__name__] = function
    return function


def steps_of(gold: str, separator: re.Pattern[str]) -> list[str]:
    r"""The steps of a solution, without tags and blanks.

    >>> steps_of("<think> 3 + 4 = 7; 7 - 2 = 5 </think> <answer> 5 </answer>", re.compile("[;\n]"))
    ['3 + 4 = 7', '7 - 2 = 5', '5']
    """
    return [
        step.strip()
        for part in TAG.split(gold)
        for step in separator.split(part)
        if step and step.strip()
    ]


@transform
def prefix(
    problem: Problem,
    level: int,
    rng: random.Random,
    others: Sequence[Problem] = (),
    *,
    separator: str = SEPARATOR,
) -> Problem:
    """The prompt with the first `level` steps of the gold text behind it, never all of them (R3, arXiv:2402.05808).

    The verifier stays: the answer is graded as before. Level 0 is the problem.

    >>> p = Problem("a/1", "a", "q", "<think> a ; b ; </think> <answer> c </answer>", None)
    >>> [prefix(p, j, random.Random(0)).prompt for j in (0, 2, 9)]
    ['q', 'q a ; b ;', 'q a ; b ;']
    """
    steps = steps_of(problem.gold or "", re.compile(separator))
    shown = " ".join(steps[: min(level, max(0, len(steps) - 1))])
    return problem if not shown else told(problem, f"{{}} {shown}")


def told(problem: Problem, text: str, **changes: Any) -> Problem:
    """The problem with its prompt put at `{}` of a text."""
    before, _, after = text.partition("{}")
    prompt = reworded(problem.prompt, lambda said: f"{before}{said}{after}")
    return replace(problem, prompt=prompt, **changes)


@transform
def chain(
    problem: Problem,
    level: int,
    rng: random.Random,
    others: Sequence[Problem] = (),
    *,
    scale: int = 1,
) -> Problem:
    """`level` problems in one, of which each begins at `scale` times the answer of the one before (h1, arXiv:2510.07312).

    Only the last answer is asked. Problems whose meta holds a `chain` (a start and signed operands, as those of `math`) are
    composed exactly, their start replaced; others must have a number as meta `answer` and are added up, which is the weakest
    form of a composition. Levels above the number of problems at hand repeat some.

    Raises:
        ParamsError: a problem without a number as its answer.
    """
    parts = [problem]
    while len(parts) < level:
        parts.append(others[rng.randrange(len(others))] if others else problem)
    if len(parts) == 1:
        return problem
    if all("chain" in part.meta for part in parts):
        return _carried(problem, [part.meta["chain"] for part in parts], scale)
    answers = [_number(part) for part in parts]
    total = sum(answers)
    shown = [f"{i}) {part.question}" for i, part in enumerate(parts, start=1)]
    text = " ".join([*shown, "Add up the answers of all of these. How much is it?"])
    thought = " ; ".join(
        f"{sum(answers[:i]):g} + {answers[i]:g} = {sum(answers[: i + 1]):g}"
        for i in range(1, len(answers))
    )
    return _solved(problem, text, thought, f"{total:g}", {})


def _carried(problem: Problem, chains: Sequence[Sequence[int]], scale: int) -> Problem:
    """Arithmetic that goes on from one chain to the next.

    >>> p = Problem("math/1", "math", "3 + 4 = ?", None, None)
    >>> made = _carried(p, [[3, 4], [9, -5]], 2)
    >>> made.prompt, made.meta["answer"], made.gold
    ('3 + 4 = ? ; 2 * ? - 5 = ?', '9', '<think> 3 + 4 = 7 ; 2 * 7 = 14 ; 14 - 5 = 9 </think> <answer> 9 </answer>')
    """
    texts, steps, value = [], list[str](), chains[0][0]
    for number, own in enumerate(chains):
        if number:
            texts.append(f"{scale} * ?" if scale != 1 else "?")
            if scale != 1:
                steps.append(f"{scale} * {value} = {scale * value}")
                value *= scale
        else:
            texts.append(str(value))
        for operand in own[1:]:
            sign = "+" if operand > 0 else "-"
            texts[-1] += f" {sign} {abs(operand)}"
            steps.append(f"{value} {sign} {abs(operand)} = {value + operand}")
            value += operand
        texts[-1] += " = ?"
    whole = [chains[0][0], *(n for own in chains for n in own[1:])]
    return _solved(problem, " ; ".join(texts), " ; ".join(steps), str(value), {"chain": whole})


def _solved(problem: Problem, text: str, thought: str, answer: str, meta: dict) -> Problem:
    gold = format.render(thought, answer)
    return replace(
        problem,
        prompt=reworded(problem.prompt, lambda _: text),
        gold=gold,
        reference=gold,
        meta={**problem.meta, **meta, "answer": answer},
    )


def _number(problem: Problem) -> float:
    try:
        return float(problem.meta["answer"])
    except (KeyError, TypeError, ValueError):
        raise ParamsError(
            f"a chain needs problems whose meta `answer` is a number, and {problem.id!r} has {problem.meta.get('answer')!r}: "
            "leave the transform out, or take another task"
        ) from None


@transform
def masks(
    problem: Problem,
    level: int,
    rng: random.Random,
    others: Sequence[Problem] = (),
    *,
    entity: str = ENTITY,
) -> Problem:
    """A text with up to `level` of its entities masked, which are asked for (MaskSearch, arXiv:2505.20285).

    The text is the problem's reference or gold text without tags. Masks are drawn in proportion to the entities' length,
    never at the text's beginning; one at least where there is an entity. 1 to 4 in the paper. The answer names them in
    order, separated by semicolons; `restored` grades it.
    """
    text = TAG.sub(" ", problem.reference or problem.gold or "").strip()
    found = [match for match in re.finditer(entity, text) if match.start() > 0]
    count = min(max(1, level), len(found))
    chosen: list[re.Match[str]] = []
    while len(chosen) < count:
        left = [match for match in found if match not in chosen]
        chosen += rng.choices(left, [len(match[0]) for match in left])
    chosen.sort(key=lambda match: match.start())
    hidden, cut, last = [match[0] for match in chosen], "", 0
    for match in chosen:
        cut, last = cut + text[last : match.start()] + MASK, match.end()
    asked = f"{cut}{text[last:]}\nWhat stands behind each {MASK}? Name them in order, separated by semicolons."
    gold = format.render("", "; ".join(hidden)) if hidden else problem.gold
    return replace(
        problem,
        prompt=reworded(problem.prompt, lambda _: asked),
        gold=gold,
        reference=gold,
        meta={**problem.meta, HIDDEN: hidden},
    )


def restored(completion: str, hidden: Sequence[str]) -> float:
    """Share of masks whose text stands at its place of the answer, case aside; 0 without masks.

    >>> restored("<think> x </think> <answer> Paris; 1990 </answer>", ["paris", "1991"])
    0.5
    """
    given = [part.strip().casefold() for part in format.answer(completion).split(";")]
    hits = [wanted.casefold() == said for wanted, said in zip(hidden, given, strict=False)]
    return sum(hits) / len(hidden) if hidden else 0.0


@transform
def distractors(
    problem: Problem,
    level: int,
    rng: random.Random,
    others: Sequence[Problem] = (),
    *,
    passages: str = "passages",
) -> Problem:
    """The prompt behind passages: the one that helps among `level` - 1 that do not (Wiki-R1's gap levels, arXiv:2603.05256).

    Passages are the meta's list `passages`, the helpful one first; a level above their number leaves the helpful one to
    chance (the paper's last level). Level 0: no more than the helpful one. Of problems without such a list `level` questions
    of other problems stand before the prompt, which are not to be answered (ours).
    """
    known = [str(text) for text in problem.meta.get(passages, ())]
    if known:
        size = max(1, level)
        if level > len(known):
            shown = rng.sample(known, max(1, len(known) - 1))
        else:
            shown = [known[0], *rng.sample(known[1:], min(size - 1, len(known) - 1))]
            rng.shuffle(shown)
        return told(problem, "\n".join([*shown, "{}"]))
    theirs = [other.question for other in others if other.id != problem.id]
    shown = rng.sample(theirs, min(level, len(theirs)))
    return told(problem, " ".join([f"( {text} )" for text in shown] + ["{}"]))
