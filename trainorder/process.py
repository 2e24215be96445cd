"""What the operating system does for a process: its end when its parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to end this process (SIGTERM) when its parent ends; elsewhere do nothing.

    The flow arms dvc and every stage arms itself. Armed on both sides, a killed flow leaves no trainer behind that
    would write into the checkpoint of the next attempt. `parent` is the process that is expected to be the parent: if
    it is already gone, the signal would never come, so this process ends at once.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
