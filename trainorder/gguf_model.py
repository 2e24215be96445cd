"""A GGUF file as a Hugging Face folder: read by transformers, dequantized to float32, saved once below the project.

The folder's name is a hash of the file's bytes and of the packages that read it. It is written whole and then renamed, under a
lock, so that stages side by side convert once and a kill leaves nothing half-written. Equal files give equal bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.files import write_json, write_text, writing_folder
from trainorder.pretrained import (
    check_report,
    explained,
    forget_how_loaded,
    import_transformers,
    silent,
)
from trainorder.process import exclusive
from trainorder.reading import ParamsError, did_you_mean, listed
from trainorder.sources import content_of

MAGIC = b"GGUF"
READERS = ("gguf", "transformers")
"""Packages that decide what comes out."""
PATIENCE = 3600.0
"""Seconds to wait for another process that converts the same file."""


def folder_of(file: Path) -> Path:
    """Where the file's conversion lies, or would lie."""
    try:
        readers = [f"{name} {version(name)}" for name in READERS]
    except PackageNotFoundError:
        raise ParamsError(
            f"{file}: reading a GGUF file needs the package gguf: pip install gguf"
        ) from None
    key = hashlib.sha256("\n".join([content_of(file), *readers]).encode()).hexdigest()[:16]
    return paths.MODELS / key


def converted(file: Path) -> Path:
    """The Hugging Face folder with the file's model in float32 and its tokenizer; made at the first call.

    Raises:
        ParamsError: no GGUF file, an architecture that transformers cannot read, or one that is no whole model.
    """
    with file.open("rb") as stream:
        begins = stream.read(len(MAGIC) + 4)
    if begins[: len(MAGIC)] != MAGIC:
        pointer = begins.startswith(b"version ")
        what = "a Git LFS pointer: run `git lfs pull`" if pointer else "no GGUF file: it is damaged"
        raise ParamsError(f"{file} is {what}")
    folder = folder_of(file)
    if folder.is_dir():
        return folder
    with exclusive(folder.with_suffix(".lock"), f"converts {file.name}", PATIENCE):
        if not folder.is_dir():
            print(f"converting {file.name} into {folder}, once", file=sys.stderr)
            with _parsed_once():
                _convert(file, folder)
    return folder


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Within this, transformers parses a file once; else again for the config, the weights and the tokenizer, seconds each."""
    gguf: Any = importlib.import_module("gguf")
    reader = gguf.GGUFReader
    gguf.GGUFReader = cache(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _convert(file: Path, folder: Path) -> None:
    import torch
    from tqdm import tqdm

    transformers = import_transformers()
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    reader.tqdm = partial(tqdm, disable=None)  # its bar obeys no setting: only on a terminal
    architecture = _architecture(file)
    known = sorted({*reader.GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"})
    if architecture not in known and architecture.replace("-", "_") not in known:
        raise ParamsError(
            f"{file}: transformers reads no GGUF of the architecture {architecture!r}{did_you_mean(architecture, known)}; there are "
            f"{', '.join(known)}: take the model's Hugging Face folder, or a model of one of these"
        )
    with explained(file, "the model"), silent():
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
    with explained(file, "the tokenizer"), silent():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(file.parent), gguf_file=file.name
        )
    if info["missing_keys"]:
        raise ParamsError(
            f"{file} holds no weights for parts of its model ({architecture}): {listed(sorted(info['missing_keys']))}; download it "
            f"again, or take the model's Hugging Face folder"
        )
    check_report(file, info)
    forget_how_loaded(tokenizer)
    _make_plain(model)
    with writing_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        _drop_foreign_tokens(new, model.get_input_embeddings().weight.shape[0])


def _architecture(file: Path) -> str:
    """The architecture that a GGUF file names.

    Raises:
        ParamsError: the file ends too early or names none.
    """
    import gguf

    try:
        field = gguf.GGUFReader(str(file)).get_field("general.architecture")
        return str(field.contents()) if field is not None else ""
    except Exception as error:  # struct, numpy, Unicode: whatever a cut file makes the reader do
        reason = str(error).partition("\n")[0][:100]
        raise ParamsError(
            f"{file} is damaged or incomplete ({reason}): download it again"
        ) from None


def _drop_foreign_tokens(folder: Path, embeddings: int) -> None:
    """Take out the tokens that transformers adds by default (an unknown token) where the model has no embedding for them."""
    file, names = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    foreign = {t["content"] for t in content["added_tokens"] if t["id"] >= embeddings}
    if not foreign:
        return
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in foreign]
    write_text(file, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    named = json.loads(names.read_text(encoding="utf-8"))
    write_json(names, {k: v for k, v in named.items() if not (isinstance(v, str) and v in foreign)})


def _make_plain(model: Any) -> None:
    """Drop what says that the weights are quantized: they are float32 now, and transformers would refuse to save them."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
