"""The one answer format of the verifiable tasks: `<think> ... </think> <answer> ... </answer>`, and nothing else.

Answer and thought may change places where a task asks for it; that format excludes the usual one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TAG = r"</?(?:think|answer)>"
_BODY = rf"((?:(?!{_TAG})\S+ )+)"
_FORMAT = re.compile(rf"<think> {_BODY}</think> <answer> {_BODY}</answer>")
_ANSWER_FIRST = re.compile(rf"<answer> {_BODY}</answer> <think> {_BODY}</think>")


class Parsed(NamedTuple):
    """The two parts of a completion that follows the format."""

    think: str
    answer: str


def parse(completion: str, *, answer_first: bool = False) -> Parsed | None:
    """The thought and the answer, or None unless the whole text is exactly one of each, both non-empty.

    Strict on purpose: words outside the tags, a tag twice or a missing space are all refused, otherwise stray words
    slip in under RL.

    >>> parse("<think> 3 + 4 = 7 </think> <answer> 7 </answer>")
    Parsed(think='3 + 4 = 7', answer='7')
    >>> parse("<think> 3 + 4 = 7 </think> <answer> 7 </answer> 7") is None
    True
    """
    match = (_ANSWER_FIRST if answer_first else _FORMAT).fullmatch(completion)
    if match is None:
        return None
    first, second = match[1].rstrip(" "), match[2].rstrip(" ")
    return Parsed(second, first) if answer_first else Parsed(first, second)


def render(think: str, answer: str, *, answer_first: bool = False) -> str:
    """The inverse of `parse`.

    >>> render("easy", "4"), render("easy", "4", answer_first=True)
    ('<think> easy </think> <answer> 4 </answer>', '<answer> 4 </answer> <think> easy </think>')
    """
    parts = f"<think> {think} </think>", f"<answer> {answer} </answer>"
    return " ".join(parts[::-1] if answer_first else parts)
