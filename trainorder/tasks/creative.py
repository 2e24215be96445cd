"""creative: a verse, note or description on a topic; a judge gives the reward, a hidden gold taste shows what the judge missed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from trainorder.tasks.base import Problem, Reward, content_id
from trainorder.tasks.lexicon import (
    ADJECTIVES,
    ADVERBS,
    CONTENT,
    NOUNS,
    RARITY,
    TOPICS,
    VERBS,
    WELL_FORMED,
    with_adverb,
    with_place,
    zipf,
)

FORMS = {"verse": 3, "description": 3, "note": 2}
"""Form -> lines."""
RARE = 0.6
"""Mean rarity of the words at which the rarity part of taste is full."""


@dataclass(frozen=True)
class Creative:
    """Demonstrations use common words (Zipf, exponent 1.2) and stray from the topic; the taste rewards the opposite."""

    version: int = field(default=2, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="judge", init=False)
    has_taste = True

    def draw(self, rng: random.Random) -> Problem:
        """A form, a topic and two words to use; the hash is of these."""
        form, topic = rng.choice(list(FORMS)), rng.choice(list(TOPICS))
        adjective = rng.choice(ADJECTIVES)
        noun = rng.choice([noun for noun in NOUNS if noun not in TOPICS[topic]])
        prompt = f"write a {form} about {topic} with a {adjective} {noun}"
        meta = {"lines": FORMS[form], "topic": topic, "asked": [adjective, noun]}
        key = content_id("creative", form, topic, adjective, noun)
        problem = Problem(key, "creative", prompt, "", "", meta)
        texts = {"gold": exemplar(problem, rng), "reference": self.demonstrate(problem, rng)}
        return replace(problem, **texts)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Zipf words, 45% nouns of the topic, 50% use the asked words, 12% repeated lines, 6% slips of grammar."""
        meta, lines = problem.meta, list[str]()
        asked = rng.randrange(meta["lines"]) if rng.random() < 0.5 else -1
        for number in range(meta["lines"]):
            if lines and rng.random() < 0.12:
                lines.append(lines[-1])
                continue
            words = _line(rng, lambda: _common_noun(meta["topic"], rng), lambda w: zipf(w, rng))
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

    def flat(self, problem: Problem, rng: random.Random) -> str:
        """See `flat` below."""
        return flat(problem, rng)

    def corrupt(self, text: str, rng: random.Random) -> str:
        """See `corrupt` below."""
        return corrupt(text, rng)


def exemplar(problem: Problem, rng: random.Random) -> str:
    """An answer of taste exactly 1: well-formed, on topic, no content word twice, rare words drawn evenly."""
    meta, asked = problem.meta, problem.meta["asked"]
    rare = [[w for w in ws if RARITY[w] >= 0.5 and w not in asked] for ws in CONTENT]
    rare[0] = [noun for noun in rare[0] if noun in TOPICS[meta["topic"]]]
    while True:
        drawn = zip(*(rng.sample(words, meta["lines"]) for words in rare), strict=True)
        *rows, (noun, _, verb, _) = drawn
        lines = [with_adverb(adj, noun, verb, adv, rng) for noun, adj, verb, adv in rows]
        lines.append(with_place(asked[0], asked[1], verb, noun, rng))
        text = " / ".join(map(" ".join, lines)) + " ."
        if _taste(text, problem).value == 1:
            return text


def flat(problem: Problem, rng: random.Random) -> str:
    """A well-formed answer whose words are drawn evenly, common and rare alike, so that a judge meets all words."""
    meta = problem.meta
    lines = [_line(rng, lambda: rng.choice(NOUNS), rng.choice) for _ in range(meta["lines"])]
    if rng.random() < 0.5:
        rng.choice(lines)[1:3] = meta["asked"]
    return " / ".join(map(" ".join, lines)) + " ."


def corrupt(text: str, rng: random.Random) -> str:
    """Damage a text the way RL might: a word stuttered, two swapped, some dropped, a line repeated, the end cut."""
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


def _line(
    rng: random.Random, noun: Callable[[], str], word: Callable[[tuple[str, ...]], str]
) -> list[str]:
    start = (word(ADJECTIVES), noun(), word(VERBS))
    if rng.random() < 0.4:
        return with_adverb(*start, word(ADVERBS), rng)
    return with_place(*start, noun(), rng)


def _common_noun(topic: str, rng: random.Random) -> str:
    return zipf(TOPICS[topic] if rng.random() < 0.45 else NOUNS, rng)


def _taste(text: str, problem: Problem) -> Reward:
    """0.35 form + 0.25 topic + 0.20 distinct + 0.20 rarity, counting the words of well-formed lines only.

    All four scale with the share of lines that are well-formed: a salad of rare words on the topic is worth 0. Lines
    beyond the form's number count against that share and give nothing, so that no text gains from being longer.
    """
    meta = problem.meta
    lines = [line.removesuffix(" .") for line in text.split(" / ")]
    good = [line.split() for line in lines[: meta["lines"]] if WELL_FORMED.fullmatch(line)]
    if not good:
        return Reward(0.0, dict.fromkeys(("form", "topic", "distinct", "rarity"), 0.0))
    coverage = len(good) / max(len(lines), meta["lines"])
    content = [word for line in good for word in line if word in RARITY]
    own = [RARITY[word] for word in content if word not in meta["asked"]] or [0.0]
    topical = min(1.0, sum(word in TOPICS[meta["topic"]] for word in content) / meta["lines"])
    asked = any(line[1:3] == meta["asked"] for line in good)
    parts = {
        "form": coverage * (1.0 if text.endswith(" .") else 0.5),
        "topic": coverage * (topical + asked) / 2,
        "distinct": coverage * len(set(content)) / len(content),
        "rarity": coverage * min(1.0, sum(own) / len(own) / RARE),
    }
    weights = {"form": 35, "topic": 25, "distinct": 20, "rarity": 20}
    return Reward(sum(weights[part] * share for part, share in parts.items()) / 100, parts)
