"""Item samplers that follow an order of difficulty: sorted, paced, cyclic, in tiers."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from trainorder.rl.items import Pool, item
from trainorder.rl.samplers import Mem

Policy = Literal["forward", "reverse", "uniform", "varied"]
TIERS = 4
FORWARD = ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3))
REVERSE = ((2,), (2, 3), (1, 2, 3), (0, 1, 2, 3))
VARIED = (0.35, 0.35, 0.15, 0.15)


@item(draws="top", looks=("rate",))
def in_order(pool: Pool, mem: Mem, *, by: str = "file", descending: bool = False) -> list[float]:
    """Problems in the order of a number, each once per pass: file order, short to long, easy to hard (no paper of its own).

    `by` is `file` (what users of NeMo-RL ask for), `length` (of the prompt), `rate` (pass rate, measured at the phase's start
    with 4 rollouts per problem: easy first, SARI arXiv:2504.15900), or a number in the problems' meta (human curricula,
    arXiv:2310.09518). Ties come in random order, by file where `by` is `file`.
    """
    keys = _ease(pool, by, descending)
    first: dict[float, int] = {}
    for place, key in enumerate(sorted(keys)):
        first.setdefault(key, place)
    return _once_per_pass(pool, [first[key] for key in keys])


@item(draws="top")
def blocked(pool: Pool, mem: Mem, *, topic: str | None = None) -> list[float]:
    """One topic after another, the problems of each shuffled (blocked order of medical questions, arXiv:2408.07888).

    `topic` is a key of the problems' meta; null: all are of one. Topics come in the order of their names. The shuffle
    is by the problems' ids, the same in every pass and under every seed.
    """
    return _once_per_pass(pool, by_topic(_shuffled(pool), _topics(pool, topic)))


@item(draws="top", looks=("rate",))
def blocked_curriculum(
    pool: Pool,
    mem: Mem,
    *,
    topic: str | None = None,
    by: str = "rate",
    descending: bool = False,
) -> list[float]:
    """One topic after another, each from easy to hard (arXiv:2408.07888).

    `topic` as of `blocked`, `by` as of `in_order`. The paper's difficulty is 1 - the mean probability that judges give the
    right option: a number in your rows' meta.
    """
    return _once_per_pass(pool, by_topic(_graded(pool, by, descending), _topics(pool, topic)))


@item(draws="top")
def interleaved(pool: Pool, mem: Mem, *, topic: str | None = None) -> list[float]:
    """One problem of each topic in turn, those of a topic shuffled (arXiv:2408.07888). `topic` as of `blocked`."""
    return _once_per_pass(pool, in_turn(_shuffled(pool), _topics(pool, topic)))


@item(draws="top", looks=("rate",))
def interleaved_curriculum(
    pool: Pool,
    mem: Mem,
    *,
    topic: str | None = None,
    by: str = "rate",
    descending: bool = False,
) -> list[float]:
    """One problem of each topic in turn, those of a topic from easy to hard (arXiv:2408.07888); options of `blocked_curriculum`."""
    return _once_per_pass(pool, in_turn(_graded(pool, by, descending), _topics(pool, topic)))


Key = tuple[float, str]
"""Difficulty and id: no two problems have the same."""


def _ease(pool: Pool, by: str, descending: bool) -> list[float]:
    keys = pool.by(by)
    return [-key for key in keys] if (by == "rate") != descending else keys  # a high rate is easy


def _graded(pool: Pool, by: str, descending: bool) -> list[Key]:
    keys = _ease(pool, by, descending)
    return [(key, hashed) for key, (_, hashed) in zip(keys, _shuffled(pool), strict=True)]


def _shuffled(pool: Pool) -> list[Key]:
    return [(0.0, hashlib.sha256(p.id.encode()).hexdigest()) for p in pool.problems]


def _topics(pool: Pool, key: str | None) -> list[str]:
    return ["" if key is None else str(pool.meta(p, key)) for p in pool.problems]


def _once_per_pass(pool: Pool, places: Sequence[int]) -> list[float]:
    passes = pool.fact("visits")
    return [-(visits * len(pool) + place) for visits, place in zip(passes, places, strict=True)]


def by_topic(keys: Sequence[Key], topics: Sequence[str]) -> list[int]:
    """Place of each problem: topic after topic, within one by key.

    >>> by_topic([(1, "p"), (2, "q"), (1, "r"), (2, "s")], ["a", "a", "b", "b"])
    [0, 1, 2, 3]
    """
    order = sorted(range(len(keys)), key=lambda i: (topics[i], keys[i]))
    return _places(order)


def in_turn(keys: Sequence[Key], topics: Sequence[str]) -> list[int]:
    """Place of each problem: the first of each topic, then the second of each, and so on.

    >>> in_turn([(1, "p"), (2, "q"), (1, "r"), (2, "s")], ["a", "a", "b", "b"])
    [0, 2, 1, 3]
    """
    within: dict[str, list[Key]] = {}
    for key, topic in sorted(zip(keys, topics, strict=True)):
        within.setdefault(topic, []).append(key)
    rank = {(t, key): i for t, own in within.items() for i, key in enumerate(own)}
    turns = [(rank[t, key], t) for key, t in zip(keys, topics, strict=True)]
    return _places(sorted(range(len(keys)), key=turns.__getitem__))


def _places(order: Sequence[int]) -> list[int]:
    places = [0] * len(order)
    for place, i in enumerate(order):
        places[i] = place
    return places


@item(looks=("rate",))
def paced(
    pool: Pool,
    mem: Mem,
    *,
    by: str = "rate",
    descending: bool = False,
    shape: Literal["linear", "root", "quadratic", "exponential", "step"] = "linear",
    start: float = 0.2,
    until: float = 1.0,
) -> list[float]:
    """The easiest share of the pool, all alike; the share grows from `start` to 1 up to a share `until` of the phase.

    CLIMB's pacing (arXiv:2311.08886, from its code: percentile cap .2 to 1; its results show no consistent gain). `by` as in
    `in_order`; `step` opens a tenth at a time.
    """
    keys = pool.by(by)
    if (by == "rate") != descending:
        keys = [-key for key in keys]
    share = pace(pool.step / max(1, pool.total) / until, shape, start)
    bound = sorted(keys)[max(1, math.ceil(share * len(keys))) - 1]
    return [0.0 if key <= bound else -math.inf for key in keys]


def pace(progress: float, shape: str, start: float) -> float:
    """Share of the pool that is open.

    >>> [round(pace(p, "linear", 0.2), 6) for p in (0.0, 0.5, 1.0)]
    [0.2, 0.6, 1.0]
    """
    t = min(1.0, max(0.0, progress))
    if shape == "exponential":
        return start ** (1 - t)
    moved = {"root": math.sqrt(t), "quadratic": t * t, "step": math.floor(10 * t + 1e-9) / 10}
    return start + (1 - start) * moved.get(shape, t)


@item(looks=("loss",))
def cyclical(
    pool: Pool, mem: Mem, *, low: float = 0.25, high: float = 1.0, alpha: float = 0.5
) -> list[float]:
    """Epochs whose share of the pool swings between `low` and `high`, easier problems likelier (Kesgin and Amasyali).

    The share n goes n / alpha up to `high`, then n alpha down to `low`, and so on. An epoch draws n N problems without
    replacement, P in proportion to 1 / loss. low .25, high 1, alpha .5 are those of the authors' code; there the loss is
    that of a trained model, here that of the phase's parent on the gold text, measured once. An epoch ends with the step
    in which it is used up.
    """
    losses = pool.measured("loss")
    visits = pool.fact("visits")
    now = {p.id: v for p, v in zip(pool.problems, visits, strict=True) if v}
    begun = mem.setdefault("begun", now)
    drawn = [v - begun.get(p.id, 0.0) for v, p in zip(visits, pool.problems, strict=True)]
    share, rising = mem.setdefault("share", low), mem.setdefault("rising", True)
    if math.fsum(drawn) >= max(1, math.floor(share * len(pool))):
        share, rising = next_share(share, rising, low, high, alpha)
        mem["share"], mem["rising"] = share, rising
        mem["begun"] = now
        drawn = [0.0] * len(pool)
    used = min(drawn)
    return [
        -math.log(max(loss, 1e-6)) if count <= used else -math.inf
        for loss, count in zip(losses, drawn, strict=True)
    ]


def next_share(
    share: float, rising: bool, low: float, high: float, alpha: float
) -> tuple[float, bool]:
    """The next epoch's share, and whether shares rise.

    >>> shares, rising = [0.25], True
    >>> while sum(shares) < 5:
    ...     share, rising = next_share(shares[-1], rising, 0.25, 1.0, 0.5)
    ...     shares.append(share)
    >>> shares
    [0.25, 0.5, 1.0, 0.5, 0.25, 0.5, 1.0, 0.5, 0.25, 0.5]
    """
    if rising and share >= high:
        rising = False
    elif not rising and share <= low:
        rising = True
    return (min(share / alpha, high), True) if rising else (max(share * alpha, low), False)


@item(looks=("rate",))
def tarot(
    pool: Pool,
    mem: Mem,
    *,
    policy: Policy = "forward",
    by: str = "rate",
    descending: bool = False,
) -> list[float]:
    """Four tiers of difficulty that open over the phase (TAROT, arXiv:2602.15449).

    forward: {basic} below .2 of the phase, + medium below .4, + high below .6, then all; reverse: {high}, {high, edge},
    {medium, high, edge}, all; uniform: all alike; varied: weights .35, .35, .15, .15. Bounds and weights from the authors'
    code, whose tiers are tests of one program and weigh its reward; here they are quarters of the pool, by `by` as in
    `in_order`, and weigh which problem comes. The paper picks the policy by a probe of the model, which was not found.
    """
    keys = pool.by(by)
    if (by == "rate") != descending:
        keys = [-key for key in keys]
    tiers = quantiles(keys, TIERS)
    weights = tier_weights(policy, pool.step / max(1, pool.total))
    sizes = Counter(tiers)
    return [
        math.log(weights[tier] / sizes[tier]) if weights[tier] > 0 else -math.inf for tier in tiers
    ]


def tier_weights(policy: str, progress: float) -> list[float]:
    """Weight of each tier.

    >>> tier_weights("forward", 0.1), tier_weights("varied", 0.5)
    ([1.0, 0.0, 0.0, 0.0], [0.35, 0.35, 0.15, 0.15])
    """
    if policy == "uniform":
        return [1 / TIERS] * TIERS
    if policy == "varied":
        return list(VARIED)
    stage = min(3, int(progress / 0.2 + 1e-9))
    opened = (FORWARD if policy == "forward" else REVERSE)[stage]
    return [1 / len(opened) if tier in opened else 0.0 for tier in range(TIERS)]


def quantiles(keys: Sequence[float], count: int) -> list[int]:
    """Which of `count` equal parts of the sorted keys each lies in; equal keys lie in the same.

    >>> quantiles([5.0, 1.0, 3.0, 3.0], 2)
    [1, 0, 0, 0]
    """
    ordered = sorted(keys)
    first = {key: place for place, key in reversed(list(enumerate(ordered)))}
    last = {key: place for place, key in enumerate(ordered)}
    return [int((first[key] + last[key]) / 2 * count / len(keys)) for key in keys]
