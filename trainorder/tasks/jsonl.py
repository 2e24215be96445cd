"""jsonl: the user's own problems, one JSON object per line, in a file per split.

    {"prompt": "2 + 3 = ?", "answer": "5"}
    {"prompt": "capital of peru ?", "answer": "lima", "choices": ["lima", "quito"], "think": "a fact"}

Rows are checked strictly: a bad one is named with file, line, what came and what is allowed. None may be bad unless
`max_dropped` says so.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from trainorder.reading import ParamsError
from trainorder.rewards import format
from trainorder.tasks.base import SPLITS, Problem, Reward, Split, content_id

KEYS = ("prompt", "answer", "choices", "think")
NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3}){1,6}|\d{1,24})(\.\d{1,24})?")
MAX_CHARS = 100_000
"""Of one text."""
MAX_LINE = 1 << 20
"""Bytes of one row."""
RESERVED = ("<pad>", "<bos>", "<sep>", "<eos>", "<unk>")
"""Tokens of the built-in tokenizer: in a text they would end or begin a message."""
SHOWN = 5
"""Bad rows that an error names."""


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


@dataclass(frozen=True)
class Jsonl:
    """Rows `{"prompt": ..., "answer": ...}` of three files; the answer's text, number or choice is compared."""

    train: str = ""
    """Path of the training rows."""
    dev: str = ""
    """Path of the rows that choose the order."""
    test: str = ""
    """Path of the rows that are only reported."""
    match: Literal["exact", "number", "choice"] = "exact"
    """exact: same words; number: same value (1,000 is 1000.0); choice: same words, and rows list `choices`."""
    answer: Literal["tags", "whole"] = "tags"
    """Where a completion holds its answer: in `<answer> ... </answer>` behind `<think> ... </think>`, or all of it."""
    max_dropped: float = 0.0
    """Share of a file's rows that may be bad, doubled or leaked; more refuse the build."""
    version: int = field(default=1, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)

    def __post_init__(self) -> None:
        for split in SPLITS:
            if not getattr(self, split):
                raise ValueError(f"{split}: name the JSONL file of this split, got nothing")
        paths = [
            os.path.realpath(getattr(self, split)) for split in SPLITS
        ]  # a loop of links is no error here
        if len(set(paths)) < len(paths):
            raise ValueError("train, dev and test must be three different files")
        if not 0 <= self.max_dropped < 1:
            raise ValueError(f"max_dropped is a share in 0..1, got {self.max_dropped}")

    @property
    def files(self) -> tuple[Path, ...]:
        """What the build reads, in the order of the splits."""
        return tuple(Path(getattr(self, split)) for split in SPLITS)

    def read(self, task: str) -> tuple[dict[Split, list[Problem]], list[Dropped]]:
        """The problems of each split in file order, and the rows that were dropped.

        A prompt that test or dev holds too is dropped from the split that trains or chooses (leakage).

        Raises:
            ParamsError: a file is missing or empty, or more than `max_dropped` of its rows are bad.
        """
        found: dict[Split, list[Problem]] = {}
        dropped: list[Dropped] = []
        seen: dict[str, tuple[str, int]] = {}
        for split in reversed(SPLITS):  # what test holds, dev and train may not
            file = Path(getattr(self, split))
            found[split], bad, rows = [], list[Dropped](), 0
            own: dict[str, tuple[str, int]] = {}
            for number, line in _lines(task, split, file):
                rows += 1
                try:
                    problem = self._problem(task, line)
                    key = " ".join(problem.prompt.split()).casefold()
                    if key in own:
                        raise BadRow(f"duplicate: the prompt of line {own[key][1]} again")
                    if key in seen:
                        raise BadRow("leakage: the prompt of {}, line {}".format(*seen[key]))
                    own[key] = (str(file), number)
                    found[split].append(problem)
                except BadRow as error:
                    bad.append(Dropped(str(file), number, str(error)))
            seen |= own
            if not rows:
                raise ParamsError(f"tasks.{task}.options.{split}: {file} holds no row")
            if len(bad) > self.max_dropped * rows:
                raise ParamsError(_explain(task, file, bad, rows, self.max_dropped))
            dropped += bad
        return {split: found[split] for split in SPLITS}, dropped

    def draw(self, rng: random.Random) -> Problem:
        """A random training row."""
        return rng.choice(self.read("jsonl")[0]["train"])

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """The right completion: the user's rows are all there is."""
        return problem.gold

    def drill(self, rng: random.Random) -> str | None:
        """None."""
        return None

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """1 for the right answer, else 0; part `format`: an answer of the right shape was found."""
        return [
            self._grade(text, problem.meta)
            for text, problem in zip(completions, problems, strict=True)
        ]

    def _grade(self, completion: str, meta: dict[str, Any]) -> Reward:
        words = " ".join(completion.split())
        parsed = format.parse(words) if self.answer == "tags" else None
        given = parsed.answer if parsed else words if self.answer == "whole" else ""
        shaped = bool(given)
        if self.match == "number":
            value, wanted = _number(given), _number(meta["answer"])
            shaped, right = value is not None, value is not None and value == wanted
        else:
            right = shaped and given == meta["answer"]
            if self.match == "choice":
                shaped = given in meta["choices"]
        return Reward(float(right), {"format": float(shaped), "answer": float(right)})

    def _problem(self, task: str, line: bytes) -> Problem:
        row = _parse(line)
        unknown = sorted(set(row) - set(KEYS))
        if unknown:
            raise BadRow(f"unknown key {_short(unknown[0])}; allowed: {', '.join(KEYS)}")
        prompt = _text(row, "prompt")
        answer = row.get("answer")
        if isinstance(answer, (int, float)) and not isinstance(answer, bool):
            row["answer"] = str(answer)
        answer = " ".join(_text(row, "answer").split())
        think = " ".join(_text(row, "think").split()) if "think" in row else "answer"
        meta: dict[str, Any] = {"answer": answer}
        if self.match == "number" and _number(answer) is None:
            raise BadRow(f"answer: match is number, got {_short(answer)}")
        if self.match == "choice":
            meta["choices"] = _choices(row, answer)
        gold = format.render(think, answer) if self.answer == "tags" else answer
        if self._grade(gold, meta).value != 1.0:
            raise BadRow(
                f"answer: no completion could give it (tags inside?), got {_short(answer)}"
            )
        key = content_id(task, " ".join(prompt.split()).casefold())
        return Problem(key, task, prompt, gold, gold, meta)


def _lines(task: str, split: str, file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                whole = line.endswith(b"\n") or len(line) <= MAX_LINE
                while not whole and (more := stream.readline(MAX_LINE)):
                    whole = more.endswith(b"\n")
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as error:
        raise ParamsError(
            f"tasks.{task}.options.{split}: cannot read {file} ({error.strerror}): name a JSONL file"
        ) from None


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise BadRow(f"longer than {MAX_LINE} bytes")
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse, object_pairs_hook=_once)
    except BadRow:
        raise
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise BadRow("nested too deep") from None
    except ValueError as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise BadRow(f"not JSON ({why}), got {_short(line.decode(errors='replace'))}") from None
    if not isinstance(row, dict):
        raise BadRow(f'must be an object like {{"prompt": ..., "answer": ...}}, got {_short(row)}')
    return row


def _refuse(constant: str) -> Any:
    raise BadRow(f"{constant} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1}) if len(keys) < 100 else keys[:1]
    if twice:
        raise BadRow(f"key {_short(twice[0])} twice")
    return dict(pairs)


def _text(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise BadRow(f"no key {key!r}; it has {', '.join(map(_short, sorted(row))) or 'none'}")
    text = row[key]
    if not isinstance(text, str):
        raise BadRow(f"{key}: must be text, got {_short(text)}")
    if not text.strip():
        raise BadRow(f"{key}: must not be empty")
    if len(text) > MAX_CHARS:
        raise BadRow(f"{key}: {len(text)} characters, at most {MAX_CHARS}")
    bad = next(
        (c for c in text if (c < " " and c not in "\n\t") or "\ud800" <= c <= "\udfff"), None
    )
    if bad is not None:
        raise BadRow(f"{key}: character U+{ord(bad):04X} is not allowed")
    token = next((token for token in RESERVED if token in text), None)
    if token:
        raise BadRow(f"{key}: {token} is reserved for the tokenizer")
    return text


def _choices(row: dict[str, Any], answer: str) -> list[str]:
    given = row.get("choices")
    if not isinstance(given, list) or len(given) < 2 or len(given) > 100:
        raise BadRow(f"choices: a list of 2 to 100 texts, got {_short(given)}")
    choices = [" ".join(_text({"choices": item}, "choices").split()) for item in given]
    if answer not in choices or len(set(choices)) < len(choices):
        raise BadRow(f"choices: each once and the answer among them, got {_short(choices)}")
    return choices


def _number(text: str) -> Decimal | None:
    """The value of `1,000.50`; None for what is no plain number.

    >>> _number("+1,000.50") == _number("1000.5"), _number("1e999"), _number("nan")
    (True, None, None)
    """
    return Decimal(text.replace(",", "")) if NUMBER.fullmatch(text) and text.isascii() else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _explain(task: str, file: Path, bad: list[Dropped], rows: int, most: float) -> str:
    shown = "\n".join(f"  {row}" for row in bad[:SHOWN])
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return (
        f"tasks.{task}: {len(bad)} of {rows} rows of {file} cannot be used, options.max_dropped allows "
        f"{most:.0%}:\n{shown}{more}\nmend them, or raise tasks.{task}.options.max_dropped"
    )
