"""One phase of RL on top of a parent checkpoint."""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from trainorder.config import ParamsError, PhaseConfig, RlConfig
from trainorder.policy import Policy
from trainorder.rl.forward import check_forward
from trainorder.rl.method import Method
from trainorder.rl.problems import TaskSet
from trainorder.rl.step import Learner, rl_step
from trainorder.rl.types import State
from trainorder.rollout import TorchEngine


class Log(Protocol):
    """Where metrics go; tracking.Tracker is one."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one step."""
        ...


def train_phase(
    parent: Path,
    out: Path,
    phase_name: str,
    phase: PhaseConfig,
    rl: RlConfig,
    seed: int,
    tracker: Log,
) -> dict[str, Any]:
    """Train `parent` through a phase and save the result as `out`.

    A pure function of its arguments and the built data: every draw comes from a stream keyed by
    seed, phase and step, and the optimiser starts fresh.

    Returns:
        `steps`, `tokens` sampled, `seconds`, `tasks`, whether any was `judged`, and `last`, the
        metrics of the last step.

    Raises:
        ParamsError: an unknown piece or option, or more updates than prompts.
    """
    start = time.perf_counter()
    learner = make_learner(parent, phase_name, phase, rl, seed)
    state = State(total=phase.steps)
    tokens, metrics = 0.0, dict[str, float]()
    for step in _progress(phase_name, phase.steps):
        metrics = rl_step(learner, state)
        tokens += metrics["rollout/tokens"]
        tracker.log(step, metrics)
    learner.policy.save(out)
    seconds = time.perf_counter() - start
    return {
        "steps": phase.steps,
        "tokens": int(tokens),
        "seconds": seconds,
        "tasks": list(phase.tasks),
        "judged": learner.task_set.judge is not None,
        "last": metrics,
    }


def make_learner(
    parent: Path, phase_name: str, phase: PhaseConfig, rl: RlConfig, seed: int
) -> Learner:
    """Load everything a phase needs; settings are checked before anything slow is loaded."""
    method = Method.from_config(rl.method)
    if rl.updates_per_batch > rl.prompts_per_step:
        raise ParamsError(
            f"rl.updates_per_batch is {rl.updates_per_batch}, but a step has only "
            f"{rl.prompts_per_step} prompts to split: raise prompts_per_step or lower it"
        )
    task_set = TaskSet.load(phase.tasks)
    policy = Policy.load(parent)
    policy.model.eval()  # no dropout: the policy that samples is the policy that is trained
    check_forward(policy.model)
    reference = copy.deepcopy(policy.model).requires_grad_(False) if "ref" in method.needs else None
    optimizer = torch.optim.AdamW(
        policy.model.parameters(),
        lr=rl.lr,
        betas=(rl.betas[0], rl.betas[1]),
        weight_decay=rl.weight_decay,
        fused=True,
    )
    engine = TorchEngine(policy)
    return Learner(policy, engine, task_set, method, rl, optimizer, reference, phase_name, seed)


def _progress(name: str, steps: int) -> Any:
    """The step numbers, with a bar and an estimate where stderr is a terminal."""
    if not sys.stderr.isatty():
        return range(steps)
    from rich.console import Console
    from rich.progress import track

    return track(range(steps), description=f"RL {name}", console=Console(stderr=True))
