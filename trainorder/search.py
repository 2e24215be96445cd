"""Which order to try next: predict every order from the steps that were measured so far, wherever they stood.

An order's score is the base's plus what each of its phases adds at its place. What phase x does to task t depends on where
it stands (training t saturates it, and later phases then harm where they helped before), so a step that was measured
counts for a new order only as far as it is like the new one. The closest kind that was measured is averaged:

    1. the same path: the scores themselves
    2. x after the same phases in another sequence
    3. x where t had been trained before, or had not, as here
    4. x anywhere
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainorder.reading import ParamsError

Order = tuple[str, ...]
"""Phases from the base on; () is the base."""

MAX_PHASES = 7


@dataclass(frozen=True)
class Known:
    """What was measured: path -> task -> score, and the tasks of each phase.

    >>> scores = {(): {"a": 0.4, "b": 0.5}, ("x",): {"a": 0.8, "b": 0.5}, ("y",): {"a": 0.3, "b": 0.9}}
    >>> known = Known(scores, {"x": {"a"}, "y": {"b"}})
    >>> [round(known.predict(order), 3) for order in (("x", "y"), ("y", "x"))]
    [0.8, 0.8]
    """

    scores: Mapping[Order, Mapping[str, float]]
    trains: Mapping[str, set[str]]

    def mean(self, path) -> float:
        """Mean measured score over tasks."""
        return _mean(list(self.scores[path].values()))

    def predict(self, order: Sequence[str]) -> float:
        """Mean score over tasks after the order."""
        start = max(i for i in range(len(order) + 1) if tuple(order[:i]) in self.scores)
        now = dict(self.scores[tuple(order[:start])])
        for place in range(start, len(order)):
            for task in now:
                now[task] += self.change(tuple(order[:place]), order[place], task)
        return _mean(list(now.values()))

    def change(self, before, phase: str, task: str) -> float:
        """What the phase is expected to change on the task when it follows `before`."""
        steps = [
            path for path in self.scores if path and path[-1] == phase and path[:-1] in self.scores
        ]
        if not steps:
            raise ParamsError(f"phase {phase!r} was measured nowhere: train it from the base first")
        seen = self._trained(before, task)
        kinds = (
            [step for step in steps if sorted(step[:-1]) == sorted(before)],
            [step for step in steps if self._trained(step[:-1], task) == seen],
            steps,
        )
        nearest = next(kind for kind in kinds if kind)
        return _mean([self.scores[step][task] - self.scores[step[:-1]][task] for step in nearest])

    def _trained(self, path, task: str) -> bool:
        return any(task in self.trains[phase] for phase in path)

    def ranked(self, phases: Sequence[str]) -> list[tuple[float, Order]]:
        """Every order of the phases with its predicted score (the measured one where there is one), best first."""
        if len(phases) > MAX_PHASES:
            raise ParamsError(
                f"{len(phases)} phases have {math.factorial(len(phases)):,} orders; the search compares those of at "
                f"most {MAX_PHASES}"
            )
        found = [(self.predict(order), order) for order in itertools.permutations(phases)]
        return sorted(found, key=lambda item: -item[0])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
