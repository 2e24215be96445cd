"""What answers are worth: metrics per problem, and over a whole exam."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from trainorder.config import Role
from trainorder.evaluation.answering import Answers, Exam
from trainorder.judges import AnyJudge
from trainorder.metrics.diversity import compression_ratio, distinct_n, vendi
from trainorder.metrics.statistics import pass_at_k
from trainorder.rewards import grading
from trainorder.tasks.base import Problem, Task

T = TypeVar("T")

Scorer = Callable[[Sequence[str], Sequence[Problem]], Sequence[float | None]]
"""Answers and the problems they answer -> values in [0, 1], None where there is none."""


def main_scorer(exam: Exam, judges: Mapping[Role, AnyJudge]) -> Scorer:
    """Who decides the `score`: the task's verifier, or the judge that was used in no training."""
    judged = exam.task.rewarded_by == "judge"
    return _by_judge(judges["evaluation"]) if judged else _by_task(exam.task)


def per_problem(
    exam: Exam, answers: Answers, judges: Mapping[Role, AnyJudge], samples: int
) -> tuple[dict[str, list[float]], list[list[float | None]]]:
    """Metric -> one value per problem; and of each problem the score of every sample, None where it could not be graded."""
    sampled, problems = answers.sampled, exam.problems
    asked = [problem for problem in problems for _ in range(samples)]
    judged = exam.task.rewarded_by == "judge"
    given = [*sampled.texts, *answers.greedy], [*asked, *problems]
    # one call for all: a judge reads each reference once
    if judged:
        values, strict = _by_judge(judges["evaluation"])(*given), []
    else:
        rewards = _each_once(partial(grading.grade, exam.task))(*given)
        values = [reward.value for reward in rewards]
        strict = [reward.parts.get("strict") for reward in rewards[: len(asked)]]
    grades, greedy = grouped(values[: len(asked)], samples), values[len(asked) :]
    lengths = sampled.loss_mask.double().sum(1).view(-1, samples)
    assert sampled.entropies is not None  # the torch engine sees them
    entropies = sampled.entropies.double().sum(1).view(-1, samples)
    metrics = {
        "score": [mean(values) for values in grades],
        "greedy": [mean([value]) for value in greedy],
        "pass_at_k": [
            _pass_at(values, samples, above=0.5 if judged else None) for values in grades
        ],
        "entropy_own": (entropies.sum(1) / lengths.sum(1)).tolist(),
        "entropy_fixed": list(answers.entropy_fixed),
        "length": lengths.mean(1).tolist(),
        "unscored": [values.count(None) / samples for values in grades],
    }
    if any(value is not None for value in strict):  # the score of answers in the asked form only
        metrics["strict"] = [mean(values) for values in grouped(strict, samples)]
    if judged:
        same = judges["reward"] is judges["evaluation"]
        reward = (
            grades if same else grouped(_by_judge(judges["reward"])(sampled.texts, asked), samples)
        )
        metrics |= {"reward_judge": [*map(mean, reward)]}
        if getattr(exam.task, "has_taste", False):
            gold = grouped(_by_task(exam.task)(sampled.texts, asked), samples)
            metrics |= {"gold": [*map(mean, gold)]}
        variety = [_variety(texts) for texts in grouped(sampled.texts, samples)]
        metrics |= {name: [values[name] for values in variety] for name in variety[0]}
    return metrics, grades


def pooled(exam: Exam, answers: Answers, samples: int) -> dict[str, float]:
    """Metric -> value over the whole exam."""
    return _variety(answers.sampled.texts[::samples]) if exam.task.rewarded_by == "judge" else {}


def _by_task(task: Task) -> Scorer:
    def values(answers: Sequence[str], problems: Sequence[Problem]) -> Sequence[float | None]:
        return [reward.value for reward in grading.grade(task, answers, problems)]

    return _each_once(values)


def _by_judge(judge: AnyJudge) -> Scorer:
    def score(answers: Sequence[str], problems: Sequence[Problem]) -> Sequence[float | None]:
        prompts, references = [p.text for p in problems], [p.reference or "" for p in problems]
        values = judge.win_probability(prompts, answers, references)
        if problems:
            grading.shared().unscored.note(problems[0].task, values, getattr(judge, "failures", ()))
        return values

    return _each_once(score)


def _each_once(
    scorer: Callable[[Sequence[str], Sequence[Problem]], Sequence[T]],
) -> Callable[[Sequence[str], Sequence[Problem]], Sequence[T]]:
    """Score an answer that was given several times to a problem once."""

    def score(answers: Sequence[str], problems: Sequence[Problem]) -> Sequence[T]:
        keys = [(problem.id, text) for text, problem in zip(answers, problems, strict=True)]
        different = dict(zip(keys, problems, strict=True))
        values = scorer([text for _, text in different], list(different.values()))
        known = dict(zip(different, values, strict=True))
        return [known[key] for key in keys]

    return score


def grouped(values: Sequence[T], size: int) -> list[list[T]]:
    """The values in runs of `size`."""
    return [list(values[i : i + size]) for i in range(0, len(values), size)]


def mean(values: Sequence[float | None]) -> float:
    """Mean of the values that exist; nan for none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _pass_at(values: Sequence[float | None], k: int, above: float | None) -> float:
    """pass@k over the graded values; success is a value of 1, or one `above` a bound."""
    known = [value for value in values if value is not None]
    if not known:
        return math.nan
    correct = sum(value >= 1.0 if above is None else value > above for value in known)
    return pass_at_k(len(known), correct, min(k, len(known)))


def _variety(texts: Sequence[str]) -> dict[str, float]:
    return {
        "distinct_2": distinct_n(texts, 2),
        "compression_ratio": compression_ratio(texts),
        "vendi": vendi(texts),
    }
