"""Which problems a step asks, and how their answers are graded."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainorder import paths
from trainorder.judges import AnyJudge, load_judge
from trainorder.rewards import grading
from trainorder.rl import items
from trainorder.rl.items import Picker, Pool
from trainorder.rl.samplers import Moment, Seen
from trainorder.rl.scheduler import Scheduler
from trainorder.rl.types import Roll, State
from trainorder.streams import stream
from trainorder.tasks.base import Problem, Reward, Task


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a phase with their training problems, and what grades the answers."""

    weights: Mapping[str, float]
    """Task -> share of each step's prompts; any positive scale."""
    tasks: Mapping[str, Task]
    problems: Mapping[str, Sequence[Problem]]
    max_new_tokens: Mapping[str, int]
    judges: Mapping[str, AnyJudge] = field(default_factory=dict)
    """Judged task -> its judge: P(answer beats the problem's reference)."""
    scheduler: Scheduler = field(default_factory=Scheduler)
    """Whose turn it is."""
    picker: Picker = field(default_factory=Picker)
    """Which of a task's problems comes next."""
    keeps_known: bool = False
    """Whether what is known of each problem is kept though the picker does not ask for it."""
    _order: dict[tuple[int, str, int], list[int]] = field(default_factory=dict, repr=False)
    _counted: Counter[str] = field(default_factory=Counter, repr=False)
    _drawn: dict[str, list[dict[str, float]]] = field(default_factory=dict, repr=False)
    _asked: list[str] = field(default_factory=list, repr=False)
    _answers: list[int] = field(default_factory=list, repr=False)

    @classmethod
    def load(
        cls,
        weights: Mapping[str, float],
        scheduler: Scheduler | None = None,
        device: str = "cpu",
        judges: Mapping[str, str] | None = None,
        **picking: Any,
    ) -> TaskSet:
        """The built tasks; `judges` names the one that rewards each judged task; it is loaded onto `device`.

        `picking` are `picker` and `keeps_known`.
        """
        from trainorder.tasks import load_problems, load_task

        tasks = {name: load_task(name) for name in weights}
        rewarding = {
            name: (judges or {})[name] for name in weights if tasks[name].rewarded_by == "judge"
        }
        loaded = {name: load_judge(paths.JUDGE / name, device) for name in set(rewarding.values())}
        return cls(
            weights,
            tasks,
            {name: load_problems(name, "train") for name in weights},
            {name: _max_new_tokens(name) for name in weights},
            {task: loaded[name] for task, name in rewarding.items()},
            scheduler or Scheduler(),
            **picking,
        )

    def is_judged(self, task: str) -> bool:
        """Whether a judge, whose verdicts are noisy, grades the task's answers in training."""
        return self.tasks[task].rewarded_by == "judge"

    def share(self, prompts: int, state: State, *key: str | int) -> dict[str, int]:
        """Split a step's prompts over the tasks, as the phase's sampler and curriculum say; once per step.

        `key` names the stream of samplers that draw: seed and phase.
        """
        seen, alignment = state.mem.get("seen", {}), state.mem.get("alignment", {})
        now = Moment(state.step, state.total, self.weights, seen, alignment)
        mem = state.mem.setdefault("scheduler", {})
        counts = self.scheduler.counts(now, mem, prompts, (*key, state.step))
        state.mem["quota"] = counts
        return counts

    def observe(self, sampled: Sequence[Roll], credited: Roll, state: State) -> None:
        """Note for the next `share` what this step showed of each task: `sampled` before edits, `credited` after."""
        state.mem["seen"] = see(sampled, credited)
        if self._knows:
            items.note(state.mem.setdefault("known", {}), sampled, state.step)
            by_problem = {task: see(sampled, credited, task) for task in self.weights}
            state.mem["seen_problems"] = by_problem

    @property
    def _knows(self) -> bool:
        return self.keeps_known or self.picker.item.draws != "dealt"

    def draw(
        self,
        counts: Mapping[str, int],
        state: State,
        seed: int,
        look: Callable[[str, Sequence[Problem]], list[float]] | None = None,
    ) -> list[Problem]:
        """The next problems of each task.

        Without an item sampler a task's sequence is one fixed permutation per pass over its problems, keyed by (seed, task,
        pass): every phase of a seed meets the same problems in the same order, whatever stands
        beside or before it. `look` measures problems for item samplers that ask for it.
        """
        drawn = state.mem.setdefault("drawn", dict.fromkeys(self.weights, 0))
        chosen = []
        for name, count in counts.items():
            if not count:
                continue
            if self.picker.item.draws == "dealt":
                own = [self._problem(name, drawn[name] + i, seed) for i in range(count)]
            else:
                own = self._pick(name, count, state, (seed, name, drawn[name]), look)
            self._note_drawn(name, own, state)
            chosen += own
            drawn[name] += count
        return chosen

    def _pick(
        self, name: str, count: int, state: State, key: tuple[str | int, ...], look: Any
    ) -> list[Problem]:
        known = state.mem.setdefault("known", {}).setdefault(name, {})
        seen = state.mem.get("seen_problems", {}).get(name, {})
        looks = {} if look is None else {"look": look}
        pool = Pool(name, self.problems[name], state.step, state.total, known, seen, **looks)
        mem = state.mem.setdefault("items", {}).setdefault(name, {})
        return self.picker.pick(pool, mem, count, stream("items", *key))

    def _note_drawn(self, name: str, chosen: Sequence[Problem], state: State) -> None:
        log = self._drawn.setdefault(name, [])
        if not self._knows:
            log += [{} for _ in chosen]
            return
        known = state.mem.setdefault("known", {}).setdefault(name, {})
        for problem in chosen:
            own = known.setdefault(problem.id, {})
            visits = own.get("visits", 0)
            log.append({"rate": items.expected_rate(own), "new": float(visits == 0)})
            own["visits"] = visits + 1

    def asked(self, problems: Sequence[Problem], answers: Sequence[int]) -> None:
        """Note for `order` that these were drawn, and how many answers each request is for."""
        self._asked.extend(problem.id for problem in problems)
        self._answers.extend(answers)

    def order(self) -> dict[str, Any]:
        """`problems`, the ids of what was drawn since the last call, in that order, and the `answers` of each: one number where all are alike."""
        alike = len(set(self._answers)) == 1
        found = {
            "problems": list(self._asked),
            "answers": self._answers[0] if alike else list(self._answers),
        }
        self._asked.clear()
        self._answers.clear()
        return found

    def realised(self) -> dict[str, float]:
        """What was drawn since the last call: `task/<task>/drawn`, 0 of a task that was not asked.

        With an item sampler also `drawn_new`, the share that was new, and `drawn_rate`, the mean expected pass rate before.
        """
        found = {f"task/{name}/drawn": 0.0 for name in self.weights} if self._drawn else {}
        for name, rows in self._drawn.items():
            found[f"task/{name}/drawn"] = float(len(rows))
            for fact in rows[0]:
                found[f"task/{name}/drawn_{fact}"] = math.fsum(row[fact] for row in rows) / len(
                    rows
                )
        self._drawn.clear()
        return found

    def grade(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Reward]:
        """The grade of each answer: a value in [0, 1], None where it cannot be graded, and what the verifier tells of its parts."""
        grades = [Reward(None)] * len(problems)
        for name in sorted({p.task for p in problems}):
            rows = [i for i, p in enumerate(problems) if p.task == name]
            asked, given = [problems[i] for i in rows], [answers[i] for i in rows]
            for i, grade in zip(rows, self._grade_task(name, asked, given), strict=True):
                grades[i] = grade
        return grades

    def _grade_task(self, name: str, problems: list[Problem], answers: list[str]) -> list[Reward]:
        task = self.tasks[name]
        if not self.is_judged(name):
            return grading.grade(task, answers, problems)
        judge = self.judges[name]
        references = [p.reference or "" for p in problems]
        grades = judge.win_probability([p.text for p in problems], answers, references)
        grading.shared().unscored.note(name, grades, getattr(judge, "failures", ()))
        return [Reward(grade) for grade in grades]

    def judge_calls(self) -> dict[str, float]:
        """What the judges that are asked counted since the last call: `perf/judge_asked`, `perf/judge_kept`, ..."""
        judges = {id(judge): judge for judge in self.judges.values()}.values()
        total: Counter[str] = Counter()
        for judge in judges:
            total.update(getattr(judge, "counts", {}))
        found = {f"perf/judge_{name}": float(n - self._counted[name]) for name, n in total.items()}
        self._counted.clear()
        self._counted.update(total)
        return found

    def _problem(self, name: str, number: int, seed: int) -> Problem:
        problems = self.problems[name]
        epoch, place = divmod(number, len(problems))
        key = (seed, name, epoch)
        if key not in self._order:
            self._order[key] = stream("problems", *key).sample(range(len(problems)), len(problems))
        return problems[self._order[key][place]]


def see(sampled: Sequence[Roll], credited: Roll, task: str | None = None) -> dict[str, Seen]:
    """Task -> what the rolls of a step showed; rows that an edit dropped count with advantage 0.

    With a `task`: the id of each of its problems -> what they showed of it.
    """

    def key(problem: Problem) -> str | None:
        if task is None:
            return problem.task
        return problem.id if problem.task == task else None

    lengths = credited.loss_mask.sum(1).clamp(min=1)
    absadv = ((credited.advantages.abs() * credited.loss_mask).sum(1) / lengths).tolist()
    total: dict[str, float] = {}
    own = credited.is_from("policy").tolist()
    for problem, value, mine in zip(credited.problem, absadv, own, strict=True):
        if (name := key(problem)) is not None:
            total[name] = total.get(name, 0.0) + value * mine
    facts: dict[str, list[tuple[float, float, float]]] = {}
    for roll in sampled:
        entropy, tokens = (
            (roll.entropy * roll.loss_mask).sum(1).tolist(),
            roll.loss_mask.sum(1).tolist(),
        )
        rows = zip(
            roll.problem, roll.scored.tolist(), roll.rewards.tolist(), entropy, tokens, strict=True
        )
        for problem, scored, reward, nats, count in rows:
            if scored and (name := key(problem)) is not None:
                facts.setdefault(name, []).append((reward, nats, count))
    return {
        name: Seen(
            rollouts=len(rows),
            absadv=total.get(name, 0.0) / len(rows),
            reward=math.fsum(reward for reward, _, _ in rows) / len(rows),
            entropy=math.fsum(n for _, n, _ in rows) / max(1.0, math.fsum(c for _, _, c in rows)),
        )
        for name, rows in facts.items()
    }


def split_by_task(roll: Roll, *key: str | int) -> list[list[int]]:
    """Rows of each task, the tasks in random order: the parts of a serial multi-task step."""
    tasks = sorted({problem.task for problem in roll.problem})
    stream("serial", *key).shuffle(tasks)
    return [[i for i, p in enumerate(roll.problem) if p.task == task] for task in tasks]


def split_by_prompt(roll: Roll, updates: int) -> list[list[int]]:
    """Rows of each update: whole groups in turn, so that every update sees every task.

    A group's place in the roll decides, so edits that drop groups leave the shares even. Of fewer
    groups than updates each is an update of its own; no update is empty.
    """
    groups, dense = roll.group.unique(return_inverse=True)
    parts = range(min(updates, len(groups)))
    return [(dense % len(parts) == i).nonzero().flatten().tolist() for i in parts]


def _max_new_tokens(task: str) -> int:
    card = json.loads((paths.TASK_DATA / task / "task.json").read_text(encoding="utf-8"))
    return int(card["max_new_tokens"])
