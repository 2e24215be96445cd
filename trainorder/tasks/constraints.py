"""constraints: follow format rules, a JSON object with given keys or a sentence with given words, length and ending."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainorder.tasks.base import Problem, Reward, content_id

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
WORDS = tuple(word for key in ("pet", "food", "color", "game", "tree") for word in VALUES[key])


@dataclass(frozen=True)
class Constraints:
    """Pays the share of satisfied rules, and nothing where the asked content is missing (valid but empty earns 0)."""

    json: float = 0.5
    """Share of problems that ask for JSON; the others ask for a sentence."""
    min_words: int = 4
    """Shortest sentence asked for."""
    max_words: int = 9
    """Longest sentence asked for."""
    version: int = field(default=1, init=False)
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
            _grade(text, problem.meta) for text, problem in zip(completions, problems, strict=True)
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


def _grade(text: str, rules: dict[str, Any]) -> Reward:
    gate, parts = _grade_json(text, rules) if "keys" in rules else _grade_sentence(text, rules)
    value = sum(parts.values()) / len(parts) if gate else 0.0
    return Reward(value, {"gate": float(gate), **parts})


def _grade_json(text: str, rules: dict[str, Any]) -> tuple[bool, dict[str, float]]:
    found = _read_json(text)
    given, value = rules["given"]
    parts = {
        "keys": float(all(found.get(key) for key in rules["keys"])),
        "given": float(found.get(given) == value),
    }
    if "only" in rules:
        parts["only"] = float(set(found) == set(rules["keys"]))
    return bool(parts["keys"]), parts


def _read_json(text: str) -> dict[str, str]:
    """The object's pairs, stripped; empty unless the text is one object of strings in which no key stands twice."""
    try:
        pairs = json.loads(text, object_pairs_hook=lambda pairs: tuple(pairs))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(pairs, tuple) or not all(isinstance(value, str) for _, value in pairs):
        return {}
    found = {key.strip(): value.strip() for key, value in pairs}
    return found if len(found) == len(pairs) else {}


def _grade_sentence(text: str, rules: dict[str, Any]) -> tuple[bool, dict[str, float]]:
    words = text.split()
    use = sum(word in words for word in rules["use"]) / len(rules["use"])
    parts = {
        "use": use,
        "end": float(words[-1:] == [rules["end"]]),
        "length": float(len(words) == rules["length"]),
        "distinct": float(len(set(words)) == len(words)),
    }
    return use > 0, parts
