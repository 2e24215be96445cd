r"""number: the same value, however it is written. math: the same in algebra (math-verify).

Without a marked answer the last number counts for `number`, and what math-verify finds last for `math`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainorder.graders import Answer, BadLabel, Grader
from trainorder.graders.texts import texts_of
from trainorder.rewards import format
from trainorder.rewards.answers import found_equal, numbers, same_expression, same_number

MAX_LABEL = 2000
MAX_TEXT = 4000
"""Characters at the end of an unmarked text that math-verify searches."""
_LITERAL = re.compile(
    r"(?:(?<![\w.)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s?/\s?\d+)?%?|\.\d+",
    re.ASCII,
)
_MINUS = re.compile("[\u2212\u2012\u2013]")
_FORMULA = re.compile(r"\$[^$]+\$|\\\(.*?\\\)|\\\[.*?\\\]|\Z", re.DOTALL)
_SEVERAL = re.compile(r"\\pm|\\mp|[\u00b1\u2213;]|\b(?:or|and)\b|,(?!\d{3}(?!\d))")
"""Several values in one answer, of which math-verify takes the one that is right."""
_NEGATIVE = re.compile(r"\b(?:minus|negative)\s+\Z", re.IGNORECASE)
_CHANGED = re.compile(
    r"\s?(?:hundred|thousand|million|billion|trillion|dozen|third|quarter|tenth|half|halves|squared|cubed|percent)s?\b",
    re.IGNORECASE,
)


def _labels(label: Any, row: Mapping[str, Any]) -> list[str]:
    found = []
    for text in texts_of(label):
        boxed = format.answer(text, marked=False) if "boxed" in text else ""
        found.append((boxed or text).strip())
        if len(found[-1]) > MAX_LABEL:
            raise BadLabel(f"at most {MAX_LABEL} characters are allowed, got {len(found[-1])}")
    return found


def _read_numbers(label: Any, row: Mapping[str, Any]) -> list[str]:
    found = _labels(label, row)
    for text in found:
        if not numbers(text):
            raise BadLabel(f"a number is needed, got {text[:60]!r}")
    return found


def _number(answer: Answer, label: list[str]) -> float:
    given = [answer.marked] if answer.marked else []
    if not given or not numbers(given[0]):
        given += last_number(answer.marked or answer.text)
    return float(any(same_number(text, wanted) for wanted in label for text in given))


def last_number(text: str) -> list[str]:
    """The last literal number of a text, if there is one.

    A word that makes another number of it counts: its sign, or nothing where it is multiplied (`5 thousand`).

    >>> last_number("3 boxes of 1,250 make 3,750."), last_number("8-5"), last_number("none")
    (['3,750'], ['5'], [])
    >>> last_number("It is minus 5."), last_number("about 5 thousand"), last_number("5 halves")
    (['-5'], [], [])
    """
    shown = _MINUS.sub("-", text[-MAX_TEXT:])
    found = [*_LITERAL.finditer(shown)][-1:]
    if not found:
        return []
    before, after = shown[: found[0].start()], shown[found[0].end() :]
    if _CHANGED.match(after):
        return []
    sign = "-" if _NEGATIVE.search(before) and found[0][0][0] not in "+-" else ""
    return [sign + found[0][0]]


def _math(answer: Answer, label: list[str]) -> float:
    if answer.marked and any(same_expression(answer.marked, wanted) for wanted in label):
        return 1.0
    text = answer.text.strip()[-MAX_TEXT:]
    said = answer.marked or ([*_FORMULA.finditer(text)] or [""])[-1][0]
    label = [wanted for wanted in label if _SEVERAL.search(wanted) or not _SEVERAL.search(said)]
    if answer.marked:
        return float(any(found_equal(answer.marked, wanted) for wanted in label))
    if any(same_expression(text, wanted) for wanted in label):
        return 1.0
    if "\\" not in text and all(numbers(wanted) for wanted in label):
        return _number(answer, label)
    return float(any(found_equal(text, wanted) for wanted in label))


NUMBER = Grader(_read_numbers, _number, lambda label: label[0])
MATH = Grader(_labels, _math, lambda label: label[0], costly=True)
