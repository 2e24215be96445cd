"""Whether what is trained on shows a problem of dev or test, however it is spelled."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff9-\ufffb\u00ad\u061c\U000e0000-\U000e0fff]"
)
"""Characters that show nothing: format characters, variation selectors, blank letters."""
LONGEST_RUN = 6
"""Parts of a line that are taken together."""
_DASH = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63]")
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u051b\u051d\u04cf"
    "\u03bf\u03b1\u03bd\u03c1\u03b9\u03ba\u03c5\u03c7\u0131\u0261\u0251",
    "aeopcyxijsdhqwloavpikuxiga",
)
"""Small letters that are drawn like Latin ones."""
_INNER_SPACE = re.compile(r"(?<!\w)\s+|\s+(?!\w)")
_TRAILING = " .?!,;:\u2026"
_SEPARATOR = re.compile(r"[:;]|</?(?:think|answer)>")


def normal_form(text: str) -> str:
    r"""The text as leaks are compared: spelling that changes no content is folded.

    That is case, spaces, dashes, compatibility forms, invisible characters, punctuation at the end, and Greek and
    Cyrillic letters that are drawn like Latin ones.

    >>> normal_form("\uff12 + 3 = ?") == normal_form("2+3=\u200b"), normal_form("1 12") == normal_form("11 2")
    (True, False)
    """
    text = text.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text)).casefold()
        text = INVISIBLE.sub("", _DASH.sub("-", text)).translate(_LOOKALIKES)
    text = " ".join(text.split())
    return _INNER_SPACE.sub("", text).rstrip(_TRAILING)


def shown(text: str) -> Iterator[str]:
    """The normal forms of a line and of every few neighbouring parts of it, cut at colons, semicolons and tags.

    >>> sorted(shown("2 + 3 : 5"))
    ['2+3', '2+3:5', '5']
    """
    whole = normal_form(text)
    yield whole
    ends = [(match.start(), match.end()) for match in _SEPARATOR.finditer(whole)]
    starts, stops = [0, *(end for _, end in ends)], [*(start for start, _ in ends), len(whole)]
    for first, start in enumerate(starts):
        for stop in stops[first : first + LONGEST_RUN]:
            if (part := whole[start:stop].strip(_TRAILING)) and part != whole:
                yield part


class HeldOut:
    """The content of dev and test problems, to be looked up in what a model would be trained on."""

    def __init__(self) -> None:
        self._owner: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._owner)

    def add(self, texts: Iterable[str], owner: str) -> None:
        """`texts` give the problem `owner` away."""
        for text in texts:
            self._owner.setdefault(normal_form(text), owner)

    def match(self, *texts: str) -> str | None:
        """The problem that one of these texts gives away as a whole."""
        return next((self._owner[t] for t in map(normal_form, texts) if t in self._owner), None)

    def match_part(self, line: str) -> str | None:
        """The problem that a line, or any few neighbouring parts of it, gives away."""
        return next((self._owner[part] for part in shown(line) if part in self._owner), None)
