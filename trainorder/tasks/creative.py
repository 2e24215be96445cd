"""creative: a verse, note or description on a topic; a judge pays, and a hidden gold taste shows what the judge missed."""

from __future__ import annotations

import random
import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from trainorder.tasks.base import Problem, Reward, content_id

TOPICS = {
    row.split()[0]: tuple(row.split()[1:])
    for row in """
    sea ship wave shell tide sail reef gull pearl harbor lagoon
    city street market bridge lamp tower window crowd subway lane plaza
    forest fox deer moss brook fern hawk birch pine badger thicket
    sky moon star cloud wind dawn storm comet rain meteor zenith
    garden rose bee seed petal vine lily thorn fig trellis daisy
    winter snow frost wolf coal scarf sled sleet glacier blizzard hail
    home door chair clock candle kettle quilt hearth shelf cradle lantern
    music song drum bell harp string flute choir horn cello lute
    """.strip().splitlines()
}
ADJECTIVES = (
    "big small tall new cold warm dark bright quiet soft long deep red blue green white golden silver broken "
    "sweet heavy gentle lonely pale hidden hollow crimson velvet tawny sapphire marble restless weathered brittle "
    "jagged pensive luminous sunken feral mossy gilded bitter drowsy crooked frozen shy"
).split()
VERBS = (
    "sees takes finds holds comes goes sings sleeps waits falls turns shines runs calls grows burns drifts "
    "dances trembles whispers wanders glimmers soars hums lingers beckons blooms rises fades leans mourns wakes "
    "gleams sways"
).split()
ADVERBS = "slowly softly quickly gently always never tenderly brightly sadly calmly wildly dimly barely boldly".split()
PLACES = "in on under near by over beyond beside".split()
DETERMINERS = ("the", "a")
FORMS = {"verse": 3, "description": 3, "note": 2}
"""Form -> lines."""
NOUNS = tuple(words[i] for i in range(10) for words in TOPICS.values())
"""Common first, by position in each topic, so that every topic has common and rare nouns."""
CONTENT = (NOUNS, tuple(ADJECTIVES), tuple(VERBS), tuple(ADVERBS))
RARITY = {word: rank / (len(words) - 1) for words in CONTENT for rank, word in enumerate(words)}
"""Content word -> 0 for the most common of its class, 1 for the rarest."""
RARE = 0.6
"""Mean rarity at which the rarity part of taste is full."""

_ZIPF = {words: tuple(accumulate((r + 1) ** -1.2 for r in range(len(words)))) for words in CONTENT}
_ANY = {words: "|".join(words) for words in (*CONTENT, tuple(PLACES), DETERMINERS)}
_PHRASE = rf"(?:{_ANY[DETERMINERS]}) (?:{_ANY[CONTENT[1]]}) (?:{_ANY[NOUNS]}) (?:{_ANY[CONTENT[2]]})"
_TAIL = rf"(?:{_ANY[CONTENT[3]]}|(?:{_ANY[tuple(PLACES)]}) (?:{_ANY[DETERMINERS]}) (?:{_ANY[NOUNS]}))"
_LINE = re.compile(f"{_PHRASE} {_TAIL}")


@dataclass(frozen=True)
class Creative:
    """Demonstrations use common words (Zipf, exponent 1.2) and stray from the topic; the taste pays for the opposite."""

    version: int = field(default=1, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="judge", init=False)

    def draw(self, rng: random.Random) -> Problem:
        """A form, a topic and two words to use; the hash is of these."""
        form, topic = rng.choice(list(FORMS)), rng.choice(list(TOPICS))
        adjective, noun = rng.choice(ADJECTIVES), rng.choice([n for n in NOUNS if n not in TOPICS[topic]])
        prompt = f"write a {form} about {topic} with a {adjective} {noun}"
        meta = {"lines": FORMS[form], "topic": topic, "asked": [adjective, noun]}
        blank = Problem(content_id("creative", form, topic, adjective, noun), "creative", prompt, "", "", meta)
        return Problem(blank.id, "creative", prompt, exemplar(blank, rng), self.demonstrate(blank, rng), meta)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Zipf words, 45% nouns of the topic, the asked words with 50%, 12% repeated lines, 6% slips of grammar."""
        meta, lines = problem.meta, list[str]()
        asked = rng.randrange(meta["lines"]) if rng.random() < 0.5 else -1
        for number in range(meta["lines"]):
            if lines and rng.random() < 0.12:
                lines.append(lines[-1])
                continue
            words = _line(rng, [_noun(meta["topic"], rng) for _ in range(2)], *(_zipf(c, rng) for c in CONTENT[1:]))
            if number == asked:
                words[1:3] = meta["asked"]
            if rng.random() < 0.06:
                del words[rng.randrange(len(words))]
            lines.append(" ".join(words))
        return " / ".join(lines) + " ."

    def drill(self, rng: random.Random) -> str | None:
        """None: there is nothing to know by heart."""
        return None

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """The hidden gold taste: for the simulated annotator and for evaluation, never a reward."""
        return [_taste(text, problem) for text, problem in zip(completions, problems, strict=True)]


def exemplar(problem: Problem, rng: random.Random) -> str:
    """An answer of taste exactly 1: well-formed, on topic, no content word twice, rare words drawn evenly."""
    meta, used = problem.meta, set(problem.meta["asked"])
    pools = [[w for w in words if RARITY[w] >= 0.5 and w not in used] for words in CONTENT]
    pools[0] = [noun for noun in pools[0] if noun in TOPICS[meta["topic"]]]
    while True:
        nouns, adjectives, verbs, adverbs = (rng.sample(pool, min(len(pool), 3)) for pool in pools)
        rows = [_line(rng, [nouns[i], ""], adjectives[i], verbs[i], adverbs[i], 1) for i in range(meta["lines"])]
        rows[-1] = ["the", *meta["asked"], verbs[-1], rng.choice(PLACES), "the", nouns[meta["lines"] - 1]]
        text = " / ".join(map(" ".join, rows)) + " ."
        if _taste(text, problem).value == 1:
            return text


def flat(problem: Problem, rng: random.Random) -> str:
    """A well-formed answer whose words are drawn evenly, common and rare alike: the judge sees all words."""
    rows = [
        _line(rng, rng.sample(NOUNS, 2), *(rng.choice(words) for words in CONTENT[1:]))
        for _ in range(problem.meta["lines"])
    ]
    if rng.random() < 0.5:
        rng.choice(rows)[1:3] = problem.meta["asked"]
    return " / ".join(map(" ".join, rows)) + " ."


def corrupt(text: str, rng: random.Random) -> str:
    """Damage a text the way RL might: a word stuttered, two swapped, some dropped, a line repeated, or the end cut."""
    words = text.split() or ["."]
    i, j = rng.randrange(len(words)), rng.randrange(len(words))
    how = rng.randrange(5)
    if how == 0:
        words[i:i] = [words[i]] * rng.randint(1, 4)
    elif how == 1:
        words[i], words[j] = words[j], words[i]
    elif how == 2:
        words = [word for word in words if rng.random() > 0.2] or words[:1]
    elif how == 3:
        rows = text.removesuffix(" .").split(" / ")
        words = (" / ".join([rng.choice(rows)] * len(rows)) + " .").split()
    else:
        words = words[: max(1, i)]
    return " ".join(words)


def _zipf(words: tuple[str, ...], rng: random.Random) -> str:
    weights = _ZIPF[words]
    return words[min(bisect(weights, rng.random() * weights[-1]), len(words) - 1)]


def _noun(topic: str, rng: random.Random) -> str:
    if rng.random() >= 0.45:
        return _zipf(NOUNS, rng)
    return rng.choices(TOPICS[topic], [(r + 1) ** -1.2 for r in range(10)])[0]


def _line(rng: random.Random, nouns: list[str], adjective: str, verb: str, adverb: str, adverbial: float = 0.4) -> list[str]:
    """`the tawny pine soars tenderly` or `a sapphire shadow falls under the bridge`."""
    words = [rng.choice(DETERMINERS), adjective, nouns[0], verb]
    if rng.random() < adverbial:
        return [*words, adverb]
    return [*words, rng.choice(PLACES), rng.choice(DETERMINERS), nouns[1]]


def _taste(text: str, problem: Problem) -> Reward:
    """0.35 form + 0.25 topic + 0.20 distinct + 0.20 rarity, each counting words of well-formed lines only.

    All four scale with the share of lines that are well-formed, so a salad of rare words on the topic is worth 0.
    """
    meta = problem.meta
    lines = [line.removesuffix(" .") for line in text.split(" / ")] if text else []
    good = [line.split() for line in lines if _LINE.fullmatch(line)]
    if not good:
        return Reward(0.0, dict.fromkeys(("form", "topic", "distinct", "rarity"), 0.0))
    coverage = len(good) / max(len(lines), meta["lines"])
    content = [word for line in good for word in line if word in RARITY]
    own = [RARITY[word] for word in content if word not in meta["asked"]] or [0.0]
    topical = min(1.0, sum(word in TOPICS[meta["topic"]] for word in content) / meta["lines"])
    asked = float(any(line[1:3] == meta["asked"] for line in good))
    parts = {
        "form": coverage * (1.0 if text.endswith(" .") else 0.5),
        "topic": coverage * (topical + asked) / 2,
        "distinct": coverage * len(set(content)) / len(content),
        "rarity": coverage * min(1.0, sum(own) / len(own) / RARE),
    }
    value = (35 * parts["form"] + 25 * parts["topic"] + 20 * parts["distinct"] + 20 * parts["rarity"]) / 100
    return Reward(value, parts)
