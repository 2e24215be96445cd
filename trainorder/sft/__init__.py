"""Supervised warm-up: from a model that knows nothing to the noisy skills that RL can sharpen.

Departs from a textbook language-model run in three ways: prompt tokens count less than the answer's, every step mixes
demonstrations with clean drill lines, and a gate asks for greedy dev accuracy before anything is handed on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from trainorder import paths
from trainorder.config import Params, SftConfig
from trainorder.device import device_of, precision
from trainorder.policy import Policy
from trainorder.process import StageError, fail_point
from trainorder.resume import NOTHING, Work
from trainorder.rewards import grading
from trainorder.rollout import Request
from trainorder.rollout.torch_engine import TorchEngine
from trainorder.sft.lines import Line, batches
from trainorder.sft.updates import Run, lr_fraction
from trainorder.tasks import load_problems, load_task
from trainorder.workers import ALONE, Workers

LOG_EVERY = 10
"""Updates between two logged lines."""


class Log(Protocol):
    """Where numbers go, e.g. `tracking.Tracker`."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step."""
        ...

    def state(self) -> dict[str, Any]:
        """What was logged, as plain data."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after what `state` holds."""
        ...


class GateError(StageError):
    """The warm-up used all its steps and some task is still below the gate."""


def warm_up(
    out: Path, params: Params, seed: int, tracker: Log, work: Work = NOTHING
) -> dict[str, Any]:
    """Train until the gate opens and save the checkpoint to `out`; returns steps, tokens and gate accuracies.

    The weights are a function of params, data and seed; `sft.threads` changes only the time, and a killed
    attempt is resumed from `work`, to the same bytes.

    Raises:
        GateError: after `sft.max_steps` the gate is still shut; nothing is saved.
        ParamsError: the data is not built, or holds too few lines.
    """
    config, training = params.sft or SftConfig(), params.training
    device = device_of(training.device)
    torch.set_num_threads(1)  # micro-batches run side by side instead
    if params.policy.path is None:
        policy = Policy.build_tiny(params.policy, paths.TOKENIZER, seed)
    else:
        policy = Policy.start(params.policy)
    policy = policy.to(device)
    drawn = batches(policy, config, seed)
    side_by_side = Workers(config.threads) if device == "cpu" else ALONE
    run = Run(policy, config, side_by_side, training.dtype)
    saved = work.latest("sft")
    if saved is not None:
        run.restore(saved)
        tracker.restore(saved.state["log"])
        for _ in range(run.steps):
            next(drawn)
    summary = _train_to_gate(run, drawn, tracker, work)
    policy.save(out)
    return summary


def check_gate(reached: Mapping[str, float], gate: Mapping[str, float]) -> list[str]:
    """A line for each task that scores below its bound.

    >>> check_gate({"math": 0.5, "qa": 0.7}, {"math": 0.9, "qa": 0.7})
    ['math reached 0.500 of 0.900']
    """
    return [
        f"{task} reached {reached[task]:.3f} of {need:.3f}"
        for task, need in gate.items()
        if reached[task] < need
    ]


def _train_to_gate(
    run: Run, drawn: Iterator[list[Line]], tracker: Log, work: Work
) -> dict[str, Any]:
    config = run.config
    while True:
        train_leg(run, drawn, tracker, work)
        fail_point("sft.gate")
        reached = greedy_accuracies(run.policy, config.gate, run.workers, run.dtype)
        tracker.log(run.steps, {f"sft/greedy/{task}": value for task, value in reached.items()})
        shut = check_gate(reached, config.gate)
        if not shut:
            return {"steps": run.steps, "tokens": run.tokens, "greedy": reached, **run.metrics}
        leg = min(config.extension, config.max_steps - run.steps)
        if leg <= 0:
            raise GateError(_gate_text(shut, run.steps))
        run.start_leg(leg, config.extension_lr_fraction)


def train_leg(
    run: Run, drawn: Iterator[list[Line]], tracker: Log, work: Work, name: str = "sft"
) -> None:
    """The updates left of the run's leg: one schedule that begins at `lr_share` of the peaks."""
    from tqdm import tqdm

    run.model.train()
    first, steps = run.steps - run.leg_start, run.leg
    left = range(first, steps)
    bar = tqdm(left, name, steps, leave=False, unit="step", disable=None, initial=first)
    for step in bar:
        run.update(next(drawn), run.lr_share * lr_fraction(step, steps, run.config))
        if run.steps % LOG_EVERY == 0 or step == steps - 1:
            tracker.log(run.steps, run.metrics)
        fail_point("sft.step")
        if work.due("sft"):
            work.save("sft", run.tensors(), {**run.state(), "log": tracker.state()})
    run.model.eval()


def greedy_accuracies(
    policy: Policy, tasks: Iterable[str], workers: Workers, dtype: str = "fp32"
) -> dict[str, float]:
    """Task -> mean dev grade of greedy answers; answers that cannot be graded are left out; 0 where none is left."""
    names = list(tasks)
    found = workers.map(lambda task: _greedy_accuracy(policy, task, dtype), names)
    return dict(zip(names, found, strict=True))


def _greedy_accuracy(policy: Policy, task: str, dtype: str) -> float:
    problems = load_problems(task, "dev")
    card = json.loads((paths.TASK_DATA / task / "task.json").read_text(encoding="utf-8"))
    room = card["max_new_tokens"]
    with precision(policy.device, dtype):
        answers = TorchEngine(policy).generate(
            [Request(problem, max_new_tokens=room, temperature=0.0) for problem in problems]
        )
    rewards = grading.grade(load_task(task), answers.texts, problems)
    known = [reward.value for reward in rewards if reward.value is not None]
    return sum(known) / max(1, len(known))


def _gate_text(shut: Sequence[str], steps: int) -> str:
    return (
        f"the SFT gate is still shut after {steps} steps (sft.max_steps): {'; '.join(shut)} (greedy dev accuracy). "
        "RL on a skill the base lacks destroys it. In params.yaml raise sft.max_steps, give the task more "
        "demonstrations or drills, make it easier (its options), or lower its bound in sft.gate"
    )
