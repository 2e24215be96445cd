"""DVC stage `train` of plan/<node>/dvc.yaml, of a merge: checkpoints of several nodes -> one checkpoint, without training."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import stages
from trainorder import paths
from trainorder.config import load_params

OPTIONS = {
    "--node": "the node to make",
    "--base": "node the merged ones were trained from",
    "--merge": "entry of `merges` in params.yaml",
    "--parents": "nodes to merge, separated by commas",
    "--tasks": "tasks whose dev scores choose the scale",
    "--seed": "training seed of these nodes",
}


def main(arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    params = load_params()
    config = params.merges[arguments.merge]
    parents = arguments.parents.split(",")

    from trainorder.lineage import inputs, write_manifest
    from trainorder.merge import merge_folders, tune_scale

    node = arguments.node
    came_from: dict[str, Any] = {
        "seed": arguments.seed,
        "params": {
            f"merges.{arguments.merge}": config,
            "training.dtype": params.training.dtype,
            **(params.engine() if isinstance(config.scale, list) else {}),
        },
        "code": "merge",
        "parents": [arguments.base, *parents],
    }
    base, *folders = [paths.checkpoint(parent) for parent in came_from["parents"]]
    with stages.keeping(node, params, inputs(**came_from)) as work:
        tuned = {}
        if isinstance(config.scale, list):
            from trainorder.evaluation import dev_scorer
            from trainorder.tasks import judged

            tasks = arguments.tasks.split(",")
            roles = {task: params.judges_of(task) for task in judged(tasks)}
            scorer = dev_scorer(tasks, params.training, params.rollout, roles)
            tuned = tune_scale(base, folders, paths.checkpoint(node), config, scorer)
        else:
            merge_folders(base, folders, paths.checkpoint(node), config, work)
        write_manifest(
            node,
            **came_from,
            measured={"dev_by_scale": {f"{scale:g}": value for scale, value in tuned.items()}},
            seconds=time.monotonic() - start,
        )


if __name__ == "__main__":
    sys.exit(stages.run("merge", __doc__, OPTIONS, main))
