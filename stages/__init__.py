"""One thin module per DVC stage: parse arguments, load a section of params.yaml, call one library function, write."""

import importlib.util
import sys

if importlib.util.find_spec("torch") is None:
    print(
        f"error: {sys.executable} lacks trainorder's packages: run `make install` once, then "
        "`source .venv/bin/activate` before dvc",
        file=sys.stderr,
    )
    sys.exit(2)
