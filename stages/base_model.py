"""DVC stage `train` of plan/base/dvc.yaml, where `sft` is null: the model of policy.path as it is -> checkpoints/base, which has no copy of its weights."""

from __future__ import annotations

import argparse
import sys
import time

import stages
from trainorder import paths
from trainorder.config import load_params
from trainorder.reading import ParamsError
from trainorder.sources import section

OPTIONS = {"--node": "base node to make"}


def main(arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    params = load_params()
    if params.policy.path is None:
        raise ParamsError("policy.path names no model to begin at; run `trainorder plan`")

    from trainorder.lineage import write_manifest
    from trainorder.policy import Policy

    node = arguments.node
    with stages.keeping(node, params, None):
        policy = Policy.start(params.policy, weights=False)
        policy.save_as_model_node(paths.checkpoint(node), params.policy.path)
        write_manifest(
            node,
            seed=0,
            params={"policy": section(params.policy)},
            code="base_model",
            seconds=time.monotonic() - start,
        )


if __name__ == "__main__":
    sys.exit(stages.run("base_model", __doc__, OPTIONS, main))
