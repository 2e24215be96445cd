"""What the operating system does for a process: its end with its parent's, locks that die with it, planted crashes."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = (LOOPBACK, "localhost", "::1")
FAIL_AT = "TRAINORDER_FAIL_AT"
"""Environment variable `NAME` or `NAME:N`: the process kills itself (SIGKILL) when it passes fail-point NAME the Nth time."""

QUIET = "TRAINORDER_QUIET"
"""Environment variable: where it is set, a run prints the table of arms, its verdict and warnings only."""

HELD = "TRAINORDER_HELD"
"""Environment variable: descriptor of a lock file that this process has, or that its parent gave it (`held`)."""

_passed: Counter[str] = Counter()


class StageError(RuntimeError):
    """A stage cannot do its work, and params.yaml is not to blame; the text says why and what to do. Exit code 1."""


class Busy(StageError):
    """Another process holds a lock for too long."""


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


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine by every resolver, so that nothing beyond it is reached and nobody beyond it reaches.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.evil.example")]
    [True, True, True, False]
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def keep_loopback_direct(*hosts: str) -> None:
    """Let this process and its children reach servers on this machine (and `hosts`) without the user's proxy.

    urllib, requests, httpx and curl read one of the two variables, or the other first; the user's entries stay.
    """
    given = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    direct = dict.fromkeys(filter(None, (host.strip() for host in given.split(","))))
    if "*" not in direct:
        direct |= dict.fromkeys((*LOOPBACK_NAMES, *hosts))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(direct)


def make_surroundings_usual() -> None:
    """Give this process and its children what libraries take for granted: open standard files, a name, a home, a width.

    A file opened while descriptor 0, 1 or 2 is closed takes that number, and a child writes its messages into it. A
    container's user may be a number that no list of users holds; DVC and Prefect do not start for one.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        for name, value in (("USER", f"uid{os.getuid()}"), ("HOME", "/nonexistent")):
            os.environ[name] = os.environ.get(name) or value
    for name in (
        "COLUMNS",
        "LINES",
    ):  # a terminal without a size exports 0, and rich prints nothing that wide
        size = os.environ.get(name, "1")
        if not (size.isdecimal() and int(size) > 0):
            del os.environ[name]


def fail_point(name: str) -> None:
    """A place where tests kill the process; without TRAINORDER_FAIL_AT it does nothing."""
    wanted = os.environ.get(FAIL_AT)
    if not wanted:
        return
    target, _, count = wanted.partition(":")
    if target == name:
        _passed[name] += 1
        if _passed[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def end_worker(worker: subprocess.Popen[bytes], patience: float = 0.0) -> None:
    """End a child that leads a process group, and all of the group: an idle one by itself within `patience` seconds."""
    if patience and worker.stdin is not None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            worker.stdin.close()  # nothing more will come
            worker.wait(timeout=patience)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def close_pipes(worker: subprocess.Popen[bytes]) -> None:
    """Close this side's pipes to a child, ended or another process's."""
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


@contextlib.contextmanager
def exclusive(path: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which goes with this process however it ends; `what` names it in messages.

    Where this process or its parent has it by `held`, there is nothing to wait for.

    Raises:
        Busy: another process still holds it after `patience` seconds; names that process.
    """
    with contextlib.nullcontext() if _has(path) else _locked(path, what, patience):
        yield


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[int]:
    """As `exclusive`, over all that the block does: calls of `exclusive` inside, and a child with `pass_fds` of the descriptor.

    The lock goes with the last of them. What is written in the block is so seen by no other holder half-way.

    Raises:
        Busy: another process holds it.
    """
    with _locked(path, what, 0.0) as descriptor:
        os.environ[HELD] = str(descriptor)
        try:
            yield descriptor
        finally:
            del os.environ[HELD]


def _has(path: Path) -> bool:
    """Whether the descriptor in HELD is of this lock file."""
    with contextlib.suppress(KeyError, ValueError, OSError):
        return os.path.samestat(os.fstat(int(os.environ[HELD])), path.stat())
    return False


@contextlib.contextmanager
def _locked(path: Path, what: str, patience: float) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    end, told = time.monotonic() + patience, False
    with path.open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
            if time.monotonic() >= end:
                raise Busy(
                    f"another process ({holder}) {what}; wait for it or end it (`kill {holder}`), then run again"
                )
            if not told:
                print(f"another process ({holder}) {what}; waiting for it", file=sys.stderr)
                told = True
            time.sleep(0.2)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock.fileno()


def is_held(path: Path) -> bool:
    """Whether some process holds the lock file `path` now."""
    if not path.is_file():
        return False
    try:
        with exclusive(path, "holds it"):
            return False
    except Busy:
        return True
