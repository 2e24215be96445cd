"""What every DVC stage does around its own work: arguments, exit codes, step checkpoints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from trainorder.config import Params
from trainorder.files import disk_trouble, is_disk_full
from trainorder.process import StageError, die_with_parent, keep_loopback_direct
from trainorder.reading import ParamsError
from trainorder.resume import Work, working

Stage = Callable[[argparse.Namespace], None]


def run(name: str, about: str | None, options: Mapping[str, str], stage: Stage) -> int:
    """Run a stage on the command line's arguments, all of them required; returns its exit code.

    2 for a mistake in params.yaml or something not built, 1 where the work itself failed in a way we know.
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", description=about)
    for option, text in options.items():
        kind = int if option == "--seed" else str
        parser.add_argument(option, help=text, type=kind, required=True)
    arguments = parser.parse_args()
    die_with_parent()
    keep_loopback_direct()
    try:
        stage(arguments)
    except ParamsError as error:
        return _refuse(str(error), 2)
    except StageError as error:
        return _refuse(str(error), 1)
    except Exception as error:
        trouble = disk_trouble(error)
        if not trouble:
            raise
        return _refuse(trouble, 1 if is_disk_full(error) else 2)
    return 0


def _refuse(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


def keeping(
    name: str, params: Params, depends: Mapping[str, Any] | None
) -> AbstractContextManager[Work]:
    """The step checkpoints of a stage, and its lock: see `trainorder.resume.working`."""
    return working(name, depends, params.flow.checkpoint_seconds)
