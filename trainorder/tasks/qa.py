"""qa: recall of facts about countries; the prompt lists distractors, so that guessing earns little (Omni-Thinker).

The facts, and the questions about them, are shared by all splits; a question with its options belongs to one split. So the
score is recall of facts that were taught, chosen among new distractors; it says nothing about questions never asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, NamedTuple

from trainorder.rewards import format
from trainorder.rewards.answers import same_text
from trainorder.tasks.base import HASTY, Problem, Reward, content_id, graded


class Country(NamedTuple):
    """A country and what is asked about it."""

    name: str
    capital: str
    continent: str
    language: str


COUNTRIES = tuple(
    Country(*row.split())
    for row in """
    peru lima americas spanish
    chile santiago americas spanish
    cuba havana americas spanish
    brazil brasilia americas portuguese
    canada ottawa americas english
    jamaica kingston americas english
    france paris europe french
    spain madrid europe spanish
    portugal lisbon europe portuguese
    austria vienna europe german
    germany berlin europe german
    italy rome europe italian
    greece athens europe greek
    ireland dublin europe english
    norway oslo europe norwegian
    nepal kathmandu asia nepali
    japan tokyo asia japanese
    jordan amman asia arabic
    qatar doha asia arabic
    vietnam hanoi asia vietnamese
    egypt cairo africa arabic
    ghana accra africa english
    mali bamako africa french
    senegal dakar africa french
    australia canberra oceania english
    fiji suva oceania english
    """.strip().splitlines()
)
RELATIONS = ("capital", "continent", "language")
ASK = ("what is the", "name the", "tell me the")


@dataclass(frozen=True)
class Qa:
    """One-hop (`capital of peru`) and two-hop (`continent of the country with capital lima`) questions."""

    distractors: int = 4
    """Wrong answers listed beside the right one; fewer where the world has fewer (4 other continents)."""
    version: int = field(default=2, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)
    recall: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.distractors <= 20:
            raise ValueError(f"distractors is a count in 0..20, got {self.distractors}")

    def draw(self, rng: random.Random) -> Problem:
        """A question and a set of options, which together decide the split."""
        country = rng.choice(COUNTRIES)
        relation = rng.choice((*RELATIONS, "country"))
        hidden = relation == "country" or (relation != "capital" and rng.random() < 0.5)
        answer = country.name if relation == "country" else getattr(country, relation)
        others = sorted(_values(relation) - {answer})
        options = [answer, *rng.sample(others, min(self.distractors, len(others)))]
        rng.shuffle(options)
        prompt = f"{rng.choice(ASK)} {_subject(country, relation, hidden)} ?"
        if self.distractors:
            prompt += f" among {' , '.join(options)}"
        meta = {
            "country": country.name,
            "relation": relation,
            "hidden": hidden,
            "answer": answer,
            "options": options,
        }
        gold = format.render(_recall(country, relation, hidden, answer), answer)
        key = content_id("qa", relation, country.name, int(hidden), *sorted(options))
        return Problem(key, "qa", prompt, gold, gold, meta)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Half careful (recalls a wrong fact with 30%), half hasty (wrong with 70%)."""
        meta = problem.meta
        careful = rng.random() < 0.5
        answer = meta["answer"]
        if rng.random() < (0.3 if careful else 0.7):
            wrong = (
                meta["options"] if len(meta["options"]) > 1 else sorted(_values(meta["relation"]))
            )
            answer = rng.choice([option for option in wrong if option != answer])
        if not careful:
            return format.render(rng.choice(HASTY), answer)
        country = next(c for c in COUNTRIES if c.name == meta["country"])
        return format.render(_recall(country, meta["relation"], meta["hidden"], answer), answer)

    def drill(self, rng: random.Random) -> str | None:
        """Four facts: `capital of peru is lima ; tokyo is in japan ; ...`."""
        return " ; ".join(
            _fact(rng.choice(COUNTRIES), rng.choice((*RELATIONS, "country"))) for _ in range(4)
        )

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """1 for the right answer and nothing beside it, in any case."""
        return [
            graded(text, partial(same_text, wanted=problem.meta["answer"], fold_case=True))
            for text, problem in zip(completions, problems, strict=True)
        ]


def _values(relation: str) -> set[str]:
    return {c.name if relation == "country" else getattr(c, relation) for c in COUNTRIES}


def _subject(country: Country, relation: str, hidden: bool) -> str:
    if relation == "country":
        return f"country with capital {country.capital}"
    return f"{relation} of " + (
        f"the country with capital {country.capital}" if hidden else country.name
    )


def _fact(country: Country, relation: str, answer: str | None = None) -> str:
    if relation == "country":
        return f"{country.capital} is in {answer or country.name}"
    return f"{relation} of {country.name} is {answer or getattr(country, relation)}"


def _recall(country: Country, relation: str, hidden: bool, answer: str) -> str:
    fact = _fact(country, relation, answer)
    return f"{_fact(country, 'country')} ; {fact}" if hidden and relation != "country" else fact
