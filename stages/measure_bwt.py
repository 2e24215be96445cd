"""DVC stage measure_bwt of plan/dvc.yaml: plan.yaml and the evaluations it lists -> reports/bwt.json."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stages
from trainorder import paths, plan
from trainorder.config import load_params
from trainorder.files import write_text
from trainorder.plan import names
from trainorder.reading import ParamsError
from trainorder.resume import finished
from trainorder.tasks.base import turns

if TYPE_CHECKING:
    import pandas as pd


def main(arguments: argparse.Namespace) -> None:
    content = plan.stored()
    write_text(paths.BWT, compute(content))
    for file in content["evaluations"]:  # DVC has these: nothing will go on from their parts
        finished(f"evaluate--{Path(file).stem}")


def compute(content: dict[str, Any]) -> str:
    """The text of reports/bwt.json for this content of plan.yaml."""
    from trainorder.measure import from_plan, measure, to_json

    table, prompts = read_evaluations([Path(name) for name in content["evaluations"]])
    config = load_params().measure
    return to_json(measure(table, from_plan(content), config, prompts))


def read_evaluations(files: list[Path]) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """One long table of all evaluations, in the order of the files; and the prompts of each task that they keep.

    Raises:
        ParamsError: a file is missing; names the command that makes it.
    """
    import pandas as pd

    for file in files:
        if not file.is_file():
            raise ParamsError(f"{file} not found: run `dvc repro {names.evaluation(file.stem)}`")
    tables = [pd.read_parquet(file) for file in files]
    kept = {
        (row["task"], row["problem"]): row["prompt"]
        for t in tables
        for row in t.attrs.pop("answers", ())
    }
    prompts: dict[str, list[str]] = {}
    for (task, _), prompt in sorted(kept.items()):
        prompts.setdefault(task, []).append("\n\n".join(turns(prompt)))
    return pd.concat(tables, ignore_index=True), prompts


if __name__ == "__main__":
    sys.exit(stages.run("measure_bwt", __doc__, {}, main))
