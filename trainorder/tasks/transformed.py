"""transformed: another task's problems at a level of a transform; the probe of what training by levels reaches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from trainorder.reading import did_you_mean
from trainorder.tasks.base import Problem, Reward, Task, content_id
from trainorder.tasks.transforms import HIDDEN, TRANSFORMS, restored

PARTNERS = 8
"""Problems drawn beside each one, for transforms that use others."""


@dataclass(frozen=True)
class Transformed:
    """`{of: math, transform: chain, options: {scale: 2}, level: 4}`: chains of four problems of `math`."""

    of: str = "math"
    """Kind of the task whose problems are transformed; not own rows."""
    of_options: dict[str, Any] = field(default_factory=dict)
    """Options of that kind."""
    transform: str = "chain"
    """prefix, chain, masks or distractors (trainorder/tasks/transforms.py)."""
    level: int = 2
    """Steps that are given, problems in a chain, masks, distractors."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the transform."""
    version: int = field(default=1, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)

    def __post_init__(self) -> None:
        names = sorted(TRANSFORMS)
        if self.transform not in TRANSFORMS:
            raise ValueError(
                f"no transform {self.transform!r}; there are {', '.join(names)}{did_you_mean(self.transform, names)}"
            )
        if not 0 <= self.level <= 100:
            raise ValueError(f"level is from 0 to 100, got {self.level}")
        allowed = sorted(TRANSFORMS[self.transform].__kwdefaults__ or {})
        for option in self.options:
            if option not in allowed:
                raise ValueError(
                    f"{self.transform} has no option {option!r}; it takes {', '.join(allowed)}"
                )
        if self.base.rewarded_by == "judge":
            raise ValueError(
                f"of: {self.of!r} is rewarded by a judge, and a transformed problem needs a verifier"
            )

    @cached_property
    def base(self) -> Task:
        """The task whose problems are transformed."""
        from trainorder.config import TaskConfig
        from trainorder.tasks import make_task

        return make_task(self.of, TaskConfig(kind=self.of, options=self.of_options))

    @property
    def sandboxed(self) -> Any:
        """Whether the task runs programs."""
        return getattr(self.base, "sandboxed", False)

    def loads(self, task: str, *, build: bool) -> frozenset[str]:
        """The code of the task that is transformed, and what that loads."""
        from trainorder.tasks import TASKS

        own = getattr(self.base, "loads", None)
        return frozenset({TASKS[self.of], *(own(task, build=build) if own else ())})

    def draw(self, rng: random.Random) -> Problem:
        """A problem of the task, transformed; its id is of what it became."""
        problem = self.base.draw(rng)
        others = [self.base.draw(rng) for _ in range(PARTNERS)]
        made = TRANSFORMS[self.transform](problem, self.level, rng, others, **self.options)
        return replace(made, id=content_id("transformed", made.text), task="transformed")

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """The gold text."""
        return problem.gold or ""

    def drill(self, rng: random.Random) -> str | None:
        """A line of the task."""
        return self.base.drill(rng)

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """The task's own grade; of masks the share that is restored."""
        if self.transform != "masks":
            return self.base.grade(completions, problems)
        shares = [
            restored(text, problem.meta[HIDDEN])
            for text, problem in zip(completions, problems, strict=True)
        ]
        return [Reward(share, {"answer": share}) for share in shares]
