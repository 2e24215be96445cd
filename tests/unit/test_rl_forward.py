"""The training forward against the model's own logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rl_small import make_roll, pad_more, tiny_llama

from trainorder.rl.forward import check_forward, forward, micro_batches
from trainorder.rl.types import Roll


def random_roll(lengths: list[int], *, vocab: int = 23, seed: int = 0) -> Roll:
    noise = torch.Generator().manual_seed(seed)
    roll = make_roll([0.0] * len(lengths), lengths=lengths)
    ids = torch.randint(0, vocab, roll.mask.shape, generator=noise)
    prompts = [
        [int(i) for i in torch.randint(0, vocab, (2 + n % 3,), generator=noise)] for n in lengths
    ]
    return replace(roll, ids=ids, prompt=prompts)


def by_hand(model, roll: Roll, row: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and entropy of one row, from the model's logits on that row alone."""
    answer = roll.ids[row, : int(roll.mask[row].sum())].tolist()
    prompt = roll.prompt[row]
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
    table = logits.log_softmax(-1)
    return table[range(len(answer)), answer], -(table.exp() * table).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_entries", [2**20, 23, 100])
def test_logps_and_entropies_are_those_of_each_row_alone(temperature, chunk_entries):
    model, roll = tiny_llama(), random_roll([4, 1, 6, 3])
    live = forward(model, roll, temperature=temperature, entropy=True, chunk_entries=chunk_entries)
    for row in range(4):
        logps, entropies = by_hand(model, roll, row, temperature)
        n = len(logps)
        torch.testing.assert_close(live.logp[row, :n], logps)
        torch.testing.assert_close(live.x["H"][row, :n], entropies)
        assert (live.logp[row, n:] == 0).all()


def test_chunks_of_the_head_leave_the_gradient_alone():
    roll, grads = random_roll([4, 1, 6, 3]), []
    for chunk_entries in (2**20, 50):
        model = tiny_llama().double()
        live = forward(model, roll, entropy=True, chunk_entries=chunk_entries)
        (live.logp.sum() + live.x["H"].square().sum()).backward()
        grads.append([p.grad for p in model.parameters()])
    for whole, chunked in zip(*grads, strict=True):
        torch.testing.assert_close(whole, chunked)


def test_the_head_never_sees_more_than_a_chunk():
    model, roll, seen = tiny_llama(), random_roll([4, 1, 6, 3]), []
    model.lm_head.register_forward_hook(lambda m, i, out: seen.append(out.shape[0]))
    forward(model, roll, chunk_entries=23 * 5)
    assert seen == [5, 5, 4]


def test_a_masked_token_inside_an_answer_is_read_but_not_scored():
    model, roll = tiny_llama(), random_roll([5])
    holed = replace(roll, mask=torch.tensor([[1.0, 0, 1, 1, 1]]))
    logps = forward(model, roll).logp[0]
    torch.testing.assert_close(forward(model, holed).logp[0], logps * holed.mask[0])


def test_padding_changes_no_log_probability():
    model, roll = tiny_llama().double(), random_roll([4, 1, 6])
    wide = forward(model, pad_more(roll, 5)).logp[:, :6]
    torch.testing.assert_close(wide, forward(model, roll).logp)


@pytest.mark.parametrize("kind", ["GPT2", "Gemma2", "Qwen2", "Granite"])
def test_other_model_families_work(kind):
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    sizes |= {"vocab_size": 23, "num_key_value_heads": 1, "intermediate_size": 24}
    if kind == "GPT2":
        sizes = {"vocab_size": 23, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1}
    extra = {"Granite": {"logits_scaling": 4.0}, "Gemma2": {"final_logit_softcapping": 0.01}}
    config = getattr(transformers, f"{kind}Config")(**sizes, **extra.get(kind, {}), pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM"))(
            config
        )
    model.eval()
    check_forward(model)
    roll = random_roll([4, 2])
    for row in range(2):
        logps, _ = by_hand(model, roll, row, 1.0)
        torch.testing.assert_close(forward(model, roll).logp[row, : len(logps)], logps)


def test_a_head_that_is_more_than_a_matrix_is_refused():
    model = tiny_llama()
    model.register_forward_hook(
        lambda m, i, out: type(out)(**{**out, "logits": out.logits + torch.arange(23.0)})
    )
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM computes its logits in a way .* does not know"
    ):
        check_forward(model)


def test_micro_batches_hold_every_learning_row_once_within_the_budget():
    roll = random_roll([5, 1, 7, 2, 2, 6])
    roll.mask[3] = 0
    sizes = [len(p) + int(n) for p, n in zip(roll.prompt, roll.lengths(), strict=True)]
    cuts = list(micro_batches(roll, 16))
    assert sorted(i for cut in cuts for i in cut) == [0, 1, 2, 4, 5]
    for cut in cuts:
        assert len(cut) == 1 or len(cut) * max(sizes[i] for i in cut) <= 16
    assert list(micro_batches(roll, 1000)) == [sorted([0, 1, 2, 4, 5], key=lambda i: (sizes[i], i))]
    assert len(list(micro_batches(roll, 1))) == 5
