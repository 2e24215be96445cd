"""Curricula: which tasks of a phase take part at a step, and how much; 0 closes a task.

Functions of the same form as samplers, `(Moment, mem, *, options) -> {task: weight}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trainorder.rl.samplers import Function, Mem, Moment, mean

CURRICULA: dict[str, Callable[..., dict[str, float]]] = {}


def curriculum(function: Function) -> Function:
    """List a curriculum."""
    CURRICULA[function.__name__] = function
    return function


@curriculum
def together(now: Moment, mem: Mem) -> dict[str, float]:
    """All tasks, all the time: joint training."""
    return dict.fromkeys(now.tasks, 1.0)


@curriculum
def in_turn(
    now: Moment, mem: Mem, *, order: list[str] | None = None, cycles: int = 1
) -> dict[str, float]:
    """A fixed plan: one task after another, each for its share of the steps; `cycles` times over (interleaving). No paper of its own."""
    tasks = order or now.tasks
    return _only(now, tasks[_block(now, tasks, cycles)])


@curriculum
def unlock(
    now: Moment, mem: Mem, *, order: list[str] | None = None, window: int = 5, gain: float = 0.02
) -> dict[str, float]:
    """Begin with one task and add the next when the newest one's reward has levelled off.

    Level: the mean of its last `window` steps is less than `gain` above that of the `window` before. At the latest
    the k-th task of n comes after a share k / n of the steps, so that every task is trained. All values are ours.
    """
    tasks = order or now.tasks
    opened = mem.setdefault("open", 1)
    rewards = mem.setdefault("rewards", [])
    newest = tasks[opened - 1]
    if newest in now.seen:
        rewards.append(now.seen[newest]["reward"])
    level = len(rewards) >= 2 * window and (
        mean(rewards[-window:]) - mean(rewards[-2 * window : -window]) < gain
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
    little rehearsal). Steps that are saved this way go to the harmed tasks at the end, to all if none was. All values are ours.
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
def entropy_turns(
    now: Moment,
    mem: Mem,
    *,
    order: list[str] | None = None,
    floor: float = 0.5,
    window: int = 3,
) -> dict[str, float]:
    """One task after another; a turn ends early once the policy's entropy on the task fell below `floor` of where it began.

    Entropy of the rollouts, means of the first and of the last `window` steps of the turn; at the latest a turn ends after
    its share of the steps. What is saved goes to all tasks at the end. Ours, after Omni-Thinker's remark that entropy explains
    where its order deviates from what was predicted; see the sampler `live_entropy` for the same signal without turns.
    """
    tasks = order or now.tasks
    block, began = mem.setdefault("block", 0), mem.setdefault("began", 0)
    if block >= len(tasks):
        return dict.fromkeys(now.tasks, 1.0)
    levels = mem.setdefault("levels", [])
    if tasks[block] in now.seen:
        levels.append(now.seen[tasks[block]]["entropy"])
    fallen = len(levels) >= 2 * window and mean(levels[-window:]) < floor * mean(levels[:window])
    if fallen or now.step - began >= _quota(now, tasks[block]):
        mem["block"], mem["began"], mem["levels"] = block + 1, now.step, []
        if mem["block"] >= len(tasks):
            return dict.fromkeys(now.tasks, 1.0)
    return _only(now, tasks[mem["block"]])


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
    interrupts, so that the phase keeps its length. All values are ours.
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
    """What the task reached in its turn is what it may lose from; watching it starts over."""
    mem.setdefault("level", {})[task] = mean(mem["rewards"].get(task, []))
    mem["rewards"][task] = []


def _losing(mem: Mem, earlier: Sequence[str], drop: float, window: int) -> list[str]:
    """Earlier tasks whose last `window` steps lie more than `drop` below the end of their turn."""
    rewards, level = mem["rewards"], mem.get("level", {})
    full = [task for task in earlier if task in level and len(rewards[task]) >= window]
    return [task for task in full if mean(rewards[task]) < level[task] - drop]
