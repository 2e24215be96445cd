"""DVC stage probes of plan/dvc.yaml: checkpoints, their evaluations and data/tasks -> reports/probes.parquet."""

from __future__ import annotations

import argparse
import sys

import stages
from trainorder import paths
from trainorder.config import load_params
from trainorder.files import writing


def main(arguments: argparse.Namespace) -> None:
    params = load_params()
    from trainorder.probes import run
    from trainorder.rewards import grading

    grading.configure(params.grading)
    found = run.run(run.asked(), params.probes)
    with writing(paths.PROBES) as stream:
        run.table(found).to_parquet(stream, engine="pyarrow", compression="zstd", index=False)
    for line in run.costs(found):
        print(line)


if __name__ == "__main__":
    sys.exit(stages.run("probes", __doc__, {}, main))
