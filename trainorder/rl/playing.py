"""What the step of a policy that plays several roles is made of (pieces/self_play.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from trainorder.rewards import format
from trainorder.rl.types import Roll, Rollouts, State
from trainorder.rollout import Request
from trainorder.tasks.base import Problem, Prompt, in_template
from trainorder.tasks.posing import held_out, vote_of

KEY = "self_play"
ROLES = ("responder", "questioner", "verifier")
"""`asked("role")` of a row is the place here; the step's own problems have none, and are answered by the responder."""
VOTE_TOKENS = 8
QUESTIONERS = 1 << 40
"""The group of all questioner rows: others are places of requests."""
WINDOW = 512
"""Written problems that are remembered, so that none counts as new twice."""
MALFORMED, REPEATED = -1.0, -0.5
TRAILING = 0.8
"""Decay per step of the shares that say whether a role has collapsed."""


def balanced(positive: Sequence[bool], stream: torch.Generator) -> list[int]:
    """Numbers of as many rows with reward as without, at random from the larger side; all where one side is empty (ours).

    >>> len(balanced([True, False, False, False], torch.Generator().manual_seed(0))), balanced([False] * 2, torch.Generator())
    (2, [0, 1])
    """
    sides = [[i for i, own in enumerate(positive) if own == side] for side in (True, False)]
    least = min(map(len, sides))
    if not least:
        return list(range(len(positive)))
    kept = [
        side[i] for side in sides for i in torch.randperm(len(side), generator=stream).tolist()[:least]
    ]  # fmt: skip
    return sorted(kept)


def majority_of(ballots: Sequence[bool | None]) -> bool | None:
    """What more than half of the votes that are any say; None without such.

    >>> majority_of([True, True, False, None]), majority_of([True, False]), majority_of([None])
    (True, None, None)
    """
    yes, no = ballots.count(True), ballots.count(False)
    return None if yes == no else yes > no


@dataclass
class Play:
    """One step's play."""

    roll: Roll
    state: State
    rollouts: Rollouts
    seeds: list[int]
    """A row of each of the step's own problems."""
    mem: dict[str, Any]
    new: dict[int, Problem] = field(default_factory=dict)
    """Number of the written text -> the new problem that it poses."""
    blame: list[float] = field(default_factory=list)
    """Of each written text: what it earns unless it is a new problem that is solved now and then."""
    held: set[int] = field(default_factory=set)
    """Numbers of the texts that pose a problem of dev or test: nobody tries it, and it earns neither reward nor blame."""
    seed_of: list[Problem] = field(default_factory=list)
    """Of each written text: the problem it was asked with."""
    majority: dict[int, bool | None] = field(default_factory=dict)
    """Number of a written text -> what the votes on the first answer to it say, and `right`, whether it is."""
    right: dict[int, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, roll: Roll, state: State, rollouts: Rollouts) -> Play:
        """The play of a step whose own problems were answered."""
        own = roll.is_from("policy").tolist()
        firsts: dict[int, int] = {}
        for row, group in enumerate(roll.group.tolist()):
            if own[row]:
                firsts.setdefault(group, row)
        mem = state.mem.setdefault(KEY, {"recent": [], "solved": [], "kept": [], "log": {}})
        return cls(roll, state, rollouts, list(firsts.values()), mem)

    def request(self, problem: Problem, row: int, role: str, **changes: Any) -> Request:
        """A question under the settings of a row of the step."""
        facts = self.roll.row_facts
        usual = Request(
            problem,
            temperature=float(facts["temperature"][row]),
            max_new_tokens=int(min(facts["limit"][row], 1e6)),
            facts={"role": float(ROLES.index(role))},
        )
        return replace(usual, **changes)

    def write(self, questions: int, memory: int, ask: str) -> Roll:
        """The questioner's texts, of which the new problems are noted."""
        known = self.mem["solved"][-memory:] if memory else []
        requests = []
        for i in range(questions):
            row = self.seeds[i % len(self.seeds)]
            seed = self.roll.problem[row]
            if i % 2 and known:  # every second one goes on from what the policy wrote
                seed = Problem(**known[i // 2 % len(known)])
            self.seed_of.append(seed)
            prompt = in_template(seed.prompt, ask)
            requests.append(self.request(seed, row, "questioner", prompt=prompt, group=QUESTIONERS))
        written = self.rollouts.sample(requests, aside=True)
        taken = {p.id for p in self.roll.problem} | set(self.mem["recent"])
        for i, text in enumerate(written.text):
            found = self.rollouts.pose(written.problem[i].task, text)
            if found is None:
                self.blame.append(MALFORMED)
            elif held_out(found):
                self.blame.append(0.0)
                self.held.add(i)
            elif found.id in taken:
                self.blame.append(REPEATED)
            else:
                self.blame.append(0.0)
                self.new[i] = found
                taken.add(found.id)
        return written

    def answer(self) -> Roll | None:
        """The responder's answers to the new problems, groups in their order."""
        if not self.new:
            return None
        first = self.seeds[0]
        samples = int((self.roll.group == self.roll.group[first]).sum())
        rows = {p.task: row for row in reversed(self.seeds) for p in [self.roll.problem[row]]}
        asked = [
            self.request(problem, rows.get(problem.task, first), "responder", samples=samples)
            for problem in self.new.values()
        ]
        return self.rollouts.sample(asked)

    def groups(self, rows: Roll) -> dict[int, list[int]]:
        """Number of the written text -> its rows in a roll whose groups are in the order of the new problems."""
        found: dict[int, list[int]] = {}
        for row, group in enumerate(rows.group.tolist()):
            found.setdefault(group, []).append(row)
        return dict(zip(self.new, found.values(), strict=False))

    def rates(self, answers: Roll | None) -> dict[int, float]:
        """Mean grade of the answers to each new problem; those that could not be graded have none."""
        found = {}
        for i, rows in self.groups(answers).items() if answers is not None else ():
            own = [r for r in rows if answers is not None and answers.scored[r]]
            if own and answers is not None:
                found[i] = math.fsum(answers.row_facts["graded"][own].tolist()) / len(own)
        return found

    def vote(self, answers: Roll | None, votes: int, judge: str) -> Roll | None:
        """The verifier's votes on the first answer to each new problem, each paid where it is the majority's."""
        if answers is None:
            return None
        firsts = {i: rows[0] for i, rows in self.groups(answers).items()}
        requests = []
        for i, row in firsts.items():
            self.right[i] = bool(answers.row_facts["graded"][row] >= 1)
            prompt = asked_to_judge(judge, self.new[i], answers.text[row])
            requests.append(
                self.request(
                    self.new[i], self.seeds[0], "verifier", prompt=prompt, samples=votes,
                    max_new_tokens=VOTE_TOKENS,
                )
            )  # fmt: skip
        ballots = self.rollouts.sample(requests, aside=True)
        said = [vote_of(text) for text in ballots.text]
        paid = [0.0] * len(ballots)
        for i, rows in self.groups(ballots).items():
            self.majority[i] = majority_of([said[r] for r in rows])
            for r in rows:
                paid[r] = float(said[r] is not None and said[r] == self.majority[i])
        return rewarded(ballots, paid)

    def believed(self, answers: Roll) -> Roll:
        """The answers with a reward of 1 where the votes say that one is right."""
        rewards = answers.rewards.clone()
        for i, rows in self.groups(answers).items():
            if self.majority.get(i):
                rewards[rows[0]] = 1.0
        return replace(answers, rewards=rewards)

    def uneven(self, answers: Roll) -> list[int]:
        """Rows of the groups in which there is something to learn."""
        spread = {
            i: len({float(answers.rewards[r]) for r in rows if answers.scored[r]}) > 1
            for i, rows in self.groups(answers).items()
        }
        return [r for i, rows in self.groups(answers).items() for r in rows if spread[i]]

    def heard(self, ballots: Roll) -> list[int]:
        """Rows of the votes that agree with the program, and of others as many groups as new problems make rows."""
        groups = self.groups(ballots)
        agreed = [i for i in groups if self.majority[i] == self.right[i]]
        others = [i for i in groups if self.majority[i] not in (None, self.right[i])]
        mixed = torch.randperm(len(others), generator=self.state.stream(KEY)).tolist()
        size = max(1, len(ballots) // max(1, len(groups)))
        kept = {*agreed, *(others[j] for j in mixed[: len(self.new) // size])}
        return [r for i, rows in groups.items() for r in rows if i in kept]

    def shown(
        self, show: int, below: float, ask: str, judge: str, *, judged: bool
    ) -> list[tuple[Request, str]]:
        """What a role that has collapsed, or not begun, is given: texts of the step's problems, and right votes."""
        tried = max(1, len(self.blame) - len(self.held))
        new = self.state.ema(f"{KEY}/new", len(self.new) / tried, beta=TRAILING, init=0.0)  # fmt: skip
        found: list[tuple[Request, str]] = []
        if new < below:
            texts = [
                self.roll.problem[row].question
                for row in self.seeds
                if self.rollouts.pose(self.roll.problem[row].task, self.roll.problem[row].question)
            ]
            for i in range(min(show, len(texts) * len(self.seeds))):
                row = self.seeds[i % len(self.seeds)]
                seed = self.roll.problem[row]
                prompt = in_template(seed.prompt, ask)
                text = texts[(i + i // len(self.seeds) + 1) % len(texts)]
                found.append((self.request(seed, row, "questioner", prompt=prompt), text))
        if not judged:
            return found
        if self.majority:
            agreed = sum(self.majority[i] == self.right[i] for i in self.majority)
            self.state.ema(f"{KEY}/agreed", agreed / len(self.majority), beta=TRAILING, init=0.0)
        if self.state.mem.get(f"{KEY}/agreed", 0.0) < below:
            graded = self.roll.row_facts["graded"]
            sides = [
                [r for r in range(len(self.roll)) if self.roll.scored[r] and (graded[r] >= 1) == s]
                for s in (True, False)
            ]
            rows = [r for pair in zip(*sides, strict=False) for r in pair][:show]
            for r in rows:
                problem = self.roll.problem[r]
                prompt = asked_to_judge(judge, problem, self.roll.text[r])
                text = "1" if graded[r] >= 1 else "0"
                found.append((self.request(problem, r, "verifier", prompt=prompt), text))
        return found

    def imitated(
        self, worth: dict[int, float], replay: float, ask: str
    ) -> list[tuple[Request, str]]:
        """The new problems as texts to learn, weighted by their utility, and earlier ones beside them."""
        fresh: list[dict[str, Any]] = [
            {"seed": vars(self.seed_of[i]), "text": self.new[i].question, "worth": value}
            for i, value in worth.items()
        ]  # fmt: skip
        kept = self.mem["kept"]
        count = min(len(kept), round(replay / (1 - replay) * len(fresh))) if replay < 1 else 0
        again = torch.randperm(len(kept), generator=self.state.stream(f"{KEY}/replay")).tolist()
        found = []
        for one in [*fresh, *(kept[j] for j in again[:count])]:
            seed = Problem(**one["seed"])
            request = self.request(
                seed, self.seeds[0], "questioner", prompt=in_template(seed.prompt, ask),
                facts={"role": float(ROLES.index("questioner")), "worth": one["worth"]},
            )  # fmt: skip
            found.append((request, one["text"]))
        self.mem["kept"] = [*kept, *fresh][-WINDOW:]
        return found

    def remember(self, rates: dict[int, float], memory: int, shown: int) -> None:
        """Keep what the next steps need, and what the step logs."""
        mem, count = self.mem, max(1, len(self.blame))
        mem["recent"] = [*mem["recent"], *(p.id for p in self.new.values())][-WINDOW:]
        solved = [vars(self.new[i]) for i, rate in rates.items() if rate > 0]
        mem["solved"] = [*mem["solved"], *solved][-memory:] if memory else []
        log = {
            "self_play_new": len(self.new) / count,
            "self_play_held_out": len(self.held) / count,
            "self_play_repeated": self.blame.count(REPEATED) / count,
            "self_play_malformed": self.blame.count(MALFORMED) / count,
            "self_play_shown": float(shown),
        }
        if rates:
            log["self_play_solved"] = math.fsum(rates.values()) / len(rates)
        if self.majority:
            agreed = sum(self.majority[i] == self.right[i] for i in self.majority)
            log["self_play_agreed"] = agreed / len(self.majority)
        mem["log"] = log


def asked_to_judge(judge: str, problem: Problem, text: str) -> Prompt:
    """The prompt that asks whether the answer of a text is right."""
    return in_template(problem.prompt, judge, answer=format.answer(text) or "none")


def rewarded(rows: Roll, rewards: Sequence[float]) -> Roll:
    """Rows that are no answers to their problems, with rewards of their role."""
    return replace(
        rows, rewards=rows.rewards.new_tensor(list(rewards)), scored=torch.ones_like(rows.scored)
    )


def whole(rows: Roll, kept: Sequence[int]) -> list[Roll]:
    """The rows as a part of the step; none of none."""
    return [rows.rows(kept)] if kept else []
