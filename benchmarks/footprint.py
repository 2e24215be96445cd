"""Does an experiment fit its machines? `python -m benchmarks.footprint configs/multi-node.yaml`.

Prints what each stage takes per rank and per host beside what there is: this machine, the one that a comment of the params
file names (`# machine: 1 host of 8 GPUs with 80 GB, 1000 GB RAM, 2000 GB disk`), or that of `--machine`. Reads no weights: a
model that is not here is looked up by name in the folder `models` beside the params file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainorder import footprint, plan, room
from trainorder.config import load_params
from trainorder.files import size_text
from trainorder.reading import ParamsError

MACHINE = re.compile(r"^# machine: (.+)$", re.MULTILINE)


def main() -> int:
    """Print the tables; 0 where all of it fits, 1 where something does not, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("params", nargs="?", default="params.yaml", type=Path)
    parser.add_argument("--machine", help="in the words of the comment above")
    asked = parser.parse_args()
    try:
        lines, problems = report(asked.params, asked.machine)
        for line in lines:
            print(line)
    except ParamsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("does not fit:" if problems else "fits")
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


def report(file: Path, machine_text: str | None = None) -> tuple[list[str], list[str]]:
    """The lines to print, and one line for each thing that does not fit.

    Raises:
        ParamsError: params, model or machine cannot be read.
    """
    params = load_params(file)
    current = plan.compile_plan(params)
    said = MACHINE.search(file.read_text(encoding="utf-8"))
    text = machine_text or (said and said[1])
    machine = footprint.Machine.parse(text) if text else footprint.Machine.here(params.training)
    config = footprint.model_config(params.policy, file.parent / "models")
    stages = list(footprint.stages(params, machine, config))
    disk = footprint.disk(params, config)
    here, cached = room.need(current, {}, disk)
    lines = [
        f"{file}: {params.policy.path or 'the built-in model'}, {disk.full // 4 / 1e9:.3g}e9 weights; on "
        f"{text or 'this machine'}"
    ]
    for stage in stages:
        lines += _table(stage, machine)
    lines.append("disk")
    lines += _rows(
        [
            (f"{len(current.nodes)} checkpoints, in the folder and in DVC's cache", 2 * cached),
            ("  one with full weights", disk.full),
            ("  one of a phase", disk.phase),
            (f"step checkpoints while phases run, {size_text(disk.step)} each", here - cached),
        ]
    )
    problems = [problem for stage in stages if (problem := footprint.too_large(stage, machine))]
    if here + cached > machine.disk:
        problems.append(
            f"the plan needs {size_text(here + cached)} of disk, and {size_text(machine.disk)} are free: take out orders, "
            "or train adapters (training.lora)"
        )
    lines += _rows([("together", here + cached), ("there is", machine.disk)])
    return lines, problems


def _table(stage: footprint.Stage, machine: footprint.Machine) -> Iterator[str]:
    on_gpu, on_host = stage.total(machine)
    many = f", {stage.processes} processes on a host" if stage.processes > 1 else ""
    yield f"{stage.name}{many}"
    yield from _rows([(_named(part), part.size) for part in stage.device])
    if machine.gpus:
        yield from _rows([("of a GPU at most", on_gpu), ("there is", machine.gpu)])
        yield from _rows([(f"host: {_named(part)}", part.size) for part in stage.host])
    else:
        yield from _rows([(_named(part), part.size) for part in stage.host])
    yield from _rows([("of a host at most", on_host), ("there is", machine.ram)])


def _named(part: footprint.Part) -> str:
    return part.what + (f" (while {part.when})" if part.when else "")


def _rows(rows: Sequence[tuple[str, int]]) -> list[str]:
    return [f"  {name:<66} {size_text(size):>12}" for name, size in rows]


if __name__ == "__main__":
    sys.exit(main())
