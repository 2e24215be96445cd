"""reasoning_gym: problems that the package reasoning-gym generates and grades (extra `gym`): one of its families, or a mixture.

Its seeds overlap (problem i + 1 of seed s is problem i of seed s + 1 in nearly all families), so there is one seed and a problem
is an index; equal questions of different indices are one problem, in one split. Many of its graders give points for parts of an
answer, a few for any answer: by default only full marks count, and a family must keep a contract before anything is built.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from trainorder.graders import Answer, answer_of
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rewards import format
from trainorder.tasks.base import Problem, Prompt, Reward, content_id

SEED = 0
NONSENSE = ("xyzzy", "-7", "[]", "the answer is unknown", "True")
"""Answers that a family must not give full marks, but for one of its own right answers."""
TRIED = 12
"""Problems of a family on which the contract is tried."""
ENDLESS = 2**31
"""Indices of a family that has no bound."""


@dataclass(frozen=True)
class ReasoningGym:
    """Problems of one or more families of reasoning-gym; the answer's score by its own grader."""

    family: str | dict[str, float] = ""
    """Name of a family, or names with weights."""
    config: dict[str, Any] = field(default_factory=dict)
    """The family's own settings; of several families: their names with theirs."""
    level: int | dict[str, int] | None = None
    """Difficulty, where the family has levels: of all its attributes, or by attribute. `config` stands above it."""
    binary: bool = True
    """Only full marks count, 1 or 0; false: the family's own score."""
    ask: str = "Give the final answer between <answer> and </answer>."
    """What stands behind the question; empty for nothing."""
    system: str = ""
    """System turn."""
    bound: int = 20_000
    """Problems of a family that makes them all at once."""
    package: str = ""
    """Version of reasoning-gym; written by the build."""
    version: int = field(default=1, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)

    def __post_init__(self) -> None:
        weights = {self.family: 1.0} if isinstance(self.family, str) else self.family
        if not weights or "" in weights or any(not w > 0 for w in weights.values()):
            raise ValueError(
                f"family: name a family, or families with weights above 0, got {self.family!r}"
            )

    def card(self, problems: Iterable[Problem]) -> dict[str, Any]:
        """Options that the build adds: the version of the package, whose problems an index means."""
        return {"package": _version()}

    def draw(self, rng: random.Random) -> Problem:
        """A random index of a family that its weight draws."""
        weights = {self.family: 1.0} if isinstance(self.family, str) else self.family
        [name] = rng.choices(list(weights), list(weights.values()))
        made = self._family(name)
        return made.problem(rng.randrange(made.size), self)

    def _family(self, name: str) -> Family:
        own = self.config if isinstance(self.family, str) else self.config.get(name, {})
        level = self.level if isinstance(self.level, dict) else {"": self.level or 0}
        levels = tuple(sorted(level.items())) if self.level is not None else ()
        return _made(name, _frozen(own), levels, self.bound, self.binary)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """The right answer.

        Raises:
            ParamsError: the family has none to show.
        """
        if problem.gold is None:
            raise ParamsError(
                f"tasks.{problem.task}.demonstrations: the family {problem.meta['family']} shows no right answers: set it to 0"
            )
        return problem.gold

    def drill(self, rng: random.Random) -> str | None:
        """None."""
        return None

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """The family's score of the marked answer, else of the whole text; parts `raw`, and `format`: it was marked."""
        return [self._grade(text, p) for text, p in zip(completions, problems, strict=True)]

    def _grade(self, completion: str, problem: Problem) -> Reward:
        if self.package and self.package != _version():
            raise ParamsError(
                f"reasoning-gym is {_version()} and the data were built with {self.package}: run `dvc repro build_data`"
            )
        answer = answer_of(completion)
        made = self._family(problem.meta["family"])
        raw = made.score(answer, problem.meta["index"], problem)
        parts = {"raw": min(1.0, max(0.0, raw)), "format": float(bool(answer.marked))}
        return Reward(float(raw >= 1) if self.binary else parts["raw"], parts)


class Family:
    """One family with its settings, after its contract was tried."""

    def __init__(self, name: str, data: Any, bound: int, binary: bool) -> None:
        self.name, self.data = name, data
        try:
            data[ENDLESS - 1]
            self.size = ENDLESS
        except Exception:  # families raise different errors beyond their end
            self.size = min(bound, len(data))
        self._check_contract(binary)

    def problem(self, index: int, task: ReasoningGym) -> Problem:
        """The problem of an index; its hash is of the question."""
        entry = self.data[index]
        question, answer = entry["question"].strip(), entry["answer"]
        asked = f"{question}\n{task.ask}" if task.ask else question
        prompt: Prompt = asked
        if task.system:
            prompt = [
                {"role": "system", "content": task.system},
                {"role": "user", "content": asked},
            ]
        gold = f"<answer> {answer} </answer>" if "<answer>" in asked else answer
        meta = {"family": self.name, "index": index}
        known = gold if answer is not None else None
        key = content_id("reasoning_gym", self.name, " ".join(question.split()))
        return Problem(key, "reasoning_gym", prompt, known, known, meta)

    def score(self, answer: Answer, index: int, problem: Problem) -> float:
        """What the family gives for an answer; 0 where nothing shows.

        Raises:
            ValueError: the index means another problem than the one that was built.
        """
        if not format.visible(answer.said):
            return 0.0
        entry = self.data[index]
        if entry["question"].strip() not in problem.text:
            raise ValueError(f"problem {index} of {self.name} is another one than was built")
        return float(self.data.score_answer(answer.said, entry))

    def _check_contract(self, binary: bool) -> None:
        """A right answer scores 1 and no nonsense does.

        Raises:
            ParamsError: the family does not keep to it.
        """
        for index in range(min(TRIED, self.size)):
            entry = self.data[index]
            gold = entry["answer"]
            if gold is not None and self._tried(gold, entry) < 1:
                raise self._refused(
                    f"its own answer {gold[:60]!r} scores {self._tried(gold, entry):g}"
                )
            fooled = [x for x in NONSENSE if x != gold and self._tried(x, entry) >= 1]
            if gold is not None and len(fooled) > 1:  # one of them may be right by chance
                raise self._refused(f"it gives full marks to {fooled[0]!r} and {fooled[1]!r}")
            if not binary and self._tried("", entry) > 0:
                raise self._refused("it gives points for an empty answer, set binary: true,")

    def _tried(self, text: str, entry: dict[str, Any]) -> float:
        try:
            return float(self.data.score_answer(text, entry))
        except (
            Exception
        ) as error:  # most wrong answers would have no grade, and the stage would stop
            raise self._refused(
                f"its grader fails on {text[:60]!r} ({type(error).__name__}: {str(error)[:80]})"
            ) from None

    def _refused(self, why: str) -> ParamsError:
        return ParamsError(
            f"reasoning_gym: the family {self.name!r} cannot be trained on: {why}; take another"
        )


@cache
def _made(
    name: str,
    config: tuple[Any, ...],
    levels: tuple[tuple[str, int], ...],
    bound: int,
    binary: bool,
) -> Family:
    gym: Any = _package()
    factory: Any = importlib.import_module("reasoning_gym.factory")
    known = sorted(set(factory.DATASETS) - {"composite"})
    if name not in known:
        raise ParamsError(
            f"reasoning_gym: no family {name!r}{did_you_mean(name, known)}; there are {len(known)}, "
            f"`python -c 'from reasoning_gym.factory import DATASETS; print(*DATASETS)'` lists them"
        )
    given = _thawed(config)
    allowed = sorted({f.name for f in fields(factory.DATASETS[name][1])} - {"seed", "size"})
    for key in given:
        if key not in allowed:
            raise ParamsError(
                f"reasoning_gym: {name} has no setting {key!r}{did_you_mean(key, allowed)}; it has {', '.join(allowed)}"
            )
    try:
        data = gym.create_dataset(
            name,
            **{**_of_level(factory, name, levels, allowed), **given, "seed": SEED, "size": bound},
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise ParamsError(f"reasoning_gym: settings of {name}: {error}") from None
    return Family(name, data, bound, binary)


def _of_level(
    factory: Any, name: str, levels: Iterable[tuple[str, int]], allowed: Sequence[str]
) -> dict[str, Any]:
    """The settings of a level: the names are attributes, or one empty name for all."""
    levels = list(levels)
    if not levels:
        return {}
    if not factory.has_curriculum(name):
        raise ParamsError(f"reasoning_gym: {name} has no levels; take `level` out and set `config`")
    curriculum = factory.create_curriculum(name)
    for attribute, level in levels:
        if attribute and attribute not in curriculum.attributes:
            known = sorted(curriculum.attributes)
            raise ParamsError(
                f"reasoning_gym: {name} has no attribute {attribute!r}{did_you_mean(attribute, known)}; it has {', '.join(known)}"
            )
        most = max(len(a.levels) for n, a in curriculum.attributes.items() if attribute in ("", n))
        if not 0 <= level < most:
            raise ParamsError(f"reasoning_gym: level of {name} is 0 to {most - 1}, got {level}")
        if attribute:
            curriculum.set_attr_level(attribute, level)
        else:
            curriculum.set_global_level(level)
    made = curriculum.generate_configuration()
    return {key: getattr(made, key) for key in allowed}


def _package() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError:
        raise ParamsError(
            "kind reasoning_gym needs the package reasoning-gym: pip install 'trainorder[gym]'"
        ) from None


@cache
def _version() -> str:
    _package()
    return importlib.metadata.version("reasoning-gym")  # its own __version__ is another release's


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ("mapping", tuple(sorted((key, _frozen(item)) for key, item in value.items())))
    return ("list", tuple(map(_frozen, value))) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, tuple):
        kind, items = value
        return (
            {k: _thawed(v) for k, v in items} if kind == "mapping" else [_thawed(v) for v in items]
        )
    return value
