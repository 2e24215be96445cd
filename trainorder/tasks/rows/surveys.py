"""What the user's rows are, without their problems: kept, so that a large file is read once while it does not change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.files import write_json
from trainorder.sources import content_of
from trainorder.tasks.base import Problem, Split
from trainorder.tasks.rows import Rows
from trainorder.tasks.rows.reader import MARK, MOST_MARKS, SHOWN, Reader

FIRST, LONGEST = 4, 20
"""Problems that a survey keeps: of each split the first, of all the longest."""
REMEMBERED = 64
"""Surveys in the user's cache folder."""
OWN_CODE = (
    "tasks/rows",
    "graders",
    "tasks/lines.py",
    "tasks/leaks.py",
    "tasks/base.py",
    "rewards/answers.py",
    "rewards/format.py",
)
"""What decides how a row is read: part of a survey's name."""


def survey(task: Rows, name: str, reserved: Sequence[str] = ()) -> dict[str, Any]:
    """What the rows are: format, rows, tasks, graders, counts of the splits, what was dropped, and a few problems.

    Kept in the user's cache folder under a hash of the files, the options and the code that reads them; of a data set on the
    hub in this process. Rows are read again for `reserved` tokens only where some may hold one.
    """
    if reserved:
        known = survey(task, name)
        if len(known["marks"]) < MOST_MARKS and all(map(MARK.fullmatch, reserved)):
            reserved = sorted(set(reserved) & set(known["marks"]))
        if not reserved:
            return known
    options = json.dumps([name, asdict(task), list(reserved)], sort_keys=True)
    files = task.files
    if not files:
        if options not in _OF_HUB:
            _OF_HUB[options] = _made(task, name, reserved)
        return _OF_HUB[options]
    kept = paths.cache_folder() / "rows" / f"{_key(options, files)}.json"
    with suppress(OSError, ValueError):
        return _kept(kept, kept.stat().st_mtime_ns)
    made = _made(task, name, reserved)
    with suppress(OSError):  # a folder that cannot be written costs the reading each time
        write_json(kept, made, indent=None)
        for old in sorted(kept.parent.iterdir(), key=os.path.getmtime)[:-REMEMBERED]:
            old.unlink()
    return made


def _made(task: Rows, name: str, reserved: Sequence[str]) -> dict[str, Any]:
    found, dropped, facts = Reader(task).read_with_facts(name, reserved)
    return {
        **vars(facts),
        "marks": sorted(facts.marks),
        "counts": {split: len(problems) for split, problems in found.items()},
        "dropped": len(dropped),
        "reasons": [str(row)[:300] for row in dropped[:SHOWN]],
        "few": [asdict(problem) for problem in _few(found, task.taken)],
    }


def _few(found: Mapping[Split, Sequence[Problem]], taken: Mapping[str, int]) -> Iterator[Problem]:
    kept = {split: problems[: taken.get(split)] for split, problems in found.items()}
    yield from (problem for problems in kept.values() for problem in problems[:FIRST])
    everything = [problem for problems in kept.values() for problem in problems]
    yield from sorted(everything, key=lambda p: len(p.text), reverse=True)[:LONGEST]
    yield from sorted(
        (p for p in everything if p.gold), key=lambda p: len(p.gold or ""), reverse=True
    )[:1]


_OF_HUB: dict[str, dict[str, Any]] = {}
"""Surveys of data sets on the hub: nothing here says whether one has changed since."""


def _key(options: str, files: Sequence[Path]) -> str:
    code = hashlib.sha256()
    package = Path(__file__).parents[2]
    for part in OWN_CODE:
        for file in sorted((package / part).glob("*.py")) or [package / part]:
            code.update(file.read_bytes())
    code.update(options.encode())
    for file in files:
        code.update(f"{file}\0{content_of(file.resolve())}".encode())
    return code.hexdigest()[:32]


@lru_cache(maxsize=64)
def _kept(file: Path, changed: int) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
