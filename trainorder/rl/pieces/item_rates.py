"""Item samplers that follow pass rates: the frontier of what the policy can do, and bandits over buckets of problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from trainorder.rl.items import Pool, item
from trainorder.rl.pieces.item_orders import quantiles
from trainorder.rl.pieces.levels import due
from trainorder.rl.samplers import Mem, Moment, Seen, alp, dump, sec


@item(looks=("rate",))
def cures(
    pool: Pool, mem: Mem, *, temperature: float = 1.0, cold_start: bool = False
) -> list[float]:
    """P in proportion to exp(sqrt(p (1 - p)) / temperature) (CurES, arXiv:2510.01037).

    p is the mean of Beta(1 + right, 1 + wrong) of a problem's rollouts, with those of `cold_start` (4 per problem of the
    whole pool, before the first step). The authors' code samples with a temperature per problem instead of the paper's
    one; 1 is ours, the paper's value was not found. They forget all rollouts once per iteration over a part of the data;
    a phase here has no such iteration. `cures_allocation` is the other half.
    """
    if cold_start:
        pool.measured("rate")
    return [math.sqrt(p * (1 - p)) / temperature for p in pool.rates()]


@item(looks=("rate",))
def frontier(
    pool: Pool,
    mem: Mem,
    *,
    utility: Literal["spell", "socratic", "variance", "deviation"] = "spell",
    epsilon: float = 0.1,
    cold_start: bool = False,
) -> list[float]:
    """P in proportion to how near a problem's pass rate p is to one half, with a share `epsilon` spread evenly.

    spell: exp(-(p - .5)^2 / (2 (.5 / 3)^2)), 0 at 0 and 1 (SPELL's reward of a questioner, arXiv:2509.23863); socratic: the
    same with .2, nowhere 0 (Socratic-Zero, arXiv:2509.24726); variance: 4 p (1 - p); deviation: 2 sqrt(p (1 - p)), the mean
    |advantage| of standardised binary rewards, which SEC and DUMP follow. `epsilon` is ours: a problem whose rate is taken
    for 0 or 1 comes again.
    """
    if cold_start:
        pool.measured("rate")
    values = [utility_of(p, utility) for p in pool.rates()]
    total = math.fsum(values)
    even = epsilon / len(values)
    return [
        math.log(max((1 - epsilon) * value / total + even, 1e-300)) if total > 0 else 0.0
        for value in values
    ]


def utility_of(rate: float, utility: str) -> float:
    """How useful a problem of this pass rate is.

    >>> [round(utility_of(0.25, name), 4) for name in ("spell", "socratic", "variance", "deviation")]
    [0.3247, 0.4578, 0.75, 0.866]
    """
    if utility == "variance":
        return 4 * rate * (1 - rate)
    if utility == "deviation":
        return 2 * math.sqrt(rate * (1 - rate))
    width = 0.2 if utility == "socratic" else 0.5 / 3
    if utility == "spell" and rate in (0.0, 1.0):
        return 0.0
    return math.exp(-((rate - 0.5) ** 2) / (2 * width**2))


@item(looks=("rate", "teacher_rate"))
def learnability_gap(
    pool: Pool, mem: Mem, *, omega: float = 1.0, temperature: float = 0.1
) -> list[float]:
    """exp((p_teacher - omega p_now) / temperature): hard now, easy for the phase's teacher.

    From learnability-guided distillation (CVPR 2026, vision), whose score is loss_now - omega loss_reference, omega .5. The
    form in pass rates, omega 1 and the temperature are ours. Both rates are measured on the whole pool before the first step;
    p_now then follows the phase's own rollouts.
    """
    pool.measured("rate")
    theirs = pool.measured("teacher_rate")
    return [gap(t, p, omega) / temperature for t, p in zip(theirs, pool.rates(), strict=True)]


def gap(reference: float, now: float, omega: float) -> float:
    """What is left to learn.

    >>> [round(gap(*pair, 1.0), 4) for pair in ((0.9, 0.2), (0.9, 0.8), (0.1, 0.1))]
    [0.7, 0.1, 0.0]
    """
    return reference - omega * now


@item(looks=("rate",))
def pudf(
    pool: Pool,
    mem: Mem,
    *,
    by: str = "rate",
    above: float = 0.0,
    least: float = 0.1,
    stall: float = 0.1,
    patience: int = 2,
) -> list[float]:
    """Problems no harder than the policy is able: b <= theta + above (PUDF, arXiv:2408.05326; a Rasch model).

    P(right) = 1 / (1 + exp(b - theta)). theta is the maximum of log N(theta; 0, 1) + sum of the log-likelihood of the grades
    of the last step. The difficulty b is a number in the problems' meta (`by: difficulty`, as a crowd of models gives it), or
    with `rate` -ln(p / (1 - p)) of the policy's own 4 rollouts at the phase's start, a crowd of one. theta that did not rise
    for `patience` steps rises by `stall`; a share `least` of the pool stays open. above 0, stall .1 and patience 2 (epochs)
    are the authors'; the minimum's value was not found.
    """
    if by == "rate":
        pool.measured("rate")
        if "difficulty" not in mem:
            rates = pool.rates()
            mem["difficulty"] = {
                p.id: -math.log(r / (1 - r)) for p, r in zip(pool.problems, rates, strict=True)
            }
        difficulty = [mem["difficulty"].get(p.id, 0.0) for p in pool.problems]
    else:
        difficulty = pool.by(by)
    grades = [
        (b, pool.known[p.id]["last"])
        for p, b in zip(pool.problems, difficulty, strict=True)
        if p.id in pool.seen and "last" in pool.known.get(p.id, {})
    ]
    if grades and mem.get("step") != pool.step:
        found = ability(grades)
        rose = found > mem.get("theta", -math.inf)
        mem["waited"] = 0 if rose else mem.get("waited", 0) + 1
        mem["bonus"] = mem.get("bonus", 0.0) + (stall if mem["waited"] >= patience else 0.0)
        mem["theta"], mem["step"] = found, pool.step
    bound = mem.get("theta", 0.0) + mem.get("bonus", 0.0) + above
    floor = sorted(difficulty)[max(1, math.ceil(least * len(difficulty))) - 1]
    return [0.0 if b <= max(bound, floor) else -math.inf for b in difficulty]


def ability(grades: Sequence[tuple[float, float]]) -> float:
    """The most likely theta of (difficulty, grade in [0, 1]) pairs under the prior N(0, 1).

    >>> abs(round(ability([(-1.0, 1.0), (1.0, 0.0)]), 6))
    0.0
    """
    low, high = -50.0, 50.0
    for _ in range(80):  # the slope falls in theta: bisection
        theta = (low + high) / 2
        slope = -theta + math.fsum(g - 1 / (1 + math.exp(b - theta)) for b, g in grades)
        low, high = (theta, high) if slope > 0 else (low, theta)
    return (low + high) / 2


@item()
def open_levels(
    pool: Pool,
    mem: Mem,
    *,
    by: str = "length",
    bins: int = 4,
    promote: Literal["plateau", "rate"] = "plateau",
    window: int = 20,
    threshold: float = 0.55,
    replay: float = 0.25,
) -> list[float]:
    """One level of a task after another, the easiest first; a share `replay` of earlier levels (ours, after h1 and Socratic-Zero).

    Levels are buckets as of `sec_buckets`, in the order of their numbers. The next one opens once the rewards of the newest
    have levelled off over `window` steps (`plateau`), or their mean over `window` rollouts passes `threshold` (`rate`:
    Wiki-R1 takes 300 and .55). replay .25 is Socratic-Zero's (arXiv:2509.24726).
    """
    names = bucket_names(pool, by, bins)
    order = sorted(set(names), key=_as_number)
    level = mem.setdefault("level", 0)
    newest = [pool.seen[p.id] for p, n in zip(pool.problems, names, strict=True) if n == order[level] and p.id in pool.seen]  # fmt: skip
    rewards = mem.setdefault("rewards", [])
    if newest and mem.get("step") != pool.step:
        one = _together(newest)
        rewards.append([one["rollouts"], one["reward"]])
        mem["step"] = pool.step
        if level + 1 < len(order) and due(rewards, promote, window, threshold):
            mem["level"], mem["rewards"] = level + 1, []
    newest_share = 1.0 - (replay if mem["level"] else 0.0)
    shares = {
        name: newest_share
        if i == mem["level"]
        else replay / mem["level"]
        if i < mem["level"]
        else 0.0
        for i, name in enumerate(order)
    }
    sizes = {name: names.count(name) for name in order}
    return [math.log(shares[n] / sizes[n]) if shares[n] > 0 else -math.inf for n in names]


def _as_number(name: str) -> tuple[float, str]:
    try:
        return float(name), ""
    except ValueError:
        return math.inf, name


@item()
def sec_buckets(
    pool: Pool,
    mem: Mem,
    *,
    by: str = "length",
    bins: int = 4,
    alpha: float = 0.1,
    temperature: float = 1.0,
    decay_unsampled: bool = False,
) -> list[float]:
    """SEC (arXiv:2505.14970) over buckets of a task's problems: difficulty levels, sources; then uniform in the bucket.

    A bucket is a value of `by` (`file`, `length` or a key of the meta); numbers of more than `bins` values are cut into as
    many equal parts (ours). Other options as of the task sampler `sec`.
    """
    buckets, now = _moment(pool, by, bins)
    options = {"alpha": alpha, "temperature": temperature, "decay_unsampled": decay_unsampled}
    return _spread(buckets, sec(now, mem, **options))


@item()
def dump_buckets(
    pool: Pool,
    mem: Mem,
    *,
    by: str = "length",
    bins: int = 4,
    window: int = 300,
    temperature: float = 0.1,
) -> list[float]:
    """DUMP (arXiv:2504.09710) over buckets, as `sec_buckets`; window and temperature as of the task sampler `dump`."""
    buckets, now = _moment(pool, by, bins)
    return _spread(buckets, dump(now, mem, window=window, temperature=temperature))


@item()
def alp_buckets(
    pool: Pool,
    mem: Mem,
    *,
    by: str = "length",
    bins: int = 4,
    window: int = 10,
    epsilon: float = 0.2,
) -> list[float]:
    """Absolute learning progress over buckets, as `sec_buckets`; window and epsilon as of the task sampler `alp`."""
    buckets, now = _moment(pool, by, bins)
    return _spread(buckets, alp(now, mem, window=window, epsilon=epsilon))


def bucket_names(pool: Pool, by: str, bins: int) -> list[str]:
    """The bucket of each problem."""
    if by not in ("file", "length"):
        values = [pool.meta(p, by) for p in pool.problems]
        if any(isinstance(value, str | bool) for value in values):
            return [str(value) for value in values]
    numbers = pool.by(by)
    if len(set(numbers)) <= bins:
        return [f"{number:g}" for number in numbers]
    return [f"{part}" for part in quantiles(numbers, bins)]


def _moment(pool: Pool, by: str, bins: int) -> tuple[list[str], Moment]:
    """The buckets as if each were a task of a phase, with what the last step showed of them."""
    names = bucket_names(pool, by, bins)
    of = {p.id: name for p, name in zip(pool.problems, names, strict=True)}
    shown: dict[str, list[Seen]] = {}
    for key, seen in pool.seen.items():
        if key in of:
            shown.setdefault(of[key], []).append(seen)
    weights = dict.fromkeys(sorted(set(names)), 1.0)
    return names, Moment(
        pool.step, pool.total, weights, {name: _together(rows) for name, rows in shown.items()}
    )


def _together(rows: Sequence[Seen]) -> Seen:
    count = sum(row["rollouts"] for row in rows)

    def mean(values: Sequence[float]) -> float:
        counts = [row["rollouts"] for row in rows]
        return math.fsum(v * n for v, n in zip(values, counts, strict=True)) / count

    return Seen(
        rollouts=count,
        absadv=mean([row["absadv"] for row in rows]),
        reward=mean([row["reward"] for row in rows]),
        entropy=mean([row["entropy"] for row in rows]),
    )


def _spread(buckets: Sequence[str], shares: Mapping[str, float]) -> list[float]:
    """Log-weights of problems: a bucket's share, even inside it."""
    sizes = {name: buckets.count(name) for name in set(buckets)}
    return [math.log(max(shares[name], 1e-300) / sizes[name]) for name in buckets]
