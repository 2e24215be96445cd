"""DVC stage `train` of plan/<node>/dvc.yaml, of `kind: sft`: a parent, a phase and its rows -> checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import stages
from trainorder import paths
from trainorder.config import load_params
from trainorder.reading import ParamsError

OPTIONS = {
    "--node": "the node to make",
    "--parent": "the node it is trained from",
    "--phase": "entry of `phases` in params.yaml",
    "--variant": "entry of `variants`, or default",
    "--seed": "training seed of the node",
}


def main(arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    params = load_params().variant(arguments.variant)
    name, node, parent = arguments.phase, arguments.node, arguments.parent
    phase = params.phases.get(name)
    if phase is None or phase.data is None:
        raise ParamsError(f"no phase {name!r} of kind sft; run `trainorder plan`")

    from trainorder.lineage import inputs, write_manifest
    from trainorder.supervised import held_out, train_phase
    from trainorder.tracking import Tracker

    sections = {f"phases.{name}": phase.results(), "training": params.training.results()}
    tags = {"parent": parent, "phase": name, "kind": phase.kind, "variant": arguments.variant}
    came_from: dict[str, Any] = {
        "seed": arguments.seed,
        "params": sections,
        "code": f"phase_{name}"
        + ("" if arguments.variant == "default" else f".{arguments.variant}"),
        "parents": [parent],
        "data": [Path(phase.data)] if Path(phase.data).exists() else [],
    }
    tasks = sorted(card.parent.name for card in paths.TASK_DATA.glob("*/task.json"))
    with stages.keeping(node, params, inputs(**came_from)) as work:
        with Tracker(node, arguments.seed, sections, tags, work=work) as tracker:
            summary = train_phase(
                paths.checkpoint(parent),
                paths.checkpoint(node),
                name,
                phase,
                arguments.seed,
                tracker,
                work,
                training=params.training,
                held=held_out(tasks),
            )
        write_manifest(
            node,
            **came_from,
            phase=name,
            steps=summary["steps"],
            run_id=tracker.run_id,
            tokens=summary["tokens"],
            seconds=time.monotonic() - start + work.earlier,
        )


if __name__ == "__main__":
    sys.exit(stages.run("sft_phase", __doc__, OPTIONS, main))
