"""Programs per second through the sandbox, and what each isolation level costs: `python -m benchmarks.sandbox`."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import time

from trainorder.rewards.sandbox import LEVELS, Sandbox
from trainorder.rewards.sandbox_language import compile_function
from trainorder.rewards.sandbox_runtime import Runtime
from trainorder.streams import stream
from trainorder.tasks import programs
from trainorder.tasks.hidden_inputs import hidden_inputs


def main() -> None:
    """Print one row per level: start of the worker, programs per second, wall and CPU milliseconds per program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description=__doc__)
    parser.add_argument("--programs", type=int, default=600, help="different short programs")
    count = parser.parse_args().programs
    rng = stream("benchmark", "sandbox")
    drawn = [programs.draw(rng) for _ in range(count)]
    work = [
        (f"{program.source} if {number} >= 0 else 0", hidden_inputs(program, 4))
        for number, program in enumerate(drawn)
    ]
    print(f"{count} programs on 4 lists each, {os.cpu_count()} cores, {platform.machine()}")
    print("level       start_ms  programs_per_s  wall_ms  cpu_ms")
    before = time.perf_counter()
    for source, inputs in work:
        function = compile_function(source, Runtime())
        for xs in inputs:
            with contextlib.suppress(ValueError):
                function(list(xs))
    _row("in process", 0.0, time.perf_counter() - before, time.perf_counter() - before, count)
    for level in LEVELS:
        sandbox = Sandbox(highest=level)
        before, cpu = time.perf_counter(), _children_seconds()
        reached = sandbox.check().level
        started = time.perf_counter()
        sandbox.run(work)
        ended = time.perf_counter()
        sandbox.close()  # only then is the worker's CPU time, its children included, counted here
        _row(reached, started - before, ended - started, _children_seconds() - cpu, count)


def _row(name: str, start: float, wall: float, cpu: float, count: int) -> None:
    each = f"{1000 * wall / count:8.2f} {1000 * cpu / count:7.2f}"
    print(f"{name:<11} {1000 * start:8.0f} {count / wall:15.0f} {each}")


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
