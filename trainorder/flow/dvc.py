"""What the flow asks of DVC: the graph of stages, what has changed, and one stage brought up to date."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainorder import warm
from trainorder.plan.state import quiet_dvc
from trainorder.process import die_with_parent

if TYPE_CHECKING:
    from dvc.repo import Repo

ALWAYS = ["always changed"]
"""What `dvc status` says of a stage that only looks whether something changed."""

Outcome = Literal["ran", "restored", "unchanged"]


class StageFailed(RuntimeError):
    """A stage ended with an error; the text names it and shows its last lines."""


def graph() -> dict[str, set[str]]:
    """Every stage with those it depends on."""
    with _repository() as repo:
        stages = repo.index.graph
        return {s.addressing: {p.addressing for p in stages.successors(s)} for s in stages}


def has_remote() -> bool:
    """Whether this project has a default DVC remote."""
    with _repository() as repo:
        return bool(repo.config["core"].get("remote"))


def status() -> dict[str, list]:
    """`dvc status`: stage -> why it is not up to date.

    DVC does not list a stage whose parent is stale; `trainorder.plan.status` does.
    """
    with _repository() as repo:
        return repo.status()


@contextmanager
def _repository() -> Iterator[Repo]:
    """DVC's view of this folder; what DVC refuses is a RuntimeError."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    quiet_dvc()
    try:
        with Repo(".") as repo:
            yield repo
    except DvcException as error:
        raise RuntimeError(f"dvc: {error}") from error


class Runner:
    """Runs `dvc repro -s STAGE` and `dvc push` as processes and can stop all of them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def repro(
        self, stage: str, say: Callable[[str], None], *, parents: bool = False, pull: bool = False
    ) -> Outcome:
        """Bring one stage up to date; its output goes to `say` line by line.

        With `parents` those that it needs too; with `pull` from the DVC remote, where that has it.

        Raises:
            StageFailed: the stage did not end well.
        """
        options = [*(["--pull"] if pull else []), *([] if parents else ["-s"])]
        return _outcome(self._dvc(["repro", *options, stage], stage, say))

    def push(self, stage: str | None, say: Callable[[str], None]) -> None:
        """Push what a stage made to the DVC remote, or all that there is; and what DVC's run cache knows.

        Raises:
            StageFailed: the remote did not take it.
        """
        target = [] if stage is None else [stage]
        self._dvc(["push", "--quiet", "--run-cache", *target], f"dvc push {stage or ''}", say)

    def _dvc(self, arguments: list[str], what: str, say: Callable[[str], None]) -> list[str]:
        there = ["trainorder.warm"] if warm.is_ready() else []
        command = [sys.executable, "-m", *there, "dvc", "--wait-for-lock", *arguments]
        with self._lock:
            if self._stopped:
                raise StageFailed(f"{what} was not started: the flow is stopping")
            process = subprocess.Popen(
                command,
                env=environment(),
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the flow, which stops the whole group
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
            self._running.add(process)
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                lines.append(line.rstrip())
                say(lines[-1])
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        if code:
            raise StageFailed(f"{what} failed (exit code {code}):\n{_last_lines(lines)}")
        return lines

    def stop(self) -> None:
        """End every running stage, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)


def environment() -> dict[str, str]:
    """The environment of dvc and of the stages: plain output, no network chatter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    quiet = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return {**kept, **quiet, "PATH": path}


def _outcome(lines: list[str]) -> Outcome:
    if any(line.startswith("Running stage") for line in lines):
        return "ran"
    return "restored" if any("is cached" in line for line in lines) else "unchanged"


def _last_lines(lines: list[str], count: int = 15) -> str:
    return "\n".join(lines[-count:])
