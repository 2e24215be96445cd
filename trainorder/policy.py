"""The policy: a Hugging Face causal LM with its tokenizer, saved as an ordinary Hugging Face folder.

transformers is imported only when a model is built or loaded; see `pretrained.import_transformers` for what that costs.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder.adapters import (
    add_to_weights,
    is_adapter_node,
    save_model_node,
    weights_of,
)
from trainorder.config import PolicyConfig
from trainorder.files import writing_folder
from trainorder.pretrained import (
    generation_config_of,
    import_transformers,
    load_hub_shapes,
    load_model,
    load_tokenizer,
)
from trainorder.reading import ParamsError, read_text
from trainorder.sources import find, locate
from trainorder.streams import seed_of
from trainorder.tasks.base import Prompt, turns

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPENED_THOUGHT = re.compile(r"<think>\s*\Z")
TEMPLATE_DATE = datetime(2025, 1, 1)
"""The day that every chat template sees: with the clock's, prompts and checkpoints would differ from day to day."""


@dataclass
class Policy:
    """A causal LM (float32, on the CPU unless moved) and the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def build_tiny(cls, config: PolicyConfig, tokenizer_dir: Path | str, seed: int) -> Policy:
        """A Llama from scratch: rotary positions, SwiGLU, RMSNorm, tied embeddings, no biases.

        The weights are a function of the sizes, the vocabulary and `seed`; the global generator is left alone.
        """
        import torch

        transformers = import_transformers()
        tokenizer = load_tokenizer(Path(tokenizer_dir))
        llama = tiny_config(
            config,
            len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("policy", seed))
            model = transformers.LlamaForCausalLM(llama)
        return cls(model.eval(), tokenizer)

    @classmethod
    def load(cls, path: Path | str, *, weights: bool = True) -> Policy:
        """Load a Hugging Face folder, or (a `str` only) any other form of a model (trainorder/sources.py). safetensors only.

        A LoRA node is loaded with its adapter added to the weights of its base, the node of a user's model from where that lies.

        Code of the folder or the hub runs only where `policy.trust_remote_code` of params.yaml says so. Without
        `weights` the model has shapes alone: enough to encode, to decode and to be checked.

        Raises:
            ParamsError: not such a folder, weights missing or left over, or code that may not run.
        """
        folder = locate(path, weights=weights)
        place = weights_of(folder)
        if not weights and isinstance(path, str) and find(path).kind == "hub":
            model = load_hub_shapes(place)
        else:
            model = load_model(place, weights=weights)
        if place != folder:  # which tokens end an answer is the node's
            model.generation_config = generation_config_of(folder)
        if is_adapter_node(folder) and weights:
            add_to_weights(model, folder)
        return cls(model, load_tokenizer(folder))

    @classmethod
    def start(cls, config: PolicyConfig, *, weights: bool = True) -> Policy:
        """The model of `policy.path`, asked and ended as params.yaml says; what is saved of it keeps that.

        Raises:
            ParamsError: as `load`; or there is no chat template for what params.yaml puts into it.
        """
        assert config.path is not None
        policy = cls.load(config.path, weights=weights)
        tokenizer: Any = policy.tokenizer
        if config.chat_template is not None:
            tokenizer.chat_template = read_text(Path(config.chat_template))
        if config.system is not None or config.chat_template_kwargs:
            template = tokenizer.chat_template
            if isinstance(template, dict):
                template = template.get("default")
            if template is None:
                raise ParamsError(
                    f"policy.path {config.path}: the tokenizer has no (default) chat template for policy.system and "
                    f"policy.chat_template_kwargs: name a file with one by policy.chat_template"
                )
            first = template_defaults(config.system, config.chat_template_kwargs)
            tokenizer.chat_template = first + template
        if config.generation_config == "ignore":
            generation: Any = policy.model.generation_config
            generation.eos_token_id = tokenizer.eos_token_id
        return policy

    def to(self, device: str) -> Policy:
        """The same policy, its model moved in place."""
        move: Any = self.model.to
        move(device)
        return self

    def save(self, path: Path | str) -> None:
        """Write the folder whole, then rename it into place; equal weights give equal bytes."""
        with writing_folder(Path(path)) as new:
            self.model.save_pretrained(new)
            self.tokenizer.save_pretrained(new)

    def save_as_model_node(self, path: Path, name: str) -> None:
        """Write the node of a model as it is: everything but its weights, and `name`, by which they are found."""
        with writing_folder(path) as new:
            self.model.config.save_pretrained(new)
            self.model.generation_config.save_pretrained(new)
            self.tokenizer.save_pretrained(new)
            save_model_node(new, name)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """`encode_prompts` of one prompt."""
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The tokens of prompts up to where the answer begins: the tokenizer's chat template, where it has one.

        A thought that the template opens (`<think>` at its end) belongs to the answer, which therefore begins with it
        in training, sampling and grading alike. Without a template the turns stand below one another, and an end token
        that the tokenizer appends is cut.
        """
        keys = [
            repr(prompt) for prompt in prompts
        ]  # rendered once: a prompt recurs for all its answers
        different = dict(zip(keys, prompts, strict=True))
        rows = self._encode_prompts(list(different.values()))
        known = dict(zip(different, rows, strict=True))
        return [list(known[key]) for key in keys]

    def _encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        if self.tokenizer.chat_template is not None:
            return self._encode([OPENED_THOUGHT.sub("", self.render(p)) for p in prompts])
        texts = [OPENED_THOUGHT.sub("", "\n\n".join(turns(p))) for p in prompts]
        rows = self._encode(texts, special=True)
        ends: tuple[Any, ...] = (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)
        for ids in rows:
            while len(ids) > 1 and ids[-1] in ends:
                ids.pop()
        return rows

    def render(self, prompt: Prompt) -> str:
        """A prompt in the chat template; a text is one message of the user. A template that asks for the date is told `TEMPLATE_DATE`."""
        chat: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        rendered: Any = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False, strftime_now=TEMPLATE_DATE.strftime
        )
        return rendered

    def encode_completion(self, text: str) -> list[int]:
        """`encode_completions` of one text."""
        return self.encode_completions([text])[0]

    def encode_completions(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of answers, each with the end token."""
        return [[*ids, self.eos_id] for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Each different text once, all by one call: most of the time of a call is not spent on its text."""
        different = list(dict.fromkeys(texts))
        if not different:
            return []
        found: Any = self.tokenizer(
            different,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        known = dict(zip(different, found["input_ids"], strict=True))
        return [list(known[text]) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text before the first stop token, without the tokens that frame a text (`framing_ids`).

        Other special tokens are text: a tokenizer may well have `<think>` as one. An id that the tokenizer does not
        know (embeddings are often padded) is shown as U+FFFD.
        """
        return self.decode_batch([list(ids)])[0]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """`decode` of every row."""
        stops, framing = self.stop_ids, self.framing_ids
        keys = [tuple(row) for row in rows]
        texts = dict.fromkeys(keys, "")  # a sure policy gives the same answer many times
        for row in texts:
            answer = itertools.takewhile(lambda id_: id_ not in stops, row)
            runs = itertools.groupby(
                (id_ for id_ in answer if id_ not in framing), self.known_ids.__contains__
            )
            texts[row] = "".join(self._text(list(run), known) for known, run in runs)
        return [texts[key] for key in keys]

    def _text(self, ids: list[int], known: bool) -> str:
        if not known:
            return "\ufffd" * len(ids)
        text: Any = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def known_ids(self) -> frozenset[int]:
        """Every id the tokenizer has a token for."""
        return frozenset(self.tokenizer.get_vocab().values())

    @cached_property
    def framing_ids(self) -> frozenset[int]:
        """Tokens around a text, never part of it: begin, end, filler and the tokenizer's other named ones."""
        named = ("bos", "eos", "pad", "sep", "cls", "mask", "unk")
        found = (getattr(self.tokenizer, f"{name}_token_id", None) for name in named)
        return frozenset(id_ for id_ in found if id_ is not None)

    @property
    def context(self) -> int | None:
        """Longest prompt plus answer in tokens; None for a model without such a bound."""
        config: Any = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
            bound = getattr(config, name, None)
            if isinstance(bound, int) and bound > 0:
                return bound
        return None

    def check_fits(self, prompt: int, answer: int) -> None:
        """Refuse a text of `prompt` and `answer` tokens that the model has no positions for.

        Raises:
            ParamsError: it is longer than `context`.
        """
        if self.context is not None and prompt + answer > self.context:
            raise ParamsError(
                f"a prompt of {prompt} tokens with an answer of up to {answer} needs {prompt + answer} positions, the "
                f"model has {self.context}: shorten the prompts or lower tasks.<task>.max_new_tokens"
            )

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's, and those of the model's generation config (chat models)."""
        config = getattr(self.model, "generation_config", None)
        more = config.eos_token_id if config else None
        return frozenset([self.eos_id, *([more] if isinstance(more, int) else more or [])])

    @property
    def device(self) -> torch.device:
        """Where the model's inputs have to be."""
        return next(self.model.parameters()).device

    @property
    def eos_id(self) -> int:
        """The end token that training puts behind an answer: the tokenizer's, else the generation config's first."""
        own: Any = self.tokenizer.eos_token_id
        if own is not None:
            return own
        more = getattr(self.model.generation_config, "eos_token_id", None)
        listed = more if isinstance(more, list) else [more]
        return _require(listed[0], "end token (eos_token), and generation_config.json none either")

    @property
    def pad_id(self) -> int:
        """The filler behind a finished row; the end token where the tokenizer has no filler of its own."""
        pad: Any = self.tokenizer.pad_token_id
        return self.eos_id if pad is None else pad


def template_defaults(system: str | None, variables: Mapping[str, Any]) -> str:
    r"""The beginning of a chat template that sets variables that are not given, and a system message where there is none.

    >>> template_defaults(None, {"enable_thinking": False})
    '{% if enable_thinking is not defined %}{% set enable_thinking = false %}{% endif %}'
    """
    parts = [
        f"{{% if {name} is not defined %}}{{% set {name} = {_jinja(value)} %}}{{% endif %}}"
        for name, value in variables.items()
    ]
    if system is not None:
        message = _jinja({"role": "system", "content": system})
        parts.append(
            f"{{% if not messages or messages[0]['role'] != 'system' %}}"
            f"{{% set messages = [{message}] + messages %}}{{% endif %}}"
        )
    return "".join(parts)


def _jinja(value: Any) -> str:
    r"""A JSON value as Jinja writes it.

    >>> _jinja({"a": [None, True, 1.5, 'say "no"']})
    '{"a": [none, true, 1.5, "say \\"no\\""]}'
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_jinja(k)}: {_jinja(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_jinja, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def tiny_config(config: PolicyConfig, vocabulary: int, **tokens: Any) -> Any:
    """The LlamaConfig of the built-in model."""
    return import_transformers().LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        **tokens,
    )


def _require(value: Any, what: str) -> int:
    if value is None:
        raise ParamsError(f"the tokenizer has no {what}: set it in tokenizer_config.json")
    return value
