"""`trainorder run --seeds`: which training seeds are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from trainorder.config import parse_params
from trainorder.reading import ParamsError, parse_yaml

MOST = 100
"""More seeds than this are not added at once."""


def wanted(text: str, asked: str) -> list[int]:
    r"""The seeds that `asked` stands for: `+N` adds N unused ones to those of the params file, `0,1,2` is the list itself.

    Raises:
        ParamsError: it is neither.

    >>> text = "phases: {a: {kind: structured, tasks: {math: 1}, steps: 1}}\norders: {o: [a]}\nseeds: [0, 4]\ntasks: {math: {}}"
    >>> wanted(text, "+2"), wanted(text, "0, 1,2")
    ([0, 4, 5, 6], [0, 1, 2])
    """
    number = asked.strip().removeprefix("+").strip()
    if asked.strip().startswith("+"):
        if not (number.isascii() and number.isdigit() and 1 <= int(number) <= MOST):
            raise ParamsError(f"--seeds {asked}: +N adds 1 to {MOST} seeds, as in --seeds +2")
        known = parse_params(parse_yaml(text, "params.yaml"), source="params.yaml").seeds
        return more(known, int(number))
    parts = [part.strip() for part in number.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ParamsError(f"--seeds {asked}: write +N to add seeds, or a list, as in --seeds 0,1,2")
    return [int(part) for part in parts]


def more(known: Sequence[int], number: int) -> list[int]:
    """With that many unused seeds behind them."""
    return [*known, *range(max(known) + 1, max(known) + 1 + number)]
