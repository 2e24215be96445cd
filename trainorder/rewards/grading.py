"""Grades answers in a process that can be killed: a verifier that hangs, crashes or raises costs that one answer.

Such an answer has no grade (None, never 0), is counted and reported; where more than `grading.max_unscored` of a task's
recent answers have none, `GradingError` stops the stage. One worker per process, started at the first grade.
"""

from __future__ import annotations

import atexit
import base64
import json
import math
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from trainorder.config import GradingConfig, IsolationLevel
from trainorder.process import StageError, close_pipes, end_worker
from trainorder.reading import ParamsError
from trainorder.rewards.sandbox import Isolation, Sandbox
from trainorder.tasks.base import Problem, Reward, Task

WORKER = "trainorder.rewards.grading_worker"
WINDOW = 256
"""Newest answers of a task whose unscored share is watched."""
ENOUGH = 32
"""Answers before the share means anything."""
START_SECONDS = 60.0
"""Added to the time of the first line: the worker has to start and to import the task."""
TOGETHER = 32
"""Answers graded by one call where they are programs, which share the start of a process."""
LOADED = -1
"""Row of the line that says so."""
KEPT = ("PATH", "LANG", "LC_ALL", "PYTHONHASHSEED", "TMPDIR", "HF_HUB_OFFLINE")
"""Environment a verifier sees; keys and tokens are not in it."""


class GradingError(StageError):
    """Too many answers could not be graded; the stage stops, and what it saved so far stays good."""


class Unscored:
    """Who could not be graded lately, and why."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)
        """Task -> reason -> how often, since the start of this process."""
        self._recent: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def note(self, task: str, values: Sequence[float | None], reasons: Sequence[str] = ()) -> None:
        """Count a batch; `reasons` explain its None values.

        Raises:
            GradingError: the share of the newest answers without a grade is above the bound.
        """
        for reason in reasons:
            if self.reasons[task][reason] == 0:
                print(f"warning: {task}: an answer has no grade: {reason}", file=sys.stderr)
            self.reasons[task][reason] += 1
        recent = self._recent[task]
        recent.extend(value is None for value in values)
        share = sum(recent) / max(1, len(recent))
        if len(recent) >= ENOUGH and share > self.most:
            why = "; ".join(f"{n} x {reason}" for reason, n in self.reasons[task].most_common(3))
            raise GradingError(
                f"{share:.0%} of the last {len(recent)} answers of task {task!r} could not be graded, "
                f"grading.max_unscored allows {self.most:.0%}: {why or 'the grader gave no reason'}. Nothing was "
                f"scored 0 for it; fix the cause and run the same command again"
            )


class Grader:
    """The parent's side of one worker, restarted when it hangs or dies."""

    def __init__(self, config: GradingConfig | None = None) -> None:
        self.config = config or GradingConfig()
        self.unscored = Unscored(self.config.max_unscored)
        self.restarts = 0
        self._isolation: dict[IsolationLevel, Isolation] = {}
        """Level that was wanted -> what was reached: found out once."""
        self._worker: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._known: set[str] = set()
        self._buffer = b""
        self._lock = threading.Lock()

    def grade(
        self, task: Task, completions: Sequence[str], problems: Sequence[Problem]
    ) -> list[Reward]:
        """`task.grade` in the worker; `Reward(None)` for an answer where it hung, crashed or raised.

        Answers are graded one at a time. Model-written programs are graded TOGETHER at a time until one goes wrong.

        Raises:
            GradingError: too many of the task's newest answers have no grade.
            IsolationError: the task runs model-written programs, and the sandbox is weaker than `grading.isolation`.
        """
        if not problems:
            return []
        self.isolation_for(task)
        rows = [(text, vars(p)) for text, p in zip(completions, problems, strict=True)]
        with self._lock:
            replies = self._grade_rows(task, rows)
        rewards = [_reward(replies[number]) for number in range(len(rows))]
        reasons = [
            replies[number].get("error", "the verifier gave no grade")
            for number, reward in enumerate(rewards)
            if reward.value is None
        ]
        self.unscored.note(problems[0].task, [reward.value for reward in rewards], reasons)
        return rewards

    def _grade_rows(self, task: Task, rows: Sequence[Any]) -> dict[int, dict[str, Any]]:
        replies: dict[int, dict[str, Any]] = {}
        crashes: Counter[int] = Counter()
        together = TOGETHER if getattr(task, "sandboxed", False) is True else 1
        while len(replies) < len(rows):
            todo = [number for number in range(len(rows)) if number not in replies]
            asked = [(number, rows[number]) for number in todo]
            ended = self._ask(task, asked, replies, together)
            if not ended:
                continue
            self.close()
            self.restarts += 1
            if together > 1:  # which of them it was is not known
                together = 1
                continue
            victim = next(number for number in todo if number not in replies)
            crashes[victim] += 1
            if ended == "hang":
                replies[victim] = {"error": f"the verifier took over {self.config.seconds:g} s"}
            elif crashes[victim] > 1:  # once may be a kill from outside
                replies[victim] = {"error": "the verifier's process died twice"}
        return replies

    def isolation_for(self, task: Task) -> Isolation | None:
        """The level at which this task's programs run; None for a task that runs none.

        Raises:
            IsolationError: it is below `grading.isolation`.
        """
        programs = getattr(task, "sandboxed", False)
        if not programs:
            return None
        # full Python needs the highest level, whatever params.yaml accepts
        wanted = "namespaces" if programs == "python" else self.config.isolation
        if wanted not in self._isolation:
            self._isolation[wanted] = reached(wanted)
        return self._isolation[wanted]

    def close(self) -> None:
        """Kill the worker."""
        worker, self._worker, self._buffer = self._worker, None, b""
        self._known = set()
        if worker is None:
            return
        if self._owner == os.getpid():
            end_worker(worker)
        close_pipes(worker)

    def _ask(
        self,
        task: Task,
        rows: Sequence[tuple[int, Any]],
        replies: dict[int, dict[str, Any]],
        together: int,
    ) -> str:
        """Fill `replies` until all are there (""), nothing came for too long ("hang"), or the worker died ("crash")."""
        worker = self._start()
        assert worker.stdin is not None
        assert worker.stdout is not None
        lines = self._request(task, rows, together)
        outgoing = memoryview(b"".join(lines))
        missing = {number for number, _ in rows}
        missing |= {LOADED} if len(lines) > 1 else set()
        deadline = time.monotonic() + self.config.seconds + (START_SECONDS if len(lines) > 1 else 0)
        source, sink = worker.stdout.fileno(), worker.stdin.fileno()
        while missing:
            left = deadline - time.monotonic()
            ready = select.select([source], [sink] if outgoing else [], [], max(0.0, left))
            if not ready[0] and not ready[1]:
                return "hang"
            try:
                if ready[1]:
                    outgoing = outgoing[os.write(sink, outgoing[: select.PIPE_BUF]) :]
                if not ready[0]:
                    continue
                chunk = os.read(source, 1 << 16)
            except OSError:
                return "crash"
            if not chunk:
                return "crash"
            *lines, self._buffer = (self._buffer + chunk).split(b"\n")
            for line in lines:
                reply = json.loads(line)
                if reply["row"] != LOADED:
                    replies[reply["row"]] = reply
                missing.discard(reply["row"])
                deadline = time.monotonic() + self.config.seconds
        return ""

    def _request(self, task: Task, rows: Sequence[tuple[int, Any]], together: int) -> list[bytes]:
        try:
            data = base64.b64encode(pickle.dumps(task)).decode()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ParamsError(
                f"{type(task).__name__} cannot be sent to its verifier's process ({error}): define it in a module"
            ) from None
        lines: list[dict[str, Any]] = []
        lines += [] if data in self._known else [{"task": data, "pickle": data}]
        self._known.add(data)
        lines.append({"task": data, "rows": list(rows), "together": together})
        return [json.dumps(line).encode() + b"\n" for line in lines]

    def _start(self) -> subprocess.Popen[bytes]:
        if self._worker is not None and self._owner == os.getpid() and self._worker.poll() is None:
            return self._worker
        self.close()
        self._owner = os.getpid()
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        self._worker = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(os.getpid()), self.config.isolation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        return self._worker


def _reward(reply: Mapping[str, Any]) -> Reward:
    value, parts = reply.get("value"), reply.get("parts") or {}
    if value is None:
        return Reward(None, parts)
    good = isinstance(value, (int, float)) and math.isfinite(value)
    return Reward(float(value), parts) if good else Reward(None)


def reached(minimum: IsolationLevel) -> Isolation:
    """The isolation that programs get on this machine.

    Raises:
        IsolationError: it is below `minimum`.
    """
    sandbox = Sandbox(minimum=minimum)
    try:
        return sandbox.check()
    finally:
        sandbox.close()


_SHARED: Grader | None = None


def configure(config: GradingConfig) -> Grader:
    """Give this process's shared grader its bounds, and start counting afresh; call it before the first grade."""
    global _SHARED
    if _SHARED is not None and _SHARED.config.isolation == config.isolation:  # its worker may stay
        _SHARED.config, _SHARED.unscored = config, Unscored(config.max_unscored)
        return _SHARED
    if _SHARED is not None:
        _SHARED.close()
    else:
        atexit.register(lambda: _SHARED and _SHARED.close())
    _SHARED = Grader(config)
    return _SHARED


def shared() -> Grader:
    """This process's grader, with default bounds unless `configure` was called."""
    return _SHARED or configure(GradingConfig())


def sandbox_level(tasks: Sequence[Task]) -> str:
    """The isolation of these tasks' programs, for logs and tags; empty where none of them runs programs.

    Raises:
        IsolationError: it is below `grading.isolation`.
    """
    levels = [found.level for task in tasks if (found := shared().isolation_for(task))]
    return levels[0] if levels else ""


def grade(task: Task, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
    """`Grader.grade` of this process's shared grader."""
    return shared().grade(task, completions, problems)
