"""What a task is: it makes problems, demonstrates them with human-like noise, and grades answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Problem:
    """One item of a task. Rows of data/tasks/<task>/<split>.jsonl are exactly these fields.

    >>> Problem("math/1f0c", "math", "2 + 3 = ?", gold="<answer> 5 </answer>", reference="<answer> 5 </answer>").meta
    {}
    """

    id: str
    """`<task>/<content hash>`: equal content has an equal id in every split, process and run."""
    task: str
    prompt: str
    gold: str
    """A whole completion that scores 1."""
    reference: str
    """The text entropy is measured on, and the opponent a judge compares with; equals gold for verifiable tasks."""
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts for the grader (the answer, hidden tests, required words)."""


@dataclass(frozen=True)
class Reward:
    """A grade: `value` in [0, 1] with its parts, or None where the completion cannot be graded (never 0 instead)."""

    value: float | None
    parts: dict[str, float] = field(default_factory=dict)


class Task(Protocol):
    """Frozen dataclass whose fields are the task's options; `version` rises whenever a prompt or a score changes."""

    version: int
    rewarded_by: Literal["verifier", "judge"]
    """Who pays in RL. `grade` of a judged task is its hidden gold taste: for evaluation only, never a reward."""

    def draw(self, rng: random.Random) -> Problem:
        """One random problem; its split follows from its content (`split_of`), so splits are disjoint by design."""
        ...

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """A completion as a noisy human would write it: partly wrong, in the right format most of the time."""
        ...

    def drill(self, rng: random.Random) -> str | None:
        """A clean textbook line that teaches the skill itself (`8 + 5 = 13`), or None where the task has none."""
        ...

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """Grade completions[i] as an answer to problems[i]; pure, order-independent."""
        ...
