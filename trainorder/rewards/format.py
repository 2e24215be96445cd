"""The one answer format of the verifiable tasks: `<think> ... </think> <answer> ... </answer>`, and nothing else."""

from __future__ import annotations

import re
from typing import NamedTuple

_TAG = r"</?(?:think|answer)>"
_BODY = rf"((?:(?!{_TAG})\S+ )+)"
_FORMAT = re.compile(rf"<think> {_BODY}</think> <answer> {_BODY}</answer>")


class Parsed(NamedTuple):
    """The two parts of a completion that follows the format."""

    think: str
    answer: str


def parse(completion: str) -> Parsed | None:
    """The thought and the answer, or None unless the whole text is exactly one of each, both non-empty.

    Strict on purpose: words outside the tags, a tag twice or a missing space are all refused, otherwise stray words
    slip in under RL.

    >>> parse("<think> 3 + 4 = 7 </think> <answer> 7 </answer>")
    Parsed(think='3 + 4 = 7', answer='7')
    >>> parse("<think> 3 + 4 = 7 </think> <answer> 7 </answer> 7") is None
    True
    """
    match = _FORMAT.fullmatch(completion)
    return Parsed(match[1].rstrip(" "), match[2].rstrip(" ")) if match else None


def render(think: str, answer: str) -> str:
    """The inverse of `parse`.

    >>> render("easy", "4")
    '<think> easy </think> <answer> 4 </answer>'
    """
    return f"<think> {think} </think> <answer> {answer} </answer>"
