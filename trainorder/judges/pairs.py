"""Preferences that the user brings: rows of prompt, chosen and rejected, as texts or messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainorder.judges import Comparisons
from trainorder.reading import ParamsError
from trainorder.streams import stream
from trainorder.tasks.base import turns
from trainorder.tasks.lines import BadRow, short
from trainorder.tasks.rows.files import row_sources
from trainorder.tasks.rows.prompts import prompt_of, reply_of

MAX_BAD = 0.05
"""Share of pairs that may be bad."""
SHOWN = 3


def read_pairs(where: str, path: str) -> list[Comparisons]:
    """The pairs of a file, a folder or a data set, those of one prompt together, in an order that is drawn once.

    Raises:
        ParamsError: nothing can be read, no pair is there, or more than MAX_BAD of the rows are bad.
    """
    answers: dict[str, dict[str, int]] = {}
    wins: dict[str, list[tuple[int, int]]] = {}
    bad, rows = list[str](), 0
    for source in row_sources(where, path):
        for file, number, given in source.rows():
            rows += 1
            try:
                prompt, chosen, rejected = _pair(given)
            except BadRow as error:
                bad.append(f"{file}, line {number}: {error}")
                continue
            known = answers.setdefault(prompt, {})
            pair = tuple(known.setdefault(text, len(known)) for text in (chosen, rejected))
            wins.setdefault(prompt, []).append((pair[0], pair[1]))
    if len(bad) > MAX_BAD * rows or not wins:
        shown = "".join(f"\n  {text}" for text in bad[:SHOWN]) or " no row"
        raise ParamsError(
            f"{where}: {len(bad)} of {rows} rows are no pairs with prompt, chosen and rejected:{shown}"
        )
    found = [Comparisons(p, tuple(known), tuple(wins[p])) for p, known in answers.items()]
    stream("judge", "pairs").shuffle(found)
    return found


def heldout(count: int, most: int) -> int:
    """Prompts that no model learns from, of so many: at most `most` and at most a fifth, at least one."""
    return max(1, min(most, count // 5))


def _pair(given: Mapping[str, Any] | BadRow) -> tuple[str, str, str]:
    if isinstance(given, BadRow):
        raise given
    missing = [key for key in ("chosen", "rejected") if not given.get(key)]
    if missing:
        raise BadRow(f"no {missing[0]!r}; it has {', '.join(map(str, given)) or 'nothing'}")
    before, chosen = reply_of(given["chosen"], "chosen")
    _, rejected = reply_of(given["rejected"], "rejected")
    asked = given.get("prompt") or before
    if not asked:
        raise BadRow("no 'prompt', and no messages before the answer")
    if chosen == rejected:
        raise BadRow(f"chosen and rejected are one text: {short(chosen)}")
    return "\n\n".join(turns(prompt_of(asked, ""))), chosen, rejected
