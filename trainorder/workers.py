"""Independent pieces of a small model's work side by side, one CPU thread each.

Products of small matrices hardly gain from a second thread inside them; whole micro-batches and whole batches of rows do.
Results come in the order of the pieces, and pieces do not depend on the number of threads: it changes no byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from trainorder import llama

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """Some threads, or with one none at all: then everything happens where it is called."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count) if count > 1 else None

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results in order; no more than `count` pieces are begun before the first of them is taken.

        torch's grad and inference modes belong to a thread: `function` sets them itself.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        begun = deque[Future[R]]()
        for item in items:
            begun.append(self._pool.submit(function, item))
            if len(begun) == self.count:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


ALONE = Workers()
"""One thread."""
WIDE, WIDE_TOKENS, WIDE_ROWS = 512, 1024, 32
"""The work of models at least this wide is cut into micro-batches of so many tokens, and batches of so many rows to decode: each is enough to
keep one core busy. Larger ones would leave other threads idle and take more memory."""


def in_pieces(model: Any) -> bool:
    """Whether the work of `model` is cut into pieces of WIDE_TOKENS and WIDE_ROWS: one that `workers_for` computes side by side.

    Whatever the number of threads, which must change no byte.
    """
    return getattr(model.config, "hidden_size", 0) >= WIDE and llama.kernels_for(model) is not None


def piece_tokens(model: Any, budget: int) -> int:
    """The most tokens that a micro-batch of `model` may have, `budget` or less."""
    return min(budget, WIDE_TOKENS) if in_pieces(model) else budget


def workers_for(model: Any, threads: int) -> Workers:
    """How to compute `model` with so many threads: side by side where our own kernels do, else inside torch's products."""
    apart = llama.kernels_for(model) is not None
    torch.set_num_threads(1 if apart else threads)
    return Workers(threads) if apart and threads > 1 else ALONE
