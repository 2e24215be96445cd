"""How long own rows take: `trainorder check` with a large parquet file behind it, for the first time and again, and the build of the data.

Every command runs in a process of its own in a new project; CPU seconds are those of the process and its children, memory is
the most that one of them held. Rows are sums in the schema of verl.

    python -m benchmarks.rows [--rows 100000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from trainorder import project

PARAMS = """\
policy: {max_positions: 192}
tasks:
  sums: {data: rows.parquet, train: TRAIN, dev: DEV, test: DEV, max_new_tokens: 48, demonstrations: 0, options: {max_dropped: 0.0}}
  own: {kind: math, train: 8, dev: 8, test: 8, max_new_tokens: 48, demonstrations: 64}
phases:
  sums: {kind: structured, tasks: {sums: 1}, steps: 1}
orders:
  one: [sums]
"""
SHARES = {"TRAIN": 0.58, "DEV": 0.19}
"""A little less than what falls into each split by content (60, 20 and 20 %)."""
COMMANDS = {
    "check, first": ("trainorder.cli", "check"),
    "check, again": ("trainorder.cli", "check"),
    "build_data": ("stages.build_data",),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.rows)
    for name, one in found.items():
        print(
            f"{name:<14} {one['cpu_seconds']:7.2f} CPU seconds  {one['seconds']:7.2f} s  {one['peak_mib']:7.0f} MiB"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Command -> its CPU seconds, seconds and most memory, in a project of so many rows."""
    place = folder / "project"
    project.create(place, "tiny")
    write_rows(place / "rows.parquet", count)
    text = PARAMS
    for word, share in SHARES.items():
        text = text.replace(word, str(max(1, int(share * count))))
    (place / "params.yaml").write_text(text)
    settings = {"XDG_CACHE_HOME": str(folder / "cache")}  # nobody's surveys of rows
    return {name: run(place, command, settings) for name, command in COMMANDS.items()}


def write_rows(file: Path, count: int) -> None:
    """Rows of verl, each a sum of its own, told in a few sentences."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        a, b = number, rng.randrange(1, 1000)
        text = f"A shop has {a} shells and buys {b} more from a fisher. How many shells does it have then? {rng.random():.6f}"
        rows.append(
            {
                "data_source": "openai/gsm8k",
                "prompt": [{"role": "user", "content": text}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(a + b)},
                "extra_info": {"index": number, "split": None},
            }
        )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def run(place: Path, command: tuple[str, ...], settings: dict[str, str]) -> dict[str, float]:
    """One command in its own process.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    code = (
        "import json, resource, subprocess, sys, time\n"
        "begin = time.monotonic()\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([done.returncode, done.stderr[-2000:], used.ru_utime + used.ru_stime, time.monotonic() - begin, used.ru_maxrss]))\n"
    )
    environment = {**os.environ, **settings, "PYTHONPATH": str(place)}
    wrapped = [sys.executable, "-c", code, sys.executable, "-m", *command]
    done = subprocess.run(
        wrapped, cwd=place, env=environment, capture_output=True, text=True, check=True
    )
    status, said, cpu, seconds, peak = json.loads(done.stdout)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {status}: {said}")
    unit = 1 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB on Linux
    return {"cpu_seconds": cpu, "seconds": seconds, "peak_mib": peak * unit / (1 << 20)}


if __name__ == "__main__":
    main()
