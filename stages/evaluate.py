"""DVC stage evaluate@<node>: checkpoint, data/tasks and judges -> evaluations/<node>.parquet."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainorder import paths
from trainorder.config import ParamsError, load_params
from trainorder.process import die_with_parent

if TYPE_CHECKING:
    import pandas as pd


def main() -> int:
    """Exit code 2 for a mistake in params.yaml or something not built."""
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__)
    parser.add_argument(
        "--node", required=True, help="node of plan.yaml whose checkpoint is scored"
    )
    parser.add_argument("--seed", required=True, type=int, help="training seed of the node")
    arguments = parser.parse_args()
    die_with_parent()
    try:
        config = load_params(paths.PARAMS).evaluation
        import torch

        from trainorder.evaluation import evaluate

        torch.set_num_threads(config.threads)
        checkpoint = paths.checkpoint(arguments.node)
        table = evaluate(arguments.node, checkpoint, arguments.seed, config)
    except ParamsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(table, paths.evaluation(arguments.node))
    return 0


def write(table: pd.DataFrame, path: Path) -> None:
    """Parquet, written whole and then renamed; equal tables give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        table.to_parquet(stream, engine="pyarrow", compression="zstd", index=False)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
