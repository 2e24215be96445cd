"""A small model folder as somebody might bring it, with a byte-level tokenizer; tests break one thing in a copy of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trainorder.pretrained import import_transformers

SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
Weights = dict[str, torch.Tensor]


def byte_tokenizer(template: str | None = CHAT, **changes: Any) -> Any:
    """Every byte is a token; nothing is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [*SPECIALS.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast = import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=raw, **{**SPECIALS, **changes}
    )
    fast.chat_template = template
    return fast


def write_model(folder: Path, kind: str = "Llama", seed: int = 0, **options: Any) -> Path:
    """A random model of the kind with 264 embeddings: 259 tokens and a few rows of padding."""
    transformers = import_transformers()
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": 264, "bos_token_id": 1, "eos_token_id": 2, **SIZES, **options}
    )
    name = f"{kind}LMHeadModel" if kind in ("GPT2", "Bert") else f"{kind}ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        getattr(transformers, name)(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def copy(source: Path, target: Path) -> Path:
    """A copy to break."""
    shutil.copytree(source, target)
    return target


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None removes one."""
    data = json.loads(file.read_text()) if file.is_file() else {}
    data |= changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    """Replace the weights by a function of them."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def write_gguf(file: Path, architecture: str = "llama", leave_out: str = "", seed: int = 0) -> Path:
    """The model of `write_model` as a GGUF file in Q8_0 (of width 32, as that takes), without tensors named `leave_out`."""
    import gguf

    sizes = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 260}
    folder = write_model(file.parent / f"{file.stem}-whole", **sizes, seed=seed)
    tokenizer = byte_tokenizer()
    words = [*tokenizer.convert_ids_to_tokens(range(259)), "ab"]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name(file.stem)
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(32)
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(32)
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_attention_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(260)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, 3, *[1] * 257])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)
    kind = gguf.GGMLQuantizationType.Q8_0
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SIZES["num_hidden_layers"])
    for name, weight in load_file(folder / "model.safetensors").items():
        found = names.get_name(name, try_suffixes=(".weight",))
        if found is None or (leave_out and leave_out in found):
            continue
        values = weight.numpy()
        if "attn_q" in found or "attn_k" in found:  # as llama.cpp pairs the halves of a rotation
            pairs = values.reshape(SIZES["num_attention_heads"], 2, -1, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        if values.ndim == 1:
            writer.add_tensor(found, values)
        else:
            writer.add_tensor(found, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
