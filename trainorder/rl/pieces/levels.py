"""What a problem is: the same problems easier or harder by a level that moves over the phase (tasks/transforms.py).

These pieces make new problems, so they stand before plan pieces that word a prompt. Steps log `rollout/asked/level`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config.values import Pattern
from trainorder.rl.registry import plan, reward
from trainorder.rl.types import Roll, State
from trainorder.rollout import Request
from trainorder.tasks.base import Problem
from trainorder.tasks.transforms import (
    ENTITY,
    HIDDEN,
    SEPARATOR,
    chain,
    distractors,
    masks,
    prefix,
    restored,
    steps_of,
)

Rule = Literal["steps", "plateau", "rate"]
SLOPE = 1e-3
"""Rewards that rise by less than this per step have levelled off."""


@plan
def reverse_curriculum(
    requests: list[Request],
    state: State,
    *,
    mixed: bool = True,
    stages: int = 5,
    separator: Pattern = SEPARATOR,
) -> list[Request]:
    """Begin inside the demonstration and move the start back to the bare problem (R3, arXiv:2402.05808).

    A gold text of M steps gives the prompts problem + first j steps, j = M - 1 (easiest) ... 0; the reward is of the outcome.
    `mixed`, R3 itself: j uniform over all of them per visit. Otherwise staged RL: `stages` equal parts of the phase, the share
    of steps given falls evenly from all but the last to none. Steps stand in the prompt, as in the authors' data, so that no
    loss is on them. `stages` is ours.
    """
    draw = state.stream("reverse_curriculum")
    share = 1 - min(stages - 1, state.step * stages // max(1, state.total)) / max(1, stages - 1)
    asked = []
    for request in requests:
        if request.problem is None:
            asked.append(request)
            continue
        count = len(steps_of(request.problem.gold or "", re.compile(separator)))
        if mixed:
            level = int(torch.randint(max(1, count), (1,), generator=draw))
        else:
            level = round(share * max(0, count - 1))
        asked.append(_at(request, level, prefix, state, [], separator=separator))
    return asked


@plan
def composed(
    requests: list[Request],
    state: State,
    *,
    first: int = 1,
    last: int = 5,
    promote: Rule = "steps",
    every: int | None = None,
    window: int = 20,
    threshold: float = 0.55,
    scale: int = 1,
) -> list[Request]:
    """Problems composed into chains whose length grows (h1, arXiv:2510.07312).

    A chain is of `first` ... `last` problems of the step's task, of which only the last answer counts (transform `chain`).
    promote: `steps`, after `every` steps (the paper: about 200 per length, 1 to 5; null for equal parts of the phase);
    `plateau`, once the slope of the last `window` steps' rewards is below .001 per step; `rate`, once their mean passes
    `threshold`. The last two are ours, after other curricula of levels.
    """
    level = level_now(state, "composed", first, last, promote, every, window, threshold)
    return _all_at(requests, level, chain, state, scale=scale)


@plan
def mask_entities(
    requests: list[Request],
    state: State,
    *,
    first: int = 1,
    last: int = 4,
    promote: Rule = "steps",
    every: int | None = None,
    window: int = 20,
    threshold: float = 0.55,
    entity: Pattern = ENTITY,
) -> list[Request]:
    """Ask for masked names and numbers of the reference text, more of them as training goes on (MaskSearch, arXiv:2505.20285).

    1 to 4 masks as in the authors' data; `restored_masks` rewards. The paper's policy searches the web for them, here it
    has what it knows. promote as of `composed`.
    """
    level = level_now(state, "mask_entities", first, last, promote, every, window, threshold)
    return _all_at(requests, level, masks, state, entity=entity)


@reward
def restored_masks(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """Share of the masks that the answer restores (MaskSearch, arXiv:2505.20285); 0 for rows that were asked none."""
    rows = zip(roll.text, roll.problem, strict=True)
    return roll.rewards.new_tensor([restored(text, p.meta.get(HIDDEN, ())) for text, p in rows])


@plan
def distracted(
    requests: list[Request],
    state: State,
    *,
    first: int = 0,
    last: int = 6,
    promote: Rule = "rate",
    every: int | None = None,
    window: int = 300,
    threshold: float = 0.55,
    passages: str = "passages",
) -> list[Request]:
    """Passages that do not help beside the one that does, more once answers are right (Wiki-R1, arXiv:2603.05256).

    Levels 0 ... 6 of the transform `distractors`; the next one once the mean reward of the last 300 rollouts is above .55,
    after which counting starts over, all the paper's. For `plateau` window counts steps.
    """
    level = level_now(state, "distracted", first, last, promote, every, window, threshold)
    return _all_at(requests, level, distractors, state, passages=passages)


def level_now(
    state: State,
    key: str,
    first: int,
    last: int,
    promote: str,
    every: int | None,
    window: int,
    threshold: float,
) -> int:
    """The level of this step, one rise at most; asked again in the same step it is the same.

    `rate` counts `window` as rollouts, `plateau` as steps.
    """
    if promote == "steps":
        part = every or max(1, math.ceil(state.total / (last - first + 1)))
        return min(last, first + state.step // part)
    mem: dict[str, Any] = state.mem.setdefault(key, {"level": first, "rewards": [], "step": -1})
    if mem["step"] == state.step:
        return mem["level"]
    mem["step"] = state.step
    seen = state.mem.get("seen", {}).values()
    count = sum(one["rollouts"] for one in seen)
    if count and state.step:
        mean = math.fsum(one["rollouts"] * one["reward"] for one in seen) / count
        mem["rewards"].append([count, mean])
    if mem["level"] < last and due(mem["rewards"], promote, window, threshold):
        mem["level"], mem["rewards"] = mem["level"] + 1, []
    return mem["level"]


def due(rewards: Sequence[Sequence[float]], promote: str, window: int, threshold: float) -> bool:
    """Whether [rollouts, mean reward] of past steps ask for the next level.

    >>> [due([[8, r] for r in rs], "plateau", 3, 0.0) for rs in ([0.1, 0.2, 0.3], [0.3, 0.3, 0.3], [0.3])]
    [False, True, False]
    >>> due([[200, 0.5], [200, 0.7]], "rate", 300, 0.55), due([[200, 0.9]], "rate", 300, 0.55)
    (True, False)
    """
    if promote == "plateau":
        values = [mean for _, mean in rewards[-window:]]
        return len(values) == window and slope(values) < SLOPE
    total, left = 0.0, float(window)
    for count, mean in reversed(rewards):
        taken = min(left, count)
        total, left = total + taken * mean, left - taken
        if left <= 0:
            return total / window > threshold
    return False


def slope(values: Sequence[float]) -> float:
    """Least-squares slope per step.

    >>> round(slope([0.1, 0.2, 0.3]), 6), slope([0.5])
    (0.1, 0.0)
    """
    middle, mean = (len(values) - 1) / 2, math.fsum(values) / len(values)
    size = math.fsum((i - middle) ** 2 for i in range(len(values)))
    moved = math.fsum((i - middle) * (v - mean) for i, v in enumerate(values))
    return moved / size if size else 0.0


def _all_at(
    requests: list[Request],
    level: int,
    transform: Callable[..., Problem],
    state: State,
    **options: Any,
) -> list[Request]:
    """Every request at one level; the other problems of the step are what a transform may use."""
    problems = [request.problem for request in requests if request.problem is not None]
    asked = []
    for request in requests:
        task = request.problem.task if request.problem else ""
        others = [p for p in problems if p.task == task]
        asked.append(_at(request, level, transform, state, others, **options))
    return asked


def _at(
    request: Request,
    level: int,
    transform: Callable[..., Problem],
    state: State,
    others: Sequence[Problem],
    **options: Any,
) -> Request:
    if request.problem is None:
        return request
    seed = int(torch.randint(2**62, (1,), generator=state.stream("levels")))
    made = transform(request.problem, level, random.Random(seed), others, **options)
    facts = {**request.facts, "level": float(level)}
    return replace(request, problem=made, prompt="", facts=facts)
