"""How much a problem counts: answers per problem, weights of groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rl_small import make_roll

from trainorder.rl.method import bind
from trainorder.rl.types import State
from trainorder.rollout import Request
from trainorder.tasks.base import Problem


def test_cures_gives_answers_to_the_undecided_and_spends_the_same():
    asked = [Request(Problem(f"a/{i}", "a", "?", "1", "1"), samples=4) for i in range(3)]
    sure = {"rollouts": 1e9, "solved": 0.0}
    state = State(total=4, mem={"known": {"a": {"a/0": sure, "a/2": sure}}})
    counts = [r.samples for r in bind("plan", "cures_allocation")(asked, state)]
    assert counts == [2, 8, 2]  # sigma 0, .5, 0; two at least
    # nothing known: all alike
    assert [r.samples for r in bind("plan", "cures_allocation")(asked, State(total=4))] == [4] * 3


def test_puzzlecraft_weighs_a_group_by_difficulty_and_spread():
    # first group: 1 of 8 right, all wrong answers alike; second: all right
    roll = make_roll([1] + [0] * 7 + [1] * 8, [0] * 8 + [1] * 8)
    roll = replace(roll, text=["A"] + ["B"] * 7 + ["A", "B"] * 4)
    weights = bind("weight", {"puzzlecraft": {"options": 6}})(roll, State(total=1)).tolist()
    assert weights == pytest.approx([0.2006] * 8 + [0.0] * 8, abs=5e-5)


def test_reranking_begins_with_what_is_told_apart_easily_and_ends_even():
    # (s+ - s- + 1) / 2: 1 for right against wrong, .5 for two alike
    roll = make_roll([1, 0, 1, 1], [0, 0, 1, 1])
    found = [
        bind("weight", {"answer_reranking": {"steps": 4}})(roll, State(total=9, step=step)).tolist()
        for step in (0, 1, 4)
    ]
    assert found == [[1, 1, 0.5, 0.5], [1, 1, 0.625, 0.625], [1] * 4]
    anti = bind("weight", {"answer_reranking": {"anti": True}})(roll, State(total=9))
    assert anti.tolist() == [0, 0, 0.5, 0.5]
