"""Tasks of lm-eval that `evaluation.harness` names: what they are called here, and the files of an own one.

trainorder/evaluation/harness.py runs them; this imports nothing of lm-eval, so that plans need it not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from trainorder.reading import ParamsError, found_at, shown

ENDINGS = (".yaml", ".yml")
FUNCTION = re.compile(r"!function (\w+)\.\w+")


def is_own(entry: str) -> bool:
    """Whether an entry is a task file of the user's and no name of lm-eval's."""
    return entry.endswith(ENDINGS)


def label(entry: str) -> str:
    """What a task is called in tables.

    >>> label("ifeval"), label("mine/capitals.yaml")
    ('ifeval', 'capitals')
    """
    return Path(entry).stem if is_own(entry) else entry


def files(entries: Iterable[str]) -> list[Path]:
    """The files of the user's own tasks: each YAML with what it includes, its functions and its local data.

    Raises:
        ParamsError: one is missing, or no YAML mapping.
    """
    own = (file for entry in entries if is_own(entry) for file in _files(Path(entry)))
    return sorted(dict.fromkeys(own))


def _files(file: Path) -> Iterator[Path]:
    task = _read(file)
    yield file
    for text in _texts(task):
        for module in FUNCTION.findall(text):
            yield _known(file, file.parent / f"{module}.py")
    included = task.get("include")
    for name in [included] if isinstance(included, str) else included or ():
        yield from _files(_known(file, file.parent / str(name)))
    settings = task.get("dataset_kwargs")
    for name in _texts(settings.get("data_files") if isinstance(settings, dict) else None):
        if "://" not in name:
            found = (
                sorted(Path().glob(name)) if "*" in name and not Path(name).is_absolute() else []
            )
            yield from found or [_known(file, Path(name))]


def _known(task: Path, file: Path) -> Path:
    if found_at(file) != "file":
        raise ParamsError(
            f"evaluation.harness: {shown(str(task))} names {shown(str(file))}, and there is no such file; data files are looked "
            f"for from the project's folder, includes and functions beside the task"
        )
    return file


def _read(file: Path) -> dict[str, Any]:
    if found_at(file) != "file":
        raise ParamsError(
            f"evaluation.harness: no file {shown(str(file))}: name a task of lm-eval (`lm-eval ls tasks`) or a task file of this project"
        )
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"evaluation.harness: {shown(str(file))} is no YAML: {error}".partition("\n")[0]) from None  # fmt: skip
    if not isinstance(found, dict):
        raise ParamsError(f"evaluation.harness: {shown(str(file))} is no task of lm-eval: it is no mapping")  # fmt: skip
    return found


class _Loader(yaml.SafeLoader):
    """YAML whose tags are read as text: nothing is imported."""


_Loader.add_multi_constructor("!", lambda loader, tag, node: f"!{tag} {node.value}")


def _texts(value: Any) -> Iterator[str]:
    """All texts in a YAML value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for part in value.values() for text in _texts(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in _texts(part))
