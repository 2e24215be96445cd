"""One thin module per DVC stage: parse arguments, load a section of params.yaml, call one library function, write."""

import importlib.util
import sys

if None in (importlib.util.find_spec("torch"), importlib.util.find_spec("trainorder")):
    print(
        f"error: {sys.executable} lacks trainorder's packages: before dvc, activate the environment "
        "that has them (`source .venv/bin/activate`)",
        file=sys.stderr,
    )
    sys.exit(2)

from trainorder import warm

warm.borrow()  # before anything else is imported: a borrowed process has it all

from trainorder.stage import keeping, run

__all__ = ["keeping", "run"]
