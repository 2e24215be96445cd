"""`python tests/ordinary_user.py USER FOLDER... -- COMMAND...`: run a command as an ordinary user.

The working directory and the folders are shown to that user, the former and what lies in it is theirs. Root's folders are
closed to others, often the interpreter and this checkout with them: they are shown at the same paths in a mount namespace
of the command, so nothing is copied and no permission of the machine changes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from trainorder.rewards.sandbox_isolation import BIND, DETACH, NEWNS, PRIVATE, REC, _call, _mount

ROOT = Path(__file__).resolve().parents[1]
HELD = Path("/mnt")
"""Exists everywhere; covered for as long as the folders' parents are being replaced."""


def closed(folder: Path) -> Path | None:
    """The topmost of a folder's parents that others cannot pass through."""
    return next((p for p in reversed(folder.parents) if not p.stat().st_mode & 0o001), None)


def open_ways(folders: Iterable[Path]) -> None:
    """Put an open folder with only these inside in the place of each closed parent."""
    ways = {folder: way for folder in folders if (way := closed(folder)) is not None}
    _call("unshare", NEWNS)
    _mount(None, "/", None, REC | PRIVATE)
    _mount("none", str(HELD), "tmpfs", 0, "mode=755")
    for number, folder in enumerate(ways):
        (HELD / str(number)).mkdir()
        _mount(str(folder), str(HELD / str(number)), None, BIND | REC)
    for way in dict.fromkeys(ways.values()):
        _mount("none", str(way), "tmpfs", 0, "mode=755")
    for number, folder in enumerate(ways):
        folder.mkdir(parents=True, exist_ok=True)
        _mount(str(HELD / str(number)), str(folder), None, BIND | REC)
    _call("umount2", str(HELD).encode(), DETACH)


def become(user: int, shown: Iterable[Path] = ()) -> None:
    """Make this process an ordinary user's, if it is root's; `shown` folders stay within reach."""
    if os.geteuid() != 0:
        return
    here = Path.cwd()
    for path in (here, *here.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
    folders = [Path(sys.base_prefix), Path(sys.prefix), ROOT, here, *shown]
    open_ways(dict.fromkeys(folder.resolve() for folder in folders))
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    os.chdir(here)


if __name__ == "__main__":
    end = sys.argv.index("--")
    become(int(sys.argv[1]), map(Path, sys.argv[2:end]))
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])
