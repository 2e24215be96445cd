"""DVC stage fingerprint, always first: refuse a plan.yaml that is not of this params.yaml, then note values and code.

`measure_bwt` and `report` depend on the whole folders evaluations and runs, so what nodes left that are no longer in
the plan is removed there, if DVC's cache has it: back in the plan, it is restored. Other files there are the user's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import stages
from trainorder import fingerprint, paths, plan, storage
from trainorder.reading import ParamsError

RECORDS = ("manifest.json", "metrics.jsonl", "run.json")


def main(arguments: argparse.Namespace) -> None:
    current = plan.load()
    for file in plan.stale_files(current):
        raise ParamsError(f"{file} does not match params.yaml; run: trainorder plan")
    fingerprint.write(current.fingerprints())
    for file in storage.restorable(leftovers(set(current.nodes))):
        file.unlink()
        if file.parent != paths.evaluation("x").parent and not any(file.parent.iterdir()):
            file.parent.rmdir()


def leftovers(nodes: set[str]) -> Iterator[Path]:
    """Files where evaluations and records of nodes lie that are not among these."""
    for file in paths.evaluation("x").parent.glob("*.parquet"):
        if paths.NODE.fullmatch(file.stem) and file.stem not in nodes:
            yield file
    for record in RECORDS:
        for file in paths.run("x").parent.glob(f"*/{record}"):
            if paths.NODE.fullmatch(file.parent.name) and file.parent.name not in nodes:
                yield file


if __name__ == "__main__":
    sys.exit(stages.run("fingerprint", __doc__, {}, main))
