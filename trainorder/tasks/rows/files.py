"""The user's rows as mappings, from whatever they lie in: parquet, JSON lines, JSON, a data set of Hugging Face.

Rows come one by one, with file and number; nothing is held but a batch.
"""

from __future__ import annotations

import datetime
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainorder.reading import ParamsError, found_at, shown
from trainorder.tasks.base import Split
from trainorder.tasks.lines import BadRow, lines, loads, parse, short

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".arrow")
MAX_ROW = 16 << 20
"""Bytes of one line."""
MAX_JSON = 1 << 30
"""Bytes of a file that is one JSON value."""
BATCH = 1000
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val", "eval", "evaluation", "heldout"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a split may be called -> ours."""
HUB_DATASET = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w.-]+)?(?::[\w.-]+)?")
"""`owner/name`, with a revision behind @ and a configuration behind a colon."""
_STEM = re.compile(r"[a-z]+")

Numbered = tuple[str, int, dict[str, Any] | BadRow]
"""File, line or row, and what is there."""


@dataclass(frozen=True)
class RowSource:
    """Rows of one split, or of all where `split` is None."""

    split: Split | None
    paths: tuple[Path, ...]
    hub: str = ""
    hub_split: str = ""

    def rows(self) -> Iterator[Numbered]:
        """Every row; a fault of one is handed on as `BadRow`, a fault of the file raises ParamsError."""
        if self.hub:
            yield from _hub_rows(self.hub, self.hub_split)
        for path in self.paths:
            yield from _READ.get(path.suffix.lower(), _json_rows)(path)


def split_of_name(name: str) -> Split | None:
    """The split that a file, a folder or a column's value names.

    >>> split_of_name("validation-00000-of-00002"), split_of_name("Train"), split_of_name("trains")
    ('dev', 'train', None)
    """
    found = _STEM.match(name.strip().lower())
    return SPLIT_NAMES.get(found[0]) if found else None


def row_sources(where: str, data: str | Mapping[Split, str]) -> list[RowSource]:
    """What `data` names: a file, a folder, a hub name, or one of these per split.

    Raises:
        ParamsError: nothing lies there, or nothing that is read.
    """
    if isinstance(data, Mapping):
        return [
            RowSource(split, source.paths, source.hub, source.hub_split)
            for split, one in data.items()
            for source in row_sources(f"{where}.{split}", one)
        ]
    kind = found_at(data)
    if kind == "file":
        return [RowSource(None, (_known(where, Path(data)),))]
    if kind == "folder":
        return _folder(where, Path(data))
    if not kind and HUB_DATASET.fullmatch(data) and not data.endswith(SUFFIXES):
        return _hub(where, data)
    raise ParamsError(
        f"{where}: no file or folder {shown(data)}; name a file ({', '.join(SUFFIXES)}), a folder or a data set on the hub"
    )


def _known(where: str, path: Path) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise ParamsError(
            f"{where}: {shown(str(path))} is no file that is read; there are {', '.join(SUFFIXES)}"
        )
    return path


def _folder(where: str, folder: Path) -> list[RowSource]:
    """A folder of `save_to_disk`, or of files or folders named after splits; other names hold rows of no split yet."""
    if (folder / "dataset_dict.json").is_file():
        names = _state(folder / "dataset_dict.json", "splits")
        return [RowSource(_split(where, name), _saved(folder / name)) for name in names]
    if (folder / "state.json").is_file():
        return [RowSource(None, _saved(folder))]
    inner = [f for f in (folder, folder / "data") if f.is_dir()]
    files = sorted(p for f in inner for p in f.iterdir() if p.suffix.lower() in SUFFIXES)
    files += sorted(
        p
        for f in sorted(folder.iterdir())
        if f.is_dir() and split_of_name(f.name)
        for p in f.iterdir()
        if p.suffix.lower() in SUFFIXES
    )
    if not files:
        raise ParamsError(f"{where}: {folder} holds no rows; it needs files {', '.join(SUFFIXES)}")
    by_split: dict[Split | None, list[Path]] = {}
    for file in files:
        split = split_of_name(file.stem) or (
            split_of_name(file.parent.name) if file.parent not in inner else None
        )
        by_split.setdefault(split, []).append(file)
    if None in by_split and len(by_split) > 1:
        named = ", ".join(str(p) for p in by_split[None][:3])
        raise ParamsError(
            f"{where}: {folder} holds files that name a split and others that do not ({named}): name all, or none"
        )
    return [RowSource(split, tuple(paths)) for split, paths in by_split.items()]


def _split(where: str, name: str) -> Split:
    found = split_of_name(name)
    if found is None:
        raise ParamsError(
            f"{where}: no split {name!r}; there are {', '.join(SPLIT_NAMES)}: name the folders by `data: {{train: ..., test: ...}}`"
        )
    return found


def _saved(folder: Path) -> tuple[Path, ...]:
    """The files of a data set that `datasets` saved, in their order."""
    found = _state(folder / "state.json", "_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in found]
    if not all(isinstance(name, str) for name in names):
        raise ParamsError(f"{folder / 'state.json'} is damaged: save the data set again")
    return tuple(folder / str(name) for name in names)


def _state(file: Path, key: str) -> list[Any]:
    """A list in a file that `datasets` wrote."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise ParamsError(f"{file} is damaged (no list {key!r}): save the data set again")
    return found


def _hub(where: str, name: str) -> list[RowSource]:
    try:
        importlib.import_module("datasets")
    except ImportError:
        raise ParamsError(
            f"{where}: no file or folder {shown(name)}, and a data set on the hub needs the package `datasets`: "
            f"pip install datasets"
        ) from None
    try:
        found = _hub_splits(name)
    except Exception as error:  # the network, a missing name, a wrong configuration
        raise ParamsError(
            f"{where}: no file or folder {shown(name)}, and the hub gives no such data set "
            f"({type(error).__name__}: {str(error)[:160]}); without network, download it and name the folder"
        ) from None
    return [
        RowSource(_split(where, split), (), name, split) for split in found if split_of_name(split)
    ]


@cache
def _hub_splits(name: str) -> list[str]:
    datasets: Any = importlib.import_module("datasets")
    repo, config, revision = _parts(name)
    return datasets.get_dataset_split_names(repo, config, revision=revision)


def _hub_rows(name: str, split: str) -> Iterator[Numbered]:
    datasets: Any = importlib.import_module("datasets")
    repo, config, revision = _parts(name)
    for number, row in enumerate(
        datasets.load_dataset(repo, config, split=split, revision=revision), 1
    ):
        yield f"{name} {split}", number, _cleaned(row)


def _parts(name: str) -> tuple[str, str | None, str | None]:
    name, _, config = name.partition(":")
    repo, _, revision = name.partition("@")
    return repo, config or None, revision or None


def _parquet_rows(path: Path) -> Iterator[Numbered]:
    import pyarrow.parquet

    with _explained(path):
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=BATCH):
            for row in batch.to_pylist():
                number += 1
                yield str(path), number, _cleaned(row)


def _arrow_rows(path: Path) -> Iterator[Numbered]:
    """A file of `datasets`: a stream of Arrow batches."""
    import pyarrow

    with _explained(path), pyarrow.memory_map(str(path)) as file:
        number = 0
        for batch in pyarrow.ipc.open_stream(file):
            for row in batch.to_pylist():
                number += 1
                yield str(path), number, _cleaned(row)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What Arrow raises, in one line."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ParamsError(f"{path} cannot be read: {reason}") from None


def _line_rows(path: Path) -> Iterator[Numbered]:
    for number, line in lines("data", path, MAX_ROW):
        try:
            yield str(path), number, _cleaned(parse(line, MAX_ROW))
        except BadRow as error:
            yield str(path), number, error


def _json_rows(path: Path) -> Iterator[Numbered]:
    """One list of objects, or objects line by line under this name."""
    first = next(lines("data", path, MAX_ROW), (1, b""))[1].removeprefix(b"\xef\xbb\xbf").strip()
    if first[:1] == b"{" and first[-1:] == b"}" and len(first) > 1:
        yield from _line_rows(path)
        return
    if path.stat().st_size > MAX_JSON:
        raise ParamsError(
            f"{path}: a list of over {MAX_JSON >> 30} GiB; write one object per line (.jsonl)"
        )
    try:
        found = loads(path.read_bytes())
    except BadRow as error:
        raise ParamsError(
            f"{path}: {error}; a list of objects is needed, or one object per line"
        ) from None
    if not isinstance(found, list):
        raise ParamsError(
            f"{path}: a list of objects is needed, or one object per line, got {short(found)}"
        )
    for number, row in enumerate(found, 1):
        good = isinstance(row, dict)
        yield (
            str(path),
            number,
            _cleaned(row) if good else BadRow(f"must be an object, got {short(row)}"),
        )


def _cleaned(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without nulls in its mappings: parquet unions fill structs with them."""
    return {key: _clean(value) for key, value in row.items() if value is not None}


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return value


_READ = {
    ".parquet": _parquet_rows,
    ".jsonl": _line_rows,
    ".ndjson": _line_rows,
    ".arrow": _arrow_rows,
}
