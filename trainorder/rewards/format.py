"""Where a completion holds its answer, and the format `<think> ... </think> <answer> ... </answer>` it is asked to keep.

The two are separate: `answer` finds the answer however it was presented and decides the score; `parse` says whether the
completion keeps the format, which is a part of the reward that is only logged.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_TAG = re.compile(r"</?(?:think|answer)>")
_THOUGHT, _ANSWER = ("<think>", "</think>"), ("<answer>", "</answer>")
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s{}$\\]+)")
_MARK = re.compile(r"####|\banswer\s*(?:is\s*:?|:|=)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols that show nothing."""


class Parsed(NamedTuple):
    """The two parts of a completion that keeps the format."""

    think: str
    answer: str


def answer(completion: str, *, marked: bool = True) -> str:
    r"""The answer of a completion without surrounding whitespace, or "" if there is none that shows anything.

    It is the content of the last `<answer> ... </answer>` (of a box in it, if there is one), else of the last
    `\boxed{...}`, else, if `marked`, what follows the last `####` or `answer is` up to the end of its sentence. Thoughts are not searched, nor is what
    precedes the first `</think>` if the chat template opened the thought.

    >>> answer("<think>3+4=7</think>\n<answer>7</answer>"), answer(r"so it is \boxed{\frac{1}{2}}.")
    ('7', '\\frac{1}{2}')
    >>> answer("3 + 4 = 7. The answer is **7**. Done."), answer("7")
    ('**7**', '')
    """
    text = without_thoughts(completion)
    tagged = _last_tagged(text)
    found = _last_boxed(text if tagged is None else tagged)
    if found is None:
        found = tagged
    if found is None and marked:
        found = _last_marked(text)
    found = (found or "").strip()
    return found if visible(found) else ""


def parse(completion: str, *, answer_first: bool = False) -> Parsed | None:
    r"""The thought and the answer, or None unless the text is exactly one of each, neither empty, and nothing else.

    Whitespace around the tags is free, and `<think>` may be missing at the start: chat templates open the thought.

    >>> parse("<think> 3 + 4 = 7 </think>\n<answer>7</answer>"), parse("3 + 4 = 7 </think> <answer> 7 </answer>")
    (Parsed(think='3 + 4 = 7', answer='7'), Parsed(think='3 + 4 = 7', answer='7'))
    >>> parse("<think> 3 + 4 = 7 </think> <answer> 7 </answer> 7") is None
    True
    """
    order = (*_ANSWER, *_THOUGHT) if answer_first else (*_THOUGHT, *_ANSWER)
    tags = tuple(_TAG.findall(completion))
    if not answer_first and tags == order[1:]:
        completion, tags = f"{_THOUGHT[0]}{completion}", order
    if tags != order:
        return None
    before, first, between, second, after = map(str.strip, _TAG.split(completion))
    if before or between or after or not (visible(first) and visible(second)):
        return None
    return Parsed(second, first) if answer_first else Parsed(first, second)


def render(think: str, answer: str, *, answer_first: bool = False) -> str:
    """A completion that `parse` accepts.

    >>> render("easy", "4"), render("easy", "4", answer_first=True)
    ('<think> easy </think> <answer> 4 </answer>', '<answer> 4 </answer> <think> easy </think>')
    """
    parts = f"<think> {think} </think>", f"<answer> {answer} </answer>"
    return " ".join(parts[::-1] if answer_first else parts)


def visible(text: str) -> bool:
    r"""Whether any character of the text shows: whitespace, zero-width and blank ones do not.

    >>> visible("a"), visible(" \u200b\u3164")
    (True, False)
    """
    return any(c not in _BLANK and unicodedata.category(c)[0] not in "ZCM" for c in text)


def without_thoughts(completion: str) -> str:
    """The text outside of closed thoughts."""
    opening, closing = _THOUGHT
    first, *rest = completion.split(closing)
    if not rest:
        return completion
    kept = first.partition(opening)[0] if opening in first else ""
    return kept + "".join(part.partition(opening)[0] for part in rest[:-1]) + rest[-1]


def _last_tagged(text: str) -> str | None:
    """What stands between the last two answer tags that open and close."""
    tags = list(_ANSWER_TAG.finditer(text))
    for before, after in zip(tags[-2::-1], tags[:0:-1], strict=True):
        if before[1] == "" and after[1] == "/":
            return text[before.end() : after.start()]
    return None


def _last_boxed(text: str) -> str | None:
    r"""What the box that closes last holds, braces balanced; one pass. Without any, what follows the last bare `\boxed`."""
    found, open_braces = None, list[tuple[bool, int]]()
    for token in _BRACE.finditer(text):
        if token[0] != "}":
            open_braces.append((token[0] != "{", token.end()))
        elif open_braces:
            boxed, start = open_braces.pop()
            found = text[start : token.start()] if boxed else found
    if found is None:
        found = next(reversed(_BARE_BOX.findall(text)), None)
    return found


def _last_marked(text: str) -> str | None:
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    said = text[marks[-1].end() :].strip()
    return _SENTENCE_END.split(said, maxsplit=1)[0]
