"""choice: the letter (or number, or other short name) or the text of one of the choices.

mention: a sentence that holds the right choice and none of the others, for models that answer in sentences.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from trainorder.graders import Answer, BadLabel, Grader
from trainorder.graders.texts import texts_of
from trainorder.rewards.answers import same_text

LETTERS = string.ascii_uppercase
_KEY = re.compile(r"[\s*_(\[\"'`]*(\w{1,4}?)[\s*_)\]\"'`]*(?:[.:)].*)?", re.DOTALL)


@cache
def _named(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Finds `option B`, `(B)` and a line that is `B` in a text."""
    forms = sorted({form for key in keys for form in (key, key.upper())}, key=len, reverse=True)
    any_key = "|".join(map(re.escape, forms))
    closed = r"\)" if any(key.isdigit() for key in keys) else r"\b"  # `(2 apples)` names none
    return re.compile(
        rf"\b(?:[Oo]ption|[Cc]hoice)\s*({any_key})\b|(?<!\w)\(({any_key}){closed}"
        rf"|^\s*\**({any_key})\**[.):]?\s*$",
        re.MULTILINE,
    )


def _key(said: str, keys: Iterable[str]) -> str | None:
    """The key that is said, in capitals or small letters where only one key is meant."""
    known = list(keys)
    if said in known:
        return said
    alike = [key for key in known if key.casefold() == said.casefold()]
    return alike[0] if len(alike) == 1 else None


def _read(label: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """The right letter, and the text of every choice where the row lists them."""
    choices = _choices(row.get("choices") or row.get("options"))
    [wanted, *more] = texts_of(label)
    if more:
        raise BadLabel(f"one choice is right, got {len(more) + 1}")
    if key := _key(wanted.strip("()[]. "), choices):
        return {"letter": key, "choices": choices}
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
    keys = tuple(choices or LETTERS)
    named = {_key("".join(found), keys) for found in _named(keys).findall(text)}
    return float(named == {letter})


def _is(said: str, letter: str, choices: Mapping[str, str]) -> bool:
    found = _KEY.fullmatch(said.strip())
    if found and (key := _key(found[1], choices or LETTERS)):
        return key == letter
    right = choices.get(letter, "")
    alike = [text for text in choices.values() if text.casefold() == right.casefold()]
    return bool(right) and same_text(said, right, fold_case=len(alike) == 1)


def _read_mention(label: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """The right text, and all texts."""
    choices = [*_choices(row.get("choices") or row.get("options")).values()]
    [wanted, *more] = texts_of(label)
    if more or [text.casefold() for text in choices].count(wanted.casefold()) != 1:
        raise BadLabel(f"the answer must be one of the row's `choices`, once, got {wanted[:60]!r}")
    return {"right": wanted, "choices": choices}


def _mention(answer: Answer, label: dict[str, Any]) -> float:
    choices: list[str] = label["choices"]
    longest = [re.escape(text) for text in sorted(choices, key=len, reverse=True)]
    whole = re.compile(rf"(?<!\w)(?:{'|'.join(longest)})(?!\w)", re.IGNORECASE)
    said = answer.marked or answer.text
    return float({x.casefold() for x in whole.findall(said)} == {label["right"].casefold()})


CHOICE = Grader(_read, _grade, lambda label: label["letter"])
MENTION = Grader(_read_mention, _mention, lambda label: label["right"])
