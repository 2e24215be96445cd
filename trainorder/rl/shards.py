"""Step checkpoints of a phase that several ranks train: each rank writes what it holds, and reads that alone.

A checkpoint is whole when every rank has its part of the same number, so all go on from the newest number that all have.
Ranks save and train in step: none can be more than one number ahead. What steps do not change (a reference, the base
under an adapter) is in none of them; the parent has it.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainorder.resume import Saved, Work
from trainorder.rl.backend import Backend

SHARED = "state/"
"""Tensors with this in front are the same on all ranks: the first keeps them."""


class Shards:
    """The step checkpoints of the phase. Every method is called by all ranks in the same order."""

    def __init__(self, backend: Backend, work: Work) -> None:
        self.backend = backend
        self.name = "rl"
        self.work = work
        if backend.world > 1:
            self.name = f"rl-{backend.rank:04d}-of-{backend.world:04d}"
            folder, seconds = backend.gather((work.folder, work.seconds))[0]
            if backend.rank:
                self.work = Work(folder, seconds)

    def due(self) -> bool:
        """Whether the first rank finds that enough work was done."""
        return self.backend.gather(self.work.due(self.name))[0]

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep this rank's `tensors`; of `state` and of SHARED tensors what the first rank has."""
        if self.backend.rank:
            tensors = {k: value for k, value in tensors.items() if not k.startswith(SHARED)}
            state = {}
        self.work.save(self.name, tensors, {**state, "step": step})

    def latest(self) -> Saved | None:
        """The newest checkpoint that all ranks have whole: this rank's tensors, and the first one's state."""
        if self.backend.world == 1:
            return self.work.latest(self.name)
        self._refuse_others()
        numbers = self.backend.gather(self.work.numbers(self.name))
        for number in sorted(set.intersection(*map(set, numbers)), reverse=True):
            mine = self.work.load(self.name, number)
            steps = self.backend.gather(None if mine is None else mine.state["step"])
            if mine is None or len({*steps}) > 1:
                continue
            self.work.drop(self.name, after=number)
            shared = {k: value for k, value in mine.tensors.items() if k.startswith(SHARED)}
            state, shared = self.backend.gather((mine.state, shared))[0]
            return Saved({**mine.tensors, **shared}, state)
        self.work.drop(self.name, after=0)
        return None

    def done(self) -> None:
        """Free the parts on other hosts: what frees the first one's when the result is safe does not reach them."""
        hosts = self.backend.gather(socket.gethostname())
        folder = self.work.folder
        if folder is not None and hosts[self.backend.rank] != hosts[0]:
            shutil.rmtree(folder / self.name, ignore_errors=True)

    def _refuse_others(self) -> None:
        """Say that parts of another number of ranks are of no use, and free them."""
        if self.work.folder is None or self.backend.rank:
            return
        end = self.name[-len("-of-0000") :]
        others = [p for p in self.work.folder.glob("rl*") if not p.name.endswith(end)]
        if others:
            print(
                f"warning: step checkpoints of another number of ranks cannot be continued by {self.backend.world}; "
                "the phase starts again",
                file=sys.stderr,
            )
        for place in others:
            shutil.rmtree(place, ignore_errors=True)
