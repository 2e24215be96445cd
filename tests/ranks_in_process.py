"""Ranks of one process, for tests: each in a thread of its own, one running at a time, trained as ranks of several processes are."""

from __future__ import annotations

import pickle
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from trainorder.config import RlConfig, TrainingConfig
from trainorder.rl.backend import LocalBackend
from trainorder.rl.deepspeed_backend import DeepSpeedBackend

T = TypeVar("T")


class Meeting:
    """Where the ranks exchange what they found: a rank runs until it waits for the others."""

    def __init__(self, world: int) -> None:
        self.world, self.running = world, threading.Lock()
        self.barrier = threading.Barrier(world)
        self.brought: dict[int, dict[int, bytes]] = defaultdict(dict)

    def run(self, work: Callable[[int], T]) -> list[T]:
        """What each rank's work returns; the first error of a rank is raised."""
        found: dict[int, T] = {}
        errors: list[BaseException] = []

        def of(rank: int) -> None:
            with self.running:
                try:
                    found[rank] = work(rank)
                except threading.BrokenBarrierError:
                    pass
                except BaseException as error:
                    errors.append(error)
                    self.barrier.abort()

        threads = [threading.Thread(target=of, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [found[rank] for rank in range(self.world)]

    def exchange(self, rank: int, turn: int, mine: Any) -> list[Any]:
        """What every rank brought to this turn, copied as between processes."""
        self.brought[turn][rank] = pickle.dumps(mine)
        self.running.release()
        try:
            self.barrier.wait()
        finally:
            self.running.acquire()
        return [pickle.loads(self.brought[turn][rank]) for rank in range(self.world)]


class RankBackend(LocalBackend):
    """Plain torch on a rank's share of the rows, cut as DeepSpeed's backend cuts them; gradients are added over ranks."""

    def __init__(self, model: Any, meeting: Meeting, rank: int, config: RlConfig) -> None:
        super().__init__(model, config, TrainingConfig())
        self.meeting, self.rank, self.world, self.turn = meeting, rank, meeting.world, 0

    micro_batches = DeepSpeedBackend.micro_batches  # type: ignore[assignment]

    def gather(self, mine: T) -> list[T]:
        """See Backend."""
        self.turn += 1
        return self.meeting.exchange(self.rank, self.turn, mine)

    def add_up(self) -> None:
        """Give every rank the sum of all gradients."""
        for parameter in self.trained.values():
            parameter.grad = torch.stack(self.gather(parameter.grad)).sum(0)

    def step(self, lr: float) -> float:
        """See Backend."""
        self.add_up()
        return super().step(lr)
