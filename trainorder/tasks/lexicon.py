"""The words of the creative task, from common to rare, and the shape of its lines."""

from __future__ import annotations

import random
import re
from bisect import bisect
from itertools import accumulate


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """Rows of a name and its words."""
    rows = [row.split() for row in text.strip().splitlines()]
    return {name: tuple(words) for name, *words in rows}


TOPICS = _table("""
sea ship wave shell tide sail reef gull pearl harbor lagoon
city street market bridge lamp tower window crowd subway lane plaza
forest fox deer moss brook fern hawk birch pine badger thicket
sky moon star cloud wind dawn storm comet rain meteor zenith
garden rose bee seed petal vine lily thorn fig trellis daisy
winter snow frost wolf coal scarf sled sleet glacier blizzard hail
home door chair clock candle kettle quilt hearth shelf cradle lantern
music song drum bell harp string flute choir horn cello lute
""")
"""Topic -> its nouns. No word begins with a vowel, so that `a` always fits."""

_OTHERS = _table("""
adjectives big small tall new cold warm dark bright quiet soft long deep red blue green white \
golden silver broken sweet heavy gentle lonely pale hidden hollow crimson velvet tawny sapphire \
marble restless weathered brittle jagged pensive luminous sunken feral mossy gilded bitter \
drowsy crooked frozen shy
verbs sees takes finds holds comes goes sings sleeps waits falls turns shines runs calls grows \
burns drifts dances trembles whispers wanders glimmers soars hums lingers beckons blooms rises \
fades leans mourns wakes gleams sways
adverbs slowly softly quickly gently always never tenderly brightly sadly calmly wildly dimly \
barely boldly
places in on under near by over beyond beside
determiners the a
""")

NOUNS = tuple(words[i] for i in range(10) for words in TOPICS.values())
"""By position in each topic, so that every topic has common and rare nouns."""
ADJECTIVES = _OTHERS["adjectives"]
VERBS = _OTHERS["verbs"]
ADVERBS = _OTHERS["adverbs"]
PLACES = _OTHERS["places"]
DETERMINERS = _OTHERS["determiners"]
CONTENT = (NOUNS, ADJECTIVES, VERBS, ADVERBS)
RARITY = {word: rank / (len(words) - 1) for words in CONTENT for rank, word in enumerate(words)}
"""Content word -> 0 for the most common of its class, 1 for the rarest."""


def _any(words: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(words)})"


_TAIL = f"(?:{_any(ADVERBS)}|{_any(PLACES)} {_any(DETERMINERS)} {_any(NOUNS)})"
WELL_FORMED = re.compile(
    f"{_any(DETERMINERS)} {_any(ADJECTIVES)} {_any(NOUNS)} {_any(VERBS)} {_TAIL}"
)
"""`the tawny fox soars tenderly` or `a sapphire star falls under the bridge`."""

_CUMULATIVE = {
    words: tuple(accumulate((rank + 1) ** -1.2 for rank in range(len(words))))
    for words in (*CONTENT, *TOPICS.values())
}


def zipf(words: tuple[str, ...], rng: random.Random) -> str:
    """A word, the r-th with weight r^-1.2."""
    weights = _CUMULATIVE[words]
    return words[min(bisect(weights, rng.random() * weights[-1]), len(words) - 1)]


def with_adverb(adjective: str, noun: str, verb: str, adverb: str, rng: random.Random) -> list[str]:
    """The words of a line like `the tawny fox soars tenderly`."""
    return [rng.choice(DETERMINERS), adjective, noun, verb, adverb]


def with_place(adjective: str, noun: str, verb: str, where: str, rng: random.Random) -> list[str]:
    """The words of a line like `a sapphire star falls under the bridge`."""
    place = [rng.choice(PLACES), rng.choice(DETERMINERS), where]
    return [rng.choice(DETERMINERS), adjective, noun, verb, *place]
