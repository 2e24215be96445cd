"""roles: what a policy that plays against itself must be able to do, as a task: write a problem, judge an answer.

Its demonstrations let a model begin a phase of self-play (rl/pieces/self_play.py) that knows both questions; its score says
how often a checkpoint writes a new problem that a program can read, and how often it judges an answer rightly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from trainorder.reading import did_you_mean
from trainorder.tasks.base import Problem, Reward, content_id, in_template, split_of
from trainorder.tasks.math import Math
from trainorder.tasks.posing import ASK, JUDGE, posed, sum_text, vote_of

OPTIONS = ("max_value", "max_operand", "min_operations", "max_operations", "stories", "answer")


@dataclass(frozen=True)
class Roles:
    """Questions to the questioner and to the verifier about sums of the task `math` with these options."""

    of_options: dict[str, Any] = field(default_factory=dict)
    """Options of the task `math` that is played."""
    questions: float = 0.5
    """Share of problems that ask for a problem; the others ask for a vote."""
    version: int = field(default=1, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)

    def __post_init__(self) -> None:
        for option in self.of_options:
            if option not in OPTIONS:
                raise ValueError(
                    f"of_options: math has no option {option!r}; it takes {', '.join(OPTIONS)}{did_you_mean(option, list(OPTIONS))}"
                )
        if not 0 <= self.questions <= 1:
            raise ValueError(f"questions is a share in 0..1, got {self.questions}")
        assert self.base

    @cached_property
    def base(self) -> Math:
        """The task that is played."""
        return Math(**self.of_options)

    def draw(self, rng: random.Random) -> Problem:
        """A sum with a role's question; it is of the split that the sum itself belongs to."""
        seed = self.base.draw(rng)
        chain: list[int] = seed.meta["chain"]
        if rng.random() < self.questions:
            prompt, gold = in_template(seed.prompt, ASK), self._other(chain, rng)
            meta: dict[str, Any] = {"role": "questioner", "chain": chain}
        else:
            answer = sum(chain)
            said = answer if rng.random() < 0.5 else max(0, answer + rng.choice((-2, -1, 1, 2)))
            prompt = in_template(seed.prompt, JUDGE, answer=str(said))
            gold = "1" if said == answer else "0"
            meta = {"role": "verifier", "right": said == answer}
        key = content_id("roles", *chain, variant=[str(prompt)])
        return Problem(key, "roles", prompt, gold, gold, meta)

    def reveals(self, problem: Problem) -> tuple[str, ...]:
        """The sum of a problem that asks for another one."""
        chain = problem.meta.get("chain")
        return (sum_text(chain),) if chain else ()

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """A quarter of the texts lack their question; three votes in ten are wrong."""
        if problem.meta["role"] == "verifier":
            right = problem.meta["right"]
            return str(int(right if rng.random() < 0.7 else not right))
        text = self._other(problem.meta["chain"], rng)
        return text if rng.random() < 0.75 else text.removesuffix(" = ?")

    def drill(self, rng: random.Random) -> str | None:
        """Two problems of the kind that may be trained on."""
        return " ; ".join(self._other([], rng) for _ in range(2))

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """1 for a problem that is not the one shown, and for the right vote."""
        return [self._grade(text, p) for text, p in zip(completions, problems, strict=True)]

    def _grade(self, text: str, problem: Problem) -> Reward:
        if problem.meta["role"] == "verifier":
            vote = vote_of(text)
            return Reward(float(vote == problem.meta["right"]), {"vote": float(vote is not None)})
        found = posed(self.base, "math", text)
        new = found is not None and found.meta["chain"] != problem.meta["chain"]
        return Reward(float(new), {"problem": float(found is not None)})

    def _other(self, chain: Sequence[int], rng: random.Random) -> str:
        """Another sum, of train."""
        while True:
            other = self.base.draw(rng)
            if split_of(other.id) == "train" and other.meta["chain"] != list(chain):
                return sum_text(other.meta["chain"])
