"""Several tasks in one step: shares that hold, and gradients that agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rl_small import make_roll

from trainorder.rl.method import bind
from trainorder.rl.samplers import SAMPLERS, Moment, Seen
from trainorder.rl.types import State


def test_shares_hold_though_one_task_lost_its_prompts():
    # the sampler wanted half each; of b two of four rows have credit, of a all four
    roll = make_roll(
        [1, 0, 1, 0, 1, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3], tasks=["a"] * 4 + ["b"] * 4
    )
    roll = replace(roll, advantages=torch.tensor([1.0, -1, 1, -1, 1, -1, 0, 0])[:, None].double())
    weights = bind("weight", "keep_shares")(roll, State(total=1, mem={"quota": {"a": 2, "b": 2}}))
    assert weights.tolist() == [0.75] * 4 + [1.5] * 4
    assert float(weights[:4].sum()) == float(weights[4:6].sum())  # of the rows with credit
    whole = replace(roll, advantages=roll.advantages * 0 + 1)
    assert bind("weight", "keep_shares")(whole, State(total=1)).tolist() == [1.0] * 8


def test_tasks_that_push_the_same_tokens_from_the_same_states_are_aligned():
    roll = make_roll([1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2], tasks=["a", "a", "b", "b", "c", "c"])
    ids = torch.tensor([5, 6, 5, 6, 6, 5])[:, None]  # c pushes what a and b push away
    credit = torch.tensor([1.0, -1, 2, -2, 1, -1])[:, None].double()
    hidden = torch.ones(6, 1, 3, dtype=torch.float64)
    roll = replace(
        roll,
        response_ids=ids,
        advantages=credit,
        token_facts={**roll.token_facts, "hidden": hidden},
    )
    state = State(total=1)
    found = bind("metric", "task_alignment")(roll, state)
    assert found["alignment/a/b"] == pytest.approx(1)
    assert found["alignment/a/c"] == found["alignment/b/c"] == pytest.approx(-1)
    assert state.mem["alignment"] == pytest.approx({"a": 0, "b": 0, "c": -1})


def test_tac_prefers_the_task_whose_gradient_helps_the_others():
    seen = {t: Seen(rollouts=8, absadv=0.8, reward=0.5, entropy=1.0) for t in "ab"}
    now = Moment(1, 9, {"a": 1.0, "b": 1.0}, seen, {"a": 0.5, "b": -0.5})
    shares = SAMPLERS["tac"](now, {}, temperature=0.01)
    # Q = .1 * .8 * .75 and .1 * .8 * .25
    assert shares["a"] == pytest.approx(0.9 / (1 + 2.718281828**-4) + 0.05)


def test_mt_grpo_goes_from_balance_to_the_worst_task():
    def weight_of_the_worst(trade: float) -> float:
        mem, shares = {}, {}
        for step in range(40):  # b is the worse one and improves, a stands still
            seen = {
                "a": Seen(rollouts=8, absadv=0.0, reward=0.8, entropy=1.0),
                "b": Seen(rollouts=8, absadv=0.0, reward=0.005 * step, entropy=1.0),
            }
            now = Moment(step, 40, {"a": 1.0, "b": 1.0}, seen if step else {})
            shares = SAMPLERS["mt_grpo"](now, mem, trade=trade)
        return shares["b"]

    assert weight_of_the_worst(0.2) > 0.75
    assert weight_of_the_worst(0.0) < 0.5  # only progress counts, and b has it
