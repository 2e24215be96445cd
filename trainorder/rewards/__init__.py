"""Graders: the answer format, the sandbox for model-written code, the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainorder.registries import JUDGES, load

ENDPOINT_FILE = "endpoint.json"
"""What a judge's folder holds in place of weights where an endpoint judges."""


def load_judge(path: Path | str, device: str = "cpu") -> Any:
    """The judge in a folder: weights, then on `device`, or the address of an endpoint."""
    backend = "endpoint" if (Path(path) / ENDPOINT_FILE).is_file() else "local"
    judge = load(JUDGES, backend, "judge.backend").load(path)
    return judge if backend == "endpoint" else judge.to(device)
