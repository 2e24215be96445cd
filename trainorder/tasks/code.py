"""code: a request in words, or examples, answered by the body of a Python function; hidden tests grade it."""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from trainorder.rewards import format
from trainorder.rewards.sandbox import Result, run_programs
from trainorder.tasks import programs
from trainorder.tasks.base import HASTY, Problem, Reward, content_id
from trainorder.tasks.hidden_inputs import hidden_inputs
from trainorder.tasks.programs import AGGREGATES, FILTERS, MAPS, Program


@dataclass(frozen=True)
class Code:
    """The answer is the body of `def f ( xs ) :`; it must return the right value on every hidden list."""

    tests: int = 4
    """Hidden lists per problem, at least: there are more where fewer would let a wrong program pass."""
    examples: float = 0.1
    """Share of problems stated by two examples instead of a request."""
    version: int = field(default=2, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)
    sandboxed: ClassVar[bool] = True
    """Runs model-written programs: `grading.isolation` applies."""

    def __post_init__(self) -> None:
        if not 1 <= self.tests <= 20:
            raise ValueError(f"tests is a count in 1..20, got {self.tests}")
        if not 0 <= self.examples <= 1:
            raise ValueError(f"examples is a share in 0..1, got {self.examples}")

    def draw(self, rng: random.Random) -> Problem:
        """A random program.

        The hash of a request is of the program, so no wording of it meets two splits. Only the six programs without
        filter and map are asked by example; there the examples are part of the hash.
        """
        if rng.random() < self.examples:
            program = Program(rng.choice(list(AGGREGATES)))
            prompt = _examples(program, rng)
            key = content_id("code", program.source, prompt)
        else:
            program = programs.draw(rng)
            prompt = _request(program, rng)
            key = content_id("code", program.source)
        inputs = hidden_inputs(program, self.tests)
        outputs = [program.run(xs) for xs in inputs]
        meta = {"program": list(program), "inputs": inputs, "outputs": outputs}
        gold = format.render(_plan(program), program.source)
        return Problem(key, "code", prompt, gold, gold, meta)

    def reveals(self, problem: Problem) -> tuple[str, ...]:
        """The program, unless examples ask for one of the six that all splits share."""
        asked_by_example = problem.text.startswith("examples")
        return () if asked_by_example else (Program(*problem.meta["program"]).source,)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Half careful (plans, then a bug with 30%), half hasty (a bug with 70%)."""
        program = Program(*problem.meta["program"])
        careful = rng.random() < 0.5
        thought = _plan(program) if careful else rng.choice(HASTY)
        if rng.random() < (0.3 if careful else 0.7):
            program = programs.with_bug(program, rng)
        return format.render(thought, program.source)

    def drill(self, rng: random.Random) -> str | None:
        """A request with its right plan and program: `take all numbers of xs , give the sum : sum : return ...`."""
        program = programs.draw(rng)
        return f"{_request(program, rng)} : {_plan(program)} : {program.source}"

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """1 if every hidden list gives the expected value, else 0; None if the sandbox itself failed.

        The program is the completion's answer, whatever the rest looks like; part `format`: it also keeps the format.
        """
        bodies = [_body(format.answer(text, marked=False)) for text in completions]
        pairs = list(zip(bodies, problems, strict=True))
        results = iter(run_programs([(body, q.meta["inputs"]) for body, q in pairs if body]))
        return [
            _grade(next(results) if body else Result(error="no answer"), q.meta["outputs"], text)
            for text, (body, q) in zip(completions, pairs, strict=True)
        ]


_FENCE = re.compile(r"\s*```\w*[^\S\n]*\n(.*?)\n?\s*```\s*", re.DOTALL)
_FUNCTION = re.compile(r"def[^\S\n]+(\w+)[^\S\n]*\(.*\)[^\n]*:")


def _body(answer: str) -> str:
    r"""The body of `def f(xs):` that an answer gives: out of a code block, also as a whole function of any name.

    >>> _body("```python\ndef g(xs):\n    return xs\n```")
    'def g(xs):\n    return xs\nreturn g(xs)'
    >>> _body("a = 1\n    return a")  # the answer was indented, and its surrounding whitespace is gone
    'a = 1\nreturn a'
    """
    block = _FENCE.fullmatch(answer)
    first, *rest = textwrap.dedent(block[1] if block else answer).replace("\r\n", "\n").split("\n")
    indents = [len(row) - len(row.lstrip()) for row in rest if row.strip()]
    lost = bool(indents) and min(indents) > 0
    # Rows that belong to the first one are at least as deep as the one after it.
    if lost and (not first.rstrip().endswith(":") or min(indents) < indents[0]):
        rest = textwrap.dedent("\n".join(rest)).split("\n")
    function = _FUNCTION.match(first)
    if function and all(row[:1] in ("", " ", "\t") for row in rest):
        rest.append(f"return {function[1]}(xs)")
    return "\n".join([first, *rest]).strip()


def _grade(result: Result, expected: Sequence[Any], completion: str) -> Reward:
    strict = {"format": float(format.parse(completion) is not None)}
    if result.unavailable:
        return Reward(None, strict)
    outputs = result.outputs or []
    passed = sum(map(_same, outputs, expected)) if len(outputs) == len(expected) else 0
    parts = {**strict, "runs": float(bool(outputs)), "tests": passed / len(expected)}
    return Reward(float(passed == len(expected)), parts)


def _same(got: Any, expected: Any) -> bool:
    """Equal in value and type: True is not 1."""
    if type(got) is not type(expected):
        return False
    if isinstance(got, list):
        return len(got) == len(expected) and all(map(_same, got, expected))
    return got == expected


def _plan(program: Program) -> str:
    value = "" if program.map == "same" else program.value
    return " ; ".join(part for part in (program.condition, value, program.aggregate) if part)


def _request(program: Program, rng: random.Random) -> str:
    kept = FILTERS[program.filter].words.format(program.bound)
    changed = MAPS[program.map].words.format(program.operand)
    start = rng.choice((f"take {kept} of xs", f"from xs keep {kept}"))
    return " , ".join(part for part in (start, changed, f"give the {program.aggregate}") if part)


def _examples(program: Program, rng: random.Random) -> str:
    """Two lists and what the function gives, such that no other aggregate gives the same."""
    while True:
        lists = [rng.sample(range(1, 10), 3) for _ in range(2)]
        given = [program.run(xs) for xs in lists]
        if sum([Program(name).run(xs) for xs in lists] == given for name in AGGREGATES) == 1:
            shown = [f"{_show(xs)} gives {_show(y)}" for xs, y in zip(lists, given, strict=True)]
            return "examples : " + " ; ".join(shown)


def _show(value: int | list[int]) -> str:
    return f"[ {' , '.join(map(str, value))} ]" if isinstance(value, list) else str(value)
