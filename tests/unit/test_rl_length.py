"""Control of length and form, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rl_small import make_roll
from torch import Tensor

from trainorder.rl.pieces.formats import json_structure, keeps_format
from trainorder.rl.pieces.length import (
    length_budget,
    length_triangle,
    surrogate_format_length,
    truncate_outliers,
)
from trainorder.rl.types import Roll, State
from trainorder.rollout import Request
from trainorder.tasks.base import Problem

STATE = State(total=600)
PROBLEM = Problem("sums/1", "sums", "1 + 1 = ?", "2", "2")
THOUGHT = "<think> 1 + 1 </think> <answer> 2 </answer>"


def budget_at(step: int, **options) -> float:
    (request,) = length_budget([Request(PROBLEM)], State(total=600, step=step), **options)
    return request.facts["budget"]


def test_the_budget_falls_from_256_to_88_tokens_over_the_papers_steps():
    assert [round(budget_at(step), 1) for step in (0, 149, 150, 450)] == [256, 256, 179.2, 87.8]
    assert budget_at(0, start=1.0, decay=0.1) == budget_at(599, start=1.0, decay=0.1) == 1


def test_a_budget_is_said_in_the_prompt_and_changes_nothing_else():
    request = Request(PROBLEM, samples=4, max_new_tokens=9)
    (asked,) = length_budget([request], State(total=600, step=150))
    assert asked.prompt == "1 + 1 = ? Use exactly 179 tokens."
    assert replace(asked, prompt="", facts={}) == request


def test_the_triangle_pays_for_keeping_to_the_budget():
    # budget 100: 50 -> 1/2, 100 -> 1, 150 -> 2 - 3/2, 200 and 300 -> 0; the last was asked without one
    roll = make_roll([0.0] * 6, lengths=[50, 100, 150, 200, 300, 100])
    budget = torch.tensor([100.0] * 5 + [torch.nan], dtype=torch.float64)
    roll.row_facts["asked/budget"] = budget
    assert length_triangle(roll, STATE).tolist() == [0.5, 1, 0.5, 0, 0, 0]


@pytest.mark.parametrize(
    ("tokens", "text", "value"),
    [
        (25, THOUGHT, 1.75),  # 1 - 1/4 + 1
        (50, THOUGHT, 2.0),
        (75, THOUGHT, 1.5),  # 1 - 2/4 + 1
        (50, "so the answer is 2", 1.0),
        (100, "<answer> 2 </answer>", -0.5),  # 1 - 2 + 1/2
        (50, "no idea", 0.0),
        (100, "no idea", -1.0),
    ],
)
def test_the_surrogate_reward_peaks_at_half_of_the_length(tokens, text, value):
    roll = make_roll([0.0], lengths=[tokens], text=[text])
    assert surrogate_format_length(roll, STATE, max_length=100).item() == value


class Cutting:
    """Notes what is to be cut."""

    lengths: Tensor | None = None

    def cut(self, roll: Roll, lengths: Tensor) -> Roll:
        self.lengths = lengths
        return roll


def cut_of(lengths: list[int], rewards: list[float] | None = None, **options) -> list[int]:
    rollouts = Cutting()
    roll = make_roll(rewards or [1.0] * len(lengths), lengths=lengths)
    assert truncate_outliers(roll, STATE, rollouts, **options) is roll
    return [] if rollouts.lengths is None else rollouts.lengths.tolist()


def test_an_outlier_among_32_solved_answers_is_cut_at_three_deviations():
    # mean 128.125, std 159.10: T = floor(605.4)
    assert cut_of([100] * 31 + [1000]) == [100] * 31 + [605]
    assert cut_of([100] * 31 + [1000], [1.0] * 31 + [0.0]) == []
    assert cut_of([100] * 31 + [1000], min_cut=396) == []


def test_in_a_group_of_eight_only_a_lower_bound_can_cut(capsys):
    # (8 - 1) / sqrt(8) = 2.47 deviations at most
    STATE.mem.clear()
    for _ in range(2):
        assert cut_of([100] * 7 + [10000]) == []
    assert capsys.readouterr().out.count("groups of 8 no answer is 3 standard deviations") == 1
    assert cut_of([100] * 7 + [10000], sigmas=2.0) == [100] * 7 + [8337]


def test_keeps_format_is_one_for_the_whole_format_only():
    roll = make_roll([0.0] * 3, text=[THOUGHT, f"{THOUGHT} 2", "2"])
    assert keeps_format(roll, STATE).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "grade", "value"),
    [
        ('{"name": "a", "age": "b"}', 0.0, 0.65),  # .25 + .25 + .2 / 2 + .05
        ('<answer> {"name": "a", "age": 3} </answer>', 1.0, 1.0),
        ('{"name": "a", "age": true}', 0.0, 0.65),
        ('{"name": "a"}', 1.0, 0.4),  # parses, half the types, short
        ("{name: a}", 1.0, 0.0),
        ("[1]", 1.0, 0.0),
    ],
)
def test_json_is_paid_level_by_level(text, grade, value):
    roll = make_roll([grade], text=[text])
    keys = {"name": "string", "age": "number"}
    assert json_structure(roll, STATE, keys=keys).item() == pytest.approx(value)
