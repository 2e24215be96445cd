"""What the terminal shows while the flow runs: one line per finished stage, and what runs now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trainorder.flow.schedule import Schedule

WORDS = {"ran": "done", "restored": "restored", "unchanged": "unchanged", "failed": "FAILED"}


class Display:
    """Bar, current stages and time left in a terminal; in a log file only the line of each finished stage."""

    def __init__(self, console: Console) -> None:
        self.console = console
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
        self._bar = Progress(*columns, console=console, transient=True, refresh_per_second=4)
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
        """Refresh what runs now and the time left."""
        if self._schedule is not None:
            names = ", ".join(sorted(self._schedule.running))
            text = f"about {minutes(self.left())} left   [dim]{names}[/]"
            self._bar.update(self._task, completed=len(self._schedule.done), description=text)

    def left(self) -> float:
        """Estimated seconds to the end, corrected by how estimates fared so far."""
        if self._schedule is None:
            return 0.0
        now = time.monotonic()
        return self._pace * self._schedule.remaining(
            lambda stage: (now - self._started.get(stage, now)) / self._pace
        )


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
