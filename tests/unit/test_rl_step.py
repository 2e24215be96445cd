"""Loss and gradient of an update: what may not change them, and how a step hangs together."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from rl_small import gradient, make_roll, model64, off_policy_roll, pad_more
from torch import Tensor

from trainorder.config import MethodConfig
from trainorder.rl.forward import forward
from trainorder.rl.method import Method
from trainorder.rl.problems import split_by_prompt
from trainorder.rl.records import describe
from trainorder.rl.rollouts import add_rewards
from trainorder.rl.step import divergence, give_credit
from trainorder.rl.types import State

METHODS = {
    "grpo": MethodConfig(),
    "dr_grpo": MethodConfig(advantage=["dr_grpo"], reduction="constant"),
    "kl": MethodConfig(
        terms=[
            "clipped_surrogate",
            {"kl": {"coef": 0.1}},
            {"kl": {"kind": "k2", "against": "old"}},
        ],
        reduction="sequence",
    ),
    "terms of their own": MethodConfig(
        terms=[
            {"clipped_surrogate": {"source": "policy"}},
            {
                "kl": {
                    "kind": "k2",
                    "against": "old",
                    "coef": {"shape": "linear", "start": 0.5, "end": 0.0},
                    "reduction": "sequence",
                    "denominator": "weight",
                    "weight": ["finished_only"],
                    "source": "expert",
                }
            },
        ]
    ),
    "weighted": MethodConfig(
        advantage=["rloo"], weight=["finished_only"], reduction="prompt", denominator="weight"
    ),
}


def assert_equal_updates(one: tuple[dict, list[Tensor]], other: tuple[dict, list[Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], abs=1e-12)
    assert max(float(g.abs().max()) for g in one[1]) > 1e-3
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batch_size_changes_nothing(name):
    model = model64()
    roll = off_policy_roll(model)
    whole = gradient(model, roll, METHODS[name])
    for budget in (1, 20):  # rows one by one, about two by two
        assert_equal_updates(whole, gradient(model, roll, METHODS[name], budget=budget))


@pytest.mark.parametrize("name", METHODS)
def test_order_of_rows_changes_nothing(name):
    model = model64()
    roll = off_policy_roll(model)
    order = random.Random(2).sample(range(len(roll)), len(roll))
    assert_equal_updates(
        gradient(model, roll, METHODS[name]),
        gradient(model, roll.rows(order), METHODS[name], budget=20),
    )


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_nothing(name):
    model = model64()
    roll = off_policy_roll(model)
    assert_equal_updates(
        gradient(model, roll, METHODS[name]), gradient(model, pad_more(roll, 4), METHODS[name])
    )


def test_leaving_out_rows_without_credit_is_exact():
    # a k2 term of weight 0 forces all rows through the model
    model = model64()
    roll = off_policy_roll(model)
    zero = {"kl": {"kind": "k2", "against": "old", "coef": 0.0}}
    skipping = gradient(model, roll, MethodConfig())
    full = gradient(model, roll, MethodConfig(terms=["clipped_surrogate", zero]))
    for name in ("kl_old", "clip_fraction", "mismatch_mean", "mismatch_max", "forward_tokens"):
        skipping[0].pop(name), full[0].pop(name)  # measured on the rows that were forwarded
    assert_equal_updates(skipping, full)


def test_rows_without_credit_cost_no_forward():
    model, seen = model64(), []
    roll = off_policy_roll(model)
    forward(model, roll)
    model.model.register_forward_hook(lambda m, i, out: seen.append(out[0].shape[1]))
    gradient(model, roll, MethodConfig())
    # two prompts; four and two rows, each without its last token; nothing of the flat group
    assert seen == [2 + 4 + (3 + 0 + 5 + 2) + (2 + 0)]


def test_on_policy_the_loss_is_minus_the_weighted_mean_advantage():
    # ratio 1 everywhere: token mean of -A; the gradient is that of -sum(A log p) / tokens
    model = model64()
    roll = off_policy_roll(model)
    with torch.no_grad():
        roll.token_facts["old_logps"] = forward(model, roll).logps
    log, grads = gradient(model, roll, MethodConfig())
    roll = give_credit(roll, Method.from_config(MethodConfig()), State(total=1))
    tokens = roll.loss_mask.sum()
    assert log["loss"] == pytest.approx(float(-roll.advantages.sum() / tokens))
    assert log["kl_old"] == pytest.approx(0, abs=1e-12)
    assert log["clip_fraction"] == 0
    model.zero_grad()
    (-(roll.advantages * forward(model, roll).logps).sum() / tokens).backward()
    for ours, plain in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(ours, plain.grad)


def test_a_step_where_nobody_earned_credit_leaves_a_zero_gradient_not_none():
    model = model64()
    log, grads = gradient(model, make_roll([1.0, 1.0]), MethodConfig())
    assert log == {"loss": 0.0, "forward_tokens": 0.0}
    assert all((g == 0).all() for g in grads)


def test_ungradable_answers_are_unscored_and_earn_nothing():
    method = Method.from_config(MethodConfig(reward=[{"graded": {"coef": 2.0}}]))
    roll = add_rewards(make_roll([0.0] * 3), [1.0, None, 0.25], method, State(total=1))
    assert roll.rewards.tolist() == [2.0, 0.0, 0.5]
    assert roll.scored.tolist() == [True, False, True]
    credit = give_credit(roll, method, State(total=1)).advantages[:, 0]
    assert credit[1] == 0
    # mean 1.25, std 1.06 of the two scored rows: +-0.7071
    torch.testing.assert_close(
        credit[[0, 2]], torch.tensor([1.0, -1.0], dtype=torch.float64) / 2**0.5, rtol=1e-5, atol=0
    )


JUDGED = [0.99990, 0.99991, 0.99990, 0.99992]
"""Verdicts of a judge on four answers that it likes alike."""


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_rewards_closer_than_the_floor_teach_nothing_and_keep_their_mean(name):
    method = Method.from_config(MethodConfig(advantage=[name]))
    roll, state = make_roll([0.0] * 8, group=[0] * 4 + [1] * 4), State(total=1)
    paid = [*JUDGED, 0.2, 0.9, 0.5, None]
    floored = give_credit(add_rewards(roll, paid, method, state, floors=0.01), method, state)
    assert (floored.advantages[:4] == 0).all()
    assert (floored.advantages[4:7] != 0).all()
    assert floored.rewards[:4].tolist() == pytest.approx([sum(JUDGED) / 4] * 4)
    assert floored.rewards[4:].tolist() == [0.2, 0.9, 0.5, 0.0]
    assert describe(floored)["rollout/flat_groups"] == 0.5
    plain = give_credit(add_rewards(roll, paid, method, state), method, state)
    assert (plain.advantages[:4] != 0).all()
    torch.testing.assert_close(plain.advantages[4:], floored.advantages[4:])


def test_what_is_logged_of_a_step_by_hand():
    # task a: 1 and an ungradable answer (a flat group); task b: 0 and 0.5
    tasks, lengths = ["a", "a", "b", "b"], [1, 3, 2, 2]
    roll = make_roll([1, None, 0, 0.5], group=[0, 0, 1, 1], lengths=lengths, tasks=tasks)
    roll.entropy[:2] = 0.5
    roll.entropy[2:] = 1.5
    roll.token_facts["sampler_logps"] = roll.old_logps  # an exact engine
    roll.row_facts["finished"][0] = 0
    assert describe(roll) == {
        "rollout/reward": 0.5,
        "rollout/unscored": 1.0,
        "task/a/reward": 1.0,
        "task/b/reward": 0.25,
        "task/a/unscored": 1.0,
        "task/b/unscored": 0.0,
        "rollout/length": 2.0,
        "task/a/length": 2.0,
        "task/b/length": 2.0,
        "rollout/entropy": 1.0,
        "task/a/entropy": 0.5,
        "task/b/entropy": 1.5,
        "rollout/finished": 0.75,
        "rollout/flat_groups": 0.5,
    }
    # a teacher's answers to the same prompts are not the policy's; the second row kept the form that was asked for
    strict = roll.row_facts["strict"].index_fill(0, torch.tensor([1, 3]), 0.5)
    roll = replace(roll, row_facts={**roll.row_facts, "strict": strict})
    log = describe(roll)
    assert log["task/b/strict"] == log["task/a/strict"] == log["rollout/strict"] == 0.5
    sources = {"source": torch.tensor([3.0, 3.0, 0.0, 3.0]), "strict": torch.arange(4.0)}
    mixed = describe(replace(roll, row_facts={**roll.row_facts, **sources}))
    assert mixed == describe(roll.rows([2])) | {"task/b/strict": 2.0, "rollout/strict": 2.0}
    assert describe(replace(roll, row_facts={**roll.row_facts, "source": torch.ones(4)})) == {}


def test_a_batch_is_split_into_updates_by_whole_prompts():
    roll = make_roll([0.0] * 6, group=[9, 4, 9, 4, 7, 7])
    # groups 4, 7, 9 are dealt in turn: 4 and 9 to the first update, 7 to the second
    assert split_by_prompt(roll, 2) == [[0, 1, 2, 3], [4, 5]]
    assert split_by_prompt(roll, 1) == [[0, 1, 2, 3, 4, 5]]
    for updates in (3, 4, 9):  # no update is without rows
        assert split_by_prompt(roll, updates) == [[1, 3], [4, 5], [0, 2]]
    assert split_by_prompt(roll.rows([]), 2) == []


def test_kl_to_the_parent_is_the_policys_own_overall_and_per_task_by_hand():
    tasks, lengths = ["a", "a", "b"], [1, 3, 2]
    roll = make_roll([1, 0, 0.5], group=[0, 0, 1], lengths=lengths, tasks=tasks)
    apart = torch.tensor([0.5, -0.5, 0.0])[
        :, None
    ]  # ln p_parent - ln p, the same for a row's tokens
    roll.row_facts["given"] = torch.zeros(3)
    roll.row_facts["source"] = torch.tensor([0.0, 3.0, 0.0])  # the second is a teacher's
    kl = math.exp(0.5) - 0.5 - 1  # k3
    expected = {"rollout/kl": kl / 3, "task/a/kl": kl, "task/b/kl": 0.0}
    assert divergence(roll, roll.old_logps + apart) == pytest.approx(expected, abs=1e-6)
    roll.row_facts["source"] = torch.full((3,), 3.0)
    assert divergence(roll, roll.old_logps + apart) == {}
