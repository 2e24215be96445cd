"""Whether the model, its tokenizer and the tasks fit one another."""

from __future__ import annotations

from trainorder.config import Params


def check(params: Params) -> None:
    """Nothing is checked yet."""
