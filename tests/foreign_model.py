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


def write_model(folder: Path, kind: str = "Llama", **options: Any) -> Path:
    """A random model of the kind with 264 embeddings: 259 tokens and a few rows of padding."""
    transformers = import_transformers()
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": 264, "bos_token_id": 1, "eos_token_id": 2, **SIZES, **options}
    )
    name = f"{kind}LMHeadModel" if kind in ("GPT2", "Bert") else f"{kind}ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
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
