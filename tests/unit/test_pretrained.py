"""Model folders that somebody brings: each is loaded as it is, or refused in one line that names what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_model import copy, edit_json, edit_weights, write_model

from trainorder.policy import Policy
from trainorder.reading import ParamsError

Break = Callable[[Path], object]
LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("good") / "model")


def without(*parts: str) -> Break:
    """Take weights whose names hold one of these parts out of the file."""
    return lambda folder: edit_weights(
        folder, lambda w: {n: t for n, t in w.items() if not any(part in n for part in parts)}
    )


def config(**changes: object) -> Break:
    return lambda folder: edit_json(folder / "config.json", **changes)


def rename(name: str) -> Break:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {LAYER: "model-00002-of-00002.safetensors", "x": "model-00001-of-00002.safetensors"}
    edit_json(folder / "model.safetensors.index.json", weight_map=names)


def lora_names(folder: Path) -> None:
    edit_weights(folder, lambda w: {f"base_model.model.{name}": t for name, t in w.items()})


BROKEN: dict[str, tuple[Break, str]] = {
    "a weight missing": (without("layers.1.mlp.up_proj"), rf"would be random: {LAYER}; take"),
    "the head missing": (without("lm_head"), "would be random: lm_head.weight"),
    "the embedding missing": (without("embed_tokens"), "would be random: model.embed_tokens"),
    "half the names": (without("proj"), r"model\.layers\.0\.mlp\.down_proj\.weight.* and 11 more"),
    "names of an adapter's model": (lora_names, "would be random: lm_head.weight"),
    "fewer layers than weights": (config(num_hidden_layers=1), "would be lost: model.layers.1"),
    "more layers than weights": (config(num_hidden_layers=3), "would be random: model.layers.2"),
    "left-over weights": (
        lambda f: edit_weights(f, lambda w: {**w, "v_head.weight": torch.ones(2)}),
        r"would be lost: v_head\.weight",
    ),
    "another width": (
        config(intermediate_size=32),
        r"other shapes .*down_proj\.weight \(16, 24\) instead of \(16, 32\)",
    ),
    "more words than embeddings": (config(vocab_size=300), r"\(264, 16\) instead of \(300, 16\)"),
    "no architecture": (config(model_type=None), "names no model_type"),
    "an unknown architecture": (config(model_type="nonesuch"), r"cannot be loaded: .*nonesuch"),
    "an encoder": (
        config(model_type="vit", architectures=["ViTModel"]),
        "cannot be loaded: .*ViTConfig",
    ),
    "quantized": (config(quantization_config={"quant_method": "gptq"}), r"quantized .*gptq"),
    "config.json cut": (
        lambda f: (f / "config.json").write_text('{"model_type": "lla'),
        r"config\.json cannot be read",
    ),
    "config.json a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON obj"),
    "config.json missing": (lambda f: (f / "config.json").unlink(), r"no config\.json; it holds"),
    "an adapter": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        r"holds a LoRA adapter .*merge",
    ),
    "pickled weights": (rename("pytorch_model.bin"), r"pickled weights \(pytorch_model\.bin\)"),
    "weights of another name": (
        rename("consolidated.safetensors"),
        r"no model\.safetensors .*it holds consolidated\.safetensors",
    ),
    "a GGUF file": (rename("model.gguf"), r"no model\.safetensors .*it holds model\.gguf"),
    "a shard missing": (shards, r"lacks model-00002-of-00002\.safetensors"),
    "weights cut": (
        lambda f: os.truncate(f / "model.safetensors", 3000),
        r"model\.safetensors is damaged .*download or save it again",
    ),
    "weights of no length": (
        lambda f: os.truncate(f / "model.safetensors", 0),
        r"model\.safetensors is damaged",
    ),
    "a Git LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/x\n"),
        "git lfs pull",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer_config.json").unlink(), "holds no tokenizer"),
    "a tokenizer cut": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "the tokenizer cannot be loaded",
    ),
}


@pytest.mark.parametrize("weights", [True, False], ids=["loaded", "looked at"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_refused_in_one_line(
    good: Path, tmp_path: Path, name: str, weights: bool
):
    change, message = BROKEN[name]
    change(copy(good, tmp_path / "model"))
    with pytest.raises(ParamsError, match=message) as caught:
        Policy.load(tmp_path / "model", weights=weights)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


RECURRENT = {
    "Mamba": {"state_size": 4},
    "Rwkv": {"attention_hidden_size": 16, "context_length": 64},
    "RecurrentGemma": {"lru_width": 16, "num_key_value_heads": 1, "head_dim": 8},
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_models_without_a_cache_of_keys_and_values_are_refused(kind: str, tmp_path: Path):
    write_model(tmp_path / "m", kind, **RECURRENT[kind])
    for weights in (True, False):
        with pytest.raises(ParamsError, match=rf"is a {kind}\w+, whose state .*take a Transformer"):
            Policy.load(tmp_path / "m", weights=weights)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path):
    write_model(tmp_path / "m", "Bert")
    with pytest.raises(ParamsError, match=r"BertLMHeadModel that looks ahead .*take a causal"):
        Policy.load(tmp_path / "m")
    edit_json(tmp_path / "m" / "config.json", is_decoder=True)
    assert Policy.load(tmp_path / "m").context == 512


GENERATION = {
    "vicuna": {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
    "beams": {"num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
    "negative filler": {"pad_token_id": -1, "eos_token_id": 2},
    "temperature below 0": {"do_sample": True, "temperature": -1.0},
    "no room": {"max_new_tokens": 0},
    "text where a number belongs": {"top_k": "many", "temperature": "hot"},
    "contradictory cache": {"cache_implementation": "nonesuch"},
    "watermark": {"watermarking_config": {"greenlist_ratio": 7}},
}


@pytest.mark.parametrize("name", GENERATION)
def test_any_generation_config_can_be_saved_at_once(good: Path, tmp_path: Path, name: str):
    model = copy(good, tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps(GENERATION[name]))
    policy = Policy.load(model)
    policy.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert not {"temperature", "top_k", "top_p", "num_beams"} & saved.keys()
    assert Policy.load(tmp_path / "saved").stop_ids == policy.stop_ids == {2}


def test_end_tokens_of_a_generation_config_are_kept(good: Path, tmp_path: Path):
    model = copy(good, tmp_path / "model")
    edit_json(model / "generation_config.json", eos_token_id=[2, 9], top_p=0.6)
    Policy.load(model).save(tmp_path / "saved")
    assert Policy.load(tmp_path / "saved").stop_ids == {2, 9}


def test_sampling_settings_in_config_json_do_not_stop_saving(good: Path, tmp_path: Path):
    model = copy(good, tmp_path / "model")
    edit_json(model / "config.json", temperature=0.6, do_sample=False, top_k=3)
    (model / "generation_config.json").unlink()
    Policy.load(model).save(tmp_path / "saved")
    assert "temperature" not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("head", ["absent", "equal", "different"])
def test_a_tied_head_may_be_absent_and_a_different_one_is_kept(
    good: Path, tmp_path: Path, head: str
):
    model = copy(good, tmp_path / "model")
    edit_json(model / "config.json", tie_word_embeddings=True)
    name = "lm_head.weight"
    if head == "absent":
        without(name)(model)
    elif head == "equal":
        edit_weights(model, lambda w: {**w, name: w["model.embed_tokens.weight"].clone()})
    Policy.load(model, weights=False)
    policy = Policy.load(model)
    tied = policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    assert tied == (head != "different") == policy.model.config.tie_word_embeddings
    policy.save(tmp_path / "saved")
    ids = torch.tensor([[1, 70, 71]])
    with torch.no_grad():
        again = Policy.load(tmp_path / "saved").model(ids).logits
        assert torch.equal(again, policy.model(ids).logits)


def test_a_sharded_model_without_its_prefix_loads(good: Path, tmp_path: Path):
    model = copy(good, tmp_path / "model")
    whole = Policy.load(model)
    (model / "model.safetensors").unlink()
    whole.model.save_pretrained(model, max_shard_size="10KB")
    assert len(list(model.glob("model-*.safetensors"))) > 1
    again = Policy.load(model).model.state_dict()
    assert all(torch.equal(again[name], t) for name, t in whole.model.state_dict().items())


def test_without_weights_only_shapes_are_read(good: Path):
    policy = Policy.load(good, weights=False)
    assert {p.device.type for p in policy.model.parameters()} == {"meta"}
    assert policy.decode(policy.encode_completion("7 apples")) == "7 apples"


def test_home_is_expanded_and_a_file_is_no_folder(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(good.parent))
    assert Policy.load("~/model", weights=False).context == 512
    with pytest.raises(ParamsError, match=r"config\.json' is a file: name the folder"):
        Policy.load(good / "config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParamsError, match="it holds nothing"):
        Policy.load(tmp_path / "empty")
    for nowhere in ("~/nowhere", "./nowhere", "/nowhere/at/all", "a/b/c", "with space"):
        with pytest.raises(ParamsError, match=r"does not exist"):
            Policy.load(nowhere)


def test_a_name_on_the_hub_is_found_in_the_cache_or_refused_offline(good: Path, tmp_path: Path):
    repository = tmp_path / "hub" / "models--org--tiny"
    copy(good, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    code = (
        "from trainorder.sources import locate\n"
        "print(locate('org/tiny', weights=True))\n"
        "locate('org/other', weights=False)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=False
    )
    assert done.stdout.strip() == str(repository / "snapshots" / "abc")
    assert "no such folder here, and no model of that name" in done.stderr.splitlines()[-1]
