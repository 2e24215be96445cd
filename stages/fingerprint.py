"""DVC stage fingerprint, always first: refuse a compiled file that is not of this params.yaml, then note values and code."""

from __future__ import annotations

import argparse
import os
import sys

import stages
from trainorder import fingerprint, plan
from trainorder.reading import ParamsError


def main(arguments: argparse.Namespace) -> None:
    current = plan.load()
    for file in plan.stale_files(current):
        if "DVC_EXP_BASELINE_REV" in os.environ:  # `dvc exp run`, which has read the stages already
            raise ParamsError(
                "-S changes which stages there are (an order, phase, merge, variant or seed), which `dvc exp run` cannot: "
                "`trainorder run --set KEY=VALUE --exp NAME` can"
            )
        raise ParamsError(f"{file} does not match params.yaml; run `trainorder plan`")
    fingerprint.write(current.fingerprints())


if __name__ == "__main__":
    sys.exit(stages.run("fingerprint", __doc__, {}, main))
