"""Item samplers: which problem of a task comes next, from what is known of each problem.

Functions `(Pool, mem, *, options) -> [score]`, one score per problem of the pool, called for every batch of new problems of
a task. A score is a log-weight where the sampler `draws="sample"` (without replacement inside a batch) and a rank where it
`draws="top"` (highest first); -inf leaves a problem out. `mem` is the sampler's alone and JSON-able. What is known of a
problem (`Known`) is kept in `State.mem`, so that a resumed phase draws the same problems.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainorder.config import Piece
from trainorder.files import write_json
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rl.samplers import Mem, Seen
from trainorder.rl.types import Roll
from trainorder.tasks.base import Problem

Draws = Literal["sample", "top", "dealt"]
Known = dict[str, float]
"""What is known of a problem: `visits` (times drawn), `rollouts` (graded), `solved` (sum of their grades), `last` and `before`
(mean grade of the last two visits), `length` (mean tokens of the last visit), `step` (of the last visit), and what was
measured of it (rl/looks.py)."""
Function = TypeVar("Function", bound=Callable[..., list[float]])
FILE = "problems.json"
"""In a node: what its phase knew of problems, by task and id."""
COUNTED = ("visits", "rollouts", "solved", "last", "before", "length")
LOOKED = 4
"""Rollouts per problem of the look `rate`: CurES's cold start."""


def _nothing(name: str, problems: Sequence[Problem]) -> list[float]:
    raise ParamsError(f"rl.items: {name!r} cannot be measured here, outside of a training step")


@dataclass(frozen=True)
class Pool:
    """The problems of one task and what is known of them."""

    task: str
    problems: Sequence[Problem]
    step: int = 0
    total: int = 1
    """Steps of the phase."""
    known: dict[str, Known] = field(default_factory=dict)
    """By the problem's id; without those that nothing is known of."""
    seen: Mapping[str, Seen] = field(default_factory=dict)
    """The last step, by the problem's id; without those that it did not ask."""
    look: Callable[[str, Sequence[Problem]], list[float]] = _nothing
    """Measures a property of problems under the policy as it is now (rl/looks.py)."""

    def __len__(self) -> int:
        return len(self.problems)

    def fact(self, name: str, default: float = 0.0) -> list[float]:
        """A known value of each problem; `default` where it is not known."""
        return [self.known.get(p.id, {}).get(name, default) for p in self.problems]

    def rates(self) -> list[float]:
        """Expected pass rate of each problem (`expected_rate`); .5 where nothing is known of any."""
        return [expected_rate(self.known.get(p.id, {})) for p in self.problems]

    def measured(self, name: str, *, again: bool = False) -> list[float]:
        """A measured value of each problem: of those that have none yet, or of all `again`."""
        lacking = [p for p in self.problems if again or name not in self.known.get(p.id, {})]
        if lacking:
            for problem, value in zip(lacking, self.look(name, lacking), strict=True):
                self.known.setdefault(problem.id, {})[name] = value
        return self.fact(name)

    def by(self, name: str) -> list[float]:
        """A number of each problem, by name.

        `file` is its place, `length` that of its prompt in characters, `rate` the measured pass rate; else a key of its
        meta, of which a list counts as its length.

        Raises:
            ParamsError: no such key, or a value that is no number.
        """
        if name == "file":
            return [float(i) for i in range(len(self))]
        if name == "length":
            return [float(len(p.text)) for p in self.problems]
        if name == "rate":
            return self.measured("rate")
        return [self._number(name, self.meta(p, name)) for p in self.problems]

    def meta(self, problem: Problem, key: str) -> Any:
        """A value of the problem's meta.

        Raises:
            ParamsError: no such key.
        """
        if key not in problem.meta:
            known = sorted({"file", "length", "rate", *(k for p in self.problems for k in p.meta)})
            raise ParamsError(
                f"rl.items: problems of {self.task!r} have no {key!r}; there are {', '.join(known)}{did_you_mean(key, known)}"
            )
        return problem.meta[key]

    def _number(self, key: str, value: Any) -> float:
        if isinstance(value, list | tuple):
            return float(len(value))
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ParamsError(
                f"rl.items: {key!r} of the problems of {self.task!r} must be a number or a list, got {value!r}"
            ) from None


@dataclass(frozen=True)
class Item:
    """A listed item sampler. Calling it calls the function."""

    function: Callable[..., list[float]]
    draws: Draws
    looks: frozenset[str] = frozenset()
    """What it may measure of problems; costs forwards or rollouts of the whole pool."""

    def __call__(self, pool: Pool, mem: Mem, **options: Any) -> list[float]:
        """Call the function."""
        return self.function(pool, mem, **options)


ITEMS: dict[str, Item] = {}


def item(*, draws: Draws = "sample", looks: Iterable[str] = ()) -> Callable[[Function], Function]:
    """List an item sampler."""

    def listed(function: Function) -> Function:
        ITEMS[function.__name__] = Item(function, draws, frozenset(looks))
        return function

    return listed


@item(draws="dealt")
def shuffled(pool: Pool, mem: Mem) -> list[float]:
    """One fixed permutation per pass over the task's problems, keyed by seed and task: the same in every phase."""
    return [0.0] * len(pool)


@dataclass(frozen=True)
class Picker:
    """An item sampler with its options."""

    name: str = "shuffled"
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, piece: Piece) -> Picker:
        """Look it up.

        Raises:
            ParamsError: unknown name.
        """
        name = piece if isinstance(piece, str) else next(iter(piece))
        names = sorted(ITEMS)
        if name not in ITEMS:
            raise ParamsError(
                f"rl.items: no items {name!r}; there are {', '.join(names)}{did_you_mean(name, names)}"
            )
        return cls(name, {} if isinstance(piece, str) else piece[name])

    @property
    def item(self) -> Item:
        """The listed sampler."""
        return ITEMS[self.name]

    def pick(self, pool: Pool, mem: Mem, count: int, noise: random.Random) -> list[Problem]:
        """The next `count` problems, in the order that they come."""
        scores = self.item(pool, mem, **self.options)
        assert len(scores) == len(pool), f"{self.name}: a score for every problem"
        assert not any(map(math.isnan, scores)), f"{self.name}: a score is nan"
        problems = {problem.id: problem for problem in pool.problems}
        by_id = {p.id: score for p, score in zip(pool.problems, scores, strict=True)}
        return [problems[i] for i in draw(by_id, count, noise, top=self.item.draws == "top")]


def draw(scores: Mapping[str, float], count: int, noise: random.Random, *, top: bool) -> list[str]:
    """`count` keys: the highest scores, ties at random, or keys drawn in proportion to exp(score) without replacement.

    Once all that are open (score above -inf) are used it starts again; with none open, all are alike. What is drawn does not
    depend on the order of the keys.

    >>> draw({"a": 1.0, "b": 3.0, "c": 2.0}, 4, random.Random(0), top=True)
    ['b', 'c', 'a', 'b']
    """
    left = {key: score for key, score in sorted(scores.items()) if score > -math.inf}
    left = left or dict.fromkeys(sorted(scores), 0.0)
    chosen: list[str] = []
    while len(chosen) < count:
        # the largest of score + Gumbel noise is a draw from the softmax; the next largest, one from the rest
        gumbel = {key: -math.log(-math.log(1 - noise.random() or 1e-300)) for key in left}
        place = {k: (-s, -gumbel[k]) if top else (-s - gumbel[k], 0.0) for k, s in left.items()}
        chosen += sorted(left, key=place.__getitem__)[: count - len(chosen)]
    return chosen


def rate_of(solved: float, rollouts: float) -> float:
    """Mean of Beta(1 + solved, 1 + rollouts - solved).

    >>> round(rate_of(3, 4), 4), rate_of(0, 0)
    (0.6667, 0.5)
    """
    return (1 + solved) / (2 + rollouts)


def expected_rate(known: Known) -> float:
    """`rate_of` the rollouts of training and of the look `rate`, where there was one."""
    looked = LOOKED if "rate" in known else 0
    solved = known.get("solved", 0.0) + looked * known.get("rate", 0.0)
    return rate_of(solved, known.get("rollouts", 0.0) + looked)


def inherited(folder: Path) -> dict[str, dict[str, Known]]:
    """What the phase that made this node knew of problems, without what it measured under a policy of the past."""
    file = folder / FILE
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {
        task: {key: {n: v for n, v in own.items() if n in COUNTED} for key, own in problems.items()}
        for task, problems in found.items()
    }


def leave(folder: Path, known: Mapping[str, Any]) -> None:
    """Write what is known of problems beside the weights; a file that was copied from the parent goes where nothing is."""
    if known:
        write_json(folder / FILE, known, indent=None)
    else:
        (folder / FILE).unlink(missing_ok=True)


def note(known: dict[str, dict[str, Known]], sampled: Sequence[Roll], step: int) -> None:
    """Add what the rolls of a step showed of each problem; `known` is by task and by the problem's id."""
    shown: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for roll in sampled:
        grades, tokens = roll.row_facts["graded"].tolist(), roll.loss_mask.sum(1).tolist()
        rows = zip(roll.problem, roll.scored.tolist(), grades, tokens, strict=True)
        for problem, scored, grade, length in rows:
            if scored:
                shown.setdefault((problem.task, problem.id), []).append((grade, length))
    for (task, key), rows in shown.items():
        own, count = known.setdefault(task, {}).setdefault(key, {}), len(rows)
        solved = math.fsum(grade for grade, _ in rows)
        own["rollouts"] = own.get("rollouts", 0.0) + count
        own["solved"] = own.get("solved", 0.0) + solved
        own["before"], own["last"] = own.get("last", solved / count), solved / count
        own["length"] = math.fsum(length for _, length in rows) / count
        own["step"] = float(step)
