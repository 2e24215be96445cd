"""DVC stage mirror, always last: what was measured -> MLflow. Where the copy failed the stage did, so that it is tried again."""

from __future__ import annotations

import argparse
import sys

import stages
from trainorder import results
from trainorder.process import StageError
from trainorder.reading import ParamsError
from trainorder.report.mirror import mirror


def main(arguments: argparse.Namespace) -> None:
    try:
        mirror(results.load())
    except (ParamsError, StageError):
        raise
    except Exception as error:
        raise StageError(
            f"MLflow was not updated ({error}); all results are whole, and the next run, or `dvc repro mirror`, tries again"
        ) from error


if __name__ == "__main__":
    sys.exit(stages.run("mirror", __doc__, {}, main))
