"""Lines of JSON that a user wrote: read one by one, numbers as they are written, every fault of a line in words."""

from __future__ import annotations

import errno
import json
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainorder.reading import ParamsError

MAX_LINE = 1 << 20
"""Bytes of one row."""
MAX_NESTED = 100
"""Lists and objects inside of one another: what reads and writes rows descends into them."""


class Written(str):
    """A JSON number, as it was written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class BadRow(ValueError):
    """What is wrong with a row."""


@dataclass(frozen=True)
class Dropped:
    """A row that is not used, and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


def lines(where: str, file: Path, most: int = MAX_LINE) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank, without its end; of a longer one than `most` only the beginning.

    Only a line feed ends a line: texts may hold U+2028 and its like.

    Raises:
        ParamsError: the file cannot be read; `where` is the key of params.yaml to blame.
    """
    try:
        mode = file.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ParamsError(f"{where}: {file} is a device or pipe, not a file: name a JSONL file")
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(most + 1):
                number += 1
                whole = line.endswith(b"\n") or len(line) <= most
                while not whole and (more := stream.readline(most)):
                    whole = more.endswith(b"\n")
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as error:
        name = file if error.errno != errno.ENAMETOOLONG else short(str(file))
        raise ParamsError(
            f"{where}: cannot read {name} ({error.strerror}): name a JSONL file"
        ) from None


def parse(line: bytes, most: int = MAX_LINE) -> dict[str, Any]:
    """The object of a line, with its numbers as `Written`.

    Raises:
        BadRow: it is no object, or no JSON.
    """
    if len(line) > most:
        raise BadRow(f"longer than {most} bytes")
    row = loads(line)
    if not isinstance(row, dict):
        raise BadRow(f'must be an object like {{"prompt": ..., "answer": ...}}, got {short(row)}')
    return row


def loads(text: bytes) -> Any:
    """JSON with its numbers as `Written`; a key may stand once in an object, and numbers are finite.

    Raises:
        BadRow: it is no such JSON.
    """
    try:
        value = json.loads(
            text.decode("utf-8-sig"),
            parse_constant=_refuse,
            parse_float=Written,
            parse_int=Written,
            object_pairs_hook=_once,
        )
        if text.count(b"[") + text.count(b"{") > MAX_NESTED:
            _refuse_nested(value)
        return value
    except BadRow:
        raise
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise BadRow("nested too deep") from None
    except ValueError as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise BadRow(f"not JSON ({why}), got {short(text.decode(errors='replace'))}") from None


def _refuse_nested(value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTED):
        level = [
            item
            for inner in level
            if isinstance(inner, (dict, list))
            for item in (inner.values() if isinstance(inner, dict) else inner)
        ]
        if not level:
            return
    raise BadRow("nested too deep")


def _refuse(constant: str) -> Any:
    raise BadRow(f"{constant} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise BadRow(f"key {short(next(key for key, n in counts.items() if n > 1))} twice")
    return row


def refuse_tokens(texts: Sequence[str], reserved: Sequence[str]) -> None:
    """Refuse a row of whose texts one holds a special token: the model would read it as what it stands for.

    Raises:
        BadRow: names the token.
    """
    token = next((token for token in reserved for text in texts if token in text), None)
    if token:
        raise BadRow(f"{token} is a special token of the model's tokenizer: no text may hold it")


def plain(value: Any) -> Any:
    """A value of a further key as JSON can say it again: a number stays text where a float would change it."""
    if isinstance(value, Written):
        try:
            number = json.loads(value)
        except ValueError:  # more digits than an int may have
            return str(value)
        return number if json.dumps(number) == value else str(value)
    if isinstance(value, dict):
        return {_plain_text(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return _plain_text(value) if isinstance(value, str) else value


def _plain_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def short(value: Any) -> str:
    """What came, cut to a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
