"""`python tests/ordinary_user.py USER FOLDER COMMAND...`: run a command as an ordinary user, who owns FOLDER.

Root's own folders are closed to others, often the interpreter and this checkout with them. They are shown at the same
paths in a mount namespace of the command, so nothing is copied and no permission of the machine changes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainorder.rewards.sandbox_isolation import BIND, NEWNS, PRIVATE, REC, _call, _mount

ROOT = Path(__file__).resolve().parents[1]


def closed(folder: Path) -> Path | None:
    """The topmost of a folder's parents that others cannot pass through."""
    return next((p for p in reversed(folder.parents) if not p.stat().st_mode & 0o001), None)


def open_ways(folders: list[Path]) -> None:
    """Put an open folder with only these inside in the place of each closed parent."""
    _call("unshare", NEWNS)
    _mount(None, "/", None, REC | PRIVATE)
    ways = {folder: way for folder in folders if (way := closed(folder)) is not None}
    kept = Path("/mnt")  # held here while their parents are covered
    _mount("none", str(kept), "tmpfs", 0, "mode=755")
    for number, folder in enumerate(ways):
        (kept / str(number)).mkdir()
        _mount(str(folder), str(kept / str(number)), None, BIND | REC)
    for way in dict.fromkeys(ways.values()):
        _mount("none", str(way), "tmpfs", 0, "mode=755")
    for number, folder in enumerate(ways):
        folder.mkdir(parents=True, exist_ok=True)
        _mount(str(kept / str(number)), str(folder), None, BIND | REC)
    _call("umount2", str(kept).encode(), 2)


def main(user: str, folder: str, *command: str) -> None:
    project = Path(folder).resolve()
    for path in (project, *project.rglob("*")):
        os.chown(path, int(user), int(user), follow_symlinks=False)
    open_ways([Path(sys.base_prefix), Path(sys.prefix), ROOT, project])
    os.setgroups([])
    os.setresgid(int(user), int(user), int(user))
    os.setresuid(int(user), int(user), int(user))
    os.chdir(project)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
