"""Whether this machine and this folder can run the plan: git, DVC, folders that can be written."""

from __future__ import annotations

from trainorder.config import Params


def check(params: Params) -> None:
    """Raise on the first thing the machine lacks."""
