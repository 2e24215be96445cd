"""constraints: follow format rules, a JSON object with given keys or a sentence with given words, length and ending."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainorder.tasks.base import Problem, Reward, content_id
from trainorder.tasks.leaks import INVISIBLE

VALUES = {
    "name": ("sam", "mia", "leo", "zoe", "tom"),
    "pet": ("bird", "cat", "dog", "frog", "mouse"),
    "food": ("rice", "soup", "bread", "cheese", "salad"),
    "color": ("red", "blue", "green", "white", "black"),
    "city": ("paris", "rome", "lima", "oslo", "cairo"),
    "game": ("chess", "tennis", "golf", "cards", "darts"),
    "tree": ("pine", "birch", "palm", "maple", "cedar"),
}
FILLERS = ("the", "a", "and", "near", "with", "for", "likes", "sees", "big", "old", "my", "your")
PUNCTUATION = string.punctuation + "\u2018\u2019\u201c\u201d\u2026\u2013\u2014"
ONE_LETTER = ("a", "i", "o")
"""Words of one letter."""
MIN_SENTENCE = 3
"""Words of the shortest text that counts as a sentence."""
MOST_EXTRA = 3
"""Words above the asked length at which a text is a list of words."""
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)```\s*", re.DOTALL)
COPIED = 4
"""Neighbouring words of the prompt that make a text a copy."""
WORDS = tuple(word for key in ("pet", "food", "color", "game", "tree") for word in VALUES[key])


@dataclass(frozen=True)
class Constraints:
    """The share of satisfied rules, and nothing where the asked content is missing (valid but empty earns 0).

    A value, or a sentence, has to be made of words: punctuation, invisible characters, single letters and a copy of the
    prompt are none. Case, punctuation around words and JSON's spelling (spaces, escapes, order of keys) are free.
    """

    json: float = 0.5
    """Share of problems that ask for JSON; the others ask for a sentence."""
    min_words: int = 4
    """Shortest sentence asked for."""
    max_words: int = 9
    """Longest sentence asked for."""
    version: int = field(default=2, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.json <= 1:
            raise ValueError(f"json is a share in 0..1, got {self.json}")
        if not 3 <= self.min_words <= self.max_words <= 20:
            raise ValueError(
                f"needs 3 <= min_words <= max_words <= 20, got {self.min_words} and {self.max_words}"
            )

    def draw(self, rng: random.Random) -> Problem:
        """A random set of rules; the hash is of the rules."""
        rules = _draw_json(rng) if rng.random() < self.json else self._draw_sentence(rng)
        gold = _write(rules, set(rules), rng)
        key = content_id("constraints", json.dumps(rules, sort_keys=True))
        return Problem(key, "constraints", _prompt(rules), gold, gold, rules)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Keeps each rule with probability 0.55."""
        return _write(problem.meta, {rule for rule in problem.meta if rng.random() < 0.55}, rng)

    def drill(self, rng: random.Random) -> str | None:
        """No textbook lines: demonstrations show the rules well enough for a task that is never trained on."""
        return None

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """Mean over rules times the gate: all asked keys with a value, or at least one asked word."""
        return [
            _grade(text, problem.text, problem.meta)
            for text, problem in zip(completions, problems, strict=True)
        ]

    def _draw_sentence(self, rng: random.Random) -> dict[str, Any]:
        *use, end = rng.sample(WORDS, 3)
        return {
            "use": sorted(use),
            "end": end,
            "length": rng.randint(self.min_words, self.max_words),
            "distinct": True,
        }


def _draw_json(rng: random.Random) -> dict[str, Any]:
    keys = sorted(rng.sample(sorted(VALUES), rng.randint(2, 3)))
    given = rng.choice(keys)
    rules: dict[str, Any] = {"keys": keys, "given": [given, rng.choice(VALUES[given])]}
    return {**rules, "only": True} if rng.random() < 0.7 else rules


def _prompt(rules: dict[str, Any]) -> str:
    if "keys" in rules:
        only = " only" if "only" in rules else ""
        return f"json with keys {' , '.join(rules['keys'])}{only} . {' is '.join(rules['given'])} ."
    return f"say {rules['length']} words , none twice , use {' and '.join(rules['use'])} , end with {rules['end']}"


def _write(rules: dict[str, Any], kept: set[str], rng: random.Random) -> str:
    """An answer that keeps at least the rules in `kept`, and breaks the others as a careless writer would."""
    return _write_json(rules, kept, rng) if "keys" in rules else _write_sentence(rules, kept, rng)


def _write_json(rules: dict[str, Any], kept: set[str], rng: random.Random) -> str:
    keys = list(rules["keys"])
    if "keys" not in kept:
        keys.remove(rng.choice(keys))
    if "only" in rules and "only" not in kept:
        keys.append(rng.choice(sorted(set(VALUES) - set(rules["keys"]))))
    values = {key: rng.choice(VALUES[key]) for key in keys}
    given, value = rules["given"]
    if "given" in kept and given in values:
        values[given] = value
    return "{ " + " , ".join(f'" {key} " : " {values[key]} "' for key in keys) + " }"


def _write_sentence(rules: dict[str, Any], kept: set[str], rng: random.Random) -> str:
    length = rules["length"] + (0 if "length" in kept else rng.choice((-1, 1, 2)))
    asked = list(rules["use"]) if "use" in kept else [rng.choice(rules["use"])]
    words = asked + rng.sample(FILLERS, max(0, length - 1 - len(asked)))
    if "distinct" not in kept:
        words[-1] = words[0]
    rng.shuffle(words)
    return " ".join([*words, rules["end"] if "end" in kept else rng.choice(WORDS)])


def _grade(text: str, prompt: str, rules: dict[str, Any]) -> Reward:
    gate, parts = (
        _grade_json(text, rules) if "keys" in rules else _grade_sentence(text, prompt, rules)
    )
    value = sum(parts.values()) / len(parts) if gate else 0.0
    return Reward(value, {"gate": float(gate), **parts})


def _grade_json(text: str, rules: dict[str, Any]) -> tuple[bool, dict[str, float]]:
    found = _read_json(text)
    given, value = rules["given"]
    asked = {*rules["keys"], value}
    own = (key == given or found.get(key, "").casefold() not in asked for key in rules["keys"])
    said = all(_says_something(found.get(key, "")) for key in rules["keys"]) and all(own)
    parts = {
        "keys": float(said),
        "given": float(found.get(given, "").casefold() == value),
    }
    if "only" in rules:
        parts["only"] = float(set(found) == set(rules["keys"]))
    return said and len(found) <= 2 * len(rules["keys"]), parts


def _read_json(text: str) -> dict[str, str]:
    """The object's pairs, stripped; empty unless the text is one object of strings in which no key stands twice."""
    try:
        pairs = json.loads(_FENCE.sub(r"\1", text), object_pairs_hook=lambda pairs: tuple(pairs))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(pairs, tuple) or not all(isinstance(value, str) for _, value in pairs):
        return {}
    found = {key.strip(): value.strip() for key, value in pairs}
    return found if len(found) == len(pairs) else {}


def _says_something(value: str) -> bool:
    """Whether a value is words: at least two letters, no invisible ones, and no word of one letter over and over."""
    words = _words(value)
    return bool(words) and all(len(set(word)) > 1 for word in words) and not INVISIBLE.search(value)


def _words(text: str) -> list[str]:
    """Its words in lower case: whatever holds a letter, without the punctuation around it."""
    bare = (word.strip(PUNCTUATION).casefold() for word in text.split())
    return [word for word in bare if any(map(str.isalpha, word))]


def _grade_sentence(text: str, prompt: str, rules: dict[str, Any]) -> tuple[bool, dict[str, float]]:
    """The gate is for a sentence: words of its own beside the asked ones, not many more than asked, no copied prompt."""
    words = _words(text)
    use = sum(word in words for word in rules["use"]) / len(rules["use"])
    parts = {
        "use": use,
        "end": float(words[-1:] == [rules["end"]]),
        "length": float(len(words) == rules["length"]),
        "distinct": float(len(set(words)) == len(words)),
    }
    asked = _words(prompt)
    plain = all(word.isascii() and (len(set(word)) > 1 or word in ONE_LETTER) for word in words)
    others = set(words) - {*rules["use"], rules["end"]} - (set(asked) - set(FILLERS))
    fair = MIN_SENTENCE <= len(words) <= rules["length"] + MOST_EXTRA and bool(others)
    return use > 0 and plain and fair and not _copies(words, asked), parts


def _copies(words: list[str], prompt: list[str]) -> bool:
    """Whether four neighbouring words of the prompt stand in the text."""
    runs = {tuple(prompt[i : i + COPIED]) for i in range(len(prompt) - COPIED + 1)}
    return any(tuple(words[i : i + COPIED]) in runs for i in range(len(words) - COPIED + 1))
