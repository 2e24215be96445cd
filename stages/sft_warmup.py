"""DVC stage `train` of plan/base/dvc.yaml (plan/s0/dvc.yaml with `sft.per_seed`): data/sft, data/tokenizer and the gate's dev problems -> checkpoints/<node>, runs/<node>."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import stages
from trainorder import paths
from trainorder.config import load_params
from trainorder.reading import ParamsError
from trainorder.sources import section

OPTIONS = {"--node": "base node to make, base or s0", "--seed": "training seed"}


def main(arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    params = load_params()
    if params.sft is None:
        raise ParamsError("sft is null, so there is no warm-up; run `trainorder plan`")
    sections = {
        "policy": section(params.policy),
        "sft": params.sft.results(),
        "training.dtype": params.training.dtype,
    }

    from trainorder.lineage import inputs, write_manifest
    from trainorder.rewards import grading
    from trainorder.sft import warm_up
    from trainorder.tracking import Tracker

    grading.configure(params.grading)
    node, seed = arguments.node, arguments.seed
    gate_data = [paths.TASK_DATA / task / "dev.jsonl" for task in params.sft.gate]
    came_from: dict[str, Any] = {
        "seed": seed,
        "params": sections,
        "code": "sft_warmup",
        "data": [paths.SFT_DATA, paths.TOKENIZER, *gate_data],
    }
    with stages.keeping(node, params, inputs(**came_from)) as work:
        with Tracker(node, seed, sections, {"phase": "sft"}, work=work) as tracker:
            summary = warm_up(paths.checkpoint(node), params, seed, tracker, work)
        write_manifest(
            node,
            **came_from,
            phase="sft",
            steps=summary["steps"],
            run_id=tracker.run_id,
            tokens=summary["tokens"],
            seconds=time.monotonic() - start + work.earlier,
        )


if __name__ == "__main__":
    sys.exit(stages.run("sft_warmup", __doc__, OPTIONS, main))
