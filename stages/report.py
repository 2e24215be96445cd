"""DVC stage report of plan/dvc.yaml: reports/bwt.json and what the nodes left -> reports/report.html."""

from __future__ import annotations

import argparse
import sys

import stages
from trainorder.report import write_report
from trainorder.report.spending import spending


def main(arguments: argparse.Namespace) -> None:
    print(write_report([one.text for one in spending()]))


if __name__ == "__main__":
    sys.exit(stages.run("report", __doc__, {}, main))
