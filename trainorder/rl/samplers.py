"""Samplers: how likely the next prompt is of each task of a phase, from what the steps so far showed.

Functions `(Moment, mem, *, options) -> {task: weight}`, called once per step by `scheduler.Scheduler`. `mem` is theirs alone
and JSON-able: it is part of `State.mem`, so a resumed phase goes on exactly. They see all that was sampled, before edits:
a group that dynamic sampling dropped counts with |advantage| 0, else an easy task would look learnable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

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
    alignment: Mapping[str, float] = field(default_factory=dict)
    """Task -> mean cosine of its gradient with those of the other tasks, where the metric `task_alignment` is asked for."""

    @property
    def tasks(self) -> list[str]:
        """The phase's tasks, as listed."""
        return list(self.weights)


SAMPLERS: dict[str, Callable[..., dict[str, float]]] = {}


def sampler(function: Function) -> Function:
    """List a sampler."""
    SAMPLERS[function.__name__] = function
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
    """Absolute learning progress of discrete tasks (arXiv:1910.07224, in the form of TSCL, arXiv:1707.00183): how fast rewards change.

    Progress is |mean of the newer half - mean of the older half| over a task's last `window` steps;
    P = (1 - epsilon) progress / sum + epsilon / tasks, uniform while nothing moves. A task that collapses counts as
    much as one that improves. epsilon .2 is the paper's share of random tasks, windows of steps and their length are ours.
    """
    rewards = mem.setdefault("rewards", {task: [] for task in now.tasks})
    for task, seen in now.seen.items():
        rewards[task] = [*rewards[task], seen["reward"]][-window:]
    progress = {task: _progress(values) for task, values in rewards.items()}
    return mixed(progress, epsilon)


@sampler
def worst_task(
    now: Moment,
    mem: Mem,
    *,
    window: int = 5,
    temperature: float = 0.2,
    epsilon: float = 0.2,
) -> dict[str, float]:
    """More prompts for the task that has come the shortest way; the aim of MT-GRPO (arXiv 2602.05547) in a simpler form.

    A task's progress is the share of its room that it has gained, (level - start) / (1 - start), level the mean reward of its
    last `window` steps and start that of its first; P = (1 - epsilon) softmax(-progress / temperature) + epsilon / tasks. Shares
    are dealt out exactly. The paper adapts the weights by a gradient step on reward and improvement, and fills each batch up
    until the shares hold after prompts without a gradient were dropped; neither is done here.
    """
    first = mem.setdefault("first", {task: [] for task in now.tasks})
    last = mem.setdefault("last", {task: [] for task in now.tasks})
    for task, seen in now.seen.items():
        first[task] = [*first[task], seen["reward"]][:window]
        last[task] = [*last[task], seen["reward"]][-window:]
    progress = {task: normal_progress(mean(first[task]), mean(last[task])) for task in now.tasks}
    return mixed(softmax({task: -p for task, p in progress.items()}, temperature), epsilon)


@sampler
def mt_grpo(
    now: Moment,
    mem: Mem,
    *,
    lr: float = 0.025,
    trade: float = 0.2,
    beta: float = 0.5,
    clip: float = 0.2,
    decay: float = 1e-5,
) -> dict[str, float]:
    """Weights that fall for tasks of high reward or fast improvement (MT-GRPO, arXiv 2602.05547, from its code).

    z = softmax(w); each step w goes down the gradient of sum_k z_k (I_k + trade J_k) by Adam (`lr`, L2 of `decay`), z alone
    being differentiated. J is a moving average of a task's mean reward (`beta`, from 0), I the change of its mean reward since
    the step that asked it last, clipped to +-`clip`. `trade` goes from balanced progress (small) to the worst task (large);
    the authors take .2 for three tasks and .1 to 1.2 for nine, and measure I on the objective after each update, of which
    the change of reward is the option with clip .2. Shares are dealt out exactly; `dynamic_sampling` fills them up again
    and the weight `keep_shares` holds them where that fails.
    """
    w = mem.setdefault("w", dict.fromkeys(now.tasks, 0.0))
    level, last = mem.setdefault("level", dict.fromkeys(now.tasks, 0.0)), mem.setdefault("last", {})
    gains = dict.fromkeys(now.tasks, 0.0)
    for task, seen in now.seen.items():
        gains[task] = max(-clip, min(clip, seen["reward"] - last.get(task, seen["reward"])))
        level[task] = beta * level[task] + (1 - beta) * seen["reward"]
        last[task] = seen["reward"]
    if now.seen:
        signal = {task: gains[task] + trade * level[task] for task in now.tasks}
        gradient = softmax_gradient(softmax(w, 1.0), signal)
        decayed = {task: gradient[task] + decay * w[task] for task in now.tasks}
        adam(w, decayed, mem.setdefault("adam", {}), lr)
    return softmax(w, 1.0)


def softmax_gradient(shares: Mapping[str, float], signal: Mapping[str, float]) -> dict[str, float]:
    """Gradient of sum_k z_k signal_k with respect to the logits of z.

    >>> {k: round(g, 4) for k, g in softmax_gradient({"a": 0.5, "b": 0.5}, {"a": 0.16, "b": 0.04}).items()}
    {'a': 0.03, 'b': -0.03}
    """
    mean = math.fsum(shares[task] * signal[task] for task in shares)
    return {task: share * (signal[task] - mean) for task, share in shares.items()}


def adam(w: dict[str, float], gradient: Mapping[str, float], mem: Mem, lr: float) -> None:
    """One step of Adam (betas .9 and .999), in place; `mem` holds its moments.

    >>> w: dict[str, float] = {"a": 0.0, "b": 0.0}
    >>> adam(w, {"a": 0.03, "b": -0.03}, {}, 0.025)
    >>> {k: round(v, 4) for k, v in w.items()}
    {'a': -0.025, 'b': 0.025}
    """
    count = mem["count"] = mem.get("count", 0) + 1
    first, second = mem.setdefault("first", {}), mem.setdefault("second", {})
    for key, slope in gradient.items():
        first[key] = 0.9 * first.get(key, 0.0) + 0.1 * slope
        second[key] = 0.999 * second.get(key, 0.0) + 0.001 * slope**2
        size = math.sqrt(second[key] / (1 - 0.999**count)) + 1e-8
        w[key] -= lr * first[key] / (1 - 0.9**count) / size


@sampler
def tac(
    now: Moment,
    mem: Mem,
    *,
    alpha: float = 0.1,
    temperature: float = 0.1,
    epsilon: float = 0.1,
) -> dict[str, float]:
    """A bandit whose reward is learnability times transferability (TAC, arXiv 2606.25178).

    Q <- (1 - alpha) Q + alpha |A| (1 + c) / 2, c the mean cosine of a task's gradient with those of the others in the last
    step (metric `task_alignment`; 0 where it is not known, which leaves a bandit of |A| alone); P = (1 - epsilon)
    softmax(Q / temperature) + epsilon / tasks. Written from the abstract: that both are multiplied and feed a bandit is the
    paper's; how cosines become a factor, alpha, temperature and epsilon are ours, after SEC.
    """
    quality = mem.setdefault("quality", dict.fromkeys(now.tasks, 0.0))
    for task, seen in now.seen.items():
        found = seen["absadv"] * (1 + now.alignment.get(task, 0.0)) / 2
        quality[task] = (1 - alpha) * quality[task] + alpha * found
    return mixed(softmax(quality, temperature), epsilon)


def normal_progress(start: float, level: float) -> float:
    """Share of the room above `start` that `level` has gained; below 0 where it fell. The room counts as .05 at least.

    >>> normal_progress(0.5, 0.75), normal_progress(0.5, 0.25), normal_progress(1.0, 1.0)
    (0.5, -0.5, 0.0)
    """
    return (level - start) / max(1 - start, 0.05)


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


def _last(entries: list[list[float]], window: int) -> list[list[float]]:
    """The newest [rollouts, mean] that together hold `window` rollouts, the oldest cut to fit."""
    kept: list[list[float]] = []
    for count, mean in reversed(entries):
        left = window - sum(entry[0] for entry in kept)
        if left <= 0:
            break
        kept.insert(0, [min(count, left), mean])
    return kept


def _means(recent: Mapping[str, list[list[float]]]) -> dict[str, float]:
    return {
        task: sum(n * m for n, m in entries) / max(1, sum(n for n, _ in entries))
        for task, entries in recent.items()
    }


def _progress(values: Sequence[float]) -> float:
    half = len(values) // 2
    return abs(mean(values[-half:]) - mean(values[:half])) if half else 0.0


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0
