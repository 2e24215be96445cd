"""The small world of the code task: programs that filter a list, map it and aggregate it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

Numbers = list[int]


class Piece(NamedTuple):
    """A filter or a map: what it does with a value and its number, in words, in Python, and the numbers it takes."""

    apply: Callable[[int, int], int]
    words: str
    python: str
    numbers: range = range(1)


FILTERS = {
    "all": Piece(lambda v, k: True, "all numbers", ""),
    "below": Piece(lambda v, k: v < k, "the numbers below {}", "v < {}", range(2, 13)),
    "above": Piece(lambda v, k: v > k, "the numbers above {}", "v > {}", range(1, 12)),
    "not": Piece(lambda v, k: v != k, "the numbers other than {}", "v != {}", range(13)),
    "even": Piece(lambda v, k: v % 2 == 0, "the even numbers", "v % 2 == 0"),
    "odd": Piece(lambda v, k: v % 2 == 1, "the odd numbers", "v % 2 == 1"),
}
MAPS = {
    "same": Piece(lambda v, k: v, "", "v"),
    "add": Piece(lambda v, k: v + k, "add {} to each", "v + {}", range(1, 10)),
    "subtract": Piece(lambda v, k: v - k, "subtract {} from each", "v - {}", range(1, 10)),
    "multiply": Piece(lambda v, k: v * k, "multiply each by {}", "v * {}", range(2, 10)),
    "square": Piece(lambda v, k: v * v, "square each", "v * v"),
}
AGGREGATES: dict[str, tuple[Callable[[Numbers], Any], str]] = {
    "sum": (sum, "sum ( {} )"),
    "largest": (max, "max ( {} )"),
    "smallest": (min, "min ( {} )"),
    "list": (list, "[ {} ]"),
    "sorted list": (sorted, "sorted ( {} )"),
    "count": (len, "len ( [ {} ] )"),
}
UNDEFINED_ON_NOTHING = ("largest", "smallest")
"""Aggregates that raise ValueError where no number is kept."""


class Program(NamedTuple):
    """aggregate(map(v) for v in xs if filter(v)); `bound` and `operand` are the numbers of filter and map."""

    aggregate: str
    filter: str = "all"
    bound: int = 0
    map: str = "same"
    operand: int = 0

    def run(self, xs: Numbers) -> Any:
        """The right output; ValueError for the largest or smallest of nothing.

        >>> Program("sum", "below", 6, "add", 1).run([1, 2, 9])
        5
        """
        return AGGREGATES[self.aggregate][0](self.kept(xs))

    def kept(self, xs: Numbers) -> Numbers:
        """The numbers that the filter keeps, changed by the map."""
        keep, change = FILTERS[self.filter].apply, MAPS[self.map].apply
        return [change(v, self.operand) for v in xs if keep(v, self.bound)]

    @property
    def condition(self) -> str:
        """`v < 6`, or nothing."""
        return FILTERS[self.filter].python.format(self.bound)

    @property
    def value(self) -> str:
        """`v + 3`, or `v`."""
        return MAPS[self.map].python.format(self.operand)

    @property
    def source(self) -> str:
        """The body of the function.

        >>> Program("sum", "below", 6, "add", 1).source
        'return sum ( v + 1 for v in xs if v < 6 )'
        """
        condition = f" if {self.condition}" if self.condition else ""
        loop = f"{self.value} for v in xs{condition}"
        return "return " + AGGREGATES[self.aggregate][1].format(loop)


def draw(rng: random.Random) -> Program:
    """A random program; the filters and maps that take a number come more often."""
    aggregate = rng.choice(list(AGGREGATES))
    keep = rng.choice([*FILTERS, "below", "above", "not"])
    change = "same" if aggregate == "count" else rng.choice([*MAPS, "add", "subtract", "multiply"])
    bound, operand = (rng.choice(p.numbers) for p in (FILTERS[keep], MAPS[change]))
    return Program(aggregate, keep, bound, change, operand)


def with_bug(program: Program, rng: random.Random) -> Program:
    """The same program with another filter, bound, map, operand or aggregate."""
    while True:
        other = draw(rng)
        mixed = Program._make(
            rng.choices(pair, (6, 4))[0] for pair in zip(program, other, strict=True)
        )
        if mixed.aggregate == "count":  # the number of items is the same after any map
            mixed = mixed._replace(map="same", operand=0)
        fits = mixed.bound in FILTERS[mixed.filter].numbers
        fits = fits and mixed.operand in MAPS[mixed.map].numbers
        if fits and mixed.source != program.source:
            return mixed
