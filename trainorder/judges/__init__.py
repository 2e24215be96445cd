"""Judges: a preference model, a model behind an endpoint. Each lies in `checkpoints/judge/<name>`: weights, or a card.

A card (judge.json) is what names a judge without weights of ours: its kind and its settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainorder.files import write_json
from trainorder.judges.opponents import with_opponents
from trainorder.registries import JUDGES, load

CARD = "judge.json"


class AnyJudge(Protocol):
    """Compares answers."""

    def win_probability(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> Sequence[float | None]:
        """P(answer beats reference), per row; None without a verdict."""
        ...


@dataclass(frozen=True)
class Comparisons:
    """Answers to one prompt, and what the annotator preferred.

    >>> Comparisons("write a note", ("a", "b", "c"), ((0, 1), (2, 1))).wins[1]  # "c" was preferred to "b"
    (2, 1)
    """

    prompt: str
    answers: tuple[str, ...]
    wins: tuple[tuple[int, int], ...]
    """(preferred, other) as indices of `answers`."""


def load_judge(path: Path | str, device: str = "cpu") -> Any:
    """The judge in a folder, on `device` where it has weights; verdicts of one that is asked are kept (verdicts.py)."""
    card = Path(path) / CARD
    kind = json.loads(card.read_text(encoding="utf-8"))["kind"] if card.is_file() else "preference"
    judge = cached(load(JUDGES, kind, "judges").load(path).to(device))
    return with_opponents(judge, Path(path))


def cached(judge: Any) -> Any:
    """The judge with its verdicts kept, where asking costs more than looking them up: not a preference model's."""
    if not hasattr(judge, "identity"):
        return judge
    from trainorder.judges.verdicts import CachedJudge

    return CachedJudge(judge)


def read_card(path: Path | str) -> dict[str, Any]:
    """The settings that `write_card` wrote, with their `kind`."""
    found: dict[str, Any] = json.loads((Path(path) / CARD).read_text(encoding="utf-8"))
    return found


def write_card(path: Path | str, kind: str, settings: dict[str, Any]) -> None:
    """Write the card of a judge without weights."""
    Path(path).mkdir(parents=True, exist_ok=True)
    write_json(Path(path) / CARD, {**settings, "kind": kind})
