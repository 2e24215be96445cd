"""What the steps of a phase share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainorder.config import RlConfig
from trainorder.resume import model_tensors, restore_model
from trainorder.rl.backend import Backend, holds_whole_weights
from trainorder.rl.method import Method
from trainorder.rl.problems import TaskSet

if TYPE_CHECKING:
    from trainorder.policy import Policy
    from trainorder.rollout import Engine


@dataclass(frozen=True)
class Learner:
    """What the steps of a phase share; only the weights and the optimiser's state change."""

    policy: Policy
    engine: Engine
    task_set: TaskSet
    method: Method
    config: RlConfig
    backend: Backend
    models: Mapping[str, Any]
    """Frozen models that pieces compare with, by name: `reference`, the phase's parent, `ema`, the average of the weights
    of past steps, and `teacher`, that of `rl.teacher`. Only those that a piece needs, and the parent where that costs little."""
    phase: str
    seed: int
    exact: bool = True
    """Whether the engine's log-probabilities are the trainer's, to rounding."""
    teacher: Engine | None = None
    """Samples from the teacher, where a piece has it answer."""
    dumps: Path | None = None
    """Where refused updates are left for replay; None: nowhere. The same on all ranks."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that steps change, as far as this rank holds them: weights, optimiser, averages.

        The reference comes from the parent again.
        """
        found = self.backend.shard()
        if "ema" in self.models:
            found |= model_tensors("ema", self.models["ema"])
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` took; settings stay those of this learner."""
        self.backend.restore_shard(tensors)
        if "ema" in self.models:
            restore_model("ema", self.models["ema"], tensors)

    def follow(self) -> None:
        """Move the average of the weights, where a piece needs it, towards the policy as it is now. All ranks call it."""
        if "ema" not in self.models:
            return
        average = self.models["ema"].state_dict()
        with torch.no_grad():
            for name, weight in self.backend.weights():
                average[name].lerp_(weight.to(average[name]), 1 - self.config.ema_decay)

    def whole_policy(self) -> Policy | None:
        """The policy as an ordinary model: adapters merged, parts of all ranks joined; None on ranks but the first.

        All ranks call it. Where the weights are whole in the model already it is that model, not a copy.
        """
        policy, first = self.policy, self.backend.rank == 0
        if holds_whole_weights(self.backend.training):
            return policy if first else None
        weights = {}
        for name, weight in self.backend.weights():  # all ranks take part, one keeps them
            if first:
                weights[name] = weight.detach().cpu()
        if not first:
            return None
        with torch.device("meta"):
            whole = type(policy.model)(policy.model.config)
        whole.load_state_dict(weights, assign=True)
        whole.tie_weights()
        whole.generation_config = policy.model.generation_config
        return type(policy)(whole.eval(), policy.tokenizer)
