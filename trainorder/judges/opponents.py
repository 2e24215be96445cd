"""Where a problem has no reference, an answer is compared with the base's most likely one: the same opponent for every node.

The answers of the group would be no fixed opponent: a win rate against them says nothing about another checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainorder.files import read_jsonl, write_jsonl

FILE = "opponents.jsonl"
"""In a judge's folder: `{"prompt": ..., "answer": ...}` for each problem without a reference."""


class WithOpponents:
    """A judge that has an opponent for every prompt."""

    def __init__(self, judge: Any, opponents: dict[str, str]) -> None:
        self.judge, self.opponents = judge, opponents
        self.failures: list[str] = []
        """Why rows of the last call have no verdict."""

    @property
    def counts(self) -> Any:
        """Those of the judge."""
        return getattr(self.judge, "counts", {})

    def win_probability(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[float | None]:
        """As of the judge; an empty reference stands for the base's answer."""
        rows = list(zip(prompts, answers, references, strict=True))
        known = [(p, a, r or self.opponents.get(p)) for p, a, r in rows]
        asked = [row for row in known if row[2] is not None]
        values = iter(self.judge.win_probability(*zip(*asked, strict=True)) if asked else [])
        lost = ["no reference, and no answer of the base to compare with"] * (
            len(rows) - len(asked)
        )
        self.failures = [*getattr(self.judge, "failures", ()), *lost]
        return [None if row[2] is None else next(values) for row in known]


def write_opponents(folder: Path, opponents: dict[str, str]) -> None:
    """Write the opponents beside a judge."""
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in opponents.items()]
    write_jsonl(folder / FILE, rows)


def read_opponents(folder: Path) -> dict[str, str]:
    """Prompt -> answer, as `write_opponents` wrote them."""
    return {row["prompt"]: row["answer"] for row in read_jsonl(folder / FILE)}


def with_opponents(judge: Any, folder: Path) -> Any:
    """The judge with the opponents of its folder, if there are some."""
    return WithOpponents(judge, read_opponents(folder)) if (folder / FILE).is_file() else judge
