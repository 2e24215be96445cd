"""Ways to use a checkpoint beside its samples and its greedy answers: what a way sees of an exam, and the registry.

A way is a function `(Sitting, *, options) -> {metric: [value per problem]}` in trainorder/evaluation/ways/, listed by
`@way(...)` and named in `evaluation.ways`. Its values stand in the long table beside the others, nan where a problem has
none; a way that does not apply to an exam returns nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from trainorder.config import EvaluationConfig, Piece
from trainorder.evaluation.answering import Exam
from trainorder.rollout import Completions, Request
from trainorder.tasks.base import Problem

Who = Literal["trained", "base"]
"""Who answers: the checkpoint that is evaluated, or the one that RL of its seed began at."""
Values = Mapping[str, Sequence[float]]
"""Metric -> value per problem."""
Function = TypeVar("Function", bound=Callable[..., Values])


@dataclass(frozen=True)
class Sitting:
    """One exam as a checkpoint did it, to be done once more in another way."""

    exam: Exam
    config: EvaluationConfig
    texts: Sequence[Sequence[str]]
    """Per problem its k sampled answers."""
    values: Sequence[Sequence[float | None]]
    """What they are worth in [0, 1], None where one cannot be graded."""
    greedy: Sequence[str]
    """Per problem the most likely answer."""
    greedy_values: Sequence[float]
    """What it is worth, nan where it cannot be graded."""
    score: Callable[[Sequence[str], Sequence[Problem]], Sequence[float | None]]
    """Grades answers[i] as an answer to problems[i]: the scorer of `score`."""
    ask: Callable[[Sequence[Request], Who], Completions]
    tokens: Callable[[Sequence[str]], Sequence[Sequence[int]]]
    """Answers as tokens, each with the end token."""
    is_base: bool = False
    """Whether the checkpoint is the base itself: both answer alike."""

    @property
    def problems(self) -> Sequence[Problem]:
        """The problems of the exam."""
        return self.exam.problems

    @property
    def judged(self) -> bool:
        """Whether a judge scores the answers."""
        return self.exam.task.rewarded_by == "judge"

    def request(self, problem: Problem, **changes: Any) -> Request:
        """The greedy question of a problem, at the task's limit of tokens."""
        usual = Request(problem, temperature=0.0, max_new_tokens=self.exam.max_new_tokens)
        return replace(usual, **changes)

    def say(self, requests: Sequence[Request], who: Who = "trained") -> list[str]:
        """The texts of the answers to these requests; none for none."""
        return list(self.ask(requests, who).texts) if requests else []

    def worth(self, answers: Sequence[str], problems: Sequence[Problem]) -> list[float]:
        """Values of answers, nan where one cannot be graded."""
        return known(self.score(answers, problems) if answers else [])


def known(values: Sequence[float | None]) -> list[float]:
    """None as nan."""
    return [math.nan if value is None else value for value in values]


@dataclass(frozen=True)
class Way:
    """A listed way. Calling it calls the function."""

    function: Callable[..., Values]
    judged: bool
    """Whether it also is for tasks that a judge scores."""

    def __call__(self, sitting: Sitting, **options: Any) -> Values:
        """Call the function; nothing where it is not for such tasks."""
        if sitting.judged and not self.judged:
            return {}
        return self.function(sitting, **options)


WAYS: dict[str, Way] = {}


def way(
    *, answers: float | str = 0.0, base: bool = False, judged: bool = False
) -> Callable[[Function], Function]:
    """List a way.

    Args:
        answers: what it samples per problem, in answers of full length; "samples": as many as `evaluation.samples`. Read
            from the source by `trainorder plan` (registries.py), as is `base`.
        base: it also asks the checkpoint that RL began at.
        judged: it is for tasks that a judge scores too.
    """
    assert answers == "samples" or isinstance(answers, float | int)

    def listed(function: Function) -> Function:
        WAYS[function.__name__] = Way(function, judged)
        return function

    return listed


def named(piece: Piece) -> tuple[str, Mapping[str, Any]]:
    """Name and options of an entry of `evaluation.ways`.

    >>> named("program"), named({"majority": {"k": 2}})
    (('program', {}), ('majority', {'k': 2}))
    """
    return (piece, {}) if isinstance(piece, str) else next(iter(piece.items()))
