"""The built-in tokenizer: a folder as transformers reads it, over exactly the words of the problems."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainorder.files import write_json, write_text

SPECIALS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "sep_token": "<sep>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] }}<eos>"
    "{% else %}<bos>{{ message['content'] }}<sep>{% endif %}"
    "{% endfor %}"
)
"""`<bos> prompt <sep> completion <eos>`. The prompt's `<sep>` is the generation prompt, so both calls agree on it."""

_PIECE = re.compile(r" ?[0-9]| ?[^ 0-9]+| ")


def pieces(text: str) -> list[str]:
    """The text as the tokenizer cuts it: words with their leading space, every digit alone; joined they are the text.

    The text begins a word, so its first piece has a leading space too.

    >>> pieces("8 + 5 = 13")
    [' 8', ' +', ' 5', ' =', ' 1', '3']
    """
    return _PIECE.findall(f" {text}")


def write_tokenizer(folder: Path, vocabulary: Iterable[str]) -> None:
    """A `PreTrainedTokenizerFast` folder over these pieces: word level, lossless for text with single spaces.

    A space becomes `\u2581`, at the front of a word; the decoder turns it back. Written by hand: importing transformers
    would cost more than the whole build.
    """
    words = [*SPECIALS.values(), *sorted(piece.replace(" ", "\u2581") for piece in vocabulary)]
    added = [_added_token(number, word) for number, word in enumerate(SPECIALS.values())]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Metaspace",
                    "replacement": "\u2581",
                    "prepend_scheme": "always",
                    "split": False,
                },
                {
                    "type": "Split",
                    "pattern": {"Regex": "\u2581?[0-9]|\u2581?[^\u25810-9]+|\u2581"},
                    "behavior": "Isolated",
                    "invert": False,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "always",
            "split": False,
        },
        "model": {
            "type": "WordLevel",
            "vocab": {w: i for i, w in enumerate(words)},
            "unk_token": "<unk>",
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **SPECIALS,
        "added_tokens_decoder": {str(token.pop("id")): token for token in map(dict, added)},
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1_000_000,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    write_text(
        folder / "tokenizer.json", json.dumps(tokenizer, indent=1, ensure_ascii=False) + "\n"
    )
    write_json(folder / "tokenizer_config.json", config)


def _added_token(number: int, word: str) -> dict[str, Any]:
    plain = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {"id": number, "content": word, **plain}
