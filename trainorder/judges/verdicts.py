"""Verdicts kept by content, so that a killed phase, another node or a rerun asks nothing twice.

One file per identity of a judge, `.verdicts/<identity>`, one line per verdict: hash of (prompt, answer, reference), value. A line is
appended by one write as soon as its verdict is there. Several processes may append at the same time; the first
line of a key is its verdict for all of them.

What an endpoint's replies took is kept beside it, in `.verdicts/<identity>.spent`: one JSON object per call of the judge, whatever
became of the stage that asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.process import fail_point

LINE = re.compile(rb"([0-9a-f]{32}) ([0-9a-f]{16})")
"""Key and the value's 64 bits: of a fixed length, so that a torn line is no other value."""
MAX_BYTES = 64 << 20
"""Of a file, about a million verdicts; then nothing more is kept."""


class Verdicts:
    """The verdicts of one judge."""

    def __init__(self, path: Path, most: int = MAX_BYTES) -> None:
        self.path, self.most = path, most
        self._known: dict[bytes, float] = {}
        self._read = 0
        """Bytes of the file that are in `_known`."""

    def get(self, key: bytes) -> float | None:
        """The verdict, if there was one when the file was read last."""
        return self._known.get(key)

    def refresh(self) -> None:
        """Read what was appended since the last time; lines that are not whole are no verdicts."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            text = stream.read()
        whole = text.rpartition(b"\n")[0]
        for line in whole.split(b"\n"):
            if match := LINE.fullmatch(line):
                key, bits = (bytes.fromhex(part.decode()) for part in match.groups())
                self._known.setdefault(key, struct.unpack(">d", bits)[0])
        self._read += len(whole) + 1 if whole else 0

    def add(self, values: Mapping[bytes, float]) -> None:
        """Append verdicts and read the file again: where another process was first, its verdict counts."""
        lines = [f"{k.hex()} {struct.pack('>d', v).hex()}\n" for k, v in values.items()]
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self.most:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
                os.write(file, ("\n" * torn + "".join(lines)).encode())
            finally:
                os.close(file)
            fail_point("verdicts.added")
            self.refresh()
        for key, value in values.items():
            self._known.setdefault(key, value)


METERED = ("input_tokens", "output_tokens", "unmetered")
"""What an endpoint is billed by, and requests whose reply named no tokens."""


class Spent:
    """What was asked of one judge in this folder, killed stages included; local state, as verdicts are."""

    def __init__(self, identity: str, folder: Path = paths.VERDICTS) -> None:
        self.path = folder / f"{identity}.spent"

    def add(self, counts: Mapping[str, int]) -> None:
        """Append the calls and tokens of a judge that is metered."""
        if not any(counts.get(name) for name in METERED):
            return
        line = json.dumps({name: counts[name] for name in ("asked", *METERED) if counts.get(name)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f"{line}\n".encode())
        finally:
            os.close(file)

    def total(self) -> Counter[str]:
        """All calls and tokens; torn lines are skipped."""
        total: Counter[str] = Counter()
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    found = json.loads(line)
                    total.update({n: int(found.get(n, 0)) for n in ("asked", *METERED)})
        return total


class CachedJudge:
    """A judge whose verdicts are kept. What has no verdict is asked again the next time."""

    def __init__(self, judge: Any, folder: Path = paths.VERDICTS) -> None:
        self.judge = judge
        self.verdicts = Verdicts(folder / judge.identity)
        self.spent = Spent(judge.identity, folder)
        self.failures: list[str] = []
        """Why rows of the last call have no verdict."""

    @property
    def counts(self) -> Counter[str]:
        """Those of the judge, with `kept`: verdicts that were not asked for again."""
        return self.judge.counts

    def win_probability(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[float | None]:
        """As of the judge, some pairs at a time: a kill costs no more than those that are under way."""
        rows = list(zip(prompts, answers, references, strict=True))
        keys = [self._key(row) for row in rows]
        self.verdicts.refresh()
        self.failures = []
        fresh = {
            key: row for key, row in zip(keys, rows, strict=True) if self.verdicts.get(key) is None
        }
        self.counts["kept"] += len(set(keys)) - len(fresh)
        todo = list(fresh.items())
        for start in range(0, len(todo), self.judge.at_once):
            part = todo[start : start + self.judge.at_once]
            before = self.counts.copy()
            try:
                values = self.judge.win_probability(*zip(*(row for _, row in part), strict=True))
            finally:  # an outage in the middle was paid for up to there
                self.spent.add(self.counts - before)
            self.failures += self.judge.failures
            found = zip((key for key, _ in part), values, strict=True)
            self.verdicts.add({key: value for key, value in found if value is not None})
        return [self.verdicts.get(key) for key in keys]

    def _key(self, row: tuple[str, str, str]) -> bytes:
        decides = row if self.judge.question.uses_reference else row[:2]
        return hashlib.sha256(json.dumps(decides).encode()).digest()[:16]
