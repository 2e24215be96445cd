"""The node as an average of the weights after the last steps of its phase (arXiv:2511.18903)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainorder.config.rl import AverageConfig
from trainorder.rl.learner import Learner

PREFIX, MODEL = "average/", "model/"


@dataclass
class Average:
    """What was averaged so far. Without a config it does nothing."""

    config: AverageConfig | None
    total: int
    """Steps of the phase."""
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, learner: Learner, step: int) -> None:
        """Take the trained weights in, where `step` (from 0) is one of the last ones."""
        place = self.place(step)
        if self.config is None or place is None:
            return
        share = 1 / (place + 1) if self.config.kind == "mean" else self.config.alpha
        now = {k: v for k, v in learner.backend.shard().items() if k.startswith(MODEL)}
        if not place:
            self.weights = {name: weight.detach().clone() for name, weight in now.items()}
        with torch.no_grad():
            for name, weight in now.items() if place else ():
                self.weights[name].lerp_(weight, share)

    def place(self, step: int) -> int | None:
        """Which of the averaged steps this is, from 0; None where it is none.

        >>> average = Average(AverageConfig(last=3, every=2), total=8)
        >>> [average.place(step) for step in range(8)]
        [None, None, None, 0, None, 1, None, 2]
        """
        if self.config is None:
            return None
        left, every = self.total - 1 - step, self.config.every
        count = min(self.config.last, (self.total - 1) // every + 1)
        return None if left % every or left // every >= count else count - 1 - left // every

    def tensors(self) -> dict[str, Tensor]:
        """What a step checkpoint keeps of it."""
        return {f"{PREFIX}{name}": weight for name, weight in self.weights.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        found = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
        self.weights = {name: weight.clone() for name, weight in found.items()}

    def put(self, learner: Learner) -> None:
        """Make the average the learner's weights."""
        if self.weights:
            learner.restore({**learner.tensors(), **self.weights})
