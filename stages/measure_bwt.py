"""DVC stage measure_bwt: plan.yaml and the evaluations it lists -> reports/bwt.json."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder import paths
from trainorder.config import ParamsError, load_params, read_yaml

if TYPE_CHECKING:
    import pandas as pd


def main() -> int:
    """Exit code 2 for a missing or incomplete evaluation."""
    argparse.ArgumentParser(prog="python -m stages.measure_bwt", description=__doc__).parse_args()
    try:
        text = compute(read_yaml(paths.PLAN))
    except ParamsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    paths.BWT.parent.mkdir(parents=True, exist_ok=True)
    temporary = paths.BWT.with_name(f".{paths.BWT.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(paths.BWT)
    return 0


def compute(plan: dict[str, Any]) -> str:
    """The text of reports/bwt.json for this content of plan.yaml."""
    from trainorder.measure import from_plan, measure, to_json

    table = read_evaluations([Path(name) for name in plan["evaluations"]])
    config = load_params().measure
    return to_json(measure(table, from_plan(plan, plan["phases"]), config))


def read_evaluations(files: list[Path]) -> pd.DataFrame:
    """One long table of all evaluations, in the order of the files.

    Raises:
        ParamsError: a file is missing; names the command that makes it.
    """
    import pandas as pd

    for file in files:
        if not file.is_file():
            raise ParamsError(f"{file} not found: run `dvc repro evaluate@{file.stem}`")
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


if __name__ == "__main__":
    sys.exit(main())
