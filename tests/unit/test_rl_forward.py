"""The training forward against the model's own logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_small import exact, make_roll, pad_more, tiny_llama
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainorder import likelihood, llama, prefix
from trainorder.config import RlConfig, TrainingConfig
from trainorder.rl.backend import LocalBackend
from trainorder.rl.forward import forward
from trainorder.rl.head import check_forward, check_head, chunk_entries_of
from trainorder.rl.packing import micro_batches
from trainorder.rl.states import flatten, shares_prompts
from trainorder.rl.types import Roll
from trainorder.rollout.torch_engine import max_rows_on

COMPILED = pytest.param("prefix compiled", marks=pytest.mark.long("torch.compile takes seconds"))


@pytest.fixture(
    params=["kernels", "prefix", "prefix sdpa", "prefix many scores", COMPILED, "padded"]
)
def way(request, monkeypatch):
    """Each of the ways through a model; they must not differ."""
    if request.param == "kernels":
        assert llama.kernels_for(tiny_llama()) is not None, llama.kernels.load()[1]
    else:
        monkeypatch.setattr(llama.kernels, "load", lambda: (None, "off"))
    if request.param == "padded":
        monkeypatch.setattr(prefix, "_tried", lambda model: False)
    if request.param == "prefix sdpa":
        monkeypatch.setattr(prefix, "_way", "sdpa")
    if request.param == "prefix compiled":
        monkeypatch.setattr(likelihood, "_way", "compiled")
    if request.param == "prefix many scores":
        monkeypatch.setattr(prefix, "MAX_SCORES", 20)
    return request.param


def random_roll(lengths: list[int], *, vocab: int = 23, seed: int = 0) -> Roll:
    noise = torch.Generator().manual_seed(seed)
    roll = make_roll([0.0] * len(lengths), lengths=lengths)
    ids = torch.randint(0, vocab, roll.loss_mask.shape, generator=noise)
    prompts = [
        [int(i) for i in torch.randint(0, vocab, (2 + n % 3,), generator=noise)] for n in lengths
    ]
    return replace(roll, response_ids=ids, prompt_ids=prompts)


def by_hand(model, roll: Roll, row: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and entropy of one row, from the model's logits on that row alone."""
    answer = roll.response_ids[row, : int(roll.loss_mask[row].sum())].tolist()
    prompt = roll.prompt_ids[row]
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
    table = logits.log_softmax(-1)
    return table[range(len(answer)), answer], -(table.exp() * table).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_entries", [2**20, 23, 100])
def test_logps_and_entropies_are_those_of_each_row_alone(temperature, chunk_entries, way):
    model, roll = tiny_llama(), random_roll([4, 1, 6, 3])
    warm = {"temperature": torch.full((4,), temperature)}
    live = forward(model, replace(roll, row_facts=warm), {"entropy"}, chunk_entries=chunk_entries)
    for row in range(4):
        logps, entropies = by_hand(model, roll, row, temperature)
        n = len(logps)
        torch.testing.assert_close(live.logps[row, :n], logps)
        torch.testing.assert_close(live.entropy[row, :n], entropies)
        assert (live.logps[row, n:] == 0).all()


def gradients(model, roll: Roll, rows: list[list[int]], **options) -> list[torch.Tensor]:
    """Gradient of a loss over log p and entropy of every token, from the given micro-batches."""
    for cut in rows:
        part = roll.rows(cut)
        live = forward(model, part, needs={"entropy"}, **options)
        (
            (live.logps * (1 + part.advantages)).sum()
            + (live.entropy.square() * part.loss_mask).sum()
        ).backward()
    found = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


def shared_roll() -> Roll:
    """Three prompts with 3, 2 and 1 rows of uneven lengths, mixed up, with an uneven advantage."""
    roll = random_roll([4, 1, 6, 3, 5, 2])
    prompts = [[3, 4], [5, 6, 7], [3, 4], [8], [5, 6, 7], [3, 4]]
    noise = torch.Generator().manual_seed(1)
    a = torch.randn(roll.loss_mask.shape, generator=noise, dtype=torch.float64) * roll.loss_mask
    return replace(roll, prompt_ids=prompts, group=torch.tensor([0, 1, 0, 2, 1, 0]), advantages=a)


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "GPTNeoX", "GPT2"])
def test_gradients_do_not_depend_on_micro_batches_padding_order_or_chunks(kind):
    model, roll = exact(random_model(kind)), shared_roll()
    whole = gradients(model, roll, [list(range(6))])
    order = [4, 2, 0, 5, 3, 1]
    variants = {
        "one row each": gradients(model, roll, [[i] for i in range(6)]),
        "a budget": gradients(model, roll, micro_batches(roll, 9)),
        "another order": gradients(model, roll, [order]),
        "padding": gradients(model, pad_more(roll, 5, junk=0.0), [list(range(6))]),
        "chunks": gradients(model, roll, [list(range(6))], chunk_entries=50),
    }
    for name, found in variants.items():
        for ours, theirs in zip(found, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=name)


def test_gradients_are_those_of_the_model_on_each_row_alone(way):
    model, roll = tiny_llama(), shared_roll()
    model = model if way == "kernels" else exact(model)
    found = gradients(model, roll, [list(range(6))])
    for row in range(6):
        logps, entropies = by_hand(model, roll, row, 1.0)
        a = roll.advantages[row, : len(logps)].to(logps.dtype)
        ((logps * (1 + a)).sum() + entropies.square().sum()).backward()
    tolerance = 1e-4 if way == "kernels" else 1e-10
    for ours, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=tolerance, atol=tolerance)


def test_grouped_queries_take_the_kernels_and_agree():
    model, roll = random_model("Llama"), shared_roll()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert llama.kernels_for(model) is not None
    ours = gradients(model, roll, [list(range(6))], chunk_entries=70)
    theirs = gradients(model.double(), roll, [list(range(6))])
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.double(), their, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_rows_attend_by_a_fused_kernel_that_holds_no_scores(monkeypatch, kv_heads):
    monkeypatch.setattr(prefix, "_way", "sdpa")
    layout = prefix.Layout.of([3, 2], [2, 1, 2], [0, 0, 1])
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 10, 8, generator=noise) for n in (4, kv_heads, kv_heads))
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):  # no other kernel is allowed
        fused = layout.attend(0, q, k, v)
    monkeypatch.setattr(prefix, "_way", "products")
    torch.testing.assert_close(fused, layout.attend(0, q, k, v))


def test_query_heads_that_share_keys_share_their_cache():
    real, noise = torch.ones(2, 3, dtype=torch.bool), torch.Generator().manual_seed(0)
    grouped, plain = prefix.PrefixCache(real, 2, 4), prefix.PrefixCache(real, 2, 4)
    for step, tokens in enumerate((6, 4, 4)):
        q, k, v = (torch.randn(n, tokens, 8, generator=noise) for n in (4, 2, 2))
        repeated = (x.repeat_interleave(2, 0) for x in (k, v))
        both = grouped.attend(0, q, k, v), plain.attend(0, q, *repeated)
        torch.testing.assert_close(*both)
        for cache in (grouped, plain):
            cache.advance() if step else cache.start_rows()
    assert [t.shape[0] for t in (*grouped.prefix[0], *grouped.own[0])] == [2, 2, 2, 2]


@pytest.mark.parametrize(("vocabulary", "tokens"), [(23, 91180), (49152, 256), (151936, 256)])
def test_a_large_vocabulary_is_not_worked_a_few_tokens_at_a_time(vocabulary, tokens):
    with torch.device("meta"):
        model = tiny_llama(vocabulary)
    chunk = chunk_entries_of(model, torch.device("cpu"))
    assert chunk // vocabulary == tokens


def test_the_head_never_sees_more_than_a_chunk():
    model, roll, seen = tiny_llama().double(), random_roll([4, 1, 6, 3]), []
    assert prefix.shares_prefixes(model, 100)
    model.lm_head.register_forward_hook(lambda m, i, out: seen.append(out.shape[0]))
    forward(model, roll, chunk_entries=23 * 5)
    assert seen == [5, 5, 4]


def test_a_masked_token_inside_an_answer_is_read_but_not_scored():
    model, roll = tiny_llama(), random_roll([5])
    holed = replace(roll, loss_mask=torch.tensor([[1.0, 0, 1, 1, 1]]))
    logps = forward(model, roll).logps[0]
    torch.testing.assert_close(forward(model, holed).logps[0], logps * holed.loss_mask[0])


def test_padding_changes_no_log_probability():
    model, roll = tiny_llama().double(), random_roll([4, 1, 6])
    wide = forward(model, pad_more(roll, 5)).logps[:, :6]
    torch.testing.assert_close(wide, forward(model, roll).logps)


def random_model(kind: str):
    """A small random model of a family, with few key/value heads where it knows them."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    sizes |= {"vocab_size": 23, "num_key_value_heads": 1, "intermediate_size": 24}
    if kind == "GPT2":
        sizes = {"vocab_size": 23, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1}
    extra = {"Granite": {"logits_scaling": 4.0}, "Gemma2": {"final_logit_softcapping": 0.01}}
    config = getattr(transformers, f"{kind}Config")(**sizes, **extra.get(kind, {}), pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
        return getattr(transformers, name)(config).eval()


SHARING = {"GPT2", "Qwen2", "Qwen3", "GPTNeoX", "Granite", "Mistral"}


@pytest.mark.parametrize("kind", sorted(SHARING | {"Gemma2"}))
def test_other_model_families_work(kind):
    model = random_model(kind)
    check_forward(model)
    assert prefix.shares_prefixes(model, 100) == (kind in SHARING)
    roll = shared_roll()
    for row in range(6):
        logps, _ = by_hand(model, roll, row, 1.0)
        torch.testing.assert_close(
            forward(model, roll).logps[row, : len(logps)], logps, atol=1e-4, rtol=1e-4
        )


def test_a_sliding_window_is_kept_by_not_sharing_prompts_of_longer_sequences():
    model, roll = random_model("Mistral"), shared_roll()
    model.config.sliding_window = 6
    assert prefix.shares_prefixes(model, 6)
    assert not prefix.shares_prefixes(model, 7)
    logps, _ = by_hand(model, roll, 2, 1.0)
    torch.testing.assert_close(forward(model, roll).logps[2, : len(logps)], logps)


def test_a_head_that_is_more_than_a_matrix_is_refused():
    model = tiny_llama()
    model.register_forward_hook(
        lambda m, i, out: type(out)(**{**out, "logits": out.logits + torch.arange(23.0)})
    )
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM computes its logits in a way .* does not know"
    ):
        check_forward(model)


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "GPTNeoX", "Granite", "Gemma2", "Cohere"])
def test_heads_are_known_without_weights(kind):
    model = random_model(kind).to("meta")
    check_head(model)
    assert model.get_output_embeddings().weight.device.type == "meta"
    model.register_forward_hook(
        lambda m, i, out: type(out)(**{**out, "logits": out.logits + torch.arange(8.0)})
    )
    with pytest.raises(ValueError, match=f"{kind}.* computes its logits in a way"):
        check_head(model)


def padded_tokens(roll: Roll) -> int:
    """What attention holds of a micro-batch: every prompt as long as the longest, with as many rows as any has."""
    layout = flatten(roll).layout(torch.device("cpu"))
    return layout.groups * (layout.width + layout.rows * layout.length)


def roll_of(shapes: list[tuple[int, list[int]]]) -> Roll:
    """Groups given by the length of their prompt and of their rows."""
    rows = [(g, prompt, n) for g, (prompt, lengths) in enumerate(shapes) for n in lengths]
    roll = make_roll(
        [0.0] * len(rows), group=[g for g, _, _ in rows], lengths=[n for _, _, n in rows]
    )
    return replace(roll, prompt_ids=[[g] * prompt for g, prompt, _ in rows])


def test_a_long_row_is_not_put_beside_many_short_ones():
    # one row of 4,096 tokens beside sixteen of 256 makes a grid of 16 times as many tokens
    roll = roll_of([(5, [4096]), *[(5, [256])] * 16])
    assert padded_tokens(roll) > 69_000
    cuts = micro_batches(roll, 16_384)
    assert all(padded_tokens(roll.rows(cut)) <= 16_384 for cut in cuts)
    assert len(cuts) == 2


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 40), min_size=1, max_size=6)),
        min_size=1,
        max_size=8,
    ),
    budget=st.integers(1, 400),
    shared=st.booleans(),
)
def test_micro_batches_hold_every_learning_row_once_and_no_more_than_the_budget(
    shapes: list[tuple[int, list[int]]], budget: int, shared: bool
):
    roll = roll_of(shapes)
    lengths = roll.lengths().tolist()
    cuts = micro_batches(roll, budget, shared=shared)
    assert sorted(i for cut in cuts for i in cut) == [i for i, n in enumerate(lengths) if n]
    for cut in cuts:
        longest = max(lengths[i] - 1 for i in cut) + max(len(roll.prompt_ids[i]) for i in cut)
        held = padded_tokens(roll.rows(cut)) if shared else len(cut) * longest
        assert len(cut) == 1 or held <= budget


def test_rows_of_a_prompt_stay_together_as_far_as_they_fit():
    roll = roll_of([(3, [4, 4, 4]), (3, [4, 4, 4])])  # 3 + 3 * 3 tokens each
    assert micro_batches(roll, 24) == [[0, 1, 2, 3, 4, 5]]
    assert micro_batches(roll, 23) == [[0, 1, 2], [3, 4, 5]]
    assert micro_batches(roll, 11) == [[2], [5], [0, 1], [3, 4]]


def test_a_model_that_pads_whole_rows_computes_no_more_than_the_budget():
    model, seen = random_model("Gemma2"), list[int]()
    roll = replace(random_roll([9, 2, 2, 2, 2, 7]), prompt_ids=[[3, 4, 5, 6, 7, 8]] * 6)
    assert not shares_prompts(model, roll)
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    for cut in micro_batches(roll, 30, shared=False):
        forward(model, roll.rows(cut))
    assert max(seen) <= 30
    assert len(seen) == 2


def test_the_work_of_a_wide_model_is_cut_so_that_two_threads_have_some_and_a_small_ones_is_not():
    roll = roll_of([(64, [48] * 8)] * 8)  # less than the usual budget of 4,096 tokens
    for width, pieces, batches in ((512, 4, 2), (16, 1, 1)):
        model = tiny_llama(layers=1, width=width)
        assert llama.kernels_for(model) is not None
        cuts = LocalBackend(model, RlConfig(), TrainingConfig()).micro_batches(roll, 4096)
        assert [len(cut) for cut in cuts] == [64 // pieces] * pieces
        assert max_rows_on("cpu", model) == 64 // batches
        assert max_rows_on("cuda", model) == 256


def test_micro_batches_are_about_even():
    one = shared_roll().rows([0])
    roll = Roll.cat([replace(one, prompt_ids=[[3, 4, i]]) for i in range(5)])
    size = 3 + int(one.lengths())
    assert [len(cut) for cut in micro_batches(roll, 4 * size)] == [3, 2]
