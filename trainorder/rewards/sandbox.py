"""Runs model-written functions in a separate, killable, resource-limited process and returns what they computed.

One worker (`sandbox_worker.py`, a bare interpreter without site-packages and environment) lives as long as this process
and forks children: one per program in full Python, one for up to TOGETHER programs of the whitelist language, which leave
nothing behind. A child gets only sources and inputs; the expected outputs never leave this process, so there is nothing
a program could print, raise or overwrite that passes for a right answer.

How far the worker is cut off from the machine is its isolation level (`LEVELS`, lowest first): it depends on what the
kernel allows, is reported, and a level below the wanted one is refused. This is no defence against a kernel exploit; it
is one against loops, memory hogs, fork bombs, files, sockets, other processes and reward tricks.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from trainorder.process import close_pipes, end_worker
from trainorder.reading import ParamsError

if TYPE_CHECKING:
    from trainorder.config import IsolationLevel

WORKER = Path(__file__).with_name("sandbox_worker.py")
ISOLATION = Path(__file__).with_name("sandbox_isolation.py")
LANGUAGE = Path(__file__).with_name("sandbox_language.py")
RUNTIME = Path(__file__).with_name("sandbox_runtime.py")
"""Files of the worker's process; named here, they count as a part of whatever uses the sandbox."""
LEVELS: tuple[IsolationLevel, ...] = ("process", "filtered", "namespaces")
"""See LEVELS in sandbox_isolation.py."""
DESCRIPTORS = Path("/dev/fd")
FIRST_PASSED = 200
"""The open files of a worker in full Python have these numbers, the same ones every time."""
CLOSE_SECONDS = 0.5
"""What an idle worker gets to end by itself, before it is killed."""
START_SECONDS = 60.0
"""What the worker may take to start."""
TOGETHER = 32
"""Programs of the whitelist language that share a process, at most: starting one takes several times as long as a program."""
ENTRY_BYTES = 256
"""What a remembered result takes beside its reply."""
GRACE_SECONDS = 5.0
"""What the worker may take beyond a program's own clock time before it counts as dead."""


@dataclass(frozen=True)
class Limits:
    """What one program may use; crossing a bound kills that program only."""

    cpu_seconds: float = 5.0
    """Processor time: what stops an endless loop in full Python. In the whitelist language the number of steps does, which
    no machine and no load changes (`sandbox_runtime.STEPS`); a program that a clock stops there has no result."""
    wall_seconds: float = 20.0
    """Clock time: what stops a sleeping program. Long, so that a busy machine costs no honest program its score."""
    memory_mb: int = 256
    """Address space."""
    output_bytes: int = 65536
    """Length of the outputs as JSON."""
    processes: int = 0
    """Processes it may start; above 0 only under `namespaces`, where what is left of them can be killed for certain."""


@dataclass(frozen=True)
class Result:
    """The outputs, one per input, or why there are none."""

    outputs: list[Any] | None = None
    error: str = ""
    """`SyntaxError`, `forbidden: Import`, `killed: cpu`, ...; empty where there are outputs."""
    unavailable: bool = False
    """True: the sandbox or the machine failed, not the program. Such a sample has no reward."""


class Isolation(NamedTuple):
    """How far a sandbox is cut off, and what kept it from the next level."""

    level: IsolationLevel
    missing: str = ""


class IsolationError(ParamsError):
    """The sandbox reaches less isolation here than params.yaml asks for."""


class Sandbox:
    """The parent's side: one worker process, restarted when it dies, and the results of all programs seen so far.

    `language` is "expressions" (a whitelist: no imports, classes, attributes of types; enough to transform lists) or
    "python" (everything, which needs the level `namespaces`). `highest` stops below what the kernel allows.

    Raises (on the first program):
        IsolationError: the level reached is below `minimum`.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        remember: int = 64 << 20,
        *,
        language: Literal["expressions", "python"] = "expressions",
        minimum: IsolationLevel = "process",
        highest: IsolationLevel = "namespaces",
    ) -> None:
        self.limits = limits or Limits()
        self.language, self.highest = language, highest
        free = language == "python" or self.limits.processes > 0
        self.minimum: IsolationLevel = "namespaces" if free else minimum
        self.isolation: Isolation | None = None
        """Known once the worker has started."""
        self.restarts = 0
        self._remember = remember
        self._seen: dict[bytes, bytes] = {}
        """Hash of a request -> reply as it came, oldest first; at most `remember` bytes with ENTRY_BYTES for each."""
        self._seen_bytes = 0
        self._worker: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._buffer = b""
        self._lock = threading.Lock()

    def run(self, programs: Sequence[tuple[str, Sequence[Any]]]) -> list[Result]:
        """Run the body of `def f ( xs ) :` on each input. Equal programs on equal inputs run once.

        The result of a program does not depend on the others in the batch, nor on their order.
        """
        requests = [
            (json.dumps([source, list(inputs)]).encode(), len(inputs))
            for source, inputs in programs
        ]
        keys = [hashlib.sha256(request).digest() for request, _ in requests]
        with self._lock:
            known = {key: self._seen[key] for key in keys if key in self._seen}
            fresh = {k: asked for k, asked in zip(keys, requests, strict=True) if k not in known}
            computed = dict(zip(fresh, self._computed(list(fresh.values())), strict=True))
            for key, result in computed.items():
                if not result.unavailable:  # a failure of the sandbox is not remembered
                    self._keep(key, json.dumps({"outputs": result.outputs, "error": result.error}))
        return [
            computed[key] if key in computed else Result(**json.loads(known[key])) for key in keys
        ]

    def _keep(self, key: bytes, reply: str) -> None:
        self._seen[key] = reply.encode()
        self._seen_bytes += len(reply) + ENTRY_BYTES
        while self._seen_bytes > self._remember:
            oldest = self._seen.pop(next(iter(self._seen)))
            self._seen_bytes -= len(oldest) + ENTRY_BYTES

    def check(self) -> Isolation:
        """Start the worker and return its level.

        Raises:
            IsolationError: the level is below the wanted one.
        """
        with self._lock:
            self._start()
        assert self.isolation is not None
        return self.isolation

    def close(self) -> None:
        """End the worker and whatever it still runs."""
        worker, self._worker, self._buffer = self._worker, None, b""
        if worker is None:
            return
        if self._owner == os.getpid():
            end_worker(worker, CLOSE_SECONDS)
        close_pipes(worker)

    def _computed(self, requests: Sequence[tuple[bytes, int]]) -> list[Result]:
        """The result of each request, which come with the number of their inputs."""
        together = 1 if self.language == "python" else TOGETHER
        results: list[Result] = []
        died = False
        while len(results) < len(requests):
            asked = requests[len(results) :][:together]
            replies = self._ask([request for request, _ in asked])
            for reply, (_, count) in zip(replies, asked, strict=False):
                wrong = reply.outputs is not None and len(reply.outputs) != count
                results.append(Result(error="killed: not one output per input") if wrong else reply)
            if len(replies) == len(asked):
                died = False
                continue
            self.restarts += 1
            self.close()
            if died and not replies:
                why = "the sandbox worker died twice on this program"
                results.append(Result(error=why, unavailable=True))
                died = False
            else:
                died = True
        return results

    def _ask(self, requests: Sequence[bytes]) -> list[Result]:
        """One line with all requests, one reply line each; fewer where the worker died or does not answer."""
        worker = self._start()
        assert worker.stdin is not None
        assert worker.stdout is not None
        results: list[Result] = []
        try:
            worker.stdin.write(b"[" + b",".join(requests) + b"]\n")
            worker.stdin.flush()
        except OSError:
            return results
        for _ in requests:
            seconds = self.limits.wall_seconds + GRACE_SECONDS
            line = self._read_line(worker.stdout.fileno(), time.monotonic() + seconds)
            try:
                if line is None:
                    break
                results.append(Result(**json.loads(line)))
            except (ValueError, TypeError):
                break
        return results

    def _read_line(self, fd: int, deadline: float) -> bytes | None:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                return None
            chunk = os.read(fd, 1 << 16)
            if not chunk or len(self._buffer) > 2 * self.limits.output_bytes + 4096:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _start(self) -> subprocess.Popen[bytes]:
        if self._worker is not None and self._owner == os.getpid() and self._worker.poll() is None:
            return self._worker
        self.close()
        self._owner = os.getpid()
        self._worker = self._spawned()
        self._greet(self._worker)
        return self._worker

    def _spawned(self) -> subprocess.Popen[bytes]:
        limits = self.limits
        numbers = (limits.cpu_seconds, limits.wall_seconds, limits.memory_mb)
        numbers += (limits.output_bytes, limits.processes)
        name = interpreter = sys.executable
        worker, environment, passed = str(WORKER), {"PYTHONHASHSEED": "0"}, []
        with ExitStack() as files:
            if self.language == "python" and DESCRIPTORS.is_dir():
                # Programs can see how Python was started: through descriptors it is told no path of this machine.
                homes = dict.fromkeys((sys.base_prefix, sys.base_exec_prefix))
                places = (Path(sys.executable).resolve(), WORKER.parent, *map(Path, homes))
                passed = [_opened(place, files) for place in places]
                interpreter, folder, *found = [str(DESCRIPTORS / str(n)) for n in passed]
                name, worker = "python", f"{folder}/{WORKER.name}"
                environment |= {"PYTHONHOME": ":".join(found), "HOME": "/"}
            # -I would ignore PYTHONHASHSEED, without which sets print in another order every time;
            # with this environment -P -s -S isolates as much.
            flags = ("-P", "-s", "-S")
            return subprocess.Popen(
                [name, *flags, worker, *map(str, numbers), self.language, self.highest],
                executable=interpreter,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                pass_fds=passed,
                start_new_session=True,
            )

    def _greet(self, worker: subprocess.Popen[bytes]) -> None:
        assert worker.stdout is not None
        line = self._read_line(worker.stdout.fileno(), time.monotonic() + START_SECONDS)
        if line is None:
            return  # the first request meets a dead worker, and is tried once more
        self.isolation = isolation = Isolation(**json.loads(line))
        if LEVELS.index(isolation.level) < LEVELS.index(self.minimum):
            self.close()
            raise IsolationError(
                f"grading.isolation: model-written programs must run at {self.minimum!r}, this machine reaches "
                f"{isolation.level!r} ({isolation.missing}); allow what is missing, or accept less: there are "
                f"{', '.join(LEVELS)}, weakest first"
            )


def _opened(path: Path, files: ExitStack) -> int:
    """A descriptor of the file or folder, above those that anything else uses."""
    first = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, FIRST_PASSED)
    finally:
        os.close(first)
    files.callback(os.close, number)
    return number


_DEFAULT: Sandbox | None = None


def run_programs(programs: Sequence[tuple[str, Sequence[Any]]]) -> list[Result]:
    """`Sandbox.run` in this process's one shared sandbox."""
    return shared_sandbox().run(programs)


def shared_sandbox() -> Sandbox:
    """This process's one sandbox for the whitelist language."""
    global _DEFAULT
    if _DEFAULT is None:
        _DEFAULT = Sandbox()
        atexit.register(_DEFAULT.close)
    return _DEFAULT
