"""What checkpoints answer: forms, gains and losses, lengths, and how much of a score is form. Evaluations only, no model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainorder.measure.beneath import RIGHT
from trainorder.metrics.correlation import spearman
from trainorder.probes.base import (
    ALL,
    Answer,
    Checkpoint,
    Pair,
    Row,
    compared,
    mean,
    probe,
    scores,
)
from trainorder.rewards import format

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("empty", "tool", "tags", "answer_tag", "boxed", "code", "json", "latex", "marked", "plain")  # fmt: skip
"""Forms of an answer; an answer has the first that fits."""
_TOOL = re.compile(r"<tool_call>|<search>|<query>")
_LATEX = re.compile(r"\$[^$\n]+\$|\\\(|\\\[|\\frac\b")
_MARKED = re.compile(r"####|\banswer\s*(?:is\b|:|=)", re.IGNORECASE)
RULES_ALONE = 0.9
"""A form with a larger share has crowded out the others."""


def form(text: str) -> str:
    r"""Which of FORMATS an answer has.

    >>> form("<think> 3+4 </think> <answer> 7 </answer>"), form(r"so \boxed{7}"), form("7"), form(" ")
    ('tags', 'boxed', 'plain', 'empty')
    """
    if not format.visible(text):
        return "empty"
    if _TOOL.search(text):
        return "tool"
    if format.parse(text) is not None:
        return "tags"
    if "<answer>" in text and "</answer>" in text:
        return "answer_tag"
    if r"\boxed{" in text:
        return "boxed"
    if "```" in text:
        return "code"
    if _is_object(text):
        return "json"
    if _LATEX.search(text):
        return "latex"
    return "marked" if _MARKED.search(text) else "plain"


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


@probe("evaluations", neutral={"distance": 0.0, "alarm_one_form": 0.0, "alarm_wrong_form": 0.0})
def formats(pair: Pair) -> Iterator[Row]:
    """Share of every form of answer per task, its entropy in nats, its score, and two alarms; from the samples.

    RL often ends in one form of answer that pretraining taught, not always the best one (Echo Chamber, arXiv 2504.07912).
    `distance` is the total variation between the shares. `alarm_one_form`: one form now has over 90 %, and had less.
    `alarm_wrong_form`: the form that most answers have gained share, and scores less than another by over 2 standard errors.
    """
    for task in pair.tasks:
        by_form = [_by_form(checkpoint, task) for checkpoint in pair.both]
        shares = [share_of(found) for found in by_form]
        for name in FORMATS:
            if name in shares[0] or name in shares[1]:
                before, after = (found.get(name, 0.0) for found in shares)
                yield from compared(task, name, "share", before, after)
                rates = [mean(scores(found.get(name, []))) for found in by_form]
                yield from compared(task, name, "score", *rates)
        yield from compared(task, ALL, "entropy", *map(entropy, shares))
        yield Row(task, ALL, "distance", total_variation(*shares))
        most = [max(found.values()) for found in shares]
        yield Row(task, ALL, "alarm_one_form", float(most[0] <= RULES_ALONE < most[1]))
        yield Row(task, ALL, "alarm_wrong_form", float(_wrong(shares, by_form[1])))


def _by_form(checkpoint: Checkpoint, task: str) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for group in checkpoint.sampled(task):
        for answer in group:
            found.setdefault(form(answer.text), []).append(answer)
    return found


def share_of(found: Mapping[str, Sequence[object]]) -> dict[str, float]:
    """Name -> its part of all."""
    total = sum(map(len, found.values()))
    return {name: len(items) / total for name, items in found.items()}


def entropy(shares: Mapping[str, float]) -> float:
    """In nats.

    >>> round(entropy({"a": 0.5, "b": 0.3, "c": 0.2}), 4), round(entropy({"a": 0.9, "b": 0.05, "c": 0.05}), 4)
    (1.0297, 0.3944)
    """
    return abs(math.fsum(p * math.log(p) for p in shares.values() if p))


def total_variation(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Half the sum of the differences of two distributions.

    >>> round(total_variation({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 0.9, "b": 0.05, "c": 0.05}), 4)
    0.4
    """
    return sum(abs(a.get(name, 0.0) - b.get(name, 0.0)) for name in {*a, *b}) / 2


def _wrong(shares: Sequence[Mapping[str, float]], after: Mapping[str, Sequence[Answer]]) -> bool:
    """Whether the most frequent form gained share although another one scores clearly more."""
    winner = max(shares[1], key=lambda name: (shares[1][name], name))
    if shares[1][winner] <= shares[0].get(winner, 0.0):
        return False
    rates = {name: scores(found) for name, found in after.items()}
    known = {name: _smoothed(found) for name, found in rates.items() if len(found) > 1}
    if winner not in known:
        return False
    rate, error = known[winner]
    return any(other - rate > 2 * math.hypot(error, own) for other, own in known.values())


def _smoothed(found: Sequence[float]) -> tuple[float, float]:
    """A mean score in [0, 1] and its standard error, with one success and one failure more: no certainty from few answers."""
    count = len(found) + 2
    rate = (math.fsum(found) + 1) / count
    return rate, math.sqrt(rate * (1 - rate) / count)


@probe("evaluations")
def entropy_change(pair: Pair) -> Iterator[Row]:
    """Entropy of the policy on every task's dev problems, in nats per token: on its own samples, and on the reference texts.

    `own` is of the distributions that samples were drawn from, `fixed` along the same text for every checkpoint, so that it
    moves only with the model. Of dev, so that no answer is also one of the test scores that it may be asked to predict.
    Omni-Thinker (arXiv 2507.14783) explains by it what additive transfer does not predict.
    """
    for task in pair.tasks:
        for measure in ("own", "fixed"):
            found = [one.values(task, f"entropy_{measure}", "dev") for one in pair.both]
            yield from compared(task, ALL, measure, *(mean(values.tolist()) for values in found))


@probe("evaluations", neutral={"gained": 0.0, "lost": 0.0, "net": 0.0, "turnover": 0.0})
def turnover(pair: Pair) -> Iterator[Row]:
    """Share of test problems whose most likely answer became right (`gained`) or wrong (`lost`); their difference and sum.

    A stable mean can hide as many gained as lost problems (RECALL, arXiv 2606.03087). Right is a greedy score from .5 on.
    """
    rows = []
    for task in pair.tasks:
        before, after = (checkpoint.values(task, "greedy") for checkpoint in pair.both)
        known = before.index.intersection(after.index)
        if len(known):
            was, now = (found[known].to_numpy() >= RIGHT for found in (before, after))
            rows.append((task, float((now & ~was).mean()), float((was & ~now).mean())))
    if rows:
        rows.append((ALL, mean([row[1] for row in rows]), mean([row[2] for row in rows])))
    for task, gained, lost in rows:
        yield Row(task, ALL, "gained", gained)
        yield Row(task, ALL, "lost", lost)
        yield Row(task, ALL, "net", gained - lost)
        yield Row(task, ALL, "turnover", gained + lost)


THIRDS = ("short", "middle", "long")


@probe("evaluations")
def length_accuracy(pair: Pair) -> Iterator[Row]:
    """Score of problems with short, middle and long answers, and the rank correlation of length and score.

    Lengths are means over a problem's samples, in tokens; the thirds are cut at the same lengths for both checkpoints.
    """
    for task in pair.tasks:
        curves = [
            (found["length"].to_numpy(), found["score"].to_numpy())
            for found in (_lengths(checkpoint, task) for checkpoint in pair.both)
        ]
        lengths = np.concatenate([curve[0] for curve in curves])
        if not len(lengths):
            continue
        cuts = np.quantile(lengths, [1 / 3, 2 / 3])
        yield from compared(task, ALL, "length", *(mean(curve[0].tolist()) for curve in curves))
        for i, third in enumerate(THIRDS):
            inside = [np.searchsorted(cuts, own, side="left") == i for own, _ in curves]
            pairs = list(zip(curves, inside, strict=True))
            yield from compared(task, third, "score", *(mean(v[k].tolist()) for (_, v), k in pairs))
            yield from compared(task, third, "share", *(float(k.mean()) for k in inside))
        known = [spearman(*curve) if len(curve[0]) > 2 else math.nan for curve in curves]
        yield from compared(task, ALL, "spearman", *known)


def _lengths(checkpoint: Checkpoint, task: str) -> pd.DataFrame:
    import pandas as pd

    columns = {name: checkpoint.values(task, name) for name in ("length", "score")}
    return pd.DataFrame(columns).dropna()


@dataclass(frozen=True)
class Form:
    """How often answers have an answer that can be read, and what they score."""

    valid: float
    """Share of answers with one."""
    score: float
    """Mean score of these; 0 of none."""
    other: float
    """Mean score of the others; 0 of none."""


@probe("evaluations", neutral={"gain": 0.0, "gain_form": 0.0, "gain_content": 0.0})
def format_only(pair: Pair) -> Iterator[Row]:
    """The change of the score in two parts: more answers that can be read (form), and better ones (content).

    With v the share of samples with an answer that can be read, c their mean score and u that of the others: form is
    (v' - v) (c - u), content v' (c' - c) + (1 - v') (u' - u). A control by format alone, as instruction tuning asks for (arXiv
    2305.11383): a gain that is all form is no skill. Verified tasks only, without those of which no answer stands apart from its text.
    """
    for task in pair.tasks:
        if pair.node.judged(task):
            continue
        before, after = (_form(checkpoint, task) for checkpoint in pair.both)
        if not before.valid and not after.valid:  # whole texts are graded
            continue
        yield from compared(task, ALL, "valid", before.valid, after.valid)
        yield from compared(task, "valid", "score", before.score, after.score)
        form_part, content = parts_of_gain(before, after)
        yield Row(task, ALL, "gain", form_part + content)
        yield Row(task, ALL, "gain_form", form_part)
        yield Row(task, ALL, "gain_content", content)


def parts_of_gain(before: Form, after: Form) -> tuple[float, float]:
    """Form and content of the change of a mean score.

    >>> [round(x, 3) for x in parts_of_gain(Form(0.5, 0.6, 0.0), Form(1.0, 0.7, 0.0))]  # .3 -> .7
    [0.3, 0.1]
    """
    form_part = (after.valid - before.valid) * (before.score - before.other)
    content = after.valid * (after.score - before.score)
    return form_part, content + (1 - after.valid) * (after.other - before.other)


def _form(checkpoint: Checkpoint, task: str) -> Form:
    graded = [a for group in checkpoint.sampled(task) for a in group if a.score is not None]
    valid = [bool(format.answer(answer.text)) for answer in graded]
    of = {
        kind: [a.score or 0.0 for a, v in zip(graded, valid, strict=True) if v == kind]
        for kind in (True, False)
    }
    shares = len(of[True]) / len(graded) if graded else math.nan
    return Form(shares, *(mean(of[kind]) if of[kind] else 0.0 for kind in (True, False)))


SHIFTS = 4
"""Other problems that each answer is given to."""


@probe("evaluations", "data")
def random_valid(pair: Pair) -> Iterator[Row]:
    """The score of a guess in the right form: the checkpoint's own answers, each given to other problems of its task.

    `above` is how much more the most likely answers score on their own problems. Answers of the right form can score well
    without the problem having been read (arXiv 2305.11383). Verified tasks only; each answer goes to the next four problems.
    """
    for task in pair.tasks:
        if pair.node.judged(task):
            continue
        found = [_dealt(checkpoint.greedy(task), task) for checkpoint in pair.both]
        own = [mean(scores(checkpoint.greedy(task))) for checkpoint in pair.both]
        yield from compared(task, ALL, "guess", *found)
        yield from compared(task, ALL, "above", *(o - g for o, g in zip(own, found, strict=True)))


def _dealt(answers: Sequence[Answer], task: str) -> float:
    from trainorder.rewards import grading
    from trainorder.tasks import load_problems, load_task

    problems = {problem.id: problem for problem in load_problems(task, "test")}
    kept = [answer for answer in answers if answer.problem in problems]
    shifts = range(1, min(SHIFTS, len(kept) - 1) + 1)
    texts = [answer.text for _ in shifts for answer in kept]
    asked = [
        problems[kept[(i + shift) % len(kept)].problem]
        for shift in shifts
        for i in range(len(kept))
    ]
    graded = grading.grade(load_task(task), texts, asked) if texts else []
    return mean([reward.value for reward in graded if reward.value is not None])
