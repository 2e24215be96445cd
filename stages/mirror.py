"""DVC stage mirror, always last: what was measured -> MLflow, which is a copy and makes no stage fail."""

from __future__ import annotations

import argparse
import sys

import stages
from trainorder import results
from trainorder.report.mirror import mirror


def main(arguments: argparse.Namespace) -> None:
    try:
        mirror(results.load())
    except Exception as error:
        print(f"warning: MLflow was not updated: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(stages.run("mirror", __doc__, {}, main))
