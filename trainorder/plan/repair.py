"""Repairs what a killed dvc left half-written: dvc writes its tables in place and then refuses to work with a damaged one.

Each is looked at under dvc's own lock of it, so a table that a living dvc is writing is left alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainorder import paths

TEMPORARY = Path(".dvc/tmp")
DAMAGED = ".damaged"


def repair() -> None:
    """Remove a damaged table of dvc's path locks (it only describes ended processes) and move a damaged dvc.lock aside.

    Without its dvc.lock, dvc restores every result from its run cache; nothing is trained again. Of a good table, the locks
    of a killed dvc go whose process number another program has by now: dvc would wait for that program to end.
    """
    table = TEMPORARY / "rwlock"
    with _unused(TEMPORARY / "rwlock.lock") as free:
        if free and table.is_file():
            locks = _json(table)
            if locks is None:
                table.unlink()
                print(
                    f"warning: {table} was left half-written by a killed dvc: removed",
                    file=sys.stderr,
                )
            elif (held := _held(locks)) != locks:
                table.write_text(json.dumps(held), encoding="utf-8")
                print(
                    f"warning: {table} held locks of a killed dvc, whose process number another program has: removed",
                    file=sys.stderr,
                )
    with _unused(TEMPORARY / "lock") as free:
        for lock in paths.locks() if free else ():
            if not _is_lockfile(lock):
                aside = lock.replace(lock.with_name(lock.name + DAMAGED))
                print(
                    f"warning: {lock} was left half-written by a killed dvc: moved to {aside}; results come back from "
                    f"dvc's run cache",
                    file=sys.stderr,
                )


@contextmanager
def _unused(guard: Path) -> Iterator[bool]:
    """Hold one of dvc's locks for the time of the block; False where a living dvc has it, or there is no DVC project."""
    from zc.lockfile import LockError, LockFile

    if not guard.parent.is_dir():
        yield False
        return
    try:
        held = LockFile(str(guard))
    except LockError:
        yield False
        return
    try:
        yield True
    finally:
        held.close()


def _json(path: Path) -> Any:
    """The content of a file of JSON; None where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def _held(locks: Any) -> Any:
    """The locks (mode -> path -> holders, `read` several and `write` one) without those of other programs' processes."""
    try:
        read = {
            path: [holder for holder in holders if not _is_another(holder)]
            for path, holders in locks["read"].items()
        }
        write = {path: h for path, h in locks["write"].items() if not (h and _is_another(h))}
        return {**locks, "read": {path: h for path, h in read.items() if h}, "write": write}
    except (KeyError, TypeError, AttributeError, ValueError):
        return locks  # dvc says itself what it expects


def _is_another(holder: Mapping[str, Any]) -> bool:
    """Whether a process of this number lives that is surely not the dvc that took the lock.

    That one works in this folder, and has the arguments that are noted; of an ended process dvc removes the locks itself.
    """
    import psutil

    program, _, arguments = holder["cmd"].partition(" ")
    try:
        process = psutil.Process(int(holder["pid"]))
        if (arguments or Path(program).name) in " ".join(process.cmdline()):
            return False
        here, place = Path.cwd().resolve(), Path(process.cwd()).resolve()
    except psutil.Error:  # ended since, or not to be looked at
        return False
    return place != here and here not in place.parents


def _is_lockfile(path: Path) -> bool:
    import yaml
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: ten times as fast
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(path.read_text(encoding="utf-8"), Loader=loader))
    except (yaml.YAMLError, ValueError, Invalid):
        return False
    return True
