"""Which task a phase of several asks next: samplers weigh the tasks, curricula open and close them.

A step's distribution is the product of both with the phase's own weights, normalised. Tasks' problems come in one sequence
per (seed, task) whatever is decided here, so that phases meet the same problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainorder.config import Piece, RlConfig
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rl.curricula import CURRICULA
from trainorder.rl.samplers import SAMPLERS, Mem, Moment, normal
from trainorder.streams import stream

DEALT = ("weights", "uniform", "worst_task", "mt_grpo")
"""Samplers whose shares are dealt out exactly (largest remainder); prompts of the others are drawn one by one."""


@dataclass(frozen=True)
class Scheduler:
    """A phase's sampler and curriculum with their options."""

    sampler: Piece = "weights"
    curriculum: Piece = "together"

    @classmethod
    def from_config(cls, rl: RlConfig) -> Scheduler:
        """Look both up.

        Raises:
            ParamsError: unknown name.
        """
        _find(SAMPLERS, "rl.sampler", rl.sampler)
        _find(CURRICULA, "rl.curriculum", rl.curriculum)
        return cls(rl.sampler, rl.curriculum)

    def shares(self, now: Moment, mem: Mem) -> dict[str, float]:
        """The distribution of the next step's prompts over the tasks; to be asked once per step."""
        likes = self._ask(SAMPLERS, "sampler", now, mem)
        opens = self._ask(CURRICULA, "curriculum", now, mem)
        return normal({t: w * likes[t] * opens[t] for t, w in now.weights.items()})

    def counts(
        self, now: Moment, mem: Mem, prompts: int, key: tuple[str | int, ...]
    ) -> dict[str, int]:
        """How many prompts each task gets: dealt (`apportion`), or drawn from the stream `key`."""
        shares = self.shares(now, mem)
        if _name(self.sampler) in DEALT:
            return apportion(shares, prompts, mem.setdefault("owed", dict.fromkeys(now.tasks, 0.0)))
        drawn = stream("sampler", *key).choices(now.tasks, list(shares.values()), k=prompts)
        return {task: drawn.count(task) for task in now.tasks}

    def _ask(self, listed: Mapping[str, Any], slot: str, now: Moment, mem: Mem) -> dict[str, float]:
        piece: Piece = getattr(self, slot)
        function = _find(listed, f"rl.{slot}", piece)
        options = {} if isinstance(piece, str) else next(iter(piece.values()))
        return function(now, mem.setdefault(slot, {}), **options)


def apportion(shares: Mapping[str, float], prompts: int, owed: dict[str, float]) -> dict[str, int]:
    """Split prompts in proportion: largest remainder, with what a task did not get carried to the next step.

    A task of weight 1 in 100 is asked once in 100 prompts, not never. Ties go to the task named first.

    >>> owed = {"a": 0.0, "b": 0.0}
    >>> [apportion({"a": 0.75, "b": 0.25}, 2, owed) for _ in range(2)]
    [{'a': 2, 'b': 0}, {'a': 1, 'b': 1}]
    """
    for task, share in shares.items():
        owed[task] += prompts * share
    counts = dict.fromkeys(shares, 0)
    open_tasks = [task for task, share in shares.items() if share > 0]
    for _ in range(prompts):
        task = max(open_tasks, key=lambda task: owed[task])
        counts[task] += 1
        owed[task] -= 1
    return counts


def _name(piece: Piece) -> str:
    return piece if isinstance(piece, str) else next(iter(piece))


def _find(listed: Mapping[str, Any], where: str, piece: Piece) -> Callable[..., dict[str, float]]:
    name, names = _name(piece), sorted(listed)
    if name not in listed:
        raise ParamsError(
            f"{where}: no {where[3:]} {name!r}; there are {', '.join(names)}"
            f"{did_you_mean(name, names)}"
        )
    return listed[name]
