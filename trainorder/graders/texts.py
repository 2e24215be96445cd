"""Graders of texts: equal, equal but for case, words in common, a pattern."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from trainorder.graders import Answer, BadLabel, Grader
from trainorder.rewards.answers import same_text

MAX_CHARS = 100_000
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WORK = re.compile(r"####\s*([^\n]+)\s*\Z")


def texts_of(label: Any) -> list[str]:
    """The right texts of a label: a text, a list of which any is right, or `{"target": ...}` around them.

    Raises:
        BadLabel: it is none of these, or one shows nothing.
    """
    if isinstance(label, Mapping) and set(label) & {"target", "answer"}:
        label = label.get("target", label.get("answer"))
    found = label if isinstance(label, list) else [label]
    found = [str(x) if isinstance(x, int | float) and not isinstance(x, bool) else x for x in found]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise BadLabel(f"a text or a list of texts is needed, got {_short(label)}")
    if sum(map(len, found)) > MAX_CHARS:
        raise BadLabel(f"at most {MAX_CHARS} characters are allowed, got {sum(map(len, found))}")
    return [_last(text.strip()) for text in found]


def f1(given: str, wanted: str) -> float:
    """Harmonic mean of precision and recall over words, without case, punctuation and articles (SQuAD, arXiv 1606.05250).

    >>> f1("The red fox.", "a red dog"), f1("blue", "red")
    (0.5, 0.0)
    """
    one, other = _words(given), _words(wanted)
    common = sum((Counter(one) & Counter(other)).values())
    if not common:
        return float(one == other)
    return 2 * common / (len(one) + len(other))


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def _read(label: Any, row: Mapping[str, Any]) -> list[str]:
    return texts_of(label)


def _read_words(label: Any, row: Mapping[str, Any]) -> list[str]:
    found = texts_of(label)
    for text in found:
        if not _words(text):
            raise BadLabel(f"no word is left without articles and punctuation, got {_short(text)}")
    return found


def _last(text: str) -> str:
    """What follows `####` in a worked answer as GSM8K writes it."""
    found = _WORK.search(text)
    return found[1].strip() if found else text


def _exact(answer: Answer, label: list[str]) -> float:
    return float(any(same_text(answer.said, x) for x in label))


def _text(answer: Answer, label: list[str]) -> float:
    return float(any(same_text(answer.said, x, fold_case=True) for x in label))


def _f1(answer: Answer, label: list[str]) -> float:
    return max(f1(answer.said, text) for text in label)


def _read_pattern(label: Any, row: Mapping[str, Any]) -> str:
    if not isinstance(label, str) or not label:
        raise BadLabel(f"a regular expression is needed, got {_short(label)}")
    try:
        re.compile(label)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadLabel(f"no regular expression ({error}): {_short(label)}") from None
    if re.search(label, ""):
        raise BadLabel(
            f"the pattern {_short(label)} matches an empty text, so every answer is right"
        )
    return label


def _regex(answer: Answer, label: str) -> float:
    """1 if the answer, or the whole text, holds a match."""
    return float(any(re.search(label, text) for text in (answer.said, answer.text)))


def _short(value: Any) -> str:
    return repr(value)[:60]


EXACT = Grader(_read, _exact, lambda label: label[0])
TEXT = Grader(_read, _text, lambda label: label[0])
F1 = Grader(_read_words, _f1, lambda label: label[0])
REGEX = Grader(_read_pattern, _regex, lambda label: None)
