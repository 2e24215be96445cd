"""DVC stage judge-<name> of plan/dvc.yaml: the first seed's base and the judged task's problems -> checkpoints/judge/<name>."""

from __future__ import annotations

import argparse
import sys

import stages
from trainorder import paths
from trainorder.config import load_params

OPTIONS = {
    "--judge": "entry of `judges` in params.yaml, or what `judge` stands for",
    "--base": "node whose answers are compared, and that a preference model starts from",
    "--tasks": "judged tasks that it serves",
    "--seed": "number of the judge among the preference models of its task",
    "--first": "its first prompt in the shuffled training problems",
}


def main(arguments: argparse.Namespace) -> None:
    params, name = load_params(), arguments.judge

    from trainorder.judges.annotator import Bench, make_judge
    from trainorder.lineage import inputs

    config, tasks = params.named_judges()[name], arguments.tasks.split(",")
    depends = inputs(
        seed=arguments.seed,
        params={
            f"judges.{name}": config,
            "training.dtype": params.training.dtype,
            **params.engine(),
        },
        code=f"judge_{name}",
        parents=[arguments.base],
        data=[paths.TASK_DATA / task for task in tasks],
    )
    base, first = paths.checkpoint(arguments.base), int(arguments.first)
    with stages.keeping(paths.judge_work(name), params, depends) as work:
        bench = Bench(name, config, tasks, base, params, arguments.seed, first, work)
        make_judge(bench, paths.JUDGE / name)


if __name__ == "__main__":
    sys.exit(stages.run("train_judge", __doc__, OPTIONS, main))
