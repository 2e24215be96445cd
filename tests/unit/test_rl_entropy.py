"""Pieces that steer entropy against numbers worked out by hand, and in which direction they move it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from rl_small import make_roll
from torch import Tensor

from trainorder.config import MethodConfig
from trainorder.config.presets import presets
from trainorder.rl.catalog import config_of
from trainorder.rl.method import Method
from trainorder.rl.pieces.covariance import clip_cov, covariance_softmax, top_covariance
from trainorder.rl.pieces.entropy import (
    entrocraft,
    entropy_covariance,
    entropy_law,
    entropy_target,
    fitted_law,
)
from trainorder.rl.pieces.entropy_tokens import (
    clip_b,
    clip_v,
    entropy_band,
    entropy_peaks,
    forking_tokens,
    forking_tokens_of_row,
    siren,
    surprising_tokens,
)
from trainorder.rl.pieces.rewards import majority
from trainorder.rl.reduce import reduction_shares
from trainorder.rl.rollouts import add_rewards
from trainorder.rl.step import give_credit
from trainorder.rl.tokens import covariance
from trainorder.rl.types import Live, Roll, State
from trainorder.tasks.base import Problem


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tokens_roll(**token_facts: Tensor) -> Roll:
    """One row, one token per value."""
    width = len(next(iter(token_facts.values())))
    roll = make_roll([0.0], lengths=[width])
    advantages = token_facts.pop("advantages", torch.zeros(width, dtype=torch.float64))
    known = {name: values[None] for name, values in token_facts.items()}
    return replace(roll, advantages=advantages[None], token_facts={**roll.token_facts, **known})


FOUR = {"advantages": tensor(2, 1, -1, -2), "old_logps": tensor(-0.1, -3.0, -0.5, -2.0)}
"""Covariances [2.6, -1.6, -.9, 1.2]: A - 0 and log p + 1.4."""


def test_the_law_is_fitted_to_the_steps_so_far():
    # (H, R) = (0, .5), (ln 2, .3): R = .7 - .2 e^H; the third step, H = ln 3 with R = .1, lies on it
    state, found = State(total=9), {}
    for step, (entropy, reward) in enumerate([(0.0, 0.5), (math.log(2), 0.3), (math.log(3), 0.1)]):
        state.step, roll = step, make_roll([reward, reward], lengths=[2, 1])
        found = entropy_law(replace(roll, token_facts={"entropy": roll.loss_mask * entropy}), state)
        assert (found == {}) == (step == 0)
    fit = {"law_a": 0.2, "law_b": 0.7, "law_ceiling": 0.5, "law_error": 0.0}
    assert found == pytest.approx(fit, abs=1e-12)


def test_covariance_of_four_tokens():
    torch.testing.assert_close(covariance(tokens_roll(**FOUR))[0], tensor(2.6, -1.6, -0.9, 1.2))


def test_clip_cov_drops_one_of_its_two_candidates():
    seen = set()
    for seed in range(20):
        kept = clip_cov(tokens_roll(**FOUR), State(total=1, key=(seed,)))[0].tolist()
        assert kept.count(0.0) == 1
        seen.add(kept.index(0.0))
    assert seen == {0, 3}
    assert clip_cov(tokens_roll(**FOUR), State(total=1), share=0.0).tolist() == [[1, 1, 1, 1]]
    # half of four tokens are two: both candidates
    assert clip_cov(tokens_roll(**FOUR), State(total=1), share=0.5).tolist() == [[0, 1, 1, 0]]


def test_clip_cov_draws_the_same_tokens_for_rows_in_another_order():
    rows = [0, 3, 1, 2]
    roll = make_roll([1, 0, 0, 0], advantages=FOUR["advantages"][:, None])
    roll.token_facts["old_logps"] = FOUR["old_logps"][:, None]
    for seed in range(5):
        kept = clip_cov(roll, State(total=1, key=(seed,)))
        again = clip_cov(roll.rows(rows), State(total=1, key=(seed,)))
        assert torch.equal(kept[rows], again)


def test_kl_cov_takes_the_tokens_of_highest_covariance():
    assert top_covariance(tokens_roll(**FOUR), State(total=1)).tolist() == [[1, 0, 0, 0]]
    assert top_covariance(tokens_roll(**FOUR), State(total=1), share=0.5).tolist() == [[1, 0, 0, 1]]


def test_tea_weighs_by_softmax_over_the_row_and_caps_it():
    # two tokens of A = 1, -1 and log p = x, -x: both covariances x; three tokens make them differ
    roll = tokens_roll(advantages=tensor(1, -1, 0), old_logps=tensor(-1, -1, -1.0))
    torch.testing.assert_close(covariance_softmax(roll, State(total=1))[0], tensor(10, 10, 10) / 3)
    # c = [ln 9, 0] after the softmax: [.9, .1] -> 9 capped at 5, and 1
    roll = tokens_roll(advantages=tensor(1, -1), old_logps=tensor(0, 0))
    shares = tensor(math.log(9), 0).softmax(0)
    torch.testing.assert_close((10 * shares).clamp(max=5), tensor(5, 1))
    assert float((tensor(5, 1) * tensor(0.5, 2)).mean()) == 2.25
    found = covariance_softmax(roll, State(total=1))
    torch.testing.assert_close(found[0], tensor(5, 5))


def test_forking_tokens_keep_those_at_or_above_the_quantile():
    # quantile .8 of five: 1.5 + .2 (2 - 1.5) = 1.6
    roll = tokens_roll(entropy=tensor(0.1, 0.2, 0.3, 2.0, 1.5))
    assert forking_tokens(roll, State(total=1)).tolist() == [[0, 0, 0, 1, 0]]
    assert forking_tokens(roll, State(total=1), share=1.0).tolist() == [[1, 1, 1, 1, 1]]


def test_spine_pulls_forking_tokens_into_their_own_quantiles():
    roll = tokens_roll(entropy=tensor(1, 2, 3, 4, 5))
    assert forking_tokens_of_row(roll, State(total=1)).tolist() == [[0, 0, 0, 0, 1]]
    # all five are forks: q10 = 1.4, q50 = 3
    live = Live(torch.zeros(1, 5, dtype=torch.float64), {"entropy": roll.entropy})
    penalty = entropy_band(live, roll, State(total=1), share=1.0)
    torch.testing.assert_close(penalty[0], tensor(0.4, 0, 0, 1, 2))
    assert float(penalty.mean()) == pytest.approx(0.68)


def test_siren_pulls_the_peaks_to_their_anchor():
    # quantile .8 of five: .4 + .2 (2 - .4) = .72 -> the last; anchor 1.5: gap .5
    known = "nucleus_entropy:0.8"
    roll = tokens_roll(**{known: tensor(0.1, 0.2, 0.3, 0.4, 2.0)})
    state = State(total=1, mem={"siren/anchor": 1.5})
    kept = entropy_peaks(roll, state)
    assert kept.tolist() == [[0, 0, 0, 0, 1]]
    assert state.mem["siren/gap"] == pytest.approx(0.5)
    live = roll.token_facts[known].clone().requires_grad_(True)
    loss = siren(Live(torch.zeros_like(live), {known: live}), roll, state)
    share = reduction_shares(
        kept, roll.loss_mask, roll.group, how="sequence", denominator="weight", max_length=tensor(9)
    )
    whole = 0.005 * (loss * share).sum()
    (slope,) = torch.autograd.grad(whole, live)
    assert float(whole.detach()) == pytest.approx(0.00125)
    assert slope[0].tolist() == pytest.approx([0, 0, 0, 0, 0.005])


def test_sirens_anchor_is_the_first_step_and_stays():
    state, known = State(total=2), "nucleus_entropy:0.8"
    entropy_peaks(tokens_roll(**{known: tensor(1, 1, 1, 1, 2)}), state)
    assert (state.mem["siren/anchor"], state.mem["siren/gap"]) == (2.0, 0.0)
    entropy_peaks(tokens_roll(**{known: tensor(0, 0, 0, 0, 0.5)}), state)
    assert (state.mem["siren/anchor"], state.mem["siren/gap"]) == (2.0, -1.5)


@pytest.mark.parametrize(
    ("entropy", "step", "kept"),
    [
        (0.3, 0, [0, -0.5, -0.5, -0.5]),
        (0.9, 0, [1.5, 0, 0, 0]),
        (0.65, 0, [1.5, -0.5, -0.5, -0.5]),
        (0.55, 5, [1.5, -0.5, -0.5, -0.5]),  # halfway the band is .5 to .6
        (0.65, 5, [1.5, 0, 0, 0]),
    ],
)
def test_entrocraft_keeps_the_side_that_moves_entropy_into_the_band(entropy, step, kept):
    roll = make_roll([1, 0, 0, 0], advantages=tensor(1.5, -0.5, -0.5, -0.5)[:, None])
    roll.token_facts["entropy"] = torch.full((4, 1), entropy, dtype=torch.float64)
    assert entrocraft(roll, State(total=11, step=step))[:, 0].tolist() == kept


def test_clip_b_drops_the_outlier_only_where_it_is_punished():
    # S = .5 (ln 3 - ln 2) = .2027 eight times, .2 (.2 - ln 5) = -.2819 once: 2.83 standard deviations below the mean
    logps = tensor(*[math.log(0.5)] * 8, math.log(0.2))
    entropy = tensor(*[math.log(3)] * 8, 0.2)
    for advantage, kept in ((-1.0, [1] * 8 + [0]), (1.0, [1] * 9)):
        roll = tokens_roll(
            advantages=torch.full((9,), advantage, dtype=torch.float64),
            old_logps=logps,
            entropy=entropy,
        )
        assert clip_b(roll, State(total=1)).tolist() == [kept]
        assert clip_b(roll, State(total=1), sigmas=2.9).tolist() == [[1] * 9]


def test_clip_v_compares_with_the_expected_discriminator_and_takes_the_worst():
    # p = [.5, .25, .25]: S = [.1733, -.0866, -.0866], expected .0433
    p, h = tensor(0.5, 0.25, 0.25), 1.5 * math.log(2)
    s = p * (h + p.log())
    torch.testing.assert_close(s, tensor(0.17329, -0.08664, -0.08664), atol=1e-5, rtol=0)
    assert float((p * s).sum()) == pytest.approx(0.04332, abs=1e-5)
    known = {
        "advantages": -torch.ones(3, dtype=torch.float64),
        "old_logps": p.log(),
        "entropy": tensor(h, h, h),
        "expected_discriminator": tensor(*[0.04332] * 3),
    }
    # D = [-.13, .13, .13], deviation .1225: the last two are beyond one; the worst first, ties alike
    roll = tokens_roll(**known)
    assert clip_v(roll, State(total=1), sigmas=1.0, max_share=1.0).tolist() == [[1, 0, 0]]
    assert clip_v(roll, State(total=1)).tolist() == [[1, 1, 1]]
    known["expected_discriminator"] = tensor(0.04332, 0.05, 0.04332)
    assert clip_v(tokens_roll(**known), State(total=1), sigmas=1.0).tolist() == [[1, 0, 1]]


def test_minus_the_discriminator_is_the_slope_of_entropy_by_the_sampled_logit():
    logits = tensor(0.5, 0.25, 0.25).log().requires_grad_(True)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    (slope,) = torch.autograd.grad(entropy, logits)
    torch.testing.assert_close(-slope, tensor(0.17329, -0.08664, -0.08664), atol=1e-5, rtol=0)


def test_the_target_moves_the_coefficient_of_the_bonus_by_a_step():
    low, high = tokens_roll(entropy=tensor(0.1, 0.2)), tokens_roll(entropy=tensor(0.5, 0.3))
    state = State(total=9)
    found = [float(entropy_target(roll, state)[0]) for roll in (low, low, high, low, high, high)]
    assert found == pytest.approx([0.005, 0.01, 0, 0.01, 0, 0])
    assert state.mem["entropy_target"] == 0.0


def test_the_covariance_is_the_slope_of_entropy_over_a_tabular_softmax():
    # pi = (.8, .2), A = (1, -1) less its mean: (.4, -1.6). A policy gradient moves the logits by pi A, a natural one by A
    pi, credit = tensor(0.8, 0.2), tensor(0.4, -1.6)
    drawn = torch.tensor([0] * 8 + [1] * 2)
    for moved, change in ((pi * credit, -0.14196), (credit, -0.44361)):
        roll = tokens_roll(advantages=moved[drawn], old_logps=pi.log()[drawn])
        metric = entropy_covariance(roll, State(total=1))
        assert -metric["entropy_covariance"] == pytest.approx(change, abs=5e-6)
        logits = pi.log().requires_grad_(True)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        (slope,) = torch.autograd.grad(entropy, logits)
        assert float(slope @ moved) == pytest.approx(change, abs=5e-6)


def test_the_law_of_a_collapsed_policy_is_left_out_where_exp_cannot_tell_its_entropies_apart():
    assert fitted_law([[1e-17, 1.0], [1e-18, 0.5], [0.0, 0.5]]) == {}


def test_the_law_is_fitted_by_least_squares():
    found = fitted_law([[h, 0.9 - 0.3 * math.exp(h)] for h in (0.1, 0.4, 1.0)])
    assert found["law_a"] == pytest.approx(0.3)
    assert found["law_b"] == pytest.approx(0.9)
    assert found["law_ceiling"] == pytest.approx(0.6)
    assert found["law_error"] == pytest.approx(0, abs=1e-9)
    assert fitted_law([[0.1, 1.0], [0.1, 0.5]]) == {}


def test_entropy_sft_drops_the_token_that_surprises_least():
    # CE - .8 H = [1.2, .2, .1, .02, 2.6]: the fourth goes, the others' mean CE is 1.625
    ce = tensor(2, 1, 0.5, 0.1, 3)
    roll = tokens_roll(old_logps=-ce, entropy=tensor(1, 1, 0.5, 0.1, 0.5))
    kept = surprising_tokens(roll, State(total=1), source="policy")
    assert kept.tolist() == [[1, 1, 1, 0, 1]]
    assert float((kept[0] * ce).sum() / kept.sum()) == pytest.approx(1.625)
    assert surprising_tokens(roll, State(total=1)).tolist() == [[0] * 5]


def test_the_majority_pays_whoever_agrees_with_it():
    roll = replace(
        make_roll([0] * 6, group=[0, 0, 0, 1, 1, 1]),
        text=["<answer> 7 </answer>", "<answer>7</answer>", "<answer>8</answer>", "a", "b", "c"],
    )
    assert majority(roll, State(total=1)).tolist() == [1, 1, 0, 0, 0, 0]


def bandit(
    method: MethodConfig,
    seed: int,
    *,
    steps: int = 40,
    start: float = 1.0,
    pays: tuple[float, float] = (1.0, 0.0),
    updates: int = 1,
    thoughts: tuple[float, float] | None = None,
) -> list[float]:
    """Entropies of a softmax policy of two arms that pay with these chances; 64 answers of a token a step, in groups of four.

    With `thoughts` the arms are ways to think whose tokens have these entropies, and what is returned is their mean.
    """
    bound = Method.from_config(method)
    logits = tensor(start, 0.0).requires_grad_(True)
    noise, state, entropies = (
        torch.Generator().manual_seed(seed),
        State(total=steps, key=(seed,)),
        [],
    )
    for step in range(steps):
        state.step = step
        logps = logits.log_softmax(0)
        arms = torch.multinomial(logps.exp().detach(), 64, replacement=True, generator=noise)
        entropy = -(logps.exp() * logps).sum().expand(64, 1)
        old = logps.detach()[arms][:, None]
        p = logps.detach().exp()
        s = p * (entropy[0, 0].detach() + logps.detach())
        known: dict[str, Any] = {
            "entropy": entropy.detach().contiguous(),
            "nucleus_entropy:0.8": entropy.detach().contiguous(),
            "expected_discriminator": (p * s).sum().expand(64, 1).contiguous(),
        }
        found = float(entropy[0, 0].detach())
        if thoughts is not None:
            known["entropy"] = tensor(*thoughts)[arms][:, None]
            found = float((p * tensor(*thoughts)).sum())
        paid = torch.rand(64, generator=noise) < torch.tensor(pays)[arms]
        roll = make_roll([0.0] * 64, group=[i // 4 for i in range(64)])
        roll = replace(
            roll,
            text=[f"<answer> {arm} </answer>" for arm in arms.tolist()],
            problem=[Problem(f"sums/{i // 4}", "sums", "?", "1", "1") for i in range(64)],
            token_facts={
                **roll.token_facts,
                **known,
                "old_logps": old,
                "ref_logps": old,
                "char_start": torch.zeros(64, 1, dtype=torch.long),
                "char_end": torch.ones(64, 1, dtype=torch.long),
            },
        )
        roll = add_rewards(roll, paid.double().tolist(), bound, state)
        roll = give_credit(roll, bound, state)
        for _ in range(updates):
            now = logits.log_softmax(0)
            moving = -(now.exp() * now).sum().expand(64, 1)
            live = Live(now[arms][:, None], dict.fromkeys(bound.live_needs, moving))
            loss = torch.zeros((), dtype=torch.float64)
            for number, term in enumerate(bound.terms):
                share = reduction_shares(
                    roll.token_facts.get(f"weights_of_term_{number}", roll.weights),
                    roll.loss_mask,
                    roll.group,
                    how=term.reduction or bound.reduction,
                    denominator=term.denominator or bound.denominator,
                    max_length=torch.ones(64, dtype=torch.float64),
                )
                loss = loss + term.coef_at(state) * (term(live, roll, state) * share).sum()
            (slope,) = torch.autograd.grad(loss, logits)
            with torch.no_grad():
                logits -= 0.3 * slope
        entropies.append(found)
    return entropies


SEEDS = range(3)


def mean_last(method: MethodConfig, **options: Any) -> float:
    return sum(bandit(method, seed, **options)[-1] for seed in SEEDS) / len(SEEDS)


GRPO = MethodConfig()


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("clip_cov", {"weight": [{"clip_cov": {"share": 0.3, "low": 0.05}}]}),
        ("clip_b", {"weight": [{"clip_b": {"sigmas": 0.5}}]}),
        ("clip_v", {"weight": [{"clip_v": {"sigmas": 0.5, "max_share": 1.0}}]}),
        ("adaptive_entropy", {}),
        ("tea", {}),
    ],
)
def test_what_promises_to_slow_the_fall_of_entropy_does(name, keys):
    method = config_of(presets()[name], keys).method
    if name == "adaptive_entropy":
        bonus = {"entropy_bonus": {"weight": [{"entropy_target": {"target": 0.4, "step": 0.02}}]}}
        method = config_of(presets()[name], {"terms": ["clipped_surrogate", bonus]}).method
    grpo = mean_last(GRPO)
    assert grpo < 0.2
    assert mean_last(method) > grpo + 0.01


def test_entrocraft_holds_entropy_up_below_its_band_and_lets_it_fall_above():
    # both arms mostly fail: punished answers are mostly those of the likely arm
    def banded(low: float, high: float) -> float:
        band = {"low_start": low, "low_end": low, "high_start": high, "high_end": high}
        method = MethodConfig(advantage=["dr_grpo", {"entrocraft": band}])
        return mean_last(method, pays=(0.2, 0.1))

    below, above, within = banded(5.0, 6.0), banded(0.0, 0.0), banded(0.0, 9.0)
    assert below > within + 0.03
    assert below > above + 0.03


def terms(*more: Any, reduction: str = "token", **keys: Any) -> MethodConfig:
    return MethodConfig.model_validate({"terms": list(more), "reduction": reduction, **keys})


def test_kl_cov_slows_the_fall_from_the_second_update_of_a_batch_on():
    def after(coef: float, updates: int) -> float:
        penalty = {"log_ratio_size": {"coef": coef, "weight": [{"top_covariance": {"share": 0.5}}]}}
        return mean_last(terms("unclipped_surrogate", penalty), updates=updates, steps=20)

    assert after(0.5, 1) == pytest.approx(after(0.0, 1))
    assert after(0.5, 3) > after(0.0, 3) + 0.01


def test_siren_holds_entropy_at_what_it_was_at_the_first_step():
    def after(coef: float) -> float:
        pull = {"siren": {"coef": coef, "weight": ["entropy_peaks"], "denominator": "weight"}}
        return mean_last(terms("clipped_surrogate", pull, advantage=["dr_grpo"]), steps=20)

    start = mean_last(GRPO, steps=1)
    free, held = after(0.0), after(2.0)
    assert free < start - 0.1
    assert abs(held - start) < abs(free - start) / 2


def test_spine_holds_entropy_within_a_batch_though_the_majority_would_take_it():
    def after(coef: float) -> float:
        band = {"entropy_band": {"coef": coef}}
        method = terms("clipped_surrogate", band, reward=["majority"])
        return mean_last(method, updates=4, steps=2)

    start = mean_last(GRPO, steps=1)
    assert after(0.0) < start - 0.02
    assert abs(after(5.0) - start) < abs(after(0.0) - start) / 2


def test_pear_moves_to_the_thoughts_of_low_entropy_where_both_are_right():
    both = {"pays": (1.0, 1.0), "thoughts": (0.9, 0.1), "start": 0.0}
    start = mean_last(GRPO, **both)
    assert start == pytest.approx(0.5)  # GRPO sees no difference
    assert mean_last(config_of(presets()["pear"]).method, **both) < 0.3


def test_ceeh_explores_on_hard_prompts():
    # equally good ways to think: the advantage of entropy prefers the open one, of hard prompts only
    even = {"pays": (0.5, 0.5), "thoughts": (0.9, 0.1), "start": 0.0, "steps": 20}

    def shaped(alpha: float) -> float:
        shaper = {"ceeh": {"alpha": alpha}}
        return mean_last(terms("clipped_surrogate", advantage=["dr_grpo", shaper]), **even)

    assert shaped(0.4) > shaped(0.0) + 0.01

    def bonus(coef: float) -> float:
        explored = {"entropy_bonus": {"coef": coef, "weight": ["ceeh_exploration"]}}
        return mean_last(terms("clipped_surrogate", explored), pays=(0.6, 0.4), steps=20)

    assert bonus(0.05) > bonus(0.0) + 0.01
