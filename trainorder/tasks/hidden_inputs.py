"""Hidden inputs of the code task: lists on which no wrong program does what the right one does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trainorder.streams import stream
from trainorder.tasks.programs import (
    AGGREGATES,
    FILTERS,
    MAPS,
    UNDEFINED_ON_NOTHING,
    Numbers,
    Program,
)

POOL = 80
"""Lists to choose from."""
WRONG_FILTERS = [
    *((FILTERS[name].apply, k) for name in ("below", "above") for k in range(-9, 23)),
    *((FILTERS["not"].apply, k) for k in range(-1, 16)),
    *((lambda v, k: v == k, k) for k in range(-1, 16)),
    *((FILTERS[name].apply, 0) for name in ("all", "even", "odd")),
]
"""Also bounds that no problem has: one step further, and those of a filter that looks at the changed numbers."""
WRONG_MAPS = [
    *((MAPS[name].apply, k) for name in ("add", "subtract", "multiply") for k in range(1, 11)),
    *((MAPS[name].apply, 0) for name in ("same", "square")),
]

Guess = Callable[[Numbers, Numbers], Any]
"""A short wrong program, of the whole list and of the numbers that the right program keeps and changes."""
SCALAR_GUESSES: tuple[Guess, ...] = (
    *(lambda xs, kept, f=f: f(xs) for f in (len, sum, max, min)),
    *(lambda xs, kept, f=f: f(kept) for f in (len, sum, max, min)),
    *(lambda xs, kept, i=i: xs[i] for i in (0, 1, -1)),
    *(lambda xs, kept, i=i: kept[i] for i in (0, -1)),
    *(lambda xs, kept, i=i: sorted(kept)[i] for i in (1, -2)),
    lambda xs, kept: sorted(xs)[len(xs) // 2],
    lambda xs, kept: max(xs) - min(xs),
    lambda xs, kept: len(set(kept)),
    lambda xs, kept: sum(set(kept)),
    lambda xs, kept: sum(kept[1:]),
    lambda xs, kept: sum(kept[:-1]),
    lambda xs, kept: max(kept[1:]),
    lambda xs, kept: max(kept[:-1]),
    lambda xs, kept: min(kept[1:]),
    lambda xs, kept: min(kept[:-1]),
)
LIST_GUESSES: tuple[Guess, ...] = (
    lambda xs, kept: xs[::-1],
    lambda xs, kept: kept[::-1],
    lambda xs, kept: sorted(kept, reverse=True),
    lambda xs, kept: sorted(set(kept)),
    lambda xs, kept: list(dict.fromkeys(kept)),
    *(
        lambda xs, kept, cut=cut: kept[cut]
        for cut in (slice(1, None), slice(-1), slice(1), slice(3))
    ),
    *(lambda xs, kept, cut=cut: sorted(kept)[cut] for cut in (slice(1, None), slice(-1), slice(3))),
)


def hidden_inputs(program: Program, count: int) -> list[Numbers]:
    """At least `count` lists on which no wrong program passes for `program`; where it takes more, there are more.

    They are chosen from a pool of lists until every other program of the world is found out, unless it is equal to
    this one on the whole pool (`not 0` and `all` have the same sum). The same holds for `a * guess + b` with any a and
    b, which covers all constants. The empty list is one of them where the program has a value for it.
    """
    return [list(xs) for xs in _hidden_inputs(program, count)]


class _Row(NamedTuple):
    """One list of the pool, seen from the right program."""

    xs: Numbers
    kept: Numbers
    output: Any
    same: int
    """Bit set: the wrong programs with this output."""


@functools.lru_cache(maxsize=8192)
def _hidden_inputs(program: Program, count: int) -> list[Numbers]:
    rows = _rows(program)
    stream("code", "inputs", program.source).shuffle(rows)
    chosen = [row for row in rows if not row.xs] or rows[:1]
    left = chosen[0].same
    for part in (rows[:16], rows):  # a few suffice to find most; all are searched for the rest
        while left.bit_count() > 1:  # the last one is the right program itself
            best = min(part, key=lambda row: (left & row.same).bit_count())
            if left & best.same == left:
                break
            chosen.append(best)
            left &= best.same
    spare = [row for row in rows if row not in chosen]
    while len(chosen) < count:
        chosen.append(spare.pop())
    for guess in LIST_GUESSES if isinstance(rows[0].output, list) else SCALAR_GUESSES:
        if _passes(guess, chosen) and not _passes(guess, rows):
            while _passes(guess, chosen):
                found = (row for row in spare if not _passes(guess, [*chosen, row]))
                chosen.append(next(found, None) or spare.pop())
    return [row.xs for row in chosen]


def _rows(program: Program) -> list[_Row]:
    total = AGGREGATES[program.aggregate][0]
    rows = []
    for (xs, programs), kept in zip(
        _pool(), _kept(program._replace(aggregate="list")), strict=True
    ):
        if kept or program.aggregate not in UNDEFINED_ON_NOTHING:
            output = total(kept)
            rows.append(_Row(xs, kept, output, programs[_key(output)]))
    return rows


@functools.lru_cache(maxsize=2048)
def _kept(program: Program) -> list[Numbers]:
    return [program.kept(xs) for xs, _ in _pool()]


def _passes(guess: Guess, rows: Sequence[_Row]) -> bool:
    """Whether a * guess + b is right on all rows for some a and b; for lists the guess itself, or one constant.

    Where a guess has no value it counts as right: a program can treat that case by itself.
    """
    first = line = None
    constant = exact = True
    for row in rows:
        try:
            x, y = guess(row.xs, row.kept), row.output
        except (ValueError, IndexError):
            continue
        first = first or (x, y)
        constant, exact = constant and y == first[1], exact and x == y
        if not constant and not exact and isinstance(y, list):
            return False
        if isinstance(y, list):
            continue
        dx, dy = x - first[0], y - first[1]
        line = line or ((dx, dy) if dx or dy else None)
        if line and (dx * line[1] != dy * line[0] or (not line[0] and line[1])):
            return False
    return True


@functools.cache
def _pool() -> list[tuple[Numbers, dict[Any, int]]]:
    """Lists, each with output -> the set of wrong programs (bits) that give it."""
    rng = stream("code", "pool")
    lists: list[Numbers] = [[], [0], [1], [0, 1]]
    for k in range(
        -2, 16
    ):  # every bound is once the smallest, the largest, the nearest to zero, the farthest from it
        far = [rng.randint(1, 8) for _ in range(rng.randint(2, 5))]
        lists.append([k, *(k + d for d in far)])
        lists.append([k, *(rng.choice((-1, 1)) * (d % abs(k)) if k else -d for d in far)])
        lists.append([k, *((-abs(k) - d) * (1 if k > 0 else -1) for d in far)])
    while len(lists) < POOL:
        low, width = rng.randint(-10, 14), rng.choice((2, 4, 8, 16))
        lists.append([low + rng.randint(0, width) for _ in range(rng.randint(1, 8))])
    for xs in lists:
        rng.shuffle(xs)
    return [(xs, _programs_by_output(xs)) for xs in lists]


def _programs_by_output(xs: Numbers) -> dict[Any, int]:
    """Filters that keep the same numbers are computed once, as one group of neighbouring bits."""
    groups: dict[tuple[int, ...], int] = {}
    for bit, (keep, k) in enumerate(WRONG_FILTERS):
        kept = tuple(v for v in xs if keep(v, k))
        groups[kept] = groups.get(kept, 0) | 1 << bit
    found: dict[Any, int] = {}
    for kept, group in groups.items():
        for row, (change, k) in enumerate(WRONG_MAPS):
            changed = [change(v, k) for v in kept]
            for column, (name, (total, _)) in enumerate(AGGREGATES.items()):
                if changed or name not in UNDEFINED_ON_NOTHING:
                    key = _key(total(changed))
                    place = (row * len(AGGREGATES) + column) * len(WRONG_FILTERS)
                    found[key] = found.get(key, 0) | group << place
    return found


def _key(output: Any) -> Any:
    return tuple(output) if isinstance(output, list) else output
