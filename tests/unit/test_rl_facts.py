"""What pieces may need: by hand, in chunks, with gradients; and where tokens stand in a text."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import foreign_model
import pytest
import torch
from rl_small import exact, make_roll, tiny_llama

from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.rl import facts
from trainorder.rl.facts import HEAD_FACTS
from trainorder.rl.forward import forward
from trainorder.rl.spans import char_spans, spans_of
from trainorder.rl.types import Roll

ARGUMENTS = {"nucleus_entropy": ":0.8", "top_logps": ":3", "capped_forward_kl": ":0.05"}
NEEDS = [
    name + (":reference" if fact.other_model else "") + ARGUMENTS.get(name, "")
    for name, fact in HEAD_FACTS.items()
]


def of(need: str, p: list[float], *other: list[float]) -> list[float]:
    """The fact of one distribution."""
    logits = [torch.tensor([q], dtype=torch.float64).log() for q in (p, *other)]
    value = facts.of_head(need)(logits[0], torch.tensor([0]), *logits[1:])
    return value.flatten().tolist()


@pytest.mark.parametrize(
    ("need", "p", "expected"),
    [
        ("entropy", [0.5, 0.5], math.log(2)),
        ("collision", [0.5, 0.3, 0.2], 0.38),
        ("varentropy", [0.5, 0.5], 0.0),
        ("varentropy", [0.9, 0.1], 0.9 * 0.1 * math.log(9) ** 2),
        # H + ln p = .1 ln 9 and -.9 ln 9
        ("expected_discriminator", [0.9, 0.1], (0.81 * 0.1 - 0.01 * 0.9) * math.log(9)),
        ("nucleus_entropy:0.8", [0.5, 0.3, 0.15, 0.05], 0.661563),  # of 5/8 and 3/8
        ("nucleus_entropy:0.8", [0.9, 0.1], 0.0),
        ("nucleus_entropy:1", [0.5, 0.5], math.log(2)),
    ],
)
def test_facts_of_small_distributions_by_hand(need: str, p: list[float], expected: float):
    assert of(need, p) == pytest.approx([expected], abs=1e-6)


def test_divergences_and_top_log_probabilities_by_hand():
    policy, teacher = [0.5, 0.5], [0.9, 0.1]
    assert of("reverse_kl:reference", policy, teacher) == pytest.approx([0.510826], abs=1e-6)
    assert of("forward_kl:reference", policy, teacher) == pytest.approx([0.368064], abs=1e-6)
    # of (.7, .3): (KL(.5, .5 || .7, .3) + KL(.9, .1 || .7, .3)) / 2
    assert of("jensen_shannon:reference", policy, teacher) == pytest.approx([0.101749], abs=1e-6)
    assert of("top_logps:2", [0.2, 0.5, 0.3]) == pytest.approx([math.log(0.5), math.log(0.3)])


def some_rows() -> Roll:
    """Three rows of two prompts, sampled at different temperatures."""
    roll = make_roll([0.0] * 3, group=[0, 0, 1], lengths=[4, 2, 5])
    ids = torch.randint(0, 23, roll.loss_mask.shape, generator=torch.Generator().manual_seed(1))
    prompts, warm = [[3, 4], [3, 4], [5, 6, 7]], torch.tensor([1.0, 0.7, 1.3]).double()
    return replace(roll, response_ids=ids, prompt_ids=prompts, row_facts={"temperature": warm})


@pytest.mark.parametrize("need", NEEDS)
def test_a_fact_is_that_of_the_models_own_logits_in_any_chunks(need: str):
    model, other, roll = exact(tiny_llama()), exact(tiny_llama(seed=1)), some_rows()
    models = {"reference": other}
    live = forward(model, roll, {need}, models)
    for row, length in enumerate([4, 2, 5]):
        prompt, answer = roll.prompt_ids[row], roll.response_ids[row, :length]
        ids = torch.tensor([prompt + answer.tolist()])
        logits = [
            m(ids).logits[0, len(prompt) - 1 : -1] / roll.row_facts["temperature"][row]
            for m in (
                (model, other) if HEAD_FACTS[need.partition(":")[0]].other_model else (model,)
            )
        ]
        expected = facts.of_head(need)(logits[0], answer, *logits[1:])
        torch.testing.assert_close(live.facts[need][row, :length], expected)
        assert (live.facts[need][row, length:] == 0).all()
    whole = gradient(model, live.facts[need])
    chunked = forward(model, roll, {need}, models, chunk_entries=23 * 2)
    torch.testing.assert_close(chunked.facts[need], live.facts[need])
    torch.testing.assert_close(gradient(model, chunked.facts[need]), whole)
    assert whole.abs().max() > 1e-4
    assert all(p.grad is None for p in other.parameters())


def gradient(model: Any, values: torch.Tensor) -> torch.Tensor:
    grads = torch.autograd.grad(values.square().sum(), list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("need", NEEDS)
def test_facts_of_extreme_logits_are_finite_with_their_gradients(need: str):
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    other = [logits.detach().flip(1)] if ":reference" in need else []
    value = facts.of_head(need)(logits, torch.tensor([1, 1]), *other)
    (grad,) = torch.autograd.grad(value.clamp(min=-1e9, max=1e9).sum(), logits)
    assert value.isfinite().all()
    assert grad.isfinite().all()


def test_hidden_states_are_those_before_the_head():
    model, roll = exact(tiny_llama()), replace(some_rows(), row_facts={})
    live = forward(model, roll, {"hidden", "entropy"})
    logits = model.lm_head(live.facts["hidden"][2])
    table = logits.log_softmax(-1)
    logps = table.gather(1, roll.response_ids[2, :, None])[:, 0]
    torch.testing.assert_close(live.logps[2], logps)


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ("entropi", "needs 'entropi'; the engine knows .*did you mean 'entropy'"),
        ("entropy:2", "entropy takes no argument"),
        ("top_logps", "top_logps takes one argument, top_logps:ARGUMENT"),
        ("nucleus_entropy:high", "nucleus_entropy takes one argument"),
        ("forward_kl:teacher", "there is no model 'teacher'; there are ema, reference"),
    ],
)
def test_a_need_that_cannot_be_met_is_refused(need: str, message: str):
    with pytest.raises(ParamsError, match=message):
        facts.check({need}, ("reference", "ema"))


@pytest.fixture(scope="module")
def byte_policy() -> Policy:
    return Policy(tiny_llama(264), foreign_model.byte_tokenizer())


@pytest.mark.parametrize("text", ["plain", "Ünïcödé ok", "a😀b", "日本", "", " leading"])
def test_spans_of_bytes_cover_the_text_and_share_a_character(byte_policy: Policy, text: str):
    ids = byte_policy.encode_completion(text)
    spans = spans_of(byte_policy, ids)
    assert len(spans) == len(ids)
    assert "".join(text[a:b] for a, b in dict.fromkeys(spans)) == text
    at = 0
    for character in text:  # all bytes of a character have its span
        size = len(character.encode())
        assert len(set(spans[at : at + size])) == 1
        assert text[slice(*spans[at])] == character
        at += size


def test_spans_of_a_roll_are_padded_and_an_unfinished_character_is_shown_as_it_is(
    byte_policy: Policy,
):
    whole, cut = byte_policy.encode_completion("a日"), byte_policy.encode_completion("日")[:2]
    width = len(whole)
    ids = torch.tensor([whole, cut + [0] * (width - len(cut))])
    roll = replace(make_roll([0.0, 0.0], lengths=[width, len(cut)]), response_ids=ids)
    spans = char_spans(byte_policy, roll)
    assert spans["char_start"][0].tolist() == [0, 1, 1, 1, 2]
    assert spans["char_end"][0].tolist() == [1, 2, 2, 2, 2]
    length = len(byte_policy.decode(cut))
    assert spans["char_end"][1].tolist() == [length] * width
