"""choice: the letter or the text of one of the choices."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from trainorder.graders import Answer, BadLabel, Grader
from trainorder.graders.texts import texts_of
from trainorder.rewards.answers import same_text

LETTERS = string.ascii_uppercase
_LETTER = re.compile(r"[\s*_(\[\"'`]*([A-Za-z])[\s*_)\]\"'`]*(?:[.:)].*)?", re.DOTALL)
_NAMED = re.compile(
    r"(?:\b(?:option|choice)\s*|\()([A-Z])\b|^\s*\**([A-Z])\**[.):]?\s*$", re.MULTILINE
)


def _read(label: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """The right letter, and the text of every choice where the row lists them."""
    choices = _choices(row.get("choices") or row.get("options"))
    [wanted, *more] = texts_of(label)
    if more:
        raise BadLabel(f"one choice is right, got {len(more) + 1}")
    if wanted.strip("()[]. ") in choices:
        return {"letter": wanted.strip("()[]. "), "choices": choices}
    named = [letter for letter, text in choices.items() if text == wanted]
    if len(named) == 1:
        return {"letter": named[0], "choices": choices}
    if wanted.isdigit() and int(wanted) < len(choices):
        return {"letter": list(choices)[int(wanted)], "choices": choices}
    letter = wanted.strip("()[]. ").upper()
    if choices or len(letter) != 1 or letter not in LETTERS:
        allowed = ", ".join(choices) or "a letter"
        raise BadLabel(f"the right choice must be {allowed} or its text, got {wanted[:60]!r}")
    return {"letter": letter, "choices": {}}


def _choices(given: Any) -> dict[str, str]:
    """Letter -> text, from a list of texts, a mapping, or `{"label": [...], "text": [...]}`."""
    if not given:
        return {}
    if isinstance(given, Mapping) and {"label", "text"} <= set(given):
        given = dict(zip(given["label"], given["text"], strict=False))
    if isinstance(given, list) and all(isinstance(x, Mapping) and len(x) == 1 for x in given):
        given = {key: text for item in given for key, text in item.items()}
    found = dict(given) if isinstance(given, Mapping) else dict(zip(LETTERS, given, strict=False))
    if not 2 <= len(found) <= len(LETTERS):
        raise BadLabel(f"2 to {len(LETTERS)} choices are needed, got {len(found)}")
    return {str(letter): str(text).strip() for letter, text in found.items()}


def _grade(answer: Answer, label: dict[str, Any]) -> float:
    letter, choices = label["letter"], label["choices"]
    if answer.marked:
        return float(_is(answer.marked, letter, choices))
    text = answer.text.strip()
    if _is(text, letter, choices):
        return 1.0
    named = [a or b for a, b in _NAMED.findall(text)]
    return float(bool(named) and named[-1] == letter and len(set(named)) == 1)


def _is(said: str, letter: str, choices: Mapping[str, str]) -> bool:
    found = _LETTER.fullmatch(said.strip())
    if found and found[1].upper() in (choices or LETTERS):
        return found[1].upper() == letter
    right = choices.get(letter, "")
    alike = [text for text in choices.values() if text.casefold() == right.casefold()]
    return bool(right) and same_text(said, right, fold_case=len(alike) == 1)


CHOICE = Grader(_read, _grade, lambda label: label["letter"])
