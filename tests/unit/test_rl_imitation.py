"""Experts, replay, regeneration, steps and wordings, against numbers worked out by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from rl_small import gradient, make_roll, off_policy_roll, tiny_llama

from trainorder.config import MethodConfig, Schedule
from trainorder.reading import ParamsError
from trainorder.rl.pieces.advantages import dr_grpo
from trainorder.rl.pieces.imitation import expert_rows, nll, phases_of, shift_readapt_overfit
from trainorder.rl.pieces.prompts import prompt_population, prompt_templates, template_format
from trainorder.rl.pieces.replay import (
    critical,
    highest_spread,
    regenerate,
    self_imitation,
    self_imitation_buffer,
    self_imitation_credit,
)
from trainorder.rl.pieces.steps import expert_steps, step_similarity
from trainorder.rl.registry import TERMS, Entry
from trainorder.rl.step import layer_factors
from trainorder.rl.types import Live, Roll, State
from trainorder.rollout import Request
from trainorder.tasks.base import Problem
from trainorder.tasks.transforms import steps_of

STATE = State(total=9)
PROBLEM = Problem("sums/1", "sums", "1 + 1 = ?", "2", "2")


SPANS = ("char_start", "char_end")


class Asked:
    """Answers all requests with 0 and notes them."""

    def __init__(self, *facts: str) -> None:
        self.seen: list[Request] = []
        self.facts = facts
        self.source = ""

    def requests(self, counts: Mapping[str, int]) -> list[Request]:
        return [
            Request(replace(PROBLEM, task=task), samples=4)
            for task, count in counts.items()
            for _ in range(count)
        ]

    def sample(self, requests: Sequence[Request]) -> Roll:
        self.seen += requests
        rows = [request for request in requests for _ in range(request.samples)]
        groups = [
            100 + i if request.group is None else request.group for i, request in enumerate(rows)
        ]
        lengths = [max(1, len(request.prefix_ids)) for request in rows]
        roll = make_roll([0.0] * len(rows), group=groups, lengths=lengths)
        for name in self.facts:
            roll.token_facts[name] = torch.zeros_like(roll.response_ids)
        names = dict.fromkeys(name for request in rows for name in request.facts)
        for name in names:
            values = [request.facts.get(name, math.nan) for request in rows]
            roll.row_facts[f"asked/{name}"] = torch.tensor(values, dtype=torch.float64)
        return roll

    def given(self, requests: Sequence[Request], texts: object, source: str) -> Roll:
        self.source = source
        roll = self.sample([replace(request, samples=1) for request in requests])
        number = {"expert": 1.0, "replay": 2.0}[source]
        roll.row_facts["source"] = torch.full_like(roll.rewards, number)
        return roll


def test_a_fifth_of_the_rows_are_experts_on_fresh_problems_of_the_same_tasks():
    asked = Asked()
    roll = make_roll([1, 0] * 8, group=[i // 4 for i in range(16)], tasks=["a"] * 12 + ["b"] * 4)
    joined = expert_rows(roll, STATE, asked)
    assert [request.problem.task for request in asked.seen if request.problem] == ["a"] * 3 + ["b"]
    assert joined.is_from("expert").tolist() == [False] * 16 + [True] * 4
    credit = dr_grpo(joined, STATE)
    assert torch.equal(credit[:16], dr_grpo(roll, STATE))
    assert (credit[16:] == 0).all()
    assert expert_rows(roll, STATE, asked, share=0.0) is roll
    with pytest.raises(ParamsError, match=r"not in \[0, 1\)"):
        expert_rows(roll, STATE, asked, share=1.0)


def test_an_expert_without_a_gold_text_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(globals(), "PROBLEM", replace(PROBLEM, gold=""))
    with pytest.raises(ParamsError, match="sums/1 has no gold text"):
        expert_rows(make_roll([1, 0, 0, 0]), STATE, Asked())


@pytest.mark.parametrize(
    ("p", "token_weight", "loss", "slope"),
    [
        (0.5, "one", math.log(2), -1.0),
        (0.5, "phi", 0.1733, -0.25),
        (0.9, "phi", 0.00948, -0.09),
        (0.5, "p", 0.3466, -0.5),
    ],
)
def test_chord_phi_weighs_tokens_by_p_times_one_minus_p(p, token_weight, loss, slope):
    logps = torch.tensor([[math.log(p)]], dtype=torch.float64, requires_grad=True)
    losses = nll(Live(logps), make_roll([0.0]), STATE, token_weight=token_weight)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    assert losses.item() == pytest.approx(loss, abs=1e-4)
    assert gradient.item() == pytest.approx(slope)


def test_chord_mus_coefficients_add_up_to_one_at_every_step():
    mu = Schedule(shape="cosine", start=0.9, end=0.05, steps=200)
    rest = Schedule(shape="cosine", start=0.1, end=0.95, steps=200)
    assert mu.at(100, 600) == pytest.approx(0.475)
    assert all(mu.at(t, 600) + rest.at(t, 600) == pytest.approx(1.0) for t in range(0, 300, 20))


def test_drop_recovery_and_decline_are_found_on_a_curve():
    curve = [0.70, 0.55, 0.60, 0.72, 0.74, 0.73, 0.69]
    state, logged = State(total=9), {}
    for value in curve:
        logged = shift_readapt_overfit(make_roll([value, value]), state)
    assert logged["shift_depth"] == pytest.approx(0.15)
    assert (logged["shift_trough"], logged["readapted"], logged["peak"]) == (1, 3, 4)
    assert logged["overfit"] == 1.0
    assert phases_of(curve[:6])["overfit"] == 0.0  # .73 is within .02 of .74
    assert phases_of(curve[:3])["readapted"] == -1
    assert phases_of([0.5, 0.6])["shift_depth"] == 0


def test_a_step_of_the_experts_solution_is_asked_behind_those_before_it():
    gold = "<think> 3 + 4 = 7; 7 - 2 = 5; done </think> <answer> 5 </answer>"
    problem = replace(PROBLEM, gold=gold)
    asked = expert_steps([Request(problem, samples=4)] * 40, State(total=9))
    steps = ["3 + 4 = 7;", "7 - 2 = 5;", "done", "5"]
    seen = set()
    for request in asked:
        k = int(request.facts["step"])
        assert request.problem is not None
        assert request.problem.meta["expert_step"] == steps[k - 1]
        assert request.prompt == "\n".join([PROBLEM.prompt, *steps[: k - 1]])
        seen.add(k)
    assert seen == {1, 2, 3}
    again = expert_steps([Request(problem, samples=4)] * 40, State(total=9))
    assert [r.prompt for r in asked] == [r.prompt for r in again]
    (whole,) = expert_steps([Request(PROBLEM)], STATE)
    assert whole.problem is not None
    assert (whole.prompt, whole.problem.meta["expert_step"]) == (PROBLEM.prompt, "2")


def test_a_separator_may_span_lines():
    gold = "<think>a\nb\n\nc</think> <answer>5</answer>"
    assert steps_of(gold, re.compile(r"\n\n")) == ["a\nb", "c", "5"]


def test_a_step_earns_the_share_of_it_that_matches_and_minus_one_without_a_thought():
    told = replace(PROBLEM, meta={"expert_step": "a b c d"})
    roll = make_roll([0.0] * 4)
    texts = ["<think> x </think> a b x d", "a b c d", "x </think> a b c d", "x</think> 2"]
    roll = replace(roll, text=texts, problem=[told, told, told, PROBLEM])
    assert step_similarity(roll, STATE, unit="words").tolist() == [0.75, -1, 1, 1]
    assert step_similarity(roll, STATE)[0].item() == pytest.approx(0.857, abs=1e-3)
    free = step_similarity(roll, STATE, unit="words", thought=False)
    assert free.tolist() == [0.75, 1, 1, 1]


def test_one_template_is_drawn_per_visit_and_says_which_tags_it_wants():
    templates = ["{prompt}", "{prompt} <think> <answer> </answer> </think>"]
    asked = prompt_templates(
        [Request(PROBLEM, samples=8)] * 50, State(total=9), templates=templates
    )
    drawn = [int(request.facts["template"]) for request in asked]
    assert 10 < sum(drawn) < 40
    tagged = asked[drawn.index(1)]
    assert tagged.problem is not None
    assert tagged.prompt == f"{PROBLEM.prompt} <think> <answer> </answer> </think>"
    texts = ["<think> x <answer> 2 </answer>", "x"]
    roll = replace(make_roll([1, 0]), text=texts, problem=[tagged.problem, PROBLEM])
    assert template_format(roll, STATE).tolist() == [0.75, 1.0]  # 3 of 4 tags; no tags asked


def test_a_population_of_prompts_is_one_group_of_the_same_problem():
    texts = ["{prompt}", "Think. {prompt}"]
    state = State(total=9)
    asked = prompt_population([Request(PROBLEM, samples=4)] * 2, state, texts=texts)
    assert [request.prompt for request in asked] == [PROBLEM.prompt, f"Think. {PROBLEM.prompt}"] * 2
    assert [request.samples for request in asked] == [2] * 4
    assert [request.group for request in asked] == [-1, -1, -2, -2]
    (more, _) = prompt_population([Request(PROBLEM, samples=4)], state, texts=texts)
    assert more.group == -3
    # text A [1, 0], text B [1, 1]: the mean is of all four
    credit = dr_grpo(make_roll([1, 0, 1, 1], group=[-1] * 4), STATE)
    assert credit.tolist() == [0.25, -0.75, 0.25, 0.25]
    with pytest.raises(ParamsError, match="multiple of 2"):
        prompt_population([Request(PROBLEM, samples=3)], STATE, texts=texts)


def test_good_answers_return_with_credit_against_the_median_of_past_means():
    state, asked = State(total=9), Asked()
    # group means .2, .4, .8
    rewards = [1, 0, 0, 0, 0, 1, 0.6, 0, 0, 0.4, 1, 0.6, 1, 0.4, 1]
    roll = make_roll(rewards, group=[i // 5 for i in range(15)], lengths=[2] * 15)
    roll.token_facts["old_logps"] = torch.arange(30.0).double().view(15, 2)
    joined = self_imitation(roll, state, asked, size=6)
    assert asked.source == "replay"
    replayed = joined.is_from("replay")
    # of the seven rows above their group's mean those at .4 or below are out; A = r - .4
    expected = [0.6, 0.6, 0.2, 0.6, 0.6, 0.6]
    assert joined.asked("self_imitation")[replayed].tolist() == pytest.approx(expected)
    assert joined.old_logps[replayed].tolist() == roll.old_logps[[0, 5, 6, 10, 12, 14]].tolist()
    assert state.mem["self_imitation"] == []
    credit = self_imitation_credit(replace(joined, advantages=joined.advantages + 7), state)
    assert credit[~replayed].tolist() == [[7, 7]] * 15
    assert credit[replayed][:, 0].tolist() == pytest.approx(expected)


def test_what_is_kept_for_replay_survives_saving_and_ages_out():
    state, asked = State(total=9), Asked()
    roll = make_roll([1, 0], lengths=[3, 2])
    assert self_imitation(roll, state, asked, size=2, max_age=2) is roll
    assert self_imitation_buffer(roll, state) == {"replay_kept": 1.0, "replay_share": 0.0}
    resumed = State.from_state_dict(state.state_dict(), state.tensors)
    for each in (state, resumed):
        each.step = 2
        joined = self_imitation(roll, each, asked, size=2, max_age=2)
        assert joined.row_facts["age"][2:].tolist() == [2, 0]
    assert asked.seen[0] == asked.seen[2]
    assert asked.seen[0].prefix_ids == [1, 1, 1]
    for step in (3, 6):  # the row of step 3 is too old at step 6
        state.step = step
        assert self_imitation(roll, state, asked, size=2, max_age=2) is roll
    assert self_imitation_buffer(roll, state)["replay_kept"] == 1


def test_a_buffer_too_large_to_be_filled_is_warned_of_once(capsys):
    state = State(total=9)
    for step in range(6):
        state.step = step
        self_imitation(make_roll([1, 0]), state, Asked(), size=9, max_age=3)
    said = capsys.readouterr().out
    assert said.count("4 rows were kept in 3 steps, and nothing is replayed below size 9") == 1


def test_the_groups_of_largest_spread_are_kept():
    roll = make_roll([1, 0, 1, 1, 0.5, 0, 0, 0.2], group=[0, 0, 1, 1, 2, 2, 3, 3])
    assert highest_spread(roll, STATE, None).group.tolist() == [0, 0, 2, 2, 3, 3]
    assert highest_spread(roll, STATE, None, share=0.01).group.tolist() == [0, 0]
    lone = make_roll([1, None, 0.5, 0.4], group=[0, 0, 1, 1])
    assert highest_spread(lone, STATE, None, share=0.5).group.tolist() == [1, 1]


def four_tokens() -> Roll:
    """One answer `aa b cc dd`; its second piece is one character."""
    roll = make_roll([0.0], lengths=[4], text=["aa b cc dd"])
    places = torch.tensor([[0, 2, 4, 7, 10]])
    roll.token_facts["char_start"], roll.token_facts["char_end"] = places[:, :-1], places[:, 1:]
    roll.token_facts["entropy"] = torch.tensor([[0.1, 2.0, 0.3, 1.5]], dtype=torch.float64)
    return roll


def test_answers_are_regenerated_from_before_a_token_of_high_entropy():
    roll, asked = four_tokens(), Asked(*SPANS)
    assert critical(roll, 0, 2) == [3, 2]  # the piece of one character is no candidate
    joined = regenerate(roll, STATE, asked, candidates=1)
    (request,) = asked.seen
    assert list(request.prefix_ids) == roll.response_ids[0, :3].tolist()
    assert (request.samples, request.group, request.max_new_tokens) == (3, 0, 8)
    assert not request.train_prefix
    assert joined.group.tolist() == [0, 0, 0, 0]
    cuts = set()
    for step in range(20):
        again = Asked(*SPANS)
        regenerate(roll, State(total=400, step=step), again, candidates=2)
        cuts.add(len(again.seen[0].prefix_ids))
    assert cuts == {2, 3}
    assert regenerate(roll, State(total=400, step=300), asked) is roll


def test_four_answers_and_three_more_from_each_are_a_group_of_sixteen():
    row = four_tokens()
    joined = regenerate(Roll.cat([row] * 4), STATE, Asked(*SPANS))
    assert len(joined) == 16
    assert re.fullmatch("0{16}", "".join(map(str, joined.group.tolist())))


def test_factors_per_layer_scale_the_gradient_of_one_term_only():
    model = tiny_llama(layers=3).double()
    names = [name for name, _ in model.named_parameters()]
    roll = off_policy_roll(model)

    def gradients(*terms: Any) -> dict[str, torch.Tensor]:
        config = MethodConfig(advantage=["dr_grpo"], terms=list(terms))
        return dict(zip(names, gradient(model, roll, config)[1], strict=True))

    nll_of = {"source": "expert", "coef": 0.5}
    policy = gradients({"clipped_surrogate": {"source": "policy"}})
    expert = gradients({"nll": nll_of})
    both = gradients(
        {"clipped_surrogate": {"source": "policy"}}, {"nll": {**nll_of, "layers": [0.0, 2.0]}}
    )
    factors = layer_factors(names, [0.0, 2.0])
    assert sorted(set(factors.values())) == [0.0, 1.0, 2.0]
    assert factors["model.layers.1.self_attn.q_proj.weight"] == 1.0
    assert factors["model.embed_tokens.weight"] == 0.0
    assert factors["model.norm.weight"] == 2.0
    for name in names:
        torch.testing.assert_close(both[name], policy[name] + factors[name] * expert[name])
    assert float(expert["model.norm.weight"].abs().max()) > 0


def test_a_pass_per_layer_computes_what_its_own_terms_need_and_means_stay_means(monkeypatch):
    def bare(live: Live, roll: Roll, state: State) -> torch.Tensor:
        assert not live.facts
        return -live.logps

    monkeypatch.setitem(TERMS, "bare", Entry("terms", "bare", bare))
    model = tiny_llama().double()
    roll = off_policy_roll(model)

    def logged(**options: Any) -> dict[str, float]:
        bonus = {"entropy_bonus": {"coef": 0.1, "layers": [1.0, 1.0]}}
        terms: list[Any] = ["bare"] if not options else [{"bare": options}, bonus]
        return gradient(model, roll, MethodConfig(terms=terms))[0]

    one, two = logged(), logged(layers=[1.0, 1.0])
    for name in ("kl_old", "mismatch_mean", "mismatch_max"):
        assert two[name] == pytest.approx(one[name])
    # the tokens of expert rows do not thin the mean out: as if there were no such rows
    alone = roll.rows(roll.is_from("policy").nonzero().flatten().tolist())
    own = gradient(model, alone, MethodConfig(terms=["bare"]))[0]
    assert one["kl_old"] == pytest.approx(own["kl_old"])
