"""Which problems a step asks, and what answers are paid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rl_small import make_roll

from trainorder.rl.problems import TaskSet, see, split_by_task
from trainorder.rl.scheduler import Scheduler, apportion
from trainorder.rl.types import State
from trainorder.tasks.base import Problem, Reward


@dataclass(frozen=True)
class Echo:
    """The answer must be the gold; an answer `?` cannot be graded."""

    rewarded_by: str = "verifier"
    version: int = 1

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        return [
            Reward(None if c == "?" else float(c == p.gold))
            for c, p in zip(completions, problems, strict=True)
        ]


@dataclass
class Longer:
    """A judge to whom the longer answer wins; remembers what it compared."""

    seen: list[Any] = field(default_factory=list)

    def win_probability(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        self.seen += zip(prompts, answers, references, strict=True)
        return [float(len(a) > len(r)) for a, r in zip(answers, references, strict=True)]


def task_set(weights: dict[str, float], count: int = 5, **changes: Any) -> TaskSet:
    problems = {
        name: [
            Problem(f"{name}/{i}", name, f"{name} {i}", str(i), "ref_logps") for i in range(count)
        ]
        for name in weights
    }
    tasks: dict[str, Any] = {name: Echo() for name in weights} | changes.pop("tasks", {})
    return TaskSet(weights, tasks, problems, dict.fromkeys(weights, 8), **changes)


def ids(problems: list[Problem]) -> list[str]:
    return [problem.id for problem in problems]


def test_equal_weights_share_a_step_equally():
    both, state = task_set({"a": 1, "b": 1, "c": 1, "d": 1}), State(total=9)
    assert both.share(16, state) == {"a": 4, "b": 4, "c": 4, "d": 4}


def test_what_does_not_divide_is_carried_so_that_shares_are_exact_over_time():
    # 16 / 3: one task in turn gets the sixth prompt
    three, state = task_set({"a": 2, "b": 2, "c": 2}), State(total=9)
    steps = [three.share(16, state) for _ in range(3)]
    assert all(sum(step.values()) == 16 for step in steps)
    assert {name: sum(step[name] for step in steps) for name in "abc"} == {
        "a": 16,
        "b": 16,
        "c": 16,
    }


def test_a_small_weight_is_asked_rarely_not_never():
    # 1 in 40 of 4 prompts: one prompt in ten steps
    two, state = task_set({"a": 39, "b": 1}), State(total=9)
    assert sum(two.share(4, state)["b"] for _ in range(20)) == 2


def test_each_pass_meets_every_problem_once_in_another_order():
    tasks, state = task_set({"a": 1}, count=8), State(total=9)
    first, second = (ids(tasks.draw({"a": 8}, state, 0)) for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(f"a/{i}" for i in range(8))
    assert first != second


def test_a_draw_across_the_end_of_a_pass_goes_on_with_the_next():
    at_once, in_parts, state = task_set({"a": 1}), task_set({"a": 1}), State(total=9)
    parts = [p for _ in range(4) for p in ids(in_parts.draw({"a": 3}, state, 0))]
    assert ids(at_once.draw({"a": 12}, State(total=9), 0)) == parts


def test_a_joint_phase_meets_the_same_problems_as_the_single_phases():
    single, joint = task_set({"b": 1}), task_set({"a": 1, "b": 1})
    alone, together = State(total=9), State(total=9)
    mixed = [p for _ in range(2) for p in ids(joint.draw({"a": 2, "b": 2}, together, 0))]
    assert ids(single.draw({"b": 4}, alone, 0)) == [p for p in mixed if p.startswith("b/")]


def test_seeds_have_their_own_sequence():
    first, second = (ids(task_set({"a": 1}, 50).draw({"a": 50}, State(total=1), s)) for s in (0, 1))
    assert first != second


def test_the_place_in_the_sequence_survives_a_round_through_json():
    tasks, state = task_set({"a": 1, "b": 2}), State(total=9)
    tasks.draw(tasks.share(5, state), state, 0)
    restored = State.from_state_dict(json.loads(json.dumps(state.state_dict())))
    for _ in range(3):
        expected = ids(tasks.draw(tasks.share(5, state), state, 0))
        again = task_set({"a": 1, "b": 2})
        assert ids(again.draw(again.share(5, restored), restored, 0)) == expected


def test_a_sampler_that_draws_meets_the_same_problems_as_a_single_phase():
    drawn = task_set({"a": 1, "b": 1}, 40, scheduler=Scheduler(sampler="dump"))
    state, met, counts = State(total=9), list[str](), list[dict[str, int]]()
    for step in range(4):
        state.step = step
        counts.append(drawn.share(6, state, 0, "mixed"))
        met += ids(drawn.draw(counts[-1], state, 0))
    alone = ids(task_set({"b": 1}, 40).draw({"b": 40}, State(total=9), 0))
    of_b = [problem for problem in met if problem.startswith("b/")]
    assert of_b == alone[: len(of_b)]
    assert len({count["a"] for count in counts}) > 1  # drawn, not dealt
    again = State(total=9)
    assert (
        task_set({"a": 1, "b": 1}, scheduler=Scheduler(sampler="dump")).share(6, again, 0, "mixed")
        == counts[0]
    )


def test_a_closed_task_gets_nothing_and_is_owed_nothing():
    owed = {"a": 0.5, "b": -0.5}  # a must not collect its half prompt after its turn
    assert apportion({"a": 0.0, "b": 1.0}, 1, owed) == {"a": 0, "b": 1}
    turns = task_set({"a": 1, "b": 1}, scheduler=Scheduler(curriculum="in_turn"))
    state, counts = State(total=4), list[dict[str, int]]()
    for step in range(4):
        state.step = step
        counts.append(turns.share(3, state))
    assert counts == [{"a": 3, "b": 0}] * 2 + [{"a": 0, "b": 3}] * 2


def test_what_a_step_showed_counts_dropped_groups_with_no_advantage():
    # b's group of equal rewards was dropped by an edit; one row of a cannot be graded
    sampled = make_roll(
        [1, 0, 1, 1, None],
        group=[0, 0, 1, 1, 0],
        tasks=["a", "a", "b", "b", "a"],
        lengths=[2, 1, 1, 1, 1],
    )
    sampled = replace(
        sampled, token_facts={**sampled.token_facts, "entropy": 0.5 * sampled.loss_mask}
    )
    credited = sampled.rows([0, 1])
    credited = replace(
        credited, advantages=torch.tensor([[0.5, 1.5], [-2.0, 9.0]], dtype=torch.float64)
    )
    # row 0: mean |A| of its two tokens is 1; row 1 has one token, 2
    assert see([sampled], credited) == {
        "a": {"rollouts": 2, "absadv": 1.5, "reward": 0.5, "entropy": 0.5},
        "b": {"rollouts": 2, "absadv": 0.0, "reward": 1.0, "entropy": 0.5},
    }


def test_a_serial_step_has_one_part_per_task_in_an_order_that_changes():
    roll = make_roll([1, 0, 1, 0], tasks=["a", "b", "a", "c"])
    parts = [split_by_task(roll, 0, "serial", step) for step in range(20)]
    assert {tuple(map(tuple, sorted(part))) for part in parts} == {((0, 2), (1,), (3,))}
    assert len({tuple(map(tuple, part)) for part in parts}) == 6
    assert split_by_task(roll, 0, "serial", 0) == parts[0]


def test_each_task_is_graded_by_whoever_pays_it_and_rows_keep_their_place():
    judge = Longer()
    both = task_set(
        {"a": 1, "poem": 1}, tasks={"poem": Echo(rewarded_by="judge")}, judges={"poem": judge}
    )
    asked = [
        both.problems["poem"][0],
        both.problems["a"][3],
        both.problems["poem"][1],
        both.problems["a"][4],
    ]
    grades = both.grade(asked, ["long verse", "3", "x", "?"])
    assert [grade.value for grade in grades] == [1.0, 1.0, 0.0, None]
    assert judge.seen == [("poem 0", "long verse", "ref_logps"), ("poem 1", "x", "ref_logps")]


@dataclass(frozen=True)
class Boxed(Echo):
    """A right answer also has the asked form if it is in brackets."""

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        rewards = super().grade([c.strip("[]") for c in completions], problems)
        return [
            Reward(r.value, {"strict": (r.value or 0.0) * c.startswith("[")})
            for r, c in zip(rewards, completions, strict=True)
        ]


def test_a_grade_tells_what_it_would_be_if_only_the_asked_form_counted() -> None:
    tasks = task_set({"a": 1.0, "b": 1.0}, tasks={"a": Boxed()})
    asked = [*tasks.problems["a"][:4], *tasks.problems["b"][:1]]
    grades = tasks.grade(asked, ["[0]", "1", "7", "?", "0"])
    assert [grade.value for grade in grades] == [1.0, 1.0, 0.0, None, 1.0]
    assert [grade.parts.get("strict") for grade in grades] == [1.0, 0.0, 0.0, 0.0, None]
