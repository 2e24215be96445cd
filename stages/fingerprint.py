"""Always first: refuse a plan.yaml that is not of this params.yaml, then write what its values and the code mean.

Also removes evaluations of nodes that left the plan: `measure_bwt` depends on the whole folder. DVC's cache keeps them.
"""

import sys

from trainorder import fingerprint, paths, plan
from trainorder.config import ParamsError


def main() -> int:
    try:
        current = plan.load()
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    if not paths.PLAN.is_file() or paths.PLAN.read_text(encoding="utf-8") != current.text():
        print("plan.yaml does not match params.yaml; run: trainorder plan", file=sys.stderr)
        return 2
    fingerprint.write(current.fingerprints())
    for file in paths.evaluation("x").parent.glob("*.parquet"):
        if file.stem not in current.nodes:
            file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
