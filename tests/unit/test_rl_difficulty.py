"""Credit by comparison, difficulty, thoughts and temperature against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from rl_small import make_roll
from torch import Tensor

from trainorder.rl.pieces.advantages import grpo, whitened
from trainorder.rl.pieces.comparisons import canon, drpo, lead, policy_gradient, trust_region
from trainorder.rl.pieces.difficulty import ceeh, ceeh_exploration, ceeh_length
from trainorder.rl.pieces.length import falling_budget
from trainorder.rl.pieces.losses import clipped_surrogate
from trainorder.rl.pieces.temperatures import arbitrary_entropy, arbitrary_entropy_credit
from trainorder.rl.pieces.thoughts import (
    ares,
    exploration_bonus,
    explorations,
    pattern_of,
    pear,
    windows,
)
from trainorder.rl.types import Live, Roll, State
from trainorder.rollout import Request


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


STATE = State(total=1)


def entropies(roll: Roll, *values: float) -> Roll:
    known = tensor(*values)[:, None].expand_as(roll.loss_mask)
    return replace(roll, token_facts={**roll.token_facts, "entropy": known.clone()})


@pytest.mark.parametrize(
    ("mu", "expected"),
    [(1.0, [0.5, -1, 0.5, 0]), (0.0, [0, -0.5, 0, 0.5]), (0.5, [0.25, -0.75, 0.25, 0.25])],
)
def test_canon_compares_across_and_within_halves(mu, expected):
    # by entropy the low half is rows 0 and 2 (mean 1), the high half rows 3 and 1 (mean .5)
    roll = entropies(make_roll([1, 0, 1, 1]), 0.1, 0.4, 0.2, 0.3)
    torch.testing.assert_close(canon(roll, STATE, mu=mu), tensor(*expected))
    by_length = make_roll([1, 0, 1, 1], lengths=[1, 4, 2, 3])
    torch.testing.assert_close(canon(by_length, STATE, by="length", mu=mu), tensor(*expected))


def test_canons_alpha_scales_the_half_of_low_entropy_across_only():
    roll = entropies(make_roll([1, 0, 1, 1]), 0.1, 0.4, 0.2, 0.3)
    torch.testing.assert_close(canon(roll, STATE, mu=1.0, alpha=2.0), tensor(1.5, -2, 1.5, -1))
    torch.testing.assert_close(canon(roll, STATE, mu=0.0, alpha=2.0), tensor(0, -0.5, 0, 0.5))


def lead_roll() -> Roll:
    """Lengths 2000, 4000, 4000, 8000 in tokens, the first two right."""
    roll = make_roll([1, 1, 0, 0], lengths=[2, 4, 4, 8])
    return roll


def test_lead_aims_at_the_mean_right_length_and_follows_the_unstable_signal():
    state = State(total=9)
    found = lead(lead_roll(), state, floor=1.0)
    # target 3: e = 2/3, 2/3, 2/3, -2/3; e does not vary among right answers: lambda = .95 / 2 + .05
    assert state.mem["lead"] == pytest.approx(0.525)
    c, e = tensor(1, 1, -1, -1) * math.sqrt(3) / 2, tensor(0.5, 0.5, 0.5, -1.5)
    mixed = 0.525 * c + 0.475 * e
    tokens = torch.cat([mixed[i].repeat(n) for i, n in enumerate((2, 4, 4, 8))])
    expected = (mixed - tokens.mean()) / tokens.std()
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_lead_without_its_length_is_grpo_whitened():
    roll = make_roll([1, 0, 0, 1, 1, 0], group=[0, 0, 0, 1, 1, 1], lengths=[2, 4, 3, 1, 5, 2])
    credit = grpo(roll, State(total=9))[:, None].expand_as(roll.loss_mask)
    found = lead(roll, State(total=9), least=1.0, floor=1.0)
    torch.testing.assert_close(found, whitened(credit, roll, 1e-8))


def test_lead_with_its_floor_above_the_answers_aims_at_the_longest():
    found = lead(lead_roll(), State(total=9), max_length=8.0)
    # target 8: the longest wrong answer is the most efficient one, and the shortest right one the least
    assert found[1, 0] > found[0, 0]


def test_drpo_shares_credit_by_length_among_right_and_by_likelihood_among_wrong():
    roll = make_roll([1, 1, 0, 0], lengths=[2, 6, 1, 1])
    roll.token_facts["old_logps"][2, 0], roll.token_facts["old_logps"][3, 0] = -1.0, -2.0
    found = drpo(roll, STATE, max_length=10) / 4
    torch.testing.assert_close(
        found, tensor(0.98201, 0.01799, -0.52498, -0.47502), atol=1e-5, rtol=0
    )
    assert drpo(make_roll([1, 1, 1]), STATE).tolist() == [0, 0, 0]


def test_drpos_credit_has_the_gradient_of_its_objective():
    s = tensor(-0.5, -0.7, -1, -2).requires_grad_(True)
    weights = tensor(0.98201, 0.01799)
    objective = (weights * s[:2]).sum() - 10 * (s[2:] / 10).exp().sum().log()
    (slope,) = torch.autograd.grad(objective, s)
    torch.testing.assert_close(
        slope, tensor(0.98201, 0.01799, -0.52498, -0.47502), atol=1e-5, rtol=0
    )


def test_the_trust_region_acts_beyond_what_is_free():
    roll = make_roll([0.0, 0.0], lengths=[2, 2])
    roll.token_facts["old_logps"] = torch.full((2, 2), -1.0, dtype=torch.float64)
    logps = torch.stack([tensor(-1.2, -1.0), tensor(-1, -1)]).requires_grad_(True)
    loss = trust_region(Live(logps), roll, STATE)
    # KL .1 of the first row: strength 1000 (.1 - 1e-4) = 99.9 on its tokens' .2 and 0
    torch.testing.assert_close(loss.detach()[0], tensor(99.9 * 0.2, 0))
    (slope,) = torch.autograd.grad(loss.sum(), logps)
    torch.testing.assert_close(slope, torch.stack([tensor(-99.9, -99.9), tensor(0, 0)]))
    gradient = policy_gradient(Live(logps), replace(roll, advantages=roll.advantages + 2), STATE)
    torch.testing.assert_close(gradient.detach()[0], tensor(2.4, 2))


def graded_roll(grades: Sequence[float], lengths: Sequence[int], problem: str = "sums/0") -> Roll:
    roll = make_roll(list(grades), lengths=lengths)
    same = replace(roll.problem[0], id=problem)
    return replace(roll, problem=[same] * len(grades))


def test_ceeh_pays_right_answers_for_being_short_against_the_prompts_shortest():
    state = State(total=9, step=1, mem={"ceeh/shortest": {"sums/0": [100.0, 100.0, 0.0]}})
    found = ceeh_length(graded_roll([1, 1, 0], [80, 300, 80]), state)
    assert found.tolist() == pytest.approx([0.1, -0.9, 0])
    assert state.mem["ceeh/shortest"]["sums/0"][0] == pytest.approx(96)


def test_ceehs_shortest_length_follows_longer_ones_slowly():
    state = State(total=9, step=1, mem={"ceeh/shortest": {"sums/0": [100.0, 100.0, 0.0]}})
    ceeh_length(graded_roll([1], [120]), state)
    assert state.mem["ceeh/shortest"]["sums/0"][0] == pytest.approx(101)


def test_ceeh_pays_nothing_for_length_where_a_prompt_is_getting_worse():
    state = State(total=9, step=1, mem={"ceeh/accuracy": {"sums/0": [0.8, 0.8, 0.0]}})
    assert ceeh_length(graded_roll([1, 0], [10, 10]), state).tolist() == [0, 0]
    assert state.mem["ceeh/accuracy"]["sums/0"][0] == pytest.approx(0.8 - 0.05 * 0.3)


def test_ceeh_adds_entropy_to_hard_prompts_and_never_turns_a_sign():
    roll = make_roll([0, 1], group=[0, 1], advantages=tensor(-0.5, 0.5)[:, None])
    found = ceeh(entropies(roll, 1.0, 1.0), State(total=4))
    assert found[:, 0].tolist() == pytest.approx([-0.25, 0.5])
    low = ceeh(entropies(roll, 0.1, 0.1), State(total=4))
    assert low[:, 0].tolist() == pytest.approx([-0.46, 0.5])
    halfway = ceeh(entropies(roll, 0.1, 0.1), State(total=4, step=2))
    assert halfway[:, 0].tolist() == pytest.approx([-0.48, 0.5])
    assert ceeh_exploration(roll, State(total=4)).tolist() == [5, 1]


def test_pear_charges_a_right_answer_for_the_entropy_of_its_thought():
    text = "ab </think> cd"
    roll = make_roll([1, 0], lengths=[5, 5])
    starts, ends = torch.tensor([[0, 1, 3, 11, 12]] * 2), torch.tensor([[1, 2, 11, 12, 14]] * 2)
    known = {"char_start": starts, "char_end": ends}
    h = torch.stack([tensor(1, 1, 1, 0.2, 0.2)] * 2)
    roll = replace(roll, text=[text, text], token_facts={**roll.token_facts, **known, "entropy": h})
    # thought 1, rest .2 -> P = .8
    assert pear(roll, STATE).tolist() == pytest.approx([0.2, 0])
    assert pear(roll, STATE, alpha=5.0).tolist() == pytest.approx([1, 0])
    untagged = replace(roll, text=["abcd", "abcd"])
    assert pear(untagged, STATE)[0].item() == pytest.approx(1 - (1 + 1 + 1 + 0.2 + 0.2) / 5)


def test_ares_counts_words_that_are_followed_by_uncertain_tokens():
    text = "\u00df\u00df\u00df\u00df\u00df\u00df WAIT b c d e wait f g h i"  # lower case of the first word has 12 letters
    words = text.split(" ")
    ends = torch.tensor([len(" ".join(words[: i + 1])) for i in range(len(words))])
    roll = make_roll([1, 1, 0], lengths=[11, 11, 11])
    # after the first `wait` 2 nats, after the second .1
    h = tensor(0.1, 0.1, 2, 2, 2, 2, 0.1, 0.1, 0.1, 0.1, 0.1)
    known = {"char_start": ends.expand(3, -1), "char_end": ends.expand(3, -1)}
    roll = replace(
        roll, text=[text, "no word", text], token_facts={"entropy": h.expand(3, -1), **known}
    )
    assert explorations(roll, 0, windows(roll, 4)[0], 2.0, pattern_of(["wait"])) == 1
    found = ares(roll, State(total=1), words=["wait"], percentile=1.0)
    # two of three are right: easy; one exploration each in rows 0 and 2, aim 2/3, margin 1: nobody is over
    expected = [exploration_bonus(n, 2 / 3, 0, ok) for n, ok in ((1, True), (0, True), (1, False))]
    assert found.tolist() == pytest.approx(expected)
    assert found[2] == pytest.approx(0.5 * 0.5 * 0.6)


class Hot:
    """Answers as asked, first row right; remembers at which temperature."""

    def __init__(self) -> None:
        self.temperatures, self.kept = list[float](), list[Request]()

    def sample(self, requests: Sequence[Request]) -> Roll:
        self.temperatures += [request.temperature for request in requests]
        roll = make_roll([1, 0, 1], group=[9, 9, 9])
        return replace(roll, problem=[requests[0].problem] * 3)  # type: ignore[list-item]

    def given(self, requests: Sequence[Request], texts: None, source: str) -> Roll:
        self.kept += requests
        roll = make_roll([1] * len(requests), group=[10 + i for i in range(len(requests))])
        roll.row_facts["asked/arbitrary_entropy"] = torch.ones(len(requests), dtype=torch.float64)
        return roll


@pytest.mark.parametrize(("entropy", "temperature"), [(0.3, 1.2), (0.7, 0.8)])
def test_aepo_adds_good_answers_of_the_temperature_that_entropy_asks_for(entropy, temperature):
    roll = entropies(make_roll([1, 0, 0], group=[0, 0, 1]), *[entropy] * 3)
    rollouts = Hot()
    both = arbitrary_entropy(roll, STATE, rollouts)  # type: ignore[arg-type]
    assert rollouts.temperatures == [temperature]
    assert [request.temperature for request in rollouts.kept] == [1.0, 1.0]
    credit = arbitrary_entropy_credit(replace(both, advantages=both.advantages - 0.5), STATE)
    assert credit[:, 0].tolist() == [-0.5, -0.5, -0.5, 1, 1]


def test_rmts_budget_falls_to_a_fifth():
    asked = [
        falling_budget([Request(prompt="2 + 2")], State(total=100, step=step))[0].facts["budget"]
        for step in (0, 50, 100)
    ]
    assert asked == [800, 357, 160]


def pulled(temperature: float, seed: int) -> float:
    """Entropy of a policy of two arms after 30 steps on answers of this temperature, all of credit 1."""
    logits, noise = tensor(1.0, 0.0).requires_grad_(True), torch.Generator().manual_seed(seed)
    for _ in range(30):
        logps = logits.log_softmax(0)
        hot = (logits.detach() / temperature).softmax(0)
        arms = torch.multinomial(hot, 256, replacement=True, generator=noise)
        roll = make_roll([1] * 256, group=list(range(256)))
        roll.token_facts["old_logps"] = logps.detach()[arms][:, None]
        roll.row_facts["asked/arbitrary_entropy"] = torch.ones(256, dtype=torch.float64)
        roll = replace(roll, advantages=arbitrary_entropy_credit(roll, STATE))
        loss = clipped_surrogate(Live(logps[arms][:, None]), roll, STATE).mean()
        (slope,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 0.5 * slope
    logps = logits.detach().log_softmax(0)
    return float(-(logps.exp() * logps).sum())


def test_hot_answers_raise_entropy_and_cold_ones_lower_it():
    before = 0.5823
    for seed in range(3):
        assert pulled(1.2, seed) > before + 0.01
        assert pulled(0.8, seed) < before - 0.01
