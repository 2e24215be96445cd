"""Repairs what a killed dvc left half-written: dvc writes its tables in place and then refuses to work with a damaged one.

Each is looked at under dvc's own lock of it, so a table that a living dvc is writing is left alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainorder.paths import DVC_LOCK, PIPELINE_LOCK

TEMPORARY = Path(".dvc/tmp")
DAMAGED = ".damaged"


def repair() -> None:
    """Remove a damaged table of dvc's path locks (it only describes ended processes) and move a damaged dvc.lock aside.

    Without its dvc.lock, dvc restores every result from its run cache; nothing is trained again.
    """
    table = TEMPORARY / "rwlock"
    with _unused(TEMPORARY / "rwlock.lock") as free:
        if free and table.is_file() and not _is_json(table):
            table.unlink()
            print(
                f"warning: {table} was left half-written by a killed dvc: removed", file=sys.stderr
            )
    with _unused(TEMPORARY / "lock") as free:
        for lock in (DVC_LOCK, PIPELINE_LOCK) if free else ():
            if lock.is_file() and not _is_lockfile(lock):
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


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


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
