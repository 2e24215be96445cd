"""Which stage starts next, and how long the rest will take.

Prefect starts whatever task is ready, in the order of submission: it has no choice of the longest remaining path among ready
tasks, and no slots of different width on one machine. So the flow submits a stage only when this schedule starts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Schedule:
    """Stages of a graph on a few workers: longest remaining path first, never before its parents.

    `parents` may name only stages of the schedule. A stage occupies `slots` of the `workers` (its CPU threads); more
    than there are means all of them.
    """

    parents: Mapping[str, set[str]]
    seconds: Mapping[str, float]
    slots: Mapping[str, int]
    workers: int
    done: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    blocked: set[str] = field(default_factory=set)
    """Failed stages and all that come after them."""

    def __post_init__(self) -> None:
        self._children: dict[str, set[str]] = {stage: set() for stage in self.parents}
        for stage, parents in self.parents.items():
            for parent in parents:
                self._children[parent].add(stage)
        self._path: dict[str, float] = {}
        for stage in reversed(topological(self.parents)):
            after = max((self._path[child] for child in self._children[stage]), default=0.0)
            self._path[stage] = self.seconds[stage] + after

    def start(self) -> list[str]:
        """Stages to start now; they count as running from here on.

        A stage that needs all workers waits for them without being overtaken by shorter paths.
        """
        started = []
        for stage in sorted(self._ready(), key=lambda s: (-self._path[s], s)):
            if self._width(stage) > self.workers - sum(map(self._width, self.running)):
                break
            self.running.add(stage)
            started.append(stage)
        return started

    def finish(self, stage: str, *, ok: bool = True) -> None:
        """Note that a running stage ended; after a failure nothing that needs it will start."""
        self.running.discard(stage)
        if ok:
            self.done.add(stage)
        else:
            self.blocked |= {stage, *self.after(stage)}

    def after(self, stage: str) -> set[str]:
        """All stages that need this one, directly or not."""
        found: set[str] = set()
        border = {stage}
        while border:
            border = {c for s in border for c in self._children[s]} - found
            found |= border
        return found

    @property
    def open(self) -> bool:
        """Whether anything runs or can still start."""
        return bool(self.running or self._ready())

    def remaining(self, elapsed: Callable[[str], float]) -> float:
        """Seconds until the end, by playing the schedule forward; `elapsed` says how long a running stage ran."""
        trial = Schedule(self.parents, self.seconds, self.slots, self.workers, set(self.done))
        trial.blocked = set(self.blocked)
        trial.running = set(self.running)
        ends = {s: max(self.seconds[s] - elapsed(s), 0.0) for s in self.running}
        now = 0.0
        while True:
            ends |= {stage: now + self.seconds[stage] for stage in trial.start()}
            if not ends:
                return now
            first = min(ends, key=lambda s: (ends[s], s))
            now = ends.pop(first)
            trial.finish(first)

    def _ready(self) -> list[str]:
        gone = self.done | self.running | self.blocked
        return [s for s, parents in self.parents.items() if s not in gone and parents <= self.done]

    def _width(self, stage: str) -> int:
        return min(self.slots[stage], self.workers)


def topological(parents: Mapping[str, set[str]]) -> list[str]:
    """Stages with parents before children, otherwise in the order given.

    >>> topological({"c": {"b"}, "b": {"a"}, "a": set()})
    ['a', 'b', 'c']
    """
    order: dict[str, None] = {}

    def visit(stage: str) -> None:
        if stage not in order:
            for parent in sorted(parents[stage]):
                visit(parent)
            order[stage] = None

    for stage in parents:
        visit(stage)
    return list(order)
