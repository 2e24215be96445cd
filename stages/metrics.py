"""DVC stage metrics of plan/dvc.yaml: reports/bwt.json and the nodes' curves -> what `dvc metrics` and `dvc plots` show."""

from __future__ import annotations

import argparse
import sys

import stages
from trainorder import results
from trainorder.report import for_dvc


def main(arguments: argparse.Namespace) -> None:
    for_dvc.write(results.load())


if __name__ == "__main__":
    sys.exit(stages.run("metrics", __doc__, {}, main))
