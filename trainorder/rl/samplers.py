"""Which task a phase of several asks next: samplers weigh the tasks, curricula open and close them.

Both are functions `(Moment, mem, *, options) -> {task: weight}`, called once per step, before its prompts are drawn:

    sampler        how likely the next prompt is of each task, from what the steps so far showed
    curriculum     which tasks take part at this step, and how much; 0 closes a task

A step's distribution is their product with the phase's own weights, normalised (`Scheduler`). `mem` is theirs alone and
JSON-able: it is part of `State.mem`, so a resumed phase goes on exactly. They see all that was sampled, before edits:
a group that dynamic sampling dropped counts with |advantage| 0, else an easy task would look learnable.

Tasks' problems come in one sequence per (seed, task) whatever is decided here, so that phases meet the same problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

from trainorder.config import Piece, RlConfig
from trainorder.reading import ParamsError, did_you_mean
from trainorder.streams import stream

Mem = dict[str, Any]
Function = TypeVar("Function", bound=Callable[..., dict[str, float]])


class Seen(TypedDict):
    """What one step showed of one task."""

    rollouts: int
    """Sampled rollouts that could be graded."""
    absadv: float
    """Mean over these rollouts of the mean |advantage| over tokens."""
    reward: float
    """Mean reward."""
    entropy: float
    """Mean entropy over sampled tokens, nats."""


@dataclass(frozen=True)
class Moment:
    """What is known before a step.

    >>> Moment(0, 10, {"math": 1.0, "qa": 3.0}).tasks
    ['math', 'qa']
    """

    step: int
    total: int
    """Steps of the phase."""
    weights: Mapping[str, float]
    """The phase's tasks with their weights."""
    seen: Mapping[str, Seen] = field(default_factory=dict)
    """The last step, by task; empty before the first, and without the tasks it did not ask."""

    @property
    def tasks(self) -> list[str]:
        """The phase's tasks, as listed."""
        return list(self.weights)


SAMPLERS: dict[str, Callable[..., dict[str, float]]] = {}
CURRICULA: dict[str, Callable[..., dict[str, float]]] = {}
DEALT = ("weights", "uniform")
"""Samplers whose shares are dealt out exactly (largest remainder); prompts of the others are drawn one by one."""


def sampler(function: Function) -> Function:
    """List a sampler."""
    SAMPLERS[function.__name__] = function
    return function


def curriculum(function: Function) -> Function:
    """List a curriculum."""
    CURRICULA[function.__name__] = function
    return function


@sampler
def weights(now: Moment, mem: Mem) -> dict[str, float]:
    """The phase's own weights, exactly."""
    return dict.fromkeys(now.tasks, 1.0)


@sampler
def uniform(now: Moment, mem: Mem) -> dict[str, float]:
    """All tasks alike, whatever their weights."""
    return {task: 1.0 / now.weights[task] for task in now.tasks}


@sampler
def sec(
    now: Moment,
    mem: Mem,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    decay_unsampled: bool = False,
) -> dict[str, float]:
    """Self-evolving curriculum (arXiv 2505.14970): a bandit whose reward is the mean |advantage|.

    Q <- (1 - alpha) Q + alpha |A|, P = softmax(Q / temperature). The published code also decays tasks that a step
    did not ask, towards 0: `decay_unsampled`.
    """
    quality = mem.setdefault("quality", dict.fromkeys(now.tasks, 0.0))
    for task in now.tasks:
        if task in now.seen or (decay_unsampled and now.seen):
            found = now.seen[task]["absadv"] if task in now.seen else 0.0
            quality[task] = (1 - alpha) * quality[task] + alpha * found
    return softmax(quality, temperature)


@sampler
def dump(now: Moment, mem: Mem, *, window: int = 300, temperature: float = 0.1) -> dict[str, float]:
    """DUMP (arXiv 2504.09710): upper confidence bound of the mean |advantage| of the last `window` rollouts.

    At its temperature of 0.1 the bonus rules at first: a task not yet asked takes nearly every prompt.
    """
    recent = mem.setdefault("recent", {task: [] for task in now.tasks})
    drawn = mem.setdefault("drawn", dict.fromkeys(now.tasks, 0))
    for task, seen in now.seen.items():
        drawn[task] += seen["rollouts"]
        recent[task] = _last([*recent[task], [seen["rollouts"], seen["absadv"]]], window)
    return softmax(upper_bounds(_means(recent), drawn), temperature)


@sampler
def alp(now: Moment, mem: Mem, *, window: int = 10, epsilon: float = 0.2) -> dict[str, float]:
    """Absolute learning progress of discrete tasks (Portelas et al. 2019, TSCL's form): how fast rewards change.

    Progress is |mean of the newer half - mean of the older half| over a task's last `window` steps;
    P = (1 - epsilon) progress / sum + epsilon / tasks, uniform while nothing moves. A task that collapses counts as
    much as one that improves.
    """
    rewards = mem.setdefault("rewards", {task: [] for task in now.tasks})
    for task, seen in now.seen.items():
        rewards[task] = [*rewards[task], seen["reward"]][-window:]
    progress = {task: _progress(values) for task, values in rewards.items()}
    return mixed(progress, epsilon)


@sampler
def live_entropy(
    now: Moment,
    mem: Mem,
    *,
    strength: float = 200.0,
    target: float | None = None,
    beta: float = 0.9,
    temperature: float = 0.1,
) -> dict[str, float]:
    """Prefer learnable tasks, and among them those that bring the policy's entropy back to `target` (ours).

    score = |A| + strength * (target - H) * drift, where H is the mean over tasks of the entropy of their rollouts,
    drift how much a task's own entropy moves per step that asks it; all are moving averages (`beta`). Without a
    target, H as first seen is kept. There is no fixed probe set, so H moves with the mix of what is sampled.
    """
    learnable = mem.setdefault("learnable", dict.fromkeys(now.tasks, 0.0))
    entropy, drift = mem.setdefault("entropy", {}), mem.setdefault("drift", {})
    for task, seen in now.seen.items():
        learnable[task] = beta * learnable[task] + (1 - beta) * seen["absadv"]
        if task in entropy:
            moved = seen["entropy"] - entropy[task]
            drift[task] = beta * drift.get(task, 0.0) + (1 - beta) * moved
        entropy[task] = beta * entropy.get(task, seen["entropy"]) + (1 - beta) * seen["entropy"]
    level = sum(entropy.values()) / len(entropy) if entropy else 0.0
    if entropy and "target" not in mem:
        mem["target"] = level if target is None else target
    drifts = {task: drift.get(task, 0.0) for task in now.tasks}
    push = strength * (mem.get("target", level) - level)
    return softmax(entropy_scores(learnable, drifts, push), temperature)


@curriculum
def together(now: Moment, mem: Mem) -> dict[str, float]:
    """All tasks, all the time: joint training."""
    return dict.fromkeys(now.tasks, 1.0)


@curriculum
def in_turn(
    now: Moment, mem: Mem, *, order: list[str] | None = None, cycles: int = 1
) -> dict[str, float]:
    """A fixed plan: one task after another, each for its share of the steps; `cycles` times over (interleaving)."""
    tasks = order or now.tasks
    return _only(now, tasks[_block(now, tasks, cycles)])


@curriculum
def unlock(
    now: Moment, mem: Mem, *, order: list[str] | None = None, window: int = 5, gain: float = 0.02
) -> dict[str, float]:
    """Begin with one task and add the next when the newest one's reward has levelled off.

    Level: the mean of its last `window` steps is less than `gain` above that of the `window` before. At the latest
    the k-th task of n comes after a share k / n of the steps, so that every task is trained.
    """
    tasks = order or now.tasks
    opened = mem.setdefault("open", 1)
    rewards = mem.setdefault("rewards", [])
    newest = tasks[opened - 1]
    if newest in now.seen:
        rewards.append(now.seen[newest]["reward"])
    level = len(rewards) >= 2 * window and (
        _mean(rewards[-window:]) - _mean(rewards[-2 * window : -window]) < gain
    )
    late = now.step >= opened * now.total / len(tasks)
    if opened < len(tasks) and (level or late):
        mem["open"], mem["rewards"] = opened + 1, []
    return {task: float(task in tasks[: mem["open"]]) for task in now.tasks}


@curriculum
def stop_early(
    now: Moment,
    mem: Mem,
    *,
    order: list[str] | None = None,
    watch: float = 0.25,
    drop: float = 0.05,
    window: int = 3,
) -> dict[str, float]:
    """One task after another; a task's turn ends early when one before it has lost more than `drop` of its reward.

    A share `watch` of the prompts stays with earlier tasks: the probe that shows the loss (and, being trained on, a
    little rehearsal). Steps that are saved this way go to the harmed tasks at the end, to all if none was.
    """
    tasks = order or now.tasks
    block, began = mem.setdefault("block", 0), mem.setdefault("began", 0)
    harmed = mem.setdefault("harmed", [])
    _note(now, mem, window)
    if block < len(tasks):
        losing = _losing(mem, tasks[:block], drop, window)
        over = now.step - began >= _quota(now, tasks[block])
        if losing or over:
            _end_turn(mem, tasks[block])
            mem["harmed"] = [*harmed, *(task for task in losing if task not in harmed)]
            mem["block"], mem["began"] = block + 1, now.step
    if mem["block"] >= len(tasks):
        wanted = mem["harmed"] or tasks
        return {task: float(task in wanted) for task in now.tasks}
    return _watched(now, tasks, mem["block"], watch)


@curriculum
def refresh(
    now: Moment,
    mem: Mem,
    *,
    order: list[str] | None = None,
    watch: float = 0.25,
    drop: float = 0.05,
    window: int = 3,
    steps: int = 2,
) -> dict[str, float]:
    """One task after another; an earlier task that lost more than `drop` of its reward gets `steps` steps of its own.

    A share `watch` of the prompts stays with earlier tasks, as in `stop_early`. A refresh is taken out of the turn it
    interrupts, so that the phase keeps its length.
    """
    tasks = order or now.tasks
    block = _block(now, tasks, 1)
    _note(now, mem, window)
    if block > mem.setdefault("block", 0):
        _end_turn(mem, tasks[mem["block"]])
        mem["block"] = block
    if mem.get("until", 0) > now.step:
        return _only(now, mem["refreshed"])
    losing = _losing(mem, tasks[:block], drop, window)
    if losing:
        mem["refreshed"], mem["until"] = losing[0], now.step + steps
        mem["rewards"][losing[0]] = []
        return _only(now, losing[0])
    return _watched(now, tasks, block, watch)


def softmax(scores: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Weights exp(score / temperature), normalised.

    >>> {k: round(p, 4) for k, p in softmax({"a": 0.4, "b": 0.0}, 1.0).items()}
    {'a': 0.5987, 'b': 0.4013}
    """
    top = max(scores.values())
    raised = {key: math.exp((score - top) / temperature) for key, score in scores.items()}
    return normal(raised)


def normal(values: Mapping[str, float]) -> dict[str, float]:
    """Divided by their sum; uniform where that is 0."""
    total = math.fsum(values.values())
    return {key: value / total if total else 1 / len(values) for key, value in values.items()}


def upper_bounds(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """DUMP's bound: mean + sqrt(2 ln(N + 1) / (n + 1)), N the sum of all n.

    >>> {k: round(u, 4) for k, u in upper_bounds({"a": 0.5, "b": 0.5}, {"a": 8, "b": 0}).items()}
    {'a': 1.1988, 'b': 2.5963}
    """
    total = sum(counts.values())
    return {
        task: mean + math.sqrt(2 * math.log(total + 1) / (counts[task] + 1))
        for task, mean in means.items()
    }


def mixed(progress: Mapping[str, float], epsilon: float) -> dict[str, float]:
    """In proportion to progress, with a share `epsilon` spread evenly.

    >>> {k: round(p, 3) for k, p in mixed({"a": 0.3, "b": 0.1}, 0.2).items()}
    {'a': 0.7, 'b': 0.3}
    """
    even = epsilon / len(progress)
    return {task: (1 - epsilon) * share + even for task, share in normal(progress).items()}


def entropy_scores(
    learnable: Mapping[str, float], drift: Mapping[str, float], push: float
) -> dict[str, float]:
    """Learnability plus push * drift, push = strength * (target - entropy).

    >>> scores = entropy_scores({"a": 0.4, "b": 0.4}, {"a": -0.01, "b": 0.005}, 200 * (0.3 - 0.2))
    >>> {k: round(v, 4) for k, v in scores.items()}
    {'a': 0.2, 'b': 0.5}
    """
    return {task: learnable[task] + push * drift[task] for task in learnable}


@dataclass(frozen=True)
class Scheduler:
    """A phase's sampler and curriculum with their options."""

    sampler: Piece = "weights"
    curriculum: Piece = "together"

    @classmethod
    def from_config(cls, rl: RlConfig) -> Scheduler:
        """Look both up.

        Raises:
            ParamsError: unknown name.
        """
        _find(SAMPLERS, "rl.sampler", rl.sampler)
        _find(CURRICULA, "rl.curriculum", rl.curriculum)
        return cls(rl.sampler, rl.curriculum)

    def shares(self, now: Moment, mem: Mem) -> dict[str, float]:
        """The distribution of the next step's prompts over the tasks; to be asked once per step."""
        likes = self._ask(SAMPLERS, "sampler", now, mem)
        opens = self._ask(CURRICULA, "curriculum", now, mem)
        return normal({t: w * likes[t] * opens[t] for t, w in now.weights.items()})

    def counts(
        self, now: Moment, mem: Mem, prompts: int, key: tuple[str | int, ...]
    ) -> dict[str, int]:
        """How many prompts each task gets: dealt (`deal`), or drawn from the stream `key`."""
        shares = self.shares(now, mem)
        if _name(self.sampler) in DEALT:
            return deal(shares, prompts, mem.setdefault("owed", dict.fromkeys(now.tasks, 0.0)))
        drawn = stream("sampler", *key).choices(now.tasks, list(shares.values()), k=prompts)
        return {task: drawn.count(task) for task in now.tasks}

    def _ask(self, listed: Mapping[str, Any], slot: str, now: Moment, mem: Mem) -> dict[str, float]:
        piece: Piece = getattr(self, slot)
        function = _find(listed, f"rl.{slot}", piece)
        options = {} if isinstance(piece, str) else next(iter(piece.values()))
        return function(now, mem.setdefault(slot, {}), **options)


def deal(shares: Mapping[str, float], prompts: int, owed: dict[str, float]) -> dict[str, int]:
    """Split prompts in proportion: largest remainder, with what a task did not get carried to the next step.

    A task of weight 1 in 100 is asked once in 100 prompts, not never. Ties go to the task named first.

    >>> owed = {"a": 0.0, "b": 0.0}
    >>> [deal({"a": 0.75, "b": 0.25}, 2, owed) for _ in range(2)]
    [{'a': 2, 'b': 0}, {'a': 1, 'b': 1}]
    """
    for task, share in shares.items():
        owed[task] += prompts * share
    counts = dict.fromkeys(shares, 0)
    open_tasks = [task for task, share in shares.items() if share > 0]
    for _ in range(prompts):
        task = max(open_tasks, key=lambda task: owed[task])
        counts[task] += 1
        owed[task] -= 1
    return counts


def _name(piece: Piece) -> str:
    return piece if isinstance(piece, str) else next(iter(piece))


def _find(listed: Mapping[str, Any], where: str, piece: Piece) -> Callable[..., dict[str, float]]:
    name, names = _name(piece), sorted(listed)
    if name not in listed:
        raise ParamsError(
            f"{where}: no {where[3:]} {name!r}; there are {', '.join(names)}"
            f"{did_you_mean(name, names)}"
        )
    return listed[name]


def _only(now: Moment, chosen: str) -> dict[str, float]:
    return {task: float(task == chosen) for task in now.tasks}


def _block(now: Moment, tasks: Sequence[str], cycles: int) -> int:
    """Whose turn it is, when tasks share each cycle's steps by weight."""
    total = math.fsum(now.weights.values())
    place, passed = (now.step * cycles / now.total) % 1.0, 0.0
    for i, task in enumerate(tasks):
        passed += now.weights[task] / total
        if place < passed - 1e-9:
            return i
    return len(tasks) - 1


def _quota(now: Moment, task: str) -> float:
    return now.total * now.weights[task] / math.fsum(now.weights.values())


def _watched(now: Moment, tasks: Sequence[str], block: int, watch: float) -> dict[str, float]:
    """One task in turn, and a share `watch` spread over those before it; the phase's weights are taken out."""
    earlier = tasks[:block]
    share = {task: watch / len(earlier) for task in earlier} if earlier else {}
    share[tasks[block]] = 1.0 - (watch if earlier else 0.0)
    return {task: share.get(task, 0.0) / now.weights[task] for task in now.tasks}


def _note(now: Moment, mem: Mem, window: int) -> None:
    rewards = mem.setdefault("rewards", {})
    for task, seen in now.seen.items():
        rewards[task] = [*rewards.get(task, []), seen["reward"]][-window:]


def _end_turn(mem: Mem, task: str) -> None:
    """What the task reached in its turn is what it may lose from; watching it begins anew."""
    mem.setdefault("level", {})[task] = _mean(mem["rewards"].get(task, []))
    mem["rewards"][task] = []


def _losing(mem: Mem, earlier: Sequence[str], drop: float, window: int) -> list[str]:
    """Earlier tasks whose last `window` steps lie more than `drop` below the end of their turn."""
    rewards, level = mem["rewards"], mem.get("level", {})
    full = [task for task in earlier if task in level and len(rewards[task]) >= window]
    return [task for task in full if _mean(rewards[task]) < level[task] - drop]


def _last(entries: list[list[float]], window: int) -> list[list[float]]:
    """The newest [rollouts, mean] that together hold `window` rollouts, the oldest cut to fit."""
    kept: list[list[float]] = []
    for count, mean in reversed(entries):
        room = window - sum(entry[0] for entry in kept)
        if room <= 0:
            break
        kept.insert(0, [min(count, room), mean])
    return kept


def _means(recent: Mapping[str, list[list[float]]]) -> dict[str, float]:
    return {
        task: sum(n * m for n, m in entries) / max(1, sum(n for n, _ in entries))
        for task, entries in recent.items()
    }


def _progress(values: Sequence[float]) -> float:
    half = len(values) // 2
    return abs(_mean(values[-half:]) - _mean(values[:half])) if half else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
