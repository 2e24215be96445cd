"""The simulated annotator's taste of real verse: rhyme and metre by the CMU Pronouncing Dictionary, lines, variety, topic.

    taste = known * form * (0.30 rhyme + 0.25 metre + 0.25 variety + 0.20 topic)

Lines beyond the number that the prompt asks for count against `form` and are not read, words beyond LONG of a line neither, and
what repeats lowers `variety`: no text gains from being longer. It knows nothing of meaning: it stands for a judge in
experiments, it is none.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from functools import lru_cache

from trainorder.tasks.base import Problem, Reward

LINES = 4
"""Lines of a verse whose prompt names no number."""
LONG = 12
"""Words of a line; a longer one is no verse."""
NEAR = 3
"""Lines between which a rhyme is heard."""
WEIGHTS = {"rhyme": 30, "metre": 25, "variety": 25, "topic": 20}
NUMBERS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "eight": 8,
    "ten": 10,
    "twelve": 12,
}
FORMS = {"couplet": 2, "haiku": 3, "tercet": 3, "quatrain": 4, "limerick": 5, "sonnet": 14}
ASKED = re.compile(r"(\d{1,2}|" + "|".join(NUMBERS) + r")[ -]lines?\b")
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_PLAIN = (
    "a about all am an and are as at be been but by can could did do does for from had has have he her here his how i if in "
    "into is it its just line lines me my no not of on or our out over she so some such than that the their them then there "
    "these they this those to up us verse was we were what when where which who will with would write you your poem please "
    "short rhyme rhyming rhymes make compose give must should use using words word each every couplet haiku quatrain limerick "
    "sonnet two three four five six seven eight nine ten"
)
PLAIN = frozenset(_PLAIN.split())
"""Words that carry neither a topic nor variety."""


class Verse:
    """A taste: how good a text is, and how it is damaged."""

    @staticmethod
    def taste(text: str, problem: Problem) -> Reward:
        """The taste of a text, with its parts."""
        asked = lines_asked(problem.text)
        lines = _lines(text)
        read = [_words(line)[:LONG] for line in lines[:asked]]
        words = [word for line in read for word in line]
        if not words:
            return Reward(0.0, dict.fromkeys(("known", "form", *WEIGHTS), 0.0))
        parts = {
            "rhyme": _rhyme([line[-1] for line in read if line]),
            "metre": _metre(read),
            "variety": _variety(read),
            "topic": _topic(words, problem.question),
        }
        shaped = {tuple(line): _shape(line) for line in map(_words, lines[:asked])}
        form = sum(shaped.values()) / max(asked, len(lines))
        known = sum(bool(phones(word)) for word in words) / len(words)
        value = known * form * sum(WEIGHTS[part] * share for part, share in parts.items()) / 100
        return Reward(value, {"known": known, "form": form, **parts})

    @staticmethod
    def corrupt(text: str, rng: random.Random) -> str:
        """Damage a text the way RL might: a word stuttered, two swapped, some dropped, a line repeated, the end cut."""
        lines = [line.split() for line in _lines(text)] or [["."]]
        line = rng.choice(lines)
        how, i, j = rng.randrange(5), rng.randrange(len(line)), rng.randrange(len(line))
        if how == 0:
            line[i:i] = [line[i]] * rng.randint(1, 4)
        elif how == 1:
            line[i], line[j] = line[j], line[i]
        elif how == 2:
            lines = [[word for word in words if rng.random() > 0.2] or words[:1] for words in lines]
        elif how == 3:
            lines = [line] * len(lines)
        else:
            lines = lines[: rng.randint(1, len(lines))]
        return "\n".join(map(" ".join, lines))


def lines_asked(prompt: str) -> int:
    """The number of lines that a prompt asks for.

    >>> lines_asked("Write a four-line poem"), lines_asked("a limerick about tea"), lines_asked("8 lines"), lines_asked("a poem")
    (4, 5, 8, 4)
    """
    text = prompt.lower()
    if found := ASKED.search(text):
        number = NUMBERS.get(found[1]) or int(found[1])
        return max(1, number)
    return next((n for form, n in FORMS.items() if form in text), LINES)


@lru_cache(maxsize=100_000)
def phones(word: str) -> tuple[str, ...]:
    """The pronunciations of a word, empty where the dictionary does not know it."""
    import pronouncing

    return tuple(
        pronouncing.phones_for_word(word) or pronouncing.phones_for_word(word.removesuffix("'s"))
    )


def rhymes(one: str, other: str) -> bool:
    """Whether two different words sound alike from their last stressed vowel on, and not before it.

    >>> rhymes("sea", "free"), rhymes("night", "knight"), rhymes("sea", "sand"), rhymes("sea", "sea")
    (True, False, False, False)
    """
    import pronouncing

    if one == other or set(phones(one)) & set(phones(other)):
        return False
    ends = [{pronouncing.rhyming_part(p) for p in phones(word)} for word in (one, other)]
    return bool(ends[0] & ends[1])


def _lines(text: str) -> list[str]:
    return [line for line in re.split(r"\n| / ", text) if WORD.search(line.lower())]


def _words(line: str) -> list[str]:
    return WORD.findall(line.lower().replace("\u2019", "'"))


def _shape(line: Sequence[str]) -> float:
    """Share of a line's words that say something new: no word again at once, no two words and no word of content twice.

    0 for a line that is too long, or a single word.
    """
    if len(set(line)) < 2 or len(line) > LONG:
        return 0.0
    pairs = list(itertools.pairwise(line))
    again = [
        word in line[:i]
        and (word not in PLAIN or word == line[i - 1] or pairs[i - 1] in pairs[: i - 1])
        for i, word in enumerate(line)
    ]
    return (1 - sum(again) / len(line)) ** 2


def _rhyme(ends: Sequence[str]) -> float:
    """Share of lines whose last word rhymes with that of a near line; no word rhymes twice with the same one."""
    heard = [
        any(rhymes(word, ends[j]) for j in range(max(0, i - NEAR), min(len(ends), i + NEAR + 1)))
        for i, word in enumerate(ends)
    ]
    return sum(heard) / len(heard) * len(set(ends)) / len(ends) if ends else 0.0


def _metre(lines: Sequence[Sequence[str]]) -> float:
    """How evenly stressed and unstressed syllables take turns, times how alike the lines' numbers of syllables are."""
    patterns = [pattern for line in lines if (pattern := _stresses(line))]
    if not patterns:
        return 0.0
    even = sum(map(_turns, patterns)) / len(patterns)
    counts = [len(pattern) for pattern in patterns]
    middle = sorted(counts)[len(counts) // 2]
    alike = sum(max(0.0, 1 - abs(count - middle) / middle) for count in counts) / len(counts)
    return even * alike


def _stresses(words: Sequence[str]) -> str:
    """One digit per syllable: 0 unstressed, 1 stressed; `?` of words of one syllable, which take either."""
    import pronouncing

    found = ""
    for word in words:
        pattern = pronouncing.stresses(phones(word)[0]).replace("2", "1") if phones(word) else ""
        found += "?" if len(pattern) == 1 else pattern
    return found


def _turns(pattern: str) -> float:
    """Share of syllables that fit rising or falling alternation, whichever fits better; chance is about one half.

    >>> _turns("0101"), _turns("?1?1"), _turns("0110")
    (1.0, 1.0, 0.5)
    """
    best = max(
        sum(mark in ("?", str((i + start) % 2)) for i, mark in enumerate(pattern))
        for start in (0, 1)
    )
    return best / len(pattern)


def _variety(lines: Sequence[Sequence[str]]) -> float:
    """Share of different words among those that are not plain, times the share of different lines."""
    content = [word for line in lines for word in line if word not in PLAIN]
    different = len({tuple(line) for line in lines}) / len(lines)
    return different * len(set(content)) / len(content) if content else 0.0


def _topic(words: Sequence[str], prompt: str) -> float:
    """Whether words of the prompt come up, two of them or all: saying more of them is worth no more."""
    wanted = {word for word in _words(prompt) if word not in PLAIN}
    stems = {_stem(word) for word in wanted}
    return min(1.0, len(stems & {_stem(word) for word in words}) / max(1, min(2, len(stems))))


def _stem(word: str) -> str:
    return re.sub(r"('s|ing|ed|es|s)$", "", word) if len(word) > 4 else word.removesuffix("'s")
