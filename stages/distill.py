"""DVC stage `train` of plan/<node>/dvc.yaml, of `kind: distill`: a parent, a phase and a teacher for each task -> checkpoint."""

from __future__ import annotations

import argparse
import sys

import stages
from stages import rl

OPTIONS = {**rl.OPTIONS, "--teachers": "task=node for each task, separated by commas"}


def main(arguments: argparse.Namespace) -> None:
    teachers = dict(pair.split("=", 1) for pair in arguments.teachers.split(","))
    rl.launch_or_train(arguments, "stages.distill", teachers)


if __name__ == "__main__":
    sys.exit(stages.run("distill", __doc__, OPTIONS, main))
