"""code: a request in words, or examples, answered by the body of a Python function and graded by running hidden tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from trainorder.rewards import format
from trainorder.rewards.sandbox import run_programs
from trainorder.tasks.base import HASTY, Problem, Reward, content_id
from trainorder.streams import stream

AGGREGATES: dict[str, tuple[Callable[[list[int]], Any], str]] = {
    "sum": (sum, "sum ( {} )"),
    "largest": (max, "max ( {} )"),
    "smallest": (min, "min ( {} )"),
    "list": (list, "[ {} ]"),
    "sorted list": (sorted, "sorted ( {} )"),
    "count": (len, "len ( [ {} ] )"),
}
FILTERS: dict[str, tuple[Callable[[int, int], bool], str, str, range]] = {
    "all": (lambda v, k: True, "all numbers", "", range(1)),
    "below": (lambda v, k: v < k, "the numbers below {}", "v < {}", range(2, 13)),
    "above": (lambda v, k: v > k, "the numbers above {}", "v > {}", range(1, 12)),
    "not": (lambda v, k: v != k, "the numbers other than {}", "v != {}", range(13)),
    "even": (lambda v, k: v % 2 == 0, "the even numbers", "v % 2 == 0", range(1)),
    "odd": (lambda v, k: v % 2 == 1, "the odd numbers", "v % 2 == 1", range(1)),
}
MAPS: dict[str, tuple[Callable[[int, int], int], str, str, range]] = {
    "same": (lambda v, k: v, "", "v", range(1)),
    "add": (lambda v, k: v + k, "add {} to each", "v + {}", range(1, 10)),
    "subtract": (lambda v, k: v - k, "subtract {} from each", "v - {}", range(1, 10)),
    "multiply": (lambda v, k: v * k, "multiply each by {}", "v * {}", range(2, 10)),
    "square": (lambda v, k: v * v, "square each", "v * v", range(1)),
}


class Spec(NamedTuple):
    """What the function does: aggregate(map(v) for v in xs if filter(v))."""

    aggregate: str
    filter: str
    bound: int
    map: str
    operand: int


@dataclass(frozen=True)
class Code:
    """The answer is the body of `def f ( xs ) :`; it must return the right value on every hidden list."""

    tests: int = 4
    """Hidden lists per problem."""
    examples: float = 0.1
    """Share of problems stated as two examples instead of a request."""
    version: int = field(default=1, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.tests <= 20:
            raise ValueError(f"tests is a count in 1..20, got {self.tests}")
        if not 0 <= self.examples <= 1:
            raise ValueError(f"examples is a share in 0..1, got {self.examples}")

    def draw(self, rng: random.Random) -> Problem:
        """A random program. A request's hash is of the source, so no wording of a program meets two splits; the few
        programs without filter and map may be asked by example, and there the examples are part of the hash."""
        spec = _random_spec(rng)
        key: tuple[str, ...] = (_source(spec),)
        prompt = _request(spec, rng)
        if rng.random() < self.examples:
            spec = Spec(rng.choice(list(AGGREGATES)), "all", 0, "same", 0)
            prompt = _examples(spec, rng)
            key = (_source(spec), prompt)
        inputs = _inputs(spec, self.tests)
        meta = {"spec": list(spec), "inputs": inputs, "outputs": [_evaluate(spec, xs) for xs in inputs]}
        gold = format.render(_thought(spec), _source(spec))
        return Problem(content_id("code", *key), "code", prompt, gold, gold, meta)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Half careful (plans, then a bug with 30%), half hasty (a bug with 70%)."""
        spec = Spec(*problem.meta["spec"])
        careful = rng.random() < 0.5
        written = _bug(spec, rng) if rng.random() < (0.3 if careful else 0.7) else spec
        return format.render(_thought(spec) if careful else rng.choice(HASTY), _source(written))

    def drill(self, rng: random.Random) -> str | None:
        """A request with its correct plan and program in one line."""
        spec = _random_spec(rng)
        return f"{_request(spec, rng)} : {_thought(spec)} : {_source(spec)}"

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """1 if the program returns the expected value on every hidden list; None if the sandbox itself failed."""
        parsed = [format.parse(text) for text in completions]
        jobs = [(p.answer, q.meta["inputs"]) for p, q in zip(parsed, problems, strict=True) if p]
        results = iter(run_programs(jobs))
        return [_grade(next(results), q) if p else _FAILED for p, q in zip(parsed, problems, strict=True)]


_FAILED = Reward(0.0, {"format": 0.0, "runs": 0.0, "tests": 0.0})


def _grade(result: Any, problem: Problem) -> Reward:
    if result.unavailable:
        return Reward(None, {"format": 1.0})
    expected = problem.meta["outputs"]
    passed = sum(map(_same, result.outputs, expected)) if result.outputs is not None else 0
    runs = float(result.outputs is not None)
    return Reward(float(passed == len(expected)), {"format": 1.0, "runs": runs, "tests": passed / len(expected)})


def _same(got: Any, expected: Any) -> bool:
    """Equal in value and type: True is not 1."""
    if type(got) is not type(expected):
        return False
    if isinstance(got, list):
        return len(got) == len(expected) and all(map(_same, got, expected))
    return got == expected


def _random_spec(rng: random.Random) -> Spec:
    aggregate = rng.choice(list(AGGREGATES))
    name = rng.choice([*FILTERS, "below", "above", "not"])
    how = "same" if aggregate == "count" else rng.choice([*MAPS, "add", "subtract", "multiply"])
    return Spec(aggregate, name, rng.choice(FILTERS[name][3]), how, rng.choice(MAPS[how][3]))


def _evaluate(spec: Spec, xs: list[int]) -> Any:
    keep, change = FILTERS[spec.filter][0], MAPS[spec.map][0]
    return AGGREGATES[spec.aggregate][0]([change(v, spec.operand) for v in xs if keep(v, spec.bound)])


def _source(spec: Spec) -> str:
    condition = FILTERS[spec.filter][2].format(spec.bound)
    loop = f"{MAPS[spec.map][2].format(spec.operand)} for v in xs" + (f" if {condition}" if condition else "")
    return "return " + AGGREGATES[spec.aggregate][1].format(loop)


def _thought(spec: Spec) -> str:
    parts = [FILTERS[spec.filter][2].format(spec.bound), MAPS[spec.map][2].format(spec.operand), spec.aggregate]
    return " ; ".join(part for part in parts if part not in ("", "v"))


def _request(spec: Spec, rng: random.Random) -> str:
    kept = FILTERS[spec.filter][1].format(spec.bound)
    changed = MAPS[spec.map][1].format(spec.operand)
    start = rng.choice((f"take {kept} of xs", f"from xs keep {kept}"))
    return " , ".join(part for part in (start, changed, f"give the {spec.aggregate}") if part)


def _examples(spec: Spec, rng: random.Random) -> str:
    """Two lists and what the function gives, such that no other aggregate gives the same."""
    while True:
        lists = [rng.sample(range(1, 10), 3) for _ in range(2)]
        given = [_evaluate(spec, xs) for xs in lists]
        if sum([_evaluate(spec._replace(aggregate=a), xs) for xs in lists] == given for a in AGGREGATES) == 1:
            return "examples : " + " ; ".join(f"{_show(x)} gives {_show(y)}" for x, y in zip(lists, given, strict=True))


def _show(value: int | list[int]) -> str:
    return f"[ {' , '.join(map(str, value))} ]" if isinstance(value, list) else str(value)


def _inputs(spec: Spec, count: int) -> list[list[int]]:
    """Lists that hold the numbers around the filter's bound and always some number that is kept."""
    rng = stream("code", "inputs", _source(spec))
    keep = FILTERS[spec.filter][0]
    near = [v for v in (spec.bound - 1, spec.bound, spec.bound + 1) if v >= 0]
    lists: list[list[int]] = []
    while len(lists) < count:
        xs = [*near, *(rng.randint(0, 13) for _ in range(3 + len(lists) % 3))]
        rng.shuffle(xs)
        if any(keep(v, spec.bound) for v in xs):
            lists.append(xs)
    return lists


def _bug(spec: Spec, rng: random.Random) -> Spec:
    """The same program with another filter, bound, map, operand or aggregate."""
    while True:
        other = _random_spec(rng)
        mixed = Spec(*(b if rng.random() < 0.4 else a for a, b in zip(spec, other, strict=True)))
        fits = mixed.bound in FILTERS[mixed.filter][3] and mixed.operand in MAPS[mixed.map][3]
        if fits and _source(mixed) != _source(spec):
            return mixed
