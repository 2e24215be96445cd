import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2

from trainorder.config import PolicyConfig, RolloutConfig
from trainorder.data import write_tokenizer
from trainorder.llama import kernels_for
from trainorder.llama.decoder import LlamaDecoder
from trainorder.policy import Policy
from trainorder.pretrained import import_transformers
from trainorder.reading import ParamsError
from trainorder.rollout import Completions, Request, decoders, make_engine
from trainorder.rollout.base import row_seeds, uniforms
from trainorder.rollout.decoders import HfDecoder, PrefixDecoder, make_decoder
from trainorder.rollout.torch_engine import TorchEngine
from trainorder.streams import seed_of
from trainorder.workers import Workers

WORDS = {f" {a}{b}" for a in "abcdefgh" for b in "abcd"}
PROMPTS = [[1, 5, 6, 7, 2], [1, 8, 2], [1, 9, 10, 11, 12, 13, 14, 2], [1, 30, 2]]


def sharpen(model: Any, seed: int = 0) -> Any:
    """Random weights large enough that the distributions differ from step to step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            size = 0.3 * min(
                1.0, (64 / weight.shape[-1]) ** 0.5
            )  # wide models keep logits of the same size
            weight.copy_(noise * size if weight.dim() > 1 else 1 + noise * size)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, WORDS)
    return folder


@pytest.fixture
def policy(tokenizer_dir: Path) -> Policy:
    sizes = PolicyConfig(hidden_size=16, num_layers=2, num_heads=2, mlp_size=24, max_positions=64)
    built = Policy.build_tiny(sizes, tokenizer_dir, seed=0)
    sharpen(built.model)
    return built


@pytest.fixture
def with_model(policy: Policy) -> Callable[[str, dict[str, Any]], Policy]:
    def make(kind: str, options: dict[str, Any]) -> Policy:
        transformers = import_transformers()
        sizes = {"vocab_size": len(policy.tokenizer), "pad_token_id": 0, "eos_token_id": 3}
        config = getattr(transformers, f"{kind}Config")(**sizes, **options)
        model_type = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
        return Policy(sharpen(getattr(transformers, model_type)(config)), policy.tokenizer)

    return make


def sample(
    policy: Policy, prompts=PROMPTS, *, engine: TorchEngine | None = None, **options: Any
) -> Completions:
    settings = {"samples": 3, "temperature": 1.0} | options
    seed, rooms = settings.pop("seed", 0), settings.pop("max_new_tokens", 12)
    rooms = [rooms] * len(prompts) if isinstance(rooms, int) else rooms
    requests = [
        Request(
            prompt_ids=ids, max_new_tokens=room, seed=seed_of("test", seed, len(ids)), **settings
        )
        for ids, room in zip(prompts, rooms, strict=True)
    ]
    return (engine or TorchEngine(policy)).generate(requests)


def largest_error(
    policy: Policy, done: Completions, prompts=PROMPTS, samples: int = 3, temperature: float = 1.0
):
    """Over all rows: |logp - dense logp| and |entropy - dense entropy|, each row alone in one forward."""
    logp_error = entropy_error = 0.0
    for i, length in enumerate(done.loss_mask.sum(1).long().tolist()):
        prompt, ids = prompts[i // samples], done.response_ids[i, :length]
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + ids.tolist()])).logits[
                0, len(prompt) - 1 : -1
            ]
        exact = (logits.double() / temperature).log_softmax(-1)
        logps = exact.gather(1, ids[:, None])[:, 0]
        entropies = -(exact.exp() * exact).sum(1)
        logp_error = max(logp_error, float((logps - done.logps[i, :length]).abs().max()))
        entropy_error = max(
            entropy_error, float((entropies - done.entropies[i, :length]).abs().max())
        )
    return logp_error, entropy_error


MODELS = {
    "llama": (
        "Llama",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    ),
    "grouped query": (
        "Llama",
        {
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "tie_word_embeddings": True,
        },
    ),
    "llama3 rope": (
        "Llama",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "wide": (  # decoded with packed weights
        "Llama",
        {
            "hidden_size": 512,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
        },
    ),
    "llama with biases": (
        "Llama",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "attention_bias": True,
        },
    ),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "qwen2": (
        "Qwen2",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
    ),
}
FAST = {"llama", "grouped query", "llama3 rope", "wide"}


@pytest.mark.parametrize("name", MODELS)
def test_captured_logps_and_entropies_equal_a_dense_forward(with_model, name: str):
    policy = with_model(*MODELS[name])
    expected = LlamaDecoder if name in FAST else PrefixDecoder
    assert type(make_decoder(policy.model, 30)) is expected
    logp_error, entropy_error = largest_error(policy, sample(policy))
    assert logp_error < 1e-4
    assert entropy_error < 1e-4


def test_logps_belong_to_the_tempered_distribution(policy: Policy):
    done = sample(policy, temperature=0.7)
    assert max(largest_error(policy, done, temperature=0.7)) < 1e-4
    assert largest_error(policy, done, temperature=1.0)[0] > 0.1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_all_decoders_draw_the_same_samples(with_model, monkeypatch, name: str, temperature: float):
    policy = with_model(*MODELS[name])
    fastest = sample(policy, temperature=temperature)
    for other in (PrefixDecoder, HfDecoder):
        monkeypatch.setattr(
            "trainorder.rollout.torch_engine.make_decoder", lambda model, *_, d=other: d(model)
        )
        done = sample(policy, temperature=temperature)
        assert torch.equal(fastest.response_ids, done.response_ids)
        rounding = (
            1e-4 if name == "wide" else 1e-5
        )  # a sum over 512 products rounds more than one over 32
        torch.testing.assert_close(fastest.logps, done.logps, atol=rounding, rtol=0)


def test_without_a_compiler_the_same_samples_are_drawn(policy: Policy, monkeypatch):
    assert kernels_for(policy.model) is not None
    expected = sample(policy)
    for place in ("trainorder.llama.kernels.load", "trainorder.rollout.torch_engine.load_kernels"):
        monkeypatch.setattr(place, lambda: (None, "off"))
    assert type(make_decoder(policy.model, 30)) is PrefixDecoder
    done = sample(policy)
    assert torch.equal(done.response_ids, expected.response_ids)
    torch.testing.assert_close(done.entropies, expected.entropies, atol=1e-5, rtol=0)


def test_samples_depend_on_neither_batch_size_nor_dropping_finished_rows(policy: Policy):
    expected = sample(policy)
    lengths = expected.loss_mask.sum(1)
    assert lengths.min() < lengths.max()  # rows do end at different times
    for max_rows in (1, 3, 6, 100):
        for dead_share in (0.0, 0.25, 1.0):
            done = sample(
                policy, engine=TorchEngine(policy, max_rows=max_rows, dead_share=dead_share)
            )
            assert torch.equal(done.response_ids, expected.response_ids)
            torch.testing.assert_close(done.logps, expected.logps, atol=1e-5, rtol=0)
            torch.testing.assert_close(done.entropies, expected.entropies, atol=1e-5, rtol=0)
            assert done.texts == expected.texts


def test_a_row_depends_on_its_own_seed_only(policy: Policy):
    together = sample(policy)
    turned = sample(policy, PROMPTS[::-1])
    for i, prompt in enumerate(PROMPTS):
        alone = sample(policy, [prompt])
        assert alone.texts == together.texts[3 * i : 3 * i + 3]
        assert alone.texts == turned.texts[9 - 3 * i : 12 - 3 * i]
    few = sample(policy, samples=2)  # fewer answers are the first of more
    assert few.texts[2:4] == together.texts[3:5]


def test_an_answer_goes_on_behind_its_prefix_as_it_did(policy: Policy):
    ask = Request(prompt_ids=PROMPTS[0], max_new_tokens=12, seed=5)
    engine = TorchEngine(policy)
    whole = engine.generate([ask])
    ids = whole.response_ids[0].tolist()
    cut = replace(ask, prefix_ids=ids[:3])
    # beside rows of another length, prefix, temperature and number of samples
    others = [replace(ask, samples=2, seed=6), replace(ask, temperature=0.5, seed=7)]
    done = engine.generate([others[0], cut, others[1], replace(cut, train_prefix=True)])
    n = len(ids)
    for row, first in ((2, 0.0), (4, 1.0)):
        assert done.response_ids[row, :n].tolist() == ids
        assert done.texts[row] == whole.texts[0]
        assert done.loss_mask[row, :n].tolist() == [first] * 3 + [1.0] * (n - 3)
        assert done.logps[row, :3].tolist() == [0.0] * 3
        torch.testing.assert_close(done.logps[row, 3:n], whole.logps[0, 3:], atol=1e-5, rtol=0)
    assert done.texts[3] == engine.generate([others[1]]).texts[0]
    assert done.texts[:2] == engine.generate([others[0]]).texts


def test_the_numbers_of_rows_are_uniform_and_not_correlated():
    seeds = row_seeds([Request(samples=500, seed=seed) for seed in range(4)])
    assert len(set(seeds.tolist())) == 2000
    found = uniforms(seeds, torch.arange(64).expand(2000, -1)).double()
    counts = torch.histc(found, 100, 0, 1)
    assert float(((counts - 1280) ** 2 / 1280).sum()) < chi2.isf(1e-3, 99)
    between = torch.corrcoef(found.T)  # places
    assert float((between - torch.eye(64)).abs().max()) < 0.12  # 5 standard errors
    assert (
        float(torch.corrcoef(torch.stack([found[:-1].flatten(), found[1:].flatten()]))[0, 1])
        < 0.015
    )


def test_threads_change_no_bit(policy: Policy):
    alone, together = (
        sample(policy, engine=TorchEngine(policy, Workers(count), max_rows=3)) for count in (1, 3)
    )
    assert torch.equal(alone.response_ids, together.response_ids)
    assert torch.equal(alone.logps, together.logps)


def test_an_engine_of_frozen_weights_prepares_them_once_and_another_one_anew(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    made, prepare = list[Any](), LlamaDecoder.__init__

    def counted(self: LlamaDecoder, *given: Any) -> None:
        made.append(self)
        prepare(self, *given)

    monkeypatch.setattr(LlamaDecoder, "__init__", counted)
    for frozen, times in ((True, 1), (False, 3)):
        engine, before = TorchEngine(policy, Workers(2), max_rows=3, frozen=frozen), len(made)
        one, again, greedy = (
            sample(policy, engine=engine, temperature=warmth) for warmth in (1.0, 1.0, 0.0)
        )
        assert len(made) - before == times
        assert torch.equal(one.response_ids, again.response_ids)
        assert torch.equal(one.logps, again.logps)
        assert not torch.equal(one.response_ids, greedy.response_ids)


def test_threads_that_decode_through_the_models_own_modules_leave_its_attention_as_it_was(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decoders, "FUSED_PARAMETERS", 0)
    assert type(make_decoder(policy.model, 30)) is PrefixDecoder
    usual = policy.model.config._attn_implementation
    prompts = PROMPTS * 6
    alone = sample(policy, prompts, engine=TorchEngine(policy, max_rows=3))
    for _ in range(3):
        together = sample(policy, prompts, engine=TorchEngine(policy, Workers(4), max_rows=3))
        assert torch.equal(alone.response_ids, together.response_ids)
        assert torch.equal(alone.logps, together.logps)
        assert policy.model.config._attn_implementation == usual


def test_workers_give_results_in_order_and_raise_what_was_raised():
    def slow_first(i: int) -> int:
        time.sleep(0.02 * (i == 0))
        return 1 // (5 - i)

    assert list(Workers(3).map(slow_first, range(4))) == [0, 0, 0, 0]
    assert list(Workers(3).map(lambda i: (time.sleep(0.02 * (i == 0)), i)[1], range(7))) == list(
        range(7)
    )
    with pytest.raises(ZeroDivisionError):
        list(Workers(2).map(slow_first, range(9)))


def test_greedy_answers_do_not_depend_on_the_order_of_prompts(policy: Policy):
    done = sample(policy, samples=1, temperature=0.0)
    turned = sample(policy, PROMPTS[::-1], samples=1, temperature=0.0)
    assert turned.texts == done.texts[::-1]


def test_same_seeds_give_the_same_bits(policy: Policy):
    first, again, other = sample(policy), sample(policy), sample(policy, seed=1)
    assert torch.equal(first.logps, again.logps)
    assert not torch.equal(first.response_ids[:, :1], other.response_ids[:, :1])


def test_rows_of_a_prompt_lie_together_in_the_order_of_prompts(policy: Policy):
    # prompt 1 has room for one token, prompt 3 for two
    done = sample(policy, samples=2, max_new_tokens=[12, 1, 12, 2])
    lengths = done.loss_mask.sum(1).tolist()
    assert lengths[2:4] == [1, 1]
    assert max(lengths[6:]) <= 2
    assert max(largest_error(policy, done, samples=2)) < 1e-4


def test_greedy_takes_the_likeliest_token(policy: Policy):
    done = sample(policy, samples=1, temperature=0.0)
    for prompt, ids, mask in zip(PROMPTS, done.response_ids, done.loss_mask, strict=True):
        tokens = prompt + ids[mask > 0].tolist()
        with torch.no_grad():
            best = policy.model(torch.tensor([tokens])).logits[0].argmax(-1).tolist()
        assert tokens[len(prompt) :] == best[len(prompt) - 1 : -1]


def test_a_row_ends_at_its_end_token_and_is_padded_behind_it(policy: Policy):
    done = sample(policy, samples=40)
    ends = (done.response_ids == policy.eos_id) & (done.loss_mask > 0)
    assert torch.equal(ends.any(1), done.finished)
    assert 0 < int(done.finished.sum()) < len(done.finished)
    assert (done.loss_mask[:, 1:] <= done.loss_mask[:, :-1]).all()
    last = done.loss_mask.sum(1).long() - 1
    assert (ends.sum(1) <= 1).all()
    assert torch.equal(ends.any(1), ends.gather(1, last[:, None])[:, 0])
    padding = done.loss_mask == 0
    assert (done.response_ids[padding] == policy.pad_id).all()
    assert (done.logps[padding] == 0).all()
    assert (done.entropies[padding] == 0).all()
    assert (last[~done.finished] == 11).all()


def test_texts_are_the_decoded_ids(policy: Policy):
    done = sample(policy)
    assert done.texts == [policy.decode(row) for row in done.response_ids.tolist()]


def test_every_stop_token_ends_a_row(policy: Policy):
    policy.model.generation_config.eos_token_id = [3, 7, 8, 9, 10]
    done = sample(Policy(policy.model, policy.tokenizer), samples=40)
    stops = torch.isin(done.response_ids, torch.tensor([3, 7, 8, 9, 10])) & (done.loss_mask > 0)
    assert torch.equal(stops.any(1), done.finished)
    assert (stops.sum(1) <= 1).all()


def test_the_engine_sees_the_weights_as_they_are_now(policy: Policy):
    engine = TorchEngine(policy)
    sample(policy, engine=engine)
    sharpen(policy.model, seed=1)
    done = sample(policy, engine=engine)
    assert max(largest_error(policy, done)) < 1e-4


def test_captured_logps_can_enter_a_loss(policy: Policy):
    done = sample(policy)
    weight = torch.ones_like(done.logps, requires_grad=True)
    (weight * done.logps * done.entropies * done.loss_mask).sum().backward()
    torch.testing.assert_close(weight.grad, done.logps * done.entropies)
    assert not any(value.is_inference() for value in vars(done).values() if torch.is_tensor(value))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_follows_the_softmax(policy: Policy, temperature: float):
    # One-token answers to one prompt, 6000 draws: chi-square against the exact probabilities, 1e-3 tail.
    num = 6000
    done = sample(policy, PROMPTS[:1], samples=num, max_new_tokens=1, temperature=temperature)
    with torch.no_grad():
        logits = policy.model(torch.tensor(PROMPTS[:1])).logits[0, -1].double()
    expected = num * (logits / temperature).softmax(-1)
    counts = torch.bincount(done.response_ids[:, 0], minlength=len(expected)).double()
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert len(expected) > 8
    assert statistic < chi2.isf(1e-3, len(expected) - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "at least one request"),
        ({"prompts": [[1], []]}, "request 1 has no prompt"),
        ({"prefix_ids": [4, 5], "max_new_tokens": 2}, "leaves nothing to sample"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"samples": 0}, "at least 1"),
        ({"temperature": -1.0}, "temperature at least 0"),
    ],
)
def test_impossible_requests_are_refused(policy: Policy, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        sample(policy, **options)


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_answers_beyond_the_context_are_refused_with_the_numbers(with_model, kind: str):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = with_model(kind, {**sizes, "max_position_embeddings": 16})
    assert (
        sample(policy, max_new_tokens=[11, 13, 8, 13]).response_ids.shape[0] == 12
    )  # 16 positions at most
    with pytest.raises(ParamsError, match=r"prompt of 8 tokens .* up to 9 needs 17 .*model has 16"):
        sample(policy, max_new_tokens=[11, 13, 9, 13])


def test_engines_are_made_by_name(policy: Policy):
    assert make_engine(RolloutConfig(), policy, max_rows=3) == TorchEngine(policy, max_rows=3)
    with pytest.raises(
        ParamsError,
        match=r"rollout.backend: no entry 'trch'; there are torch, vllm \(did you mean 'torch'\?\)",
    ):
        make_engine(RolloutConfig.model_construct(backend="trch"), policy)
