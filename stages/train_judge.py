"""DVC stage train_judge: the first seed's base and the judged task's problems -> checkpoints/judge."""

from __future__ import annotations

import argparse
import sys

from trainorder import paths
from trainorder.config import ParamsError, load_params
from trainorder.process import die_with_parent


def main() -> int:
    """Exit code 1 where a judge is too weak, 2 for a mistake in params.yaml or something not built."""
    parser = argparse.ArgumentParser(prog="python -m stages.train_judge", description=__doc__)
    parser.add_argument(
        "--base", required=True, help="node both judges start from and whose answers are compared"
    )
    arguments = parser.parse_args()
    die_with_parent()
    try:
        params = load_params(paths.PARAMS)

        from trainorder.preferences import AgreementError, train_judges

        try:
            train_judges(paths.checkpoint(arguments.base), paths.JUDGE, params)
        except AgreementError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except ParamsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
