"""DVC stages structured_rl@, creative_rl@, joint_rl@<node>: a parent and a phase -> checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from trainorder import paths
from trainorder.config import ParamsError, load_params
from trainorder.process import die_with_parent


def main() -> int:
    """Exit code 2 for a mistake in params.yaml or something not built."""
    parser = argparse.ArgumentParser(prog="python -m stages.rl", description=__doc__)
    parser.add_argument("--node", required=True, help="the node to make")
    parser.add_argument("--parent", required=True, help="the node it is trained from")
    parser.add_argument("--phase", required=True, help="entry of `phases` in params.yaml")
    parser.add_argument("--seed", required=True, type=int, help="training seed of the node")
    arguments = parser.parse_args()
    die_with_parent()
    try:
        train(arguments.node, arguments.parent, arguments.phase, arguments.seed)
    except ParamsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(node: str, parent: str, phase_name: str, seed: int) -> None:
    """Train, then write the manifest."""
    start = time.monotonic()
    params = load_params()
    if phase_name not in params.phases:
        raise ParamsError(f"no phase {phase_name!r}; there are {', '.join(sorted(params.phases))}")
    phase, rl = params.phases[phase_name], params.phase_rl(phase_name)

    import torch

    from trainorder.lineage import write_manifest
    from trainorder.rl.trainer import train_phase
    from trainorder.tracking import Tracker

    torch.set_num_threads(rl.threads)
    sections = {"rl": rl, f"phases.{phase_name}": phase}
    shown = {name: section.model_dump() for name, section in sections.items()}
    tags = {"parent": parent, "phase": phase_name, "kind": phase.kind}
    with Tracker(node, seed, shown, tags) as tracker:
        summary = train_phase(
            paths.checkpoint(parent), paths.checkpoint(node), phase_name, phase, rl, seed, tracker
        )
    write_manifest(
        node,
        seed=seed,
        params=sections,
        code=f"phase_{phase_name}",
        parents=[parent],
        data=data_of(summary["tasks"], judged=summary["judged"]),
        phase=phase_name,
        steps=summary["steps"],
        run_id=tracker.run_id,
        tokens=summary["tokens"],
        seconds=time.monotonic() - start,
    )


def data_of(tasks: list[str], *, judged: bool) -> list[Path]:
    """The files a phase reads beside its parent."""
    files = [paths.TASK_DATA / task / "train.jsonl" for task in tasks]
    return [*files, paths.JUDGE / "reward"] if judged else files


if __name__ == "__main__":
    sys.exit(main())
