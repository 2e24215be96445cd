"""The policy: a Hugging Face causal LM with its tokenizer, saved as an ordinary Hugging Face folder.

transformers is imported only when a model is built or loaded; see `import_transformers` for what that costs.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder.config import PolicyConfig, remote_code_allowed
from trainorder.files import writing_folder
from trainorder.reading import ParamsError
from trainorder.streams import seed_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SLOW_OPTIONAL_IMPORTS = ("sklearn", "scipy")
"""Packages that transformers imports if it finds them, for parts that trainorder never calls."""


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
        tokenizer = load_tokenizer(tokenizer_dir, local=True)
        llama = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("policy", seed))
            model = transformers.LlamaForCausalLM(llama)
        return cls(model.eval(), tokenizer)

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """Load a Hugging Face folder, or (a `str` only) a name on the hub. safetensors only.

        Code of the folder or the hub runs only where `policy.trust_remote_code` of params.yaml says so.

        Raises:
            ParamsError: a `Path` that is not a folder with a config.json, or a model with code that may not run.
        """
        import torch

        local = isinstance(path, Path) or Path(path).is_dir()
        if local and not (Path(path) / "config.json").is_file():
            raise ParamsError(
                f"{path} is not a Hugging Face model folder (no config.json): make that checkpoint first"
            )
        model = import_transformers().AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=_runs_own_code(path, local),
            local_files_only=local,
        )
        for weight in (
            model.parameters()
        ):  # mapped from the file they are not aligned, and that decides last bits
            weight.data = weight.data.clone()
        return cls(model.eval(), load_tokenizer(path, local=local))

    def save(self, path: Path | str) -> None:
        """Write the folder whole, then rename it into place; equal weights give equal bytes."""
        with writing_folder(Path(path)) as new:
            self.model.save_pretrained(new)
            self.tokenizer.save_pretrained(new)

    def encode_prompt(self, text: str) -> list[int]:
        """The tokens of a prompt up to where the answer begins: the tokenizer's chat template, where it has one."""
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer.encode(text))
        chat = [{"role": "user", "content": text}]
        ids: Any = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )
        return list(ids)

    def encode_completion(self, text: str) -> list[int]:
        """The tokens of an answer, with the end token."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.eos_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text before the first stop token, without special tokens."""
        return self.decode_batch([list(ids)])[0]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """`decode` of every row."""
        stops = self.stop_ids
        ends = [next((i for i, id_ in enumerate(row) if id_ in stops), None) for row in rows]
        kept = [list(row[:end]) for row, end in zip(rows, ends, strict=True)]
        texts = self.tokenizer.batch_decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [str(text) for text in texts]

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
        """The end token that training puts behind an answer."""
        return _require(self.tokenizer.eos_token_id, "end token (eos_token)")

    @property
    def pad_id(self) -> int:
        """The filler behind a finished row; the end token where the tokenizer has no filler of its own."""
        pad: Any = self.tokenizer.pad_token_id
        return self.eos_id if pad is None else pad


def weights_hash(path: Path | str) -> str:
    """sha256 over a checkpoint's weights: model.safetensors, or its shards in the order of their names."""
    files = sorted(Path(path).glob("model*.safetensors"))
    if not files:
        raise ParamsError(f"{path} holds no model.safetensors: make that checkpoint first")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def import_transformers() -> Any:
    """transformers, quiet, and without the optional packages that take a third of its import time.

    The first import of its modelling code costs about 2.4 CPU seconds this way, 4.0 otherwise. The packages are hidden
    while that code asks whether they exist, and can be imported as usual afterwards.
    """
    if "transformers.modeling_utils" not in sys.modules:
        hidden = [name for name in SLOW_OPTIONAL_IMPORTS if name not in sys.modules]
        modules: dict[str, Any] = sys.modules
        modules.update(dict.fromkeys(hidden))
        try:
            importlib.import_module("transformers.models.llama.modeling_llama")
        finally:
            for name in hidden:
                del sys.modules[name]
        from transformers.utils import logging

        logging.disable_progress_bar()
    return importlib.import_module("transformers")


def load_tokenizer(path: Path | str, *, local: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or (not `local`) of a name on the hub; what it saves does not tell how it was loaded."""
    if local and not (Path(path) / "tokenizer_config.json").is_file():
        raise ParamsError(
            f"{path} holds no tokenizer (no tokenizer_config.json): run the stage that makes it first"
        )
    auto = import_transformers().AutoTokenizer
    trust = _runs_own_code(path, local)
    tokenizer = auto.from_pretrained(str(path), trust_remote_code=trust, local_files_only=local)
    for how in ("is_local", "local_files_only"):  # else HF_HUB_OFFLINE would change a checkpoint
        tokenizer.init_kwargs.pop(how, None)
    return tokenizer


def _runs_own_code(path: Path | str, local: bool) -> bool:
    """Whether a model's own code may run: it needs some, and params.yaml allows it.

    Raises:
        ParamsError: it needs some, and params.yaml does not.
    """
    if not local:
        return remote_code_allowed()
    found = [
        name for name in ("config.json", "tokenizer_config.json") if _names_code(Path(path) / name)
    ]
    if not found:
        return False
    if not remote_code_allowed():
        raise ParamsError(
            f"{path} brings its own code (auto_map in {', '.join(found)}), and loading it would run that code; "
            f"set `policy: {{trust_remote_code: true}}` only if you have read it"
        )
    print(f"warning: running code from {path} (policy.trust_remote_code)", file=sys.stderr)
    return True


def _names_code(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("auto_map"))
    except (OSError, ValueError, AttributeError):
        return False


def _require(value: Any, what: str) -> int:
    if value is None:
        raise ParamsError(f"the tokenizer has no {what}: set it in tokenizer_config.json")
    return value
