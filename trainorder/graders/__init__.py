"""What an answer is worth, by name. A grader is a file's functions and one line in GRADERS; tests/contracts/test_graders.py checks it.

Rows name their graders, by our names or by those of other frameworks (`resolve`). All run in the verifiers' process
(rewards/grading.py), where a hang or a crash costs that one answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from trainorder.reading import did_you_mean
from trainorder.rewards import format

GRADERS: dict[str, str] = {
    "exact": "trainorder.graders.texts:EXACT",
    "text": "trainorder.graders.texts:TEXT",
    "f1": "trainorder.graders.texts:F1",
    "regex": "trainorder.graders.texts:REGEX",
    "choice": "trainorder.graders.choices:CHOICE",
    "mention": "trainorder.graders.choices:MENTION",
    "number": "trainorder.graders.numbers:NUMBER",
    "math": "trainorder.graders.numbers:MATH",
    "asserts": "trainorder.graders.code:ASSERTS",
    "entry_point": "trainorder.graders.code:ENTRY_POINT",
    "stdio": "trainorder.graders.code:STDIO",
    "json_schema": "trainorder.graders.structure:JSON_SCHEMA",
    "ifeval": "trainorder.graders.ifeval:IFEVAL",
}
"""Name -> grader. By name, so that a fingerprint covers the graders that a task's rows name and no others."""


class BadLabel(ValueError):
    """What is wrong with what a row gives its grader."""


@dataclass(frozen=True)
class Answer:
    """A completion as graders see it: its thoughts are taken out."""

    text: str
    """All of it."""
    marked: str
    """What it marks as its answer (tags, a box, `####`, `answer is`); empty where it marks none."""
    prompt: str
    completion: str
    """As the model wrote it, thoughts included."""

    @property
    def said(self) -> str:
        """The marked answer, else the whole text."""
        return self.marked or self.text.strip()


def answer_of(completion: str, prompt: str = "") -> Answer:
    r"""The answer in a completion.

    >>> answer_of("<think> 3? </think> So \\boxed{4}.").marked, answer_of("It is 4.").said
    ('4', 'It is 4.')
    """
    text = format.without_thoughts(completion)
    return Answer(text, format.answer(completion), prompt, completion)


@dataclass(frozen=True)
class Grader:
    """How one kind of answer is graded. All functions are pure; `label` is JSON."""

    read: Callable[[Any, Mapping[str, Any]], Any]
    """(what the row gives, the row's other values) -> the label as `grade` takes it; raises BadLabel."""
    grade: Callable[[Answer, Any], float | None]
    """In [0, 1]; None where the answer cannot be graded. Asked only for answers that show something."""
    gold: Callable[[Any], str | None]
    """The label -> a right answer, None where the label does not say one."""
    sandboxed: bool = False
    """Runs model-written programs: `grading.isolation` applies."""
    costly: bool = False
    """Takes more than about a millisecond: only some rows' right answers are tried before training."""


@cache
def grader(name: str) -> Grader:
    """The grader of this name, which GRADERS lists."""
    module, _, attribute = GRADERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def refused(name: str) -> str:
    """What to say about a name that is no grader."""
    from trainorder.graders.names import ALIASES

    known = sorted(GRADERS)
    near = did_you_mean(name, [*known, *ALIASES])
    return (
        f"unknown grader {name!r}{near}; there are {', '.join(known)}: name one by "
        f"`grader: {{{name}: number}}` of the task, or a function of yours by `reward: mine.py:score`"
    )
