"""DVC stage `evaluate` of plan/<node>/dvc.yaml: checkpoint, data/tasks and judges -> evaluations/<node>.parquet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import stages
from trainorder import machine, paths
from trainorder.config import load_params
from trainorder.files import writing

if TYPE_CHECKING:
    import pandas as pd

OPTIONS = {
    "--node": "node of plan.yaml whose checkpoint is scored",
    "--seed": "training seed of the node",
}


def main(arguments: argparse.Namespace) -> None:
    params = load_params()
    config = params.evaluation
    from trainorder.evaluation import evaluate, judged_tasks
    from trainorder.lineage import inputs
    from trainorder.registries import asks_base
    from trainorder.resume import finished
    from trainorder.rewards import grading
    from trainorder.tasks.harness import files

    grading.configure(params.grading)
    node, seed = arguments.node, arguments.seed
    prepared = machine.prepare(config.threads, paths.checkpoint(node))
    config = config.model_copy(update={"threads": prepared["threads"]})
    roles = {task: params.judges_of(task) for task in judged_tasks()}
    judges = sorted({name for named in roles.values() for name in named.values()})
    for made in (
        node,
        *map(paths.judge_work, judges),
    ):  # DVC has these: nothing will go on from their step checkpoints
        finished(made)
    base = params.base_of(seed) if asks_base(config.pieces()) else None
    depends = inputs(
        seed=seed,
        params={
            "evaluation": config,
            "training.dtype": params.training.dtype,
            **params.engine(),
            "roles": roles,
        },
        code="evaluate",
        parents=list(dict.fromkeys([node, base or node])),
        data=[
            paths.TASK_DATA,
            *(paths.JUDGE / name for name in judges),
            *files(config.harness),
        ],
    )
    with stages.keeping(f"evaluate--{node}", params, depends) as work:
        table = evaluate(
            node,
            paths.checkpoint(node),
            seed,
            config,
            work,
            params.training,
            params.rollout,
            roles,
            paths.checkpoint(base) if base else None,
        )
        write(table, paths.evaluation(node))


def write(table: pd.DataFrame, path: Path) -> None:
    """Parquet; equal tables give equal bytes."""
    with writing(path) as stream:
        table.to_parquet(stream, engine="pyarrow", compression="zstd", index=False)


if __name__ == "__main__":
    sys.exit(stages.run("evaluate", __doc__, OPTIONS, main))
