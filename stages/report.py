"""DVC stage report: reports/bwt.json and what the nodes left -> reports/report.html; MLflow gets a copy."""

from __future__ import annotations

import json
import sys

from trainorder import paths
from trainorder.process import die_with_parent
from trainorder.report import write_report
from trainorder.report.mirror import mirror


def main() -> int:
    die_with_parent()
    path = write_report()
    print(path)
    try:
        mirror(json.loads(paths.BWT.read_text(encoding="utf-8")))
    except Exception as error:  # MLflow is a copy: its trouble must not fail the stage
        print(f"warning: MLflow was not updated: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
