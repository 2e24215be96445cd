"""DVC stage merge@<node>: checkpoints of several nodes -> one checkpoint, without training."""

from __future__ import annotations

import argparse
import sys
import time

from trainorder import paths
from trainorder.config import load_params
from trainorder.process import die_with_parent


def main() -> int:
    """Merge, then write the manifest."""
    parser = argparse.ArgumentParser(prog="python -m stages.merge", description=__doc__)
    parser.add_argument("--node", required=True, help="the node to make")
    parser.add_argument("--base", required=True, help="node the merged ones were trained from")
    parser.add_argument("--merge", required=True, help="entry of `merges` in params.yaml")
    parser.add_argument("--parents", required=True, help="nodes to merge, separated by commas")
    parser.add_argument("--seed", required=True, type=int, help="training seed of these nodes")
    arguments = parser.parse_args()
    die_with_parent()
    start = time.monotonic()
    config = load_params().merges[arguments.merge]
    parents = arguments.parents.split(",")

    from trainorder.lineage import write_manifest
    from trainorder.merge import merge_folders

    folders = [paths.checkpoint(parent) for parent in parents]
    merge_folders(
        paths.checkpoint(arguments.base), folders, paths.checkpoint(arguments.node), config
    )
    write_manifest(
        arguments.node,
        seed=arguments.seed,
        params={f"merges.{arguments.merge}": config},
        code="merge",
        parents=[arguments.base, *parents],
        seconds=time.monotonic() - start,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
