"""The entropy of attention, against the model's own attention matrices, and the weight that reads it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rl_small import make_roll, tiny_llama

from trainorder.reading import ParamsError
from trainorder.rl import facts
from trainorder.rl.attention import attention_entropy
from trainorder.rl.pieces.attention import attention_ranks
from trainorder.rl.types import State


@pytest.mark.parametrize(("depth", "layer"), [(0.0, 0), (0.67, 1), (1.0, 1)])
def test_it_is_that_of_the_models_own_attention(depth: float, layer: int):
    model = tiny_llama()
    roll = make_roll([1, 0], lengths=[4, 2])
    ids = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])
    roll = replace(roll, response_ids=ids, prompt_ids=[[1, 2, 3], [4]])
    found = attention_entropy(model, roll, depth)
    model.set_attn_implementation("eager")
    for row, (prompt, length) in enumerate(zip(roll.prompt_ids, (4, 2), strict=True)):
        whole = torch.tensor([[*prompt, *ids[row, :length].tolist()]])
        with torch.no_grad():
            probs = model(whole, output_attentions=True).attentions[layer][0].mean(0)
        for place in range(length):
            at = len(prompt) + place
            expected = torch.special.entr(probs[at, : at + 1]).sum() / math.log(at + 1)
            assert float(found[row, place]) == pytest.approx(float(expected), abs=1e-5)
    assert found[1, 2:].tolist() == [0, 0]


def test_anchors_weigh_more_at_first_and_explorers_later():
    roll = make_roll([1.0], lengths=[4])
    values = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)
    roll.token_facts["attention_entropy:0.67"] = values
    first = attention_ranks(roll, State(total=11))
    last = attention_ranks(roll, State(total=11, step=10))
    assert first[0].tolist() == pytest.approx([1.25, 0.5, 1, 0.75])
    assert last[0].tolist() == pytest.approx([0.75, 1.5, 1, 1.25])


def test_a_depth_outside_of_the_stack_is_refused():
    with pytest.raises(ParamsError, match=r"'attention_entropy:1.5'.* takes a depth from 0"):
        facts.check(["attention_entropy:1.5"], ())
