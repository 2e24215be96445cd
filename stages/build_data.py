"""DVC stage build_data: params.yaml -> data/tasks, data/sft, data/tokenizer."""

from __future__ import annotations

import argparse
import sys

from trainorder import paths
from trainorder.config import ParamsError, load_params


def main() -> int:
    """Exit code 2 for a mistake in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m stages.build_data", description=__doc__)
    parser.add_argument("--params", default=str(paths.PARAMS), help="params file")
    arguments = parser.parse_args()
    try:
        params = load_params(arguments.params)
        from trainorder.data import build

        build(params)
    except ParamsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
