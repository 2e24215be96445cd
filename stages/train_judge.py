"""DVC stage train_judge: the first seed's base and the judged task's problems -> checkpoints/judge."""

from __future__ import annotations

import argparse
import sys

import stages
from trainorder import paths
from trainorder.config import load_params

OPTIONS = {"--base": "node both judges start from and whose answers are compared"}


def main(arguments: argparse.Namespace) -> None:
    params = load_params()

    from trainorder.lineage import inputs
    from trainorder.preferences import train_judges

    depends = inputs(
        seed=0,
        params={
            "judge": params.judge,
            "training.dtype": params.training.dtype,
            **params.engine(),
        },
        code="train_judge",
        parents=[arguments.base],
        data=[paths.TASK_DATA / params.judge.task / "train.jsonl"],
    )
    with stages.keeping("judge", params, depends) as work:
        train_judges(paths.checkpoint(arguments.base), paths.JUDGE, params, work)


if __name__ == "__main__":
    sys.exit(stages.run("train_judge", __doc__, OPTIONS, main))
