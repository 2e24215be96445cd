"""What the model writes: the same test problems answered under each order, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainorder.report import records, words
from trainorder.report.words import Bwt

PER_TASK = 2
LONGEST = 600
"""Characters of a prompt or an answer."""


@dataclass(frozen=True)
class Question:
    """One test problem with the greedy answer of every arm, best arm first."""

    task: str
    prompt: str
    answers: list[tuple[str, str, str]]
    """(arm, text, score)."""


def questions(bwt: Bwt) -> list[Question]:
    """PER_TASK problems of each task: first those that the arms score differently. Of several seeds the first."""
    seed = str(bwt["seeds"][0])
    shown = words.shown(bwt)
    arms = {
        row["arm"]: row["nodes"][seed]
        for row in bwt["ranking"]
        if row["arm"] in shown or row["kind"] == "base"
    }
    by_arm = {arm: found for arm, node in arms.items() if (found := records.answers(node))}
    if not by_arm:
        return []
    known = set.intersection(*(set(found) for found in by_arm.values()))
    first = next(iter(by_arm.values()))
    result = []
    for task in bwt["tasks"]:
        keys = [key for key in first if key in known and key[0] == task]
        keys.sort(key=lambda key: len({str(found[key]["score"]) for found in by_arm.values()}) < 2)
        result += [_question(key, by_arm) for key in keys[:PER_TASK]]
    return result


def _question(
    key: tuple[str, str], by_arm: Mapping[str, Mapping[tuple[str, str], Mapping[str, Any]]]
) -> Question:
    rows = {arm: found[key] for arm, found in by_arm.items()}
    answers = [(arm, _cut(row["answer"]), words.score(row["score"])) for arm, row in rows.items()]
    return Question(key[0], _cut(_text(next(iter(rows.values()))["prompt"])), answers)


def _text(prompt: Any) -> str:
    """A prompt as text: messages as one line each."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."
