"""Which problems a step asks, and what their answers are paid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trainorder import paths
from trainorder.rl.types import State
from trainorder.streams import stream
from trainorder.tasks.base import Problem, Task


class Judge(Protocol):
    """Compares answers; see rewards/judge.py."""

    def win_probability(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        """P(answer beats reference), per row."""
        ...


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a phase with their training problems, and who pays for answers."""

    weights: Mapping[str, float]
    """Task -> share of each step's prompts; any positive scale."""
    tasks: Mapping[str, Task]
    problems: Mapping[str, Sequence[Problem]]
    max_new_tokens: Mapping[str, int]
    judge: Judge | None = None
    """Pays where `rewarded_by` is judge: P(answer beats the problem's reference)."""
    _order: dict[tuple[int, str, int], list[int]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, weights: Mapping[str, float]) -> TaskSet:
        """The built tasks; the judge is loaded only if one of them needs it."""
        from trainorder.tasks import load_problems, load_task

        tasks = {name: load_task(name) for name in weights}
        judged = any(task.rewarded_by == "judge" for task in tasks.values())
        return cls(
            weights,
            tasks,
            {name: load_problems(name, "train") for name in weights},
            {name: _max_new_tokens(name) for name in weights},
            _load_judge() if judged else None,
        )

    def share(self, prompts: int, state: State) -> dict[str, int]:
        """Split a step's prompts over the tasks in proportion to their weights.

        Largest remainder, with what a task did not get carried to the next step: a task of weight 1
        in 100 is asked once in 100 prompts, not never. Ties go to the task named first.
        """
        total = sum(self.weights.values())
        owed = state.mem.setdefault("owed", dict.fromkeys(self.weights, 0.0))
        for name, weight in self.weights.items():
            owed[name] += prompts * weight / total
        counts = dict.fromkeys(self.weights, 0)
        for _ in range(prompts):
            name = max(owed, key=lambda name: owed[name])
            counts[name] += 1
            owed[name] -= 1
        return counts

    def draw(self, counts: Mapping[str, int], state: State, seed: int) -> list[Problem]:
        """The next problems of each task.

        A task's sequence is one fixed permutation per pass over its problems, keyed by (seed, task,
        pass): every phase of a seed meets the same problems in the same order, whatever stands
        beside or before it.
        """
        drawn = state.mem.setdefault("drawn", dict.fromkeys(self.weights, 0))
        chosen = []
        for name, count in counts.items():
            chosen += [self._problem(name, drawn[name] + i, seed) for i in range(count)]
            drawn[name] += count
        return chosen

    def grade(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[float | None]:
        """What each answer is paid, in [0, 1]; None where it cannot be graded."""
        paid: list[float | None] = [None] * len(problems)
        for name in sorted({p.task for p in problems}):
            rows = [i for i, p in enumerate(problems) if p.task == name]
            asked, given = [problems[i] for i in rows], [answers[i] for i in rows]
            for i, value in zip(rows, self._grade_task(name, asked, given), strict=True):
                paid[i] = value
        return paid

    def _grade_task(
        self, name: str, problems: list[Problem], answers: list[str]
    ) -> Sequence[float | None]:
        task = self.tasks[name]
        if task.rewarded_by == "verifier":
            return [reward.value for reward in task.grade(answers, problems)]
        assert self.judge is not None, f"task {name!r} is judged, and there is no judge"
        references = [p.reference for p in problems]
        return self.judge.win_probability([p.prompt for p in problems], answers, references)

    def _problem(self, name: str, number: int, seed: int) -> Problem:
        problems = self.problems[name]
        epoch, place = divmod(number, len(problems))
        key = (seed, name, epoch)
        if key not in self._order:
            self._order[key] = stream("problems", *key).sample(range(len(problems)), len(problems))
        return problems[self._order[key][place]]


def _max_new_tokens(task: str) -> int:
    card = json.loads((paths.TASK_DATA / task / "task.json").read_text(encoding="utf-8"))
    return int(card["max_new_tokens"])


def _load_judge() -> Judge:
    from trainorder.rewards.judge import Judge as BradleyTerry

    return BradleyTerry.load(paths.JUDGE / "reward")
