"""Judging of planted pairs: what is found, missed, open, and falsely claimed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.planted_policy import PARAMS, PLANTED, STRENGTHS, judge
from trainorder.config import load_params
from trainorder.metrics.statistics import draw_problems
from trainorder.plan.compile import compile_plan
from trainorder.plan.design import from_plan


def sides(effect: float, key: int, run: float = 0.01):
    """Scores of two arms, three seeds and 60 problems."""
    rng = np.random.default_rng(key)
    values = run * rng.normal(size=(2, 3, 1)) + 0.2 * rng.normal(size=(2, 3, 60))
    values[0] += effect
    first, second = values @ draw_problems(60, 200, rng).T
    return first, second


@pytest.mark.parametrize(
    ("dev", "test", "run", "said"),
    [
        (-0.4, -0.4, 0.01, "found"),
        (-0.4, 0.4, 0.01, "wrong sign"),
        (-0.4, 0.0, 0.01, "missed"),
        (-0.02, 0.0, 0.05, "open, not promised"),
    ],
)
def test_a_promise_from_dev_is_kept_or_broken_on_test(dev, test, run, said):
    found = judge(PLANTED[0], "weak", sides(dev, 1, run), sides(test, 2, run), 60)
    assert found.verdict == said
    assert (found.promised >= 0.8) == (said != "open, not promised")


def test_of_twins_any_order_that_is_claimed_is_claimed_falsely():
    (twins,) = [one for one in PLANTED if one.sign == 0]
    assert judge(twins, "weak", sides(0, 1), sides(0.0, 2), 60).verdict == "none claimed"
    assert judge(twins, "weak", sides(0, 1), sides(0.4, 2), 60).verdict == "claimed falsely"


def test_the_params_plan_every_arm_and_task_that_is_judged():
    plan = compile_plan(load_params(Path(__file__).parents[2] / PARAMS))
    designs = from_plan(plan.data())
    for variant in STRENGTHS.values():
        arms = {arm.name for arm in designs[variant].arms()} | set(designs[variant].singles)
        for one in PLANTED:
            for arm, tasks in (one.plus, one.minus):
                assert arm in arms
                assert set(tasks) <= set(designs[variant].trained)
