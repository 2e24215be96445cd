"""DVC stage build_data: params.yaml -> data/tasks, data/sft, data/tokenizer."""

from __future__ import annotations

import argparse
import sys

import stages
from trainorder.config import load_params


def main(arguments: argparse.Namespace) -> None:
    params = load_params()
    from trainorder.data import build

    build(params)


if __name__ == "__main__":
    sys.exit(stages.run("build_data", __doc__, {}, main))
