"""Item samplers that follow an order of difficulty: sorted, paced, cyclic, in tiers."""

from __future__ import annotations

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
def in_order(
    pool: Pool,
    mem: Mem,
    *,
    by: str = "file",
    descending: bool = False,
    blocks: str | None = None,
    interleaved: bool = False,
) -> list[float]:
    """Problems in the order of a number, each once per pass: file order, short to long, easy to hard (no paper of its own).

    `by` is `file` (what users of NeMo-RL ask for), `length` (of the prompt), `rate` (pass rate, measured at the phase's start
    with 4 rollouts per problem: easy first, SARI arXiv:2504.15900), or a number in the problems' meta (human curricula,
    arXiv:2310.09518). `blocks` is a key of the meta, a topic: one topic after another, or, `interleaved`, one problem of
    each topic in turn (both orders of arXiv:2408.07888). Ties come in random order, by file where `by` is `file`.
    """
    keys = pool.by(by)
    if (by == "rate") != descending:  # a high rate is easy
        keys = [-key for key in keys]
    topics = [str(pool.meta(p, blocks)) if blocks else "" for p in pool.problems]
    places = ranked(keys, topics, interleaved=interleaved)
    passes = pool.fact("visits")
    return [-(visits * len(pool) + place) for visits, place in zip(passes, places, strict=True)]


def ranked(keys: Sequence[float], topics: Sequence[str], *, interleaved: bool) -> list[float]:
    """Place of each problem: by topic and key, or by place within the topic and topic; equal keys share a place.

    >>> ranked([1, 2, 1, 2], ["a", "a", "b", "b"], interleaved=False)
    [0.0, 1.0, 2.0, 3.0]
    >>> ranked([1, 2, 1, 2], ["a", "a", "b", "b"], interleaved=True)
    [0.0, 2.0, 1.0, 3.0]
    """
    within: dict[str, list[float]] = {}
    for key, topic in sorted(zip(keys, topics, strict=True)):
        within.setdefault(topic, []).append(key)
    sorting = [
        ((within[topic].index(key), topic) if interleaved else (topic, key))
        for key, topic in zip(keys, topics, strict=True)
    ]
    first: dict[tuple, int] = {}
    for place, key in enumerate(sorted(sorting)):
        first.setdefault(key, place)
    return [float(first[key]) for key in sorting]


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
