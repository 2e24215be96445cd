"""How fast a step is, in tokens and in useful arithmetic, and where the time goes.

Every step logs its phases' seconds, tokens per second and useful FLOP/s. `TRAINORDER_TRACE=FOLDER` also writes a trace of a
few steps by torch's profiler (chrome://tracing, perfetto.dev) without changing a result.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainorder import machine

TRACED = range(2, 5)
"""Steps of a phase that are traced: behind the first, which allocate and compile."""


def rates(
    model: Any,
    seconds: Mapping[str, float],
    prompt_tokens: float,
    sampled: float,
    trained: float,
    threads: int,
) -> dict[str, float]:
    """`perf/...` of a step from the tokens read, sampled and trained on (a shared prompt counts once).

    Useful FLOP: 2 per weight of a matrix and token forward, 4 more backward; attention and waste of padding do not count.
    `perf/share_of_peak` is of what this machine's CPU cores were measured to reach, with as many threads; not on a GPU.
    """
    weights = _matrix_weights(model)
    generated, learned = 2e-9 * weights * (prompt_tokens + sampled), 6e-9 * weights * trained
    log = {
        "perf/generate_tokens_per_second": sampled / max(seconds["generate"], 1e-9),
        "perf/tokens_per_second": sampled / max(seconds["step"], 1e-9),
        "perf/generate_gflops": generated / max(seconds["generate"], 1e-9),
        "perf/train_gflops": learned / max(seconds["train"], 1e-9),
    }
    if next(model.parameters()).device.type == "cpu":
        peak = _peak() * threads
        busy = max(seconds["generate"] + seconds["train"], 1e-9)
        log["perf/share_of_peak"] = (generated + learned) / busy / peak
    return log


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of this block to `clock[name]`."""
    start = time.perf_counter()
    yield
    clock[name] += time.perf_counter() - start


class Trace:
    """A profile of the steps in TRACED, if asked for."""

    def __init__(self, name: str) -> None:
        folder = os.environ.get("TRAINORDER_TRACE")
        self.file = Path(folder) / f"{name}.json" if folder else None
        self.profile: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """Start with the first traced step."""
        if self.file is not None and step == TRACED.start:
            self.profile = torch.profiler.profile()
            self.profile.start()

    def after(self, step: int, last: bool) -> None:
        """Write the trace behind the last traced step."""
        if self.profile is not None and self.file is not None and (step + 1 >= TRACED.stop or last):
            self.profile.stop()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.profile.export_chrome_trace(str(self.file))
            self.profile = None
            print(f"trace of {len(TRACED)} steps: {self.file}", flush=True)


def _matrix_weights(model: Any) -> int:
    """Weights a token is multiplied with: all matrices but the table of embeddings, the tied head included."""
    table = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is table
    total = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    return total if tied else total - table.numel()


@functools.cache
def _peak() -> float:
    return (machine.chosen() or machine.measured(256))["peak_gflops"]
