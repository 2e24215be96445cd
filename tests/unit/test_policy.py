import filecmp
import hashlib
import json
from pathlib import Path

import pytest
import torch

from trainorder.adapters import weights_hash
from trainorder.config import PolicyConfig
from trainorder.data import write_tokenizer
from trainorder.policy import Policy
from trainorder.pretrained import load_tokenizer

SIZES = PolicyConfig(hidden_size=16, num_layers=2, num_heads=2, mlp_size=24, max_positions=64)
VOCABULARY = {" a", " b", " sum", " (", " )", " =", "\n"} | {
    f"{space}{d}" for space in ("", " ") for d in range(10)
}


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer", VOCABULARY)
    return tmp_path / "tokenizer"


@pytest.fixture
def policy(tokenizer_dir: Path) -> Policy:
    return Policy.build_tiny(SIZES, tokenizer_dir, seed=0)


def test_tiny_policy_is_a_llama_of_the_asked_size(policy: Policy):
    # embedding V x 16 once (tied); per layer 4 x 16 x 16 attention, 3 x 16 x 24 mlp, 2 x 16 norms; last norm 16
    vocabulary = len(policy.tokenizer)
    expected = vocabulary * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16) + 16
    assert type(policy.model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in policy.model.parameters()) == expected
    assert vocabulary == 5 + len(VOCABULARY)


def test_weights_depend_on_the_seed_and_not_on_the_global_generator(tokenizer_dir: Path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Policy.build_tiny(SIZES, tokenizer_dir, seed=0).model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = Policy.build_tiny(SIZES, tokenizer_dir, seed=0).model.state_dict()
    other = Policy.build_tiny(SIZES, tokenizer_dir, seed=1).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_save_and_load_keep_every_bit_of_the_logits(policy: Policy, tmp_path: Path):
    policy.save(tmp_path / "node")
    ids = torch.tensor([[1, 7, 9, 2]])
    loaded = Policy.load(tmp_path / "node")
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, policy.model(ids).logits)
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training


def test_equal_weights_are_saved_as_equal_bytes_also_after_loading(policy: Policy, tmp_path: Path):
    policy.save(tmp_path / "a")
    policy.save(tmp_path / "b")
    Policy.load(tmp_path / "a").save(tmp_path / "c")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(
        names
    )
    for copy in ("b", "c"):
        assert sorted(p.name for p in (tmp_path / copy).iterdir()) == names
        assert filecmp.cmpfiles(tmp_path / "a", tmp_path / copy, names, shallow=False)[0] == names


def test_a_saved_tokenizer_does_not_tell_how_it_was_loaded(tokenizer_dir: Path, tmp_path: Path):
    load_tokenizer(tokenizer_dir).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert not {"local_files_only", "is_local"} & saved.keys()


def test_saving_over_a_checkpoint_replaces_it_whole_and_leaves_nothing_beside(
    policy: Policy, tmp_path: Path
):
    out = tmp_path / "checkpoints" / "node"
    out.mkdir(parents=True)
    (out / "stale.bin").write_text("x")
    policy.save(out)
    assert not (out / "stale.bin").exists()
    assert [p.name for p in out.parent.iterdir()] == ["node"]


def test_a_failed_save_leaves_the_old_checkpoint(policy: Policy, tmp_path: Path, monkeypatch):
    policy.save(tmp_path / "out" / "node")
    before = weights_hash(tmp_path / "out" / "node")
    with torch.no_grad():
        policy.model.lm_head.weight.add_(1.0)

    def full_disk(folder):
        raise OSError("no space left")

    monkeypatch.setattr(policy.tokenizer, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        policy.save(tmp_path / "out" / "node")
    assert weights_hash(tmp_path / "out" / "node") == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["node"]


def test_prompt_is_framed_by_the_chat_template_and_completion_ends(policy: Policy):
    tokens = policy.tokenizer.convert_ids_to_tokens
    assert tokens(policy.encode_prompt("a = 13")) == ["<bos>", "▁a", "▁=", "▁1", "3", "<sep>"]
    assert tokens(policy.encode_completion("( 7 )")) == ["▁(", "▁7", "▁)", "<eos>"]


def test_without_a_chat_template_the_prompt_is_encoded_as_it_is(policy: Policy):
    policy.tokenizer.chat_template = None
    assert policy.tokenizer.convert_ids_to_tokens(policy.encode_prompt("a = 1")) == [
        "▁a",
        "▁=",
        "▁1",
    ]


@pytest.mark.parametrize("text", ["a = 13", "sum ( 105 ) = b", "", "7"])
def test_decoding_an_encoded_completion_gives_the_text_back(policy: Policy, text: str):
    assert policy.decode(policy.encode_completion(text)) == text


def test_decode_stops_at_the_first_stop_token_and_drops_special_tokens(policy: Policy):
    a, b = policy.encode_completion("a b")[:2]
    assert policy.decode([1, a, 2, b, policy.eos_id, a, a]) == "a b"
    assert policy.decode_batch([[a, 3, b], [b]]) == ["a", "b"]


def test_every_end_token_of_a_chat_model_is_a_stop(policy: Policy):
    assert policy.stop_ids == {3}
    policy.model.generation_config.eos_token_id = [3, 9]
    assert Policy(policy.model, policy.tokenizer).stop_ids == {3, 9}


def test_weights_hash_is_the_sha256_of_the_weights_alone(policy: Policy, tmp_path: Path):
    policy.save(tmp_path / "node")
    expected = hashlib.sha256((tmp_path / "node" / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "node" / "config.json").write_text("{}")
    assert weights_hash(tmp_path / "node") == expected


@pytest.mark.parametrize("call", [Policy.load, weights_hash])
def test_a_missing_checkpoint_is_named(call, tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere .*make that checkpoint first"):
        call(tmp_path / "nowhere")


def test_a_missing_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"tok holds no tokenizer"):
        Policy.build_tiny(SIZES, tmp_path / "tok", seed=0)


def test_texts_encoded_together_are_those_encoded_alone(policy: Policy):
    texts = [" sum", " a sum ( 1", " sum", "", " b"]
    prompts, answers = policy.encode_prompts(texts), policy.encode_completions(texts)
    alone = [policy.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    rendered = [policy.render(text) for text in texts]
    assert prompts == [policy.tokenizer.encode(t, add_special_tokens=False) for t in rendered]
    assert answers == [[*own, policy.eos_id] for own in alone]
    assert len(answers[1]) == 5
    assert prompts[0] is not prompts[2]  # a caller may change its own
    assert policy.encode_prompts([]) == []
