"""A folder with a built task and a random parent, for tests that train real steps; also run as a rank by a launcher."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainorder.config import PhaseConfig, PolicyConfig, RlConfig, TrainingConfig, parse_params
from trainorder.data import build
from trainorder.policy import Policy
from trainorder.resume import Work
from trainorder.rl.learner import Learner
from trainorder.rl.registry import REWARDS, TERMS, Entry
from trainorder.rl.shards import Shards
from trainorder.rl.step import rl_step
from trainorder.rl.trainer import make_learner, save
from trainorder.rl.types import Live, Roll, State

PARENT = Path("checkpoints/s0")
TASK = {"train": 12, "dev": 2, "test": 2, "demonstrations": 5}
TINY = PolicyConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_size=16, max_positions=96)
SIZE = PolicyConfig(hidden_size=64, num_layers=2, num_heads=2, mlp_size=32, max_positions=160)


def says_seven(roll: Roll, state: State) -> torch.Tensor:
    """Share of the answer's tokens that are ` 7`: a random policy never solves a problem, it can learn to say 7."""
    return torch.tensor([text.split(" ").count("7") / 6 for text in roll.text])


def even_tokens(roll: Roll, state: State) -> torch.Tensor:
    """Share of even token numbers: differs between the rows of any model."""
    return ((roll.response_ids % 2 == 0) * roll.loss_mask).sum(1) / roll.loss_mask.sum(1)


def mostly_even(roll: Roll, state: State) -> torch.Tensor:
    """Whether at least half of them are even: some groups of any model earn alike."""
    return (even_tokens(roll, state) >= 0.5).to(roll.rewards)


for _reward in (says_seven, even_tokens, mostly_even):
    REWARDS[_reward.__name__] = Entry("reward", _reward.__name__, _reward)


def infinite_loss(live: Live, roll: Roll, state: State) -> torch.Tensor:
    """Not finite in the last row of every second step."""
    bad = torch.zeros_like(live.logps)
    bad[-1] = math.inf if state.step % 2 else 0.0
    return -live.logps * roll.advantages + bad


def infinite_gradient(live: Live, roll: Roll, state: State) -> torch.Tensor:
    """A finite loss; its gradient is nan where there are rows of qa, at every second step from the first on."""
    if state.step % 2 == 0 and any(problem.task == "qa" for problem in roll.problem):
        return -live.logps * roll.advantages + (live.logps - live.logps.detach()).abs().sqrt()
    return -live.logps * roll.advantages


BROKEN = {f.__name__: Entry("term", f.__name__, f) for f in (infinite_loss, infinite_gradient)}
"""Terms for tests of refused updates; those put them into TERMS themselves."""


def make_parent() -> None:
    """Data and a random Llama in the current folder; two tasks with answers of different lengths."""
    tasks = {"math": {**TASK, "max_new_tokens": 32}, "qa": {**TASK, "max_new_tokens": 40}}
    build_parent(tasks, SIZE)


def build_parent(tasks: dict[str, dict[str, int]], size: PolicyConfig = TINY) -> None:
    """The data of these tasks and a random Llama in the current folder."""
    phase = {"kind": "structured", "tasks": {"math": 1.0}, "steps": 1}
    build(parse_params({"tasks": tasks, "phases": {"math": phase}, "orders": {"one": ["math"]}}))
    Policy.build_tiny(size, "data/tokenizer", 0).save(PARENT)


def settings(**changes: Any) -> RlConfig:
    """Steps that learn to say 7 quickly."""
    method = {"reward": ["says_seven"], "terms": ["clipped_surrogate", {"kl": {"coef": 0.01}}]}
    small = {
        "prompts_per_step": 5,
        "group_size": 4,
        "lr": 0.01,
        "warmup_steps": 0,
        "method": method,
    }
    return RlConfig.model_validate({**small, **changes})


def learner_of(parent: Path = PARENT, rl: RlConfig | None = None, **backends: Any) -> Learner:
    """A learner on both tasks."""
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0, "qa": 1.0}, steps=9)
    return make_learner(parent, "math", phase, rl or settings(), 0, **backends)


def steps(learner: Learner, state: State, count: int) -> list[dict[str, float]]:
    """What `count` steps log."""
    return [rl_step(learner, state) for _ in range(count)]


def run_job(job: dict[str, Any]) -> Learner:
    """Train some steps from the start or from a saved state, then write `<out>.json`, `<out>.pt` and the checkpoint.

    With `shards`, a folder of step checkpoints, `steps` is the step to reach; `damage` cuts the newest part of the last
    rank first.
    """
    training = TrainingConfig.model_validate(job["training"])
    learner = learner_of(rl=settings(**job.get("rl", {})), training=training)
    out = Path(job["out"])
    learner = replace(learner, dumps=Path("dumps") / out.name)
    state, begin = State(total=9), job.get("resume")
    if begin:
        found = torch.load(f"{begin}.pt", weights_only=True)
        learner.backend.restore(found["tensors"])
        state = State.from_state_dict(found["state"])
    shards = Shards(learner.backend, Work(Path(job["shards"]), 0.0)) if "shards" in job else None
    if (
        shards is not None
        and job.get("damage")
        and learner.backend.rank == learner.backend.world - 1
    ):
        newest = max((Path(job["shards"]) / shards.name).glob("*/tensors.safetensors"))
        newest.write_bytes(newest.read_bytes()[:-1])
    if shards is not None and (known := shards.latest()) is not None:
        learner.restore(known.tensors)
        state = State.from_state_dict(known.state["state"])
    log = []
    while state.step < job["steps"] if shards else len(log) < job["steps"]:
        log += steps(learner, state, 1)
        if shards is not None:
            shards.save(state.step, learner.tensors(), {"state": state.state_dict()})
    tensors = learner.backend.tensors()
    if learner.backend.rank == 0:
        out.with_suffix(".json").write_text(json.dumps(log))
        torch.save({"tensors": tensors, "state": state.state_dict()}, f"{out}.pt")
    save(learner, Path("checkpoints") / out.name, PARENT)
    return learner


def main() -> None:
    """One rank: run the jobs of the command line, one after another."""
    torch.set_num_threads(1)
    TERMS.update(BROKEN)
    for job in json.loads(sys.argv[1]):
        run_job(job)
    if "RANK" in os.environ:
        from trainorder.rl.deepspeed_backend import leave

        leave()


if __name__ == "__main__":
    main()
