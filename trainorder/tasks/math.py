"""math: a chain of additions and subtractions, as an expression or a short story, with worked steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from trainorder.rewards import format
from trainorder.rewards.answers import same_number
from trainorder.tasks.base import HASTY, Problem, Reward, content_id, graded

NAMES = ("sam", "ana", "ben", "mia", "leo", "eva", "tom", "zoe")
THINGS = ("figs", "plums", "coins", "cards", "shells", "pens", "eggs", "books")
GAINS = ("finds", "gets", "buys", "wins")
LOSSES = ("loses", "eats", "sells", "drops")

Chain = list[int]
"""The start, then signed operands: `[3, 4, -3]` is 3 + 4 - 3."""


@dataclass(frozen=True)
class Math:
    """Every intermediate value lies in 0..max_value, every operand in 1..max_operand."""

    max_value: int = 20
    max_operand: int = 9
    min_operations: int = 2
    max_operations: int = 3
    stories: float = 0.5
    """Share of problems told as a story; the others are expressions."""
    answer: Literal["anywhere", "last", "first"] = "anywhere"
    """Where the answer must stand: `last` and `first` accept only a completion in the format with the answer behind
    or before the steps. One task of each, with the same problems, is a pair that conflicts by construction."""
    version: int = field(default=3, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.max_operand <= self.max_value <= 10_000:
            raise ValueError(
                f"needs 1 <= max_operand <= max_value <= 10,000, got {self.max_operand} and {self.max_value}"
            )
        if not 1 <= self.min_operations <= self.max_operations <= 100:
            raise ValueError(
                f"needs 1 <= min_operations <= max_operations <= 100, got {self.min_operations} and {self.max_operations}"
            )
        if not 0 <= self.stories <= 1:
            raise ValueError(f"stories is a share in 0..1, got {self.stories}")

    def draw(self, rng: random.Random) -> Problem:
        """A random chain; its hash is of the numbers, so one chain never meets two splits in two wordings."""
        chain = self._chain(rng)
        prompt = _story(chain, rng) if rng.random() < self.stories else _expression(chain)
        answer = sum(chain)
        gold = self._render(_steps(chain), answer)
        meta = {"chain": chain, "answer": str(answer)}
        return Problem(content_id("math", *chain), "math", prompt, gold, gold, meta)

    def reveals(self, problem: Problem) -> tuple[str, ...]:
        """The chain as an expression, and its worked steps."""
        chain: Chain = problem.meta["chain"]
        return _expression(chain), _steps(chain)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Half careful (a step is wrong with 7%, and carried on), half hasty (wrong with 50%)."""
        chain: Chain = problem.meta["chain"]
        if rng.random() < 0.5:
            total, steps = chain[0], []
            for operand in chain[1:]:
                result = _slip(total + operand, rng) if rng.random() < 0.07 else total + operand
                steps.append(_step(total, operand, result))
                total = result
            return self._render(" ; ".join(steps), total)
        answer = sum(chain)
        return self._render(rng.choice(HASTY), _slip(answer, rng) if rng.random() < 0.5 else answer)

    def drill(self, rng: random.Random) -> str | None:
        """Four single steps: `8 + 5 = 13 ; 13 - 4 = 9 ; ...`."""
        return " ; ".join(_steps(self._chain(rng, operations=1)) for _ in range(4))

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """1 for the right number, however it is written."""
        return [
            self._grade(text, problem.meta["answer"])
            for text, problem in zip(completions, problems, strict=True)
        ]

    def _grade(self, completion: str, wanted: str) -> Reward:
        reward = graded(completion, lambda given: same_number(given, wanted))
        if self.answer == "anywhere":
            return reward
        parsed = format.parse(completion, answer_first=self.answer == "first")
        right = reward.value if parsed else 0.0
        return Reward(
            right, {"format": float(parsed is not None), "answer": reward.parts["answer"]}
        )

    def _render(self, steps: str, answer: int) -> str:
        return format.render(steps, str(answer), answer_first=self.answer == "first")

    def _chain(self, rng: random.Random, operations: int | None = None) -> Chain:
        count = operations or rng.randint(self.min_operations, self.max_operations)
        chain = [rng.randint(1, self.max_value)]
        for _ in range(count):
            total = sum(chain)
            allowed = [n for n in range(1, self.max_operand + 1) if total + n <= self.max_value]
            allowed += [-n for n in range(1, self.max_operand + 1) if total - n >= 0]
            chain.append(rng.choice(allowed))
        return chain


def _step(total: int, operand: int, result: int) -> str:
    return f"{total} {'+' if operand > 0 else '-'} {abs(operand)} = {result}"


def _steps(chain: Chain) -> str:
    totals = [sum(chain[: i + 1]) for i in range(len(chain))]
    return " ; ".join(
        _step(a, n, b) for a, n, b in zip(totals, chain[1:], totals[1:], strict=False)
    )


def _expression(chain: Chain) -> str:
    return " ".join(
        [str(chain[0]), *(f"{'+' if n > 0 else '-'} {abs(n)}" for n in chain[1:]), "= ?"]
    )


def _story(chain: Chain, rng: random.Random) -> str:
    turns = [f"then {rng.choice(GAINS if n > 0 else LOSSES)} {abs(n)} ." for n in chain[1:]]
    return f"{rng.choice(NAMES)} has {chain[0]} {rng.choice(THINGS)} . {' '.join(turns)} how many ?"


def _slip(number: int, rng: random.Random) -> int:
    """A near miss, never negative."""
    return rng.choice([n for n in (number - 2, number - 1, number + 1, number + 2) if n >= 0])
