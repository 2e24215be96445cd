"""DVC stage report: reports/bwt.json and what the nodes left -> reports/report.html; MLflow gets a copy."""

from __future__ import annotations

import argparse
import sys

import stages
from trainorder import results
from trainorder.report import write_report
from trainorder.report.mirror import mirror


def main(arguments: argparse.Namespace) -> None:
    path = write_report()
    print(path)
    try:
        mirror(results.load())
    except Exception as error:  # MLflow is a copy: its trouble must not fail the stage
        print(f"warning: MLflow was not updated: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(stages.run("report", __doc__, {}, main))
