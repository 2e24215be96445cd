"""DVC stage sft_warmup@<node>: data/sft, data/tokenizer and the gate's dev problems -> checkpoints/<node>, runs/<node>."""

from __future__ import annotations

import argparse
import sys
import time

from trainorder import paths
from trainorder.config import ParamsError, load_params
from trainorder.process import die_with_parent


def main() -> int:
    """Exit code 1 where the gate stays shut, 2 for a mistake in params.yaml or something not built."""
    parser = argparse.ArgumentParser(prog="python -m stages.sft_warmup", description=__doc__)
    parser.add_argument("--node", required=True, help="base node to make, e.g. s0")
    parser.add_argument("--seed", required=True, type=int, help="training seed")
    arguments = parser.parse_args()
    die_with_parent()
    start = time.monotonic()
    try:
        params = load_params(paths.PARAMS)
        sections = {"policy": params.policy, "sft": params.sft}

        from trainorder.lineage import write_manifest
        from trainorder.sft import GateError, warm_up
        from trainorder.tracking import Tracker

        logged = {name: section.model_dump() for name, section in sections.items()}
        try:
            with Tracker(arguments.node, arguments.seed, logged, {"phase": "sft"}) as tracker:
                summary = warm_up(paths.checkpoint(arguments.node), params, arguments.seed, tracker)
        except GateError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except ParamsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    gate_data = [paths.TASK_DATA / task / "dev.jsonl" for task in params.sft.gate]
    write_manifest(
        arguments.node,
        seed=arguments.seed,
        params=sections,
        code="sft_warmup",
        data=[paths.SFT_DATA, paths.TOKENIZER, *gate_data],
        phase="sft",
        steps=summary["steps"],
        run_id=tracker.run_id,
        tokens=summary["tokens"],
        seconds=time.monotonic() - start,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
