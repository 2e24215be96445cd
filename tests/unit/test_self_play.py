"""A policy that writes problems, answers them and judges the answers: rewards and balance by hand, guards, and what is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from rl_small import make_roll

from trainorder.config import parse_params
from trainorder.plan.check import check
from trainorder.reading import ParamsError
from trainorder.rl.method import bind
from trainorder.rl.playing import QUESTIONERS, ROLES
from trainorder.rl.types import Roll, State
from trainorder.rollout import Request
from trainorder.streams import stream
from trainorder.tasks.base import Problem, split_of
from trainorder.tasks.math import Math
from trainorder.tasks.posing import posed
from trainorder.tasks.qa import Qa

TASK = Math(stories=0.0)


def problems(count: int, split: str = "train") -> list[Problem]:
    rng, found = stream("self play", split), dict[str, Problem]()
    while len(found) < count:
        new = TASK.draw(rng)
        if split_of(new.id) == split:
            found[new.id] = new
    return list(found.values())


OWN, *NEW = problems(7)


class Script:
    """What the roles say: `texts` of the questioner, `right` of four answers to each new problem, `ones` of four votes on the first."""

    def __init__(self, texts: Sequence[str], right: Sequence[int], ones: Sequence[int]) -> None:
        self.texts, self.right, self.ones = texts, list(right), list(ones)
        self.asked, self.told = list[Request](), list[tuple[Request, str]]()

    def pose(self, task: str, text: str) -> Problem | None:
        return posed(TASK, task, text)

    def requests(self, counts: Mapping[str, int]) -> list[Request]:
        return []

    def sample(self, requests: Sequence[Request], *, aside: bool = False) -> Roll:
        first = 100 + len(self.asked)
        self.asked += requests
        rows: list[tuple[float, int, str]] = []
        for place, request in enumerate(requests, first):
            group = place if request.group is None else request.group
            role = ROLES[int(request.facts["role"])]
            if role == "questioner":
                rows.append((0.0, group, self.texts[place - first]))
            elif role == "responder":
                solved = self.right.pop(0)
                rows += [(float(i < solved), group, f"<answer> {i} </answer>") for i in range(4)]
            else:
                ones = self.ones.pop(0)
                rows += [(0.0, group, "1" if i < ones else "0") for i in range(4)]
        asked = [r for r in requests for _ in range(r.samples)]
        made = make_roll(
            [None if aside else value for value, _, _ in rows], [g for _, g, _ in rows]
        )
        role = made.rewards.new_tensor([r.facts["role"] for r in asked])
        return replace(
            made, text=[text for _, _, text in rows], problem=[r.problem for r in asked if r.problem],
            row_facts={**made.row_facts, "asked/role": role},
        )  # fmt: skip

    def given(self, requests: Sequence[Request], texts: Sequence[str], source: str) -> Roll:
        self.told += zip(requests, texts, strict=True)
        made = make_roll([0.0] * len(texts), [10_000 + i for i in range(len(texts))])
        facts = {"source": torch.ones(len(texts), dtype=torch.float64)}
        for name in ("role", "worth"):
            values = [r.facts.get(name, float("nan")) for r in requests]
            facts[f"asked/{name}"] = made.rewards.new_tensor(values)
        return replace(
            made, text=list(texts), problem=[r.problem for r in requests if r.problem],
            row_facts={**made.row_facts, **facts},
        )  # fmt: skip

    cut: Any = None


def step_roll() -> Roll:
    roll = make_roll([1, 0, 0, 0], group=[0] * 4)
    return replace(roll, problem=[OWN] * 4)


def play(script: Script, state: State | None = None, **options: Any) -> Roll:
    usual = {"questions": len(script.texts), "votes": 4, "show": 0, **options}
    return bind("edit", {"self_play": usual})(step_roll(), state or State(total=4), script)


def of(roll: Roll, role: str) -> Roll:
    return roll.rows((roll.asked("role") == ROLES.index(role)).nonzero().flatten().tolist())


def test_each_role_is_paid_by_its_rule_and_balanced():
    # four new problems solved at .25, .5, 1 and 0, one that is none, one of the step itself
    texts = [p.question for p in NEW[:4]] + ["3 + 4", OWN.question]
    script = Script(texts, right=[1, 2, 4, 0], ones=[3, 2, 1, 1])
    roll = play(script)
    asked = of(roll, "questioner")
    assert set(asked.group.tolist()) == {QUESTIONERS}
    paid = dict(zip(asked.text, asked.rewards.tolist(), strict=True))
    # two with reward, so two without: among 0 (solved always), 0 (never), -1 (no problem), -.5 (repeated)
    assert len(paid) == 4
    assert paid[texts[0]] == pytest.approx(0.3247, abs=1e-4)
    assert paid[texts[1]] == 1.0
    assert {v for t, v in paid.items() if t not in texts[:2]} <= {0.0, -1.0, -0.5}
    # groups of equal rewards are dropped
    assert of(roll, "responder").rewards.tolist() == [1, 0, 0, 0, 1, 1, 0, 0]
    # first answers: right, right, right, wrong; majorities: yes, tie, no, no. The third one disagrees with the program
    votes = of(roll, "verifier")
    agreed = [r for r, p in enumerate(votes.problem) if p.id in (NEW[0].id, NEW[3].id)]
    assert votes.rows(agreed).rewards.tolist() == [1, 1, 1, 0, 0, 1, 1, 1]
    assert len(votes) - len(agreed) <= 4  # no more than there are new problems
    assert NEW[1].id not in {p.id for p in votes.problem}
    assert votes.scored.all()


def test_with_no_reward_on_either_side_all_texts_stay():
    roll = play(Script(["x", "y"], [], []))
    assert of(roll, "questioner").rewards.tolist() == [-1.0, -1.0]
    assert len(roll) == 6


def test_the_votes_count_only_where_they_are_trusted():
    for trust, rewards in (("rule", []), ("either", [1, 0, 0, 0])):
        script = Script([NEW[0].question], right=[0], ones=[4])
        assert of(play(script, trust=trust), "responder").rewards.tolist() == rewards


def test_a_problem_of_dev_or_test_is_tried_by_nobody_and_pays_nothing():
    state = State(total=4)
    held = [problems(1, split)[0].question for split in ("dev", "test")]
    script = Script([*held, "x"], [], [])
    roll = play(script, state)
    assert of(roll, "questioner").text == ["x"]
    assert len(script.asked) == 3
    assert state.mem["self_play"]["log"]["self_play_held_out"] == pytest.approx(2 / 3)
    assert posed(TASK, "math", f"<answer> {NEW[0].question} </answer>") == NEW[0]


def test_a_problem_is_new_once_and_the_memory_outlives_a_restart():
    state = State(total=4)
    text = NEW[0].question
    play(Script([text, text], right=[2], ones=[4]), state)
    assert state.mem["self_play"]["log"]["self_play_repeated"] == 0.5
    resumed = State.from_state_dict(json.loads(json.dumps(state.state_dict())))
    script = Script([text, text], [], [])
    play(script, resumed)
    assert resumed.mem["self_play"]["log"]["self_play_new"] == 0.0
    assert [r.problem.question for r in script.asked if r.problem] == [OWN.question, text]


def test_a_role_that_does_not_work_is_shown_how_and_no_longer_than_that():
    state, shown = State(total=40), []
    for number in range(4):  # .2 (1 - .8^n) is below .5 up to the third step
        script = Script([NEW[number].question], right=[2], ones=[4])
        play(script, state, show=2)
        shown.append([text for request, text in script.told])
    assert shown == [[OWN.question, "1", "0"]] * 3 + [[]]


def test_socratic_zero_imitates_what_is_useful_and_replays():
    state = State(total=4)
    for number, replayed in ((0, 0), (2, 1)):
        script = Script([p.question for p in NEW[number : number + 2]], right=[1, 0], ones=[])
        roll = play(script, state, learn="imitate", utility="socratic", judged=False, replay=0.25)
        assert len(of(roll, "questioner")) == len(script.told) == 2 + replayed
        weights = bind("weight", "question_utility")(roll, state).tolist()
        assert weights[:8] == [1.0] * 8
        assert weights[8:10] == pytest.approx([0.4578, 0.0439], abs=1e-4)


def test_the_shares_of_roles_are_logged():
    state = State(total=4)
    roll = play(Script([NEW[0].question, "x"], right=[1], ones=[3]), state)
    credited = replace(roll, advantages=roll.advantages + 1)
    found = bind("metric", "self_play_roles")(credited, state)
    # 4 answers to the step's problem and 4 to the new one, 2 questions, 4 votes
    assert found["role_share_responder"] == pytest.approx(8 / 14)
    assert (
        found["role_share_questioner"] == found["role_credit_questioner"] == pytest.approx(2 / 14)
    )
    assert found["role_share_verifier"] == pytest.approx(4 / 14)
    assert found["self_play_new"] == found["self_play_malformed"] == 0.5
    assert found["self_play_solved"] == 0.25
    assert found["self_play_agreed"] == 1.0


def test_a_task_that_no_program_verifies_is_refused():
    params = {
        "tasks": {"qa": {"train": 8, "dev": 4, "test": 4}},
        "phases": {
            "qa": {
                "kind": "structured",
                "tasks": {"qa": 1},
                "steps": 1,
                "rl": {"method": {"preset": "spell"}},
            }
        },
        "orders": {"only": ["qa"]},
    }
    with pytest.raises(ParamsError, match="no program verifies written problems of task 'qa'"):
        posed(Qa(), "qa", "name the capital of peru ?")
    with pytest.raises(ParamsError, match="no program verifies those of task 'qa'"):
        check(parse_params(params))
