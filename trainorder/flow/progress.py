"""What the terminal shows while the flow runs: one line per finished stage, and what runs now."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trainorder import paths
from trainorder.flow.schedule import Schedule
from trainorder.plan import names

WORDS = {"ran": "done", "restored": "restored", "unchanged": "unchanged", "failed": "FAILED"}


class Display:
    """Bar, current stages and time left in a terminal; in a log file only the line of each finished stage.

    `quiet` shows no bar and prints warnings only.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self._quiet = quiet
        self._schedule: Schedule | None = None
        self._started: dict[str, float] = {}
        self._pace = 1.0
        self._expected = self._took = 0.0
        columns = (
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(
            *columns, console=console, transient=True, refresh_per_second=4, disable=quiet
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._quiet and not text.startswith("warning: "):
            return
        self._bar.console.print(text, highlight=False, soft_wrap=True)

    def show(self, schedule: Schedule, up_to_date: int) -> None:
        """Follow this schedule from now on."""
        self._schedule = schedule
        total = len(schedule.parents)
        self._bar.update(self._task, total=total, completed=len(schedule.done))
        if up_to_date < total:
            left = total - up_to_date
            self.say(
                f"{up_to_date} of {total} stages are up to date; the other {left} take{'s' if left == 1 else ''} about "
                f"{minutes(self.left())}"
            )
        else:
            self.say(f"all {total} stages are up to date")

    def started(self, stage: str) -> None:
        """A stage began."""
        self._started[stage] = time.monotonic()
        self.tick()

    def finished(self, stage: str, how: str) -> float:
        """A stage ended; prints its line and returns its seconds."""
        assert self._schedule is not None
        seconds = time.monotonic() - self._started.pop(stage)
        if how == "ran":
            self._expected += self._schedule.seconds[stage]
            self._took += seconds
            self._pace = (self._took + 30.0) / (self._expected + 30.0)
        total = len(self._schedule.parents)
        count = f"{len(self._schedule.done):>{len(str(total))}}/{total}"
        width = max(map(len, self._schedule.parents))
        left = f"[dim]about {minutes(self.left())} left[/]" if self._schedule.open else ""
        self.say(f"[dim]{count}[/] {stage:<{width}} {WORDS[how]:<9} {seconds:5.1f} s  {left}")
        self.tick()
        return seconds

    def tick(self) -> None:
        """Refresh what runs now and the time left; in a terminal also each running stage's last reward and time left."""
        if self._schedule is not None:
            show = self.stage if self.console.is_terminal else str
            running = ", ".join(map(show, sorted(self._schedule.running)))
            text = f"about {minutes(self.left())} left   [dim]{running}[/]"
            self._bar.update(self._task, completed=len(self._schedule.done), description=text)

    def stage(self, name: str) -> str:
        """A running stage with the last reward of the checkpoint that it trains, and about how long it still takes."""
        assert self._schedule is not None
        does, made = names.parts(name)
        started = self._started.get(name)
        parts = []
        if does == "train" and started is not None:
            row = last_row(
                paths.run(made) / "metrics.jsonl", since=time.time() - time.monotonic() + started
            )
            reward = row.get("rollout/reward")
            parts = [f"reward {reward:.3f}"] if reward is not None else []
        if started is not None:
            ran = time.monotonic() - started
            parts.append(
                f"{minutes(max(self._pace * self._schedule.seconds[name] - ran, 0.0))} left"
            )
        short = names.short(name)
        return f"{short} ({', '.join(parts)})" if parts else short

    def left(self) -> float:
        """Estimated seconds to the end, corrected by how estimates fared so far."""
        if self._schedule is None:
            return 0.0
        now = time.monotonic()
        return self._pace * self._schedule.remaining(
            lambda stage: (now - self._started.get(stage, now)) / self._pace
        )


TAIL = 2**14
"""Bytes from the end of a log that are read: several steps."""


def last_row(file: Path, *, since: float = 0.0) -> dict[str, Any]:
    """The last whole line of a JSON Lines file that was written after `since` (seconds of the epoch); empty without one."""
    try:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_mtime < since:  # of an earlier run of this node
                return {}
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL))
            lines = stream.read().split(b"\n")
        return json.loads(lines[-2]) if len(lines) > 1 else {}
    except (OSError, ValueError):
        return {}


def minutes(seconds: float) -> str:
    """A duration a person reads at a glance.

    >>> minutes(8), minutes(100), minutes(4000)
    ('8 s', '1:40 min', '1:06 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    small, big, unit = (60, 1, "min") if seconds < 3600 else (3600, 60, "h")
    return f"{int(seconds // small)}:{int(seconds % small // big):02d} {unit}"


def summary(outcomes: Mapping[str, str]) -> str:
    """`12 done, 30 up to date` from the outcome of every stage."""
    counts = {
        word: list(outcomes.values()).count(word) for word in dict.fromkeys(outcomes.values())
    }
    return ", ".join(f"{count} {word}" for word, count in counts.items())
