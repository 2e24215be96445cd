"""Writing so that nothing is ever half there: to a temporary name, synced, renamed.

A reader sees the old content or the whole new one, whatever is killed or fails in between; what a killed writer left
under a temporary name is overwritten by the next.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trainorder.process import fail_point
from trainorder.reading import refused_path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends; missing folders are made."""
    with writing(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a value as JSON."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line; `read_jsonl` gives back the same rows."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines. Only a line feed ends a line: texts may hold U+2028 and its like."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream that becomes `path` if the block ends well, and leaves no trace otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        fail_point("file.rename")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """An empty folder that becomes `path` if the block ends well; an old `path` stays until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir(parents=True)
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
            sync(file)
        sync(new)
        fail_point("folder.rename")
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make sure the disk has a file, or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def disk_trouble(error: Exception) -> str:
    """What a user can do about an error that a full disk or a refused path caused; empty for every other error."""
    if is_disk_full(error):
        return (
            f"no space left on the disk ({error}). Nothing was left half-written. Make room (`trainorder gc` says "
            f"what can go) and run the same command again: it goes on from the last step checkpoint"
        )
    return refused_path(error) if isinstance(error, OSError) else ""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the disk, the quota or the file size limit is exhausted.

    >>> is_disk_full(OSError(errno.ENOSPC, "No space left on device")), is_disk_full(OSError("other"))
    (True, False)
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    while error is not None:
        if getattr(error, "errno", None) in full:
            return True
        if any(f"(os error {number})" in str(error) for number in full):  # safetensors, in words
            return True
        error = error.__cause__ or error.__context__
    return False


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def size_text(size: int) -> str:
    """Bytes for people.

    >>> size_text(512), size_text(3 << 20), size_text(5 << 30)
    ('0.5 KiB', '3.0 MiB', '5.0 GiB')
    """
    for unit, exponent in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << exponent:
            return f"{size / (1 << exponent):.1f} {unit}"
    return f"{size / 1024:.1f} KiB"
