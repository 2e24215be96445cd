"""The pieces against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from rl_small import make_roll
from torch import Tensor

from trainorder.reading import ParamsError
from trainorder.rl.pieces.advantages import (
    bnpo,
    dr_grpo,
    grpo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rloo,
)
from trainorder.rl.pieces.entropy import entropy_covariance
from trainorder.rl.pieces.length import finished_only, overlong_penalty
from trainorder.rl.pieces.losses import cispo, clipped_surrogate, gppo, gspo, kl
from trainorder.rl.pieces.rewards import graded, reward_spread
from trainorder.rl.pieces.sampling import dynamic_sampling
from trainorder.rl.registry import WEIGHTS
from trainorder.rl.types import Live, Roll, State
from trainorder.rollout import Request

STATE = State(total=1)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_and_gradient(term, *, logp: Tensor, roll: Roll, **options) -> tuple[Tensor, Tensor]:
    logp = logp.clone().requires_grad_(True)
    loss = term(Live(logp), roll, STATE, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), logp)[0]


def surrogate(
    ratio: float, advantage: float, term=clipped_surrogate, **options
) -> tuple[float, float]:
    """Loss of one token of old log-probability -1, and its derivative by logp."""
    roll = make_roll(
        [0.0], advantages=tensor(advantage)[None], token_facts={"old_logps": tensor(-1.0)[None]}
    )
    logp = tensor(math.log(ratio) - 1.0)[None]
    loss, gradient = loss_and_gradient(term, logp=logp, roll=roll, **options)
    return float(loss), float(gradient)


def test_grpo_divides_by_the_unbiased_spread():
    # mean 1/4, variance (9/16 + 3/16) / 3 = 1/4 -> 3/4 : 1/2 and -1/4 : 1/2; eps is 2e-6 of that
    expected = tensor(1.5, -0.5, -0.5, -0.5)
    torch.testing.assert_close(grpo(make_roll([1, 0, 0, 0]), STATE, eps=0.0), expected)
    torch.testing.assert_close(grpo(make_roll([1, 0, 0, 0]), STATE), expected / (1 + 2e-6))


def test_dr_grpo_only_subtracts_the_mean():
    torch.testing.assert_close(
        dr_grpo(make_roll([1, 0, 0, 0]), STATE), tensor(0.75, -0.25, -0.25, -0.25)
    )


def test_rloo_compares_with_the_mean_of_the_others():
    # 1 - 0 = 1; 0 - (1 + 0 + 0) / 3
    expected = tensor(1, -1 / 3, -1 / 3, -1 / 3)
    torch.testing.assert_close(rloo(make_roll([1, 0, 0, 0]), STATE), expected)


def test_groups_are_separate_and_need_not_be_adjacent():
    roll = make_roll([1, 5, 0, 7], group=[4, 9, 4, 9])
    torch.testing.assert_close(dr_grpo(roll, STATE), tensor(0.5, -1, -0.5, 1))


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
def test_an_ungradable_answer_leaves_the_statistics_of_its_group(estimator):
    with_hole = estimator(make_roll([1, None, 0, 0, 0]), STATE)
    without = estimator(make_roll([1, 0, 0, 0]), STATE)
    torch.testing.assert_close(with_hole[[0, 2, 3, 4]], without)
    assert with_hole[1] == 0


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
def test_a_lone_scored_answer_is_its_own_baseline(estimator):
    assert estimator(make_roll([1, None, None]), STATE).tolist() == [0, 0, 0]


def test_unclipped_ratio_is_plain_policy_gradient():
    assert surrogate(1.0, 2.0) == pytest.approx((-2.0, -2.0))


def test_clipping_stops_credit_past_the_bound():
    # min(1.5, 1.2) = 1.2 without gradient; min(-0.5, -0.8) = -0.8 without gradient
    assert surrogate(1.5, 1.0) == pytest.approx((-1.2, 0.0))
    assert surrogate(0.5, -1.0) == pytest.approx((0.8, 0.0))


def test_clipping_keeps_the_pessimistic_side():
    # min(-1.5, -1.2) = -1.5: a bad token that became likelier is still pushed down
    assert surrogate(1.5, -1.0) == pytest.approx((1.5, 1.5))


def test_clip_higher_leaves_more_room_upwards():
    assert surrogate(1.25, 1.0, clip_high=0.28) == pytest.approx((-1.25, -1.25))
    assert surrogate(1.5, 1.0, clip_high=0.28) == pytest.approx((-1.28, 0.0))


def test_dual_clip_bounds_the_loss_of_bad_tokens():
    assert surrogate(5.0, -1.0, dual_clip=3.0) == pytest.approx((3.0, 0.0))
    assert surrogate(5.0, 1.0, dual_clip=3.0) == pytest.approx((-1.2, 0.0))
    assert surrogate(5.0, -1.0) == pytest.approx((5.0, 5.0))


def test_clip_fraction_counts_the_tokens_that_lost_their_gradient():
    roll = make_roll([0.0], lengths=[3], advantages=tensor(1, -1, 1)[None])
    live = Live(tensor(math.log(1.5), math.log(1.5), 0.1)[None])
    clipped_surrogate(live, roll, STATE)
    assert live.log["clip_fraction"].tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [
        ("k1", -math.log(2), 1.0),
        ("k2", math.log(2) ** 2 / 2, -math.log(2)),
        ("k3", 1 - math.log(2), -1.0),
    ],
)
@pytest.mark.parametrize("against", ["old", "ref"])
def test_kl_where_the_other_finds_the_token_twice_as_likely(kind, value, slope, against):
    # d = ln 2: k1 = -d, k2 = d^2 / 2, k3 = 2 - d - 1 = 0.3069; slopes by logp: 1, -d, 1 - e^d
    other = {"old_logps": tensor(-9.0)[None], "ref_logps": tensor(-9.0)[None]}
    other["old_logps" if against == "old" else "ref_logps"] = tensor(math.log(2) - 1)[None]
    roll = make_roll([0.0], token_facts=other)
    loss, gradient = loss_and_gradient(
        kl, logp=tensor(-1.0)[None], roll=roll, kind=kind, against=against
    )
    assert float(loss) == pytest.approx(value)
    assert float(gradient) == pytest.approx(slope)


def test_finished_only_silences_answers_that_were_cut_off():
    roll = make_roll([1, 0], row_facts={"finished": tensor(1, 0)})
    assert finished_only(roll, STATE).tolist() == [1, 0]


def test_graded_is_what_was_paid():
    assert graded(make_roll([0.25, 1]), STATE).tolist() == [0.25, 1]


def test_reward_spread_averages_over_groups_and_flat_ones_have_none():
    # [1, 0]: std sqrt(1/2); [1, 1]: 0
    spread = reward_spread(make_roll([1, 0, 1, 1], group=[0, 0, 1, 1]), STATE)
    assert spread["reward_spread"] == pytest.approx(math.sqrt(0.5) / 2)


def test_entropy_covariance_of_four_tokens():
    # a - mean a = [2, 1, -1, -2]; logp - mean = [1.3, -1.6, .9, -.6]
    # -> mean of [2.6, -1.6, -.9, 1.2]
    roll = make_roll([0.0], lengths=[4], advantages=tensor(2, 1, -1, -2)[None])
    roll.token_facts["old_logps"] = tensor(-0.1, -3.0, -0.5, -2.0)[None]
    assert entropy_covariance(roll, STATE)["entropy_covariance"] == pytest.approx(1.3 / 4)


class Refill:
    """Hands out prepared rolls and remembers what was asked for."""

    def __init__(self, *rolls: Roll) -> None:
        self.rolls, self.asked = list(rolls), []

    def requests(self, counts: Mapping[str, int]) -> list[Request]:
        self.asked.append(dict(counts))
        return [Request()] * sum(counts.values())

    def sample(self, requests: list[Request]) -> Roll:
        return self.rolls.pop(0)


def test_dynamic_sampling_replaces_flat_groups_by_new_ones_of_the_same_task():
    tasks = ["a"] * 4 + ["b"] * 4
    first = make_roll([1, 1, 1, 1, 1, 0, 1, 1], group=[0] * 4 + [1] * 4, tasks=tasks)
    still_flat = make_roll([0, 0, 0, 0], group=[2] * 4, tasks=["a"] * 4)
    good = make_roll([0, 0, 1, 0], group=[3] * 4, tasks=["a"] * 4)
    refill = Refill(still_flat, good)
    kept = dynamic_sampling(first, STATE, refill)
    assert kept.group.tolist() == [1] * 4 + [3] * 4
    assert refill.asked == [{"a": 1}, {"a": 1}]


def test_dynamic_sampling_stops_after_its_rounds_and_trains_on_what_it_has():
    first = make_roll([1, 1, 1, 0], group=[0, 0, 1, 1])
    refill = Refill(make_roll([0, 0], group=[2, 2]))
    kept = dynamic_sampling(first, STATE, refill, max_rounds=2)
    assert kept.group.tolist() == [1, 1]
    assert len(refill.asked) == 1


def test_dynamic_sampling_without_any_spread_leaves_the_step_as_it_was():
    first = make_roll([1, 1])
    assert dynamic_sampling(first, STATE, Refill(), max_rounds=1) is first


def test_cat_pads_the_shorter_roll():
    short, long = make_roll([1]), make_roll([0], group=[1], lengths=[3])
    both = Roll.cat([short, long])
    assert both.loss_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert both.entropy.shape == (2, 3)
    assert replace(both, rewards=both.rewards * 2).rows([1, 0]).rewards.tolist() == [0, 2]


def test_truncated_importance_is_the_ratio_up_to_its_cap():
    logp = torch.tensor([[-1.0, -1.0, 9.0], [-2.0, 9.0, 9.0]], dtype=torch.float64)
    sampler = torch.tensor(
        [[-1.0 - math.log(1.5), -3.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64
    )
    roll = make_roll([1, 0], lengths=[2, 1])
    roll = replace(roll, token_facts={"old_logps": logp[:, :2], "sampler_logps": sampler[:, :2]})
    token = WEIGHTS["truncated_importance"](roll, State(total=1), cap=2.0)
    assert token[roll.loss_mask > 0].tolist() == pytest.approx([1.5, 2.0, math.exp(-1)])
    whole = WEIGHTS["truncated_importance"](roll, State(total=1), cap=20.0, level="sequence")
    assert whole[:, 0].tolist() == pytest.approx([1.5 * math.exp(2), math.exp(-1)])
    assert (whole[0] == whole[0, 0]).all()


def test_sequence_mask_drops_rows_by_their_geometric_mean():
    # ratios 1.5 and 0.5 twice: geometric means sqrt(0.75) = 0.87 and 0.5; the third row agrees
    d = torch.tensor([[1.5, 0.5], [0.5, 0.5], [1.0, 1.0]], dtype=torch.float64).log()
    roll = make_roll([1, 0, 0], lengths=[2, 2, 1])
    roll = replace(roll, token_facts={"old_logps": d - 1, "sampler_logps": torch.full_like(d, -1)})
    kept = WEIGHTS["sequence_mask"](roll, State(total=1), low=0.8, high=1.25)
    assert kept.tolist() == [1, 0, 1]
    assert WEIGHTS["sequence_mask"](roll, State(total=1)).tolist() == [0, 0, 1]


def test_reinforce_plus_plus_baseline_whitens_what_the_groups_leave():
    # credit .5, -.5, 0, 0: mean 0, unbiased variance .5 / 3
    roll = make_roll([1, 0, 1, 1], group=[0, 0, 1, 1])
    expected = tensor(1, -1, 0, 0)[:, None] * math.sqrt(1.5)
    torch.testing.assert_close(reinforce_plus_plus_baseline(roll, STATE, eps=0.0), expected)
    # one answer of three tokens more among equals: tokens weigh, rows do not
    longer = make_roll([1, 0], lengths=[3, 1])
    x = tensor(0.5, 0.5, 0.5, -0.5)
    expected = (x - 0.25) / x.std()
    found = reinforce_plus_plus_baseline(longer, STATE, eps=0.0)
    torch.testing.assert_close(found, torch.stack([expected[:3], tensor(float(expected[3]), 0, 0)]))


def test_reinforce_plus_plus_discounts_from_the_last_token_and_has_no_baseline_of_the_prompt():
    # returns .25, .5, 1 and 0 over four tokens
    roll = make_roll([1, 0], group=[0, 1], lengths=[3, 1])
    x = tensor(0.25, 0.5, 1.0, 0.0)
    expected = (x - x.mean()) / x.std()
    found = reinforce_plus_plus(roll, STATE, gamma=0.5, eps=0.0)
    torch.testing.assert_close(found, torch.stack([expected[:3], tensor(float(expected[3]), 0, 0)]))
    # a group of equal rewards has credit against the batch: 1, 1, 0 have mean 2/3 and variance 1/3
    flat = make_roll([1, 1, 0], group=[0, 0, 1])
    expected = tensor(1, 1, -2)[:, None] / math.sqrt(3)
    torch.testing.assert_close(reinforce_plus_plus(flat, STATE, eps=0.0), expected)


def test_whitening_leaves_ungradable_rows_out():
    with_hole = make_roll([1, None, 0, 1, 1], group=[0, 0, 0, 1, 1], lengths=[1, 3, 1, 1, 1])
    without = make_roll([1, 0, 1, 1], group=[0, 0, 1, 1])
    for estimator in (reinforce_plus_plus, reinforce_plus_plus_baseline):
        found = estimator(with_hole, STATE)
        assert (found[1] == 0).all()
        torch.testing.assert_close(found[[0, 2, 3, 4], :1], estimator(without, STATE))


def test_bnpo_divides_by_the_density_of_the_fitted_beta():
    # pass rates 1/4 and 3/4: m = 1/2, v = 1/8, k = 1, a = b = 7/6, density 1.04660 at both
    roll = make_roll([1, 0, 0, 0, 1, 1, 1, 0], group=[0] * 4 + [1] * 4)
    expected = tensor(0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75) / 1.04660
    torch.testing.assert_close(bnpo(roll, STATE), expected, atol=1e-5, rtol=1e-5)
    assert float(bnpo(roll, STATE)[0]) == pytest.approx(0.7166, abs=1e-4)
    # the same answers paid -1 and 1
    paid = replace(roll, rewards=2 * roll.rewards - 1)
    torch.testing.assert_close(bnpo(paid, STATE, low=-1.0), bnpo(roll, STATE))


def test_bnpo_names_the_options_that_rewards_beyond_its_range_need():
    roll = make_roll([1, 2.5, 1, 0], group=[0, 0, 1, 1])
    with pytest.raises(ParamsError, match=r"from 0\.5 to 1\.75, .* \[0, 1\]: set its low and high"):
        bnpo(roll, STATE)
    assert bnpo(roll, STATE, high=2.5).isfinite().all()


def test_bnpo_of_pass_rates_that_cannot_be_fitted_is_dr_grpo():
    for roll in (make_roll([1, 0, 0]), make_roll([1, 0, 0, 1], group=[0, 0, 1, 1])):
        torch.testing.assert_close(bnpo(roll, STATE), dr_grpo(roll, STATE))


def test_bnpo_bounds_what_a_small_density_gives():
    # rates 1/2, 1/2, 1/2 and 1/100: a, b well above 1, so that the density at 1/100 is tiny
    rewards = [1, 0] * 3 + [1] + [0] * 99
    roll = make_roll(rewards, group=[0, 0, 1, 1, 2, 2] + [3] * 100)
    assert float(bnpo(roll, STATE)[6]) > 0.99
    assert float(bnpo(roll, STATE, max_factor=0.5)[6]) == pytest.approx(0.99 * 0.5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [(1.5, 1, -1.28, -1.28), (0.5, -1, 0.8, 0.8), (1.1, 1, -1.1, -1.1), (1.5, -1, 1.5, 1.5)],
)
def test_gppo_keeps_a_bounded_gradient_where_ppo_has_none(ratio, advantage, loss, gradient):
    assert surrogate(ratio, advantage, gppo) == pytest.approx((loss, gradient))
    value, slope = surrogate(ratio, advantage, clip_high=0.28)
    assert value == pytest.approx(loss)
    assert slope == pytest.approx(gradient if 0.8 <= ratio <= 1.28 or ratio * advantage < -1 else 0)


@pytest.mark.parametrize("term", [gppo, cispo])
def test_at_ratio_one_the_gradient_is_that_of_ppo(term):
    old = tensor(-1.5, -0.2, -3.0)[None]
    roll = make_roll(
        [0.0], lengths=[3], advantages=tensor(2, -1, 0)[None], token_facts={"old_logps": old}
    )
    _, expected = loss_and_gradient(clipped_surrogate, logp=old, roll=roll)
    _, gradient = loss_and_gradient(term, logp=old, roll=roll)
    torch.testing.assert_close(gradient, expected)
    assert (gradient[0, :2] != 0).all()


@pytest.mark.parametrize(
    ("options", "weight"), [({"cap": 1.28}, 1.28), ({}, math.e**0.5), ({"low": 2.0}, 2.0)]
)
def test_cispo_clips_the_weight_and_every_token_learns(options: dict[str, float], weight: float):
    roll = make_roll(
        [0.0], advantages=tensor(2.0)[None], token_facts={"old_logps": tensor(-1.5)[None]}
    )
    loss, gradient = loss_and_gradient(cispo, logp=tensor(-1.0)[None], roll=roll, **options)
    assert float(loss) == pytest.approx(2 * weight)
    assert float(gradient) == pytest.approx(-2 * weight)


@pytest.mark.parametrize(
    ("advantage", "loss", "gradient"),
    [(-1.0, math.exp(0.1), math.exp(0.1)), (1.0, -1.0004, 0.0)],
)
def test_gspo_clips_the_ratio_of_the_answer(advantage: float, loss: float, gradient: float):
    # mean of .2 and 0: s = e^.1; the second row, of one token, has a ratio of its own within the bounds
    roll = make_roll(
        [0.0, 0.0],
        lengths=[2, 1],
        advantages=torch.full((2, 2), advantage, dtype=torch.float64),
        token_facts={"old_logps": torch.full((2, 2), -1.0, dtype=torch.float64)},
    )
    logp = torch.stack([tensor(-0.8, -1.0), tensor(-0.9999, 0.0)])
    losses, gradients = loss_and_gradient(gspo, logp=logp, roll=roll)
    torch.testing.assert_close(losses[0], tensor(loss, loss))
    # of the mean over the row's two tokens it is half of that: .55259
    torch.testing.assert_close(gradients[0], tensor(gradient, gradient))
    assert float(losses[1, 0]) == pytest.approx(-advantage * math.exp(1e-4))
    assert float(gradients[1, 0]) == pytest.approx(-advantage * math.exp(1e-4))


def test_an_overlong_answer_pays_more_and_more_within_the_buffer():
    roll = make_roll([0] * 4, lengths=[80, 90, 100, 101])
    found = overlong_penalty(roll, STATE, max_length=100, buffer=20)
    torch.testing.assert_close(found, tensor(0, -0.5, -1, -1))


def test_dynamic_sampling_may_also_drop_groups_of_little_spread():
    # population std .5 and .05; the second is not refilled in the one round
    roll = make_roll([1, 0, 0.6, 0.5], group=[0, 0, 1, 1])
    kept = dynamic_sampling(roll, STATE, Refill(), max_rounds=1, min_std=0.06)
    assert kept.group.tolist() == [0, 0]
    kept = dynamic_sampling(roll, STATE, Refill(), max_rounds=1, min_std=0.04)
    assert kept.group.tolist() == [0, 0, 1, 1]
