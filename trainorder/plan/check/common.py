"""Names, files and models: what several checks ask."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.reading import ParamsError, did_you_mean, found_at, shown
from trainorder.sources import GGUF, find


def check_kept(where: str, path: Path | str) -> None:
    """What a stage or DVC removes and writes again can hold nothing of the user's."""
    inside = Path(os.path.relpath(Path(path).resolve(), Path.cwd().resolve()))
    first, node, *_ = *inside.parts, "", ""
    of_a_node = first in paths.OF_NODES and paths.NODE.fullmatch(node)
    if of_a_node or {inside, *inside.parents} & set(paths.REWRITTEN):
        raise ParamsError(
            f"{where}: {shown(str(path))} lies where a run removes and writes files; put it into a folder of your own"
        )


def check_model_path(path: str, where: str = "policy.path") -> None:
    """Refuse a path that names no model, as far as that can be seen without opening it."""
    if path.startswith("~"):
        raise ParamsError(f"{where}: {shown(path)}: `~` is not expanded here, write the path out")
    try:
        source = find(path)
    except ParamsError as error:
        raise ParamsError(f"{where}: {error}") from None
    if source.kind == "folder" and found_at(source.path / "config.json") != "file":
        gguf = next((file.name for file in sorted(source.path.glob(f"*{GGUF}"))), "")
        way = f"name the file {Path(path) / gguf}" if gguf else "name a Hugging Face model folder"
        raise ParamsError(f"{where}: the folder {path} holds no config.json; {way}")
    if source.kind == "gguf" and find_spec("gguf") is None:
        raise ParamsError(f"{where}: reading {path} needs the package gguf: pip install gguf")


def check_known(where: str, what: str, name: str, allowed: Mapping[str, Any]) -> None:
    """Refuse a name that is not allowed, with the nearest one."""
    if name not in allowed:
        names = sorted(allowed)
        raise ParamsError(
            f"{where}: no {what} {name!r}; there are {', '.join(names)}{did_you_mean(name, names)}"
        )
