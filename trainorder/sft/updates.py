"""One update of the warm-up: loss and gradient of a batch of lines, the optimizer, and the schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainorder.config import SftConfig
from trainorder.device import precision
from trainorder.llama import kernels_for
from trainorder.llama.kernels import Kernels
from trainorder.llama.texts import Texts
from trainorder.optimizers import make_optimizer, set_lr
from trainorder.policy import Policy
from trainorder.resume import (
    Saved,
    model_tensors,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
)
from trainorder.sft.lines import Line
from trainorder.texts import log_probs
from trainorder.workers import Workers


def lr_fraction(step: int, steps: int, config: SftConfig) -> float:
    """Linear warm-up, then a cosine to `final_lr_fraction`, as a share of the peak; `step` counts from 0.

    >>> config = SftConfig(warmup_steps=10, final_lr_fraction=0.1)
    >>> [round(lr_fraction(step, 110, config), 2) for step in (0, 9, 60, 110)]
    [0.1, 1.0, 0.55, 0.1]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    low = config.final_lr_fraction
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def micro_batches(lines: Sequence[Line], count: int) -> list[list[Line]]:
    """At most `count` parts of about as many tokens each, longest lines first, so that little is padding."""
    ordered = sorted(lines, key=lambda line: -len(line.ids))
    share = sum(len(line.ids) for line in ordered) / count
    parts: list[list[Line]] = [[] for _ in range(count)]
    before = 0
    for line in ordered:
        parts[min(count - 1, int(before / share))].append(line)
        before += len(line.ids)
    return [part for part in parts if part]


def gradients(
    model: Any, lines: Sequence[Line], num_parts: int, workers: Workers, dtype: str = "fp32"
) -> tuple[float, list[Tensor]]:
    """Loss and gradient of sum(weight * nll) / sum(weight) over all lines.

    Parts are summed in their own order, whichever thread is done first, so threads change no bit.
    """
    total = sum(sum(line.weights) for line in lines)
    wanted = [p for p in model.parameters() if p.requires_grad]
    with precision(wanted[0].device, dtype):
        kernels = kernels_for(model)

    if kernels is not None and Texts.can(model):
        return _by_hand(Texts(model, kernels), lines, num_parts, workers, total)

    def part_of(part: list[Line]) -> tuple[Tensor, list[Tensor]]:
        with precision(wanted[0].device, dtype):
            loss = weighted_nll(model, part, kernels) / total
        return loss.detach(), list(torch.autograd.grad(loss, wanted))

    losses, grads = list[Tensor](), list[Tensor]()
    for loss, own in workers.map(part_of, micro_batches(lines, num_parts)):
        losses.append(loss)
        if not grads:
            grads = own
            continue
        for grad, other in zip(grads, own, strict=True):
            grad.add_(other)
    return sum(float(loss) for loss in losses), grads


def _by_hand(
    texts: Texts, lines: Sequence[Line], num_parts: int, workers: Workers, total: float
) -> tuple[float, list[Tensor]]:
    """`gradients` of a small Llama: the same to rounding, without autograd."""

    def part_of(part: list[Line]) -> tuple[Tensor, Tensor]:
        return texts.gradients([line.ids for line in part], [line.weights for line in part])

    losses, grads = list[Tensor](), torch.zeros(texts.size)
    for loss, own in workers.map(part_of, micro_batches(lines, num_parts)):
        losses.append(loss)
        grads.add_(own)
    return sum(float(loss) for loss in losses) / total, texts.split(grads.div_(total))


def weighted_nll(model: Any, lines: Sequence[Line], kernels: Kernels | None = None) -> Tensor:
    """Sum over all tokens of -weight * log p(token | tokens before it); a token of weight 0 is left out."""
    firsts = [
        next((i for i, w in enumerate(line.weights) if w and i), len(line.ids)) for line in lines
    ]
    logps, _ = log_probs(model, [line.ids for line in lines], firsts, kernels=kernels)
    weights = [w for line, first in zip(lines, firsts, strict=True) for w in line.weights[first:]]
    return -(logps * torch.tensor(weights, device=logps.device)).sum()


class Run:
    """The state of one warm-up: model, optimizer, counts, and the leg of the schedule it is in."""

    COUNTS = ("steps", "tokens", "leg", "leg_start", "lr_share", "metrics")

    def __init__(
        self, policy: Policy, config: SftConfig, workers: Workers, dtype: str = "fp32"
    ) -> None:
        self.policy, self.model, self.config = policy, policy.model, config
        self.workers, self.dtype = workers, dtype
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.model, config)
        self.steps, self.tokens = 0, 0
        self.metrics: dict[str, float] = {}
        self.start_leg(min(config.steps, config.max_steps), 1.0)

    def start_leg(self, steps: int, lr_share: float) -> None:
        """Begin a schedule of `steps` updates."""
        self.leg, self.leg_start, self.lr_share = steps, self.steps, lr_share

    def state(self) -> dict[str, Any]:
        """The counts, as plain data."""
        return {name: getattr(self, name) for name in self.COUNTS}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, of adapters these alone, and optimizer."""
        own = self._adapters()
        weights = {f"model.{n}": p.detach() for n, p in own.items()} or model_tensors(
            "model", self.model
        )
        return weights | optimizer_tensors("optimizer", self.optimizer)

    def _adapters(self) -> dict[str, Tensor]:
        """What is trained where something is not; else nothing."""
        named = dict(self.model.named_parameters())
        trained: dict[str, Tensor] = {name: p for name, p in named.items() if p.requires_grad}
        return trained if len(trained) < len(named) else {}

    def restore(self, saved: Saved) -> None:
        """Put back what `state` and `tensors` took."""
        for name in self.COUNTS:
            setattr(self, name, saved.state[name])
        own = self._adapters()
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(saved.tensors[f"model.{name}"])
        if not own:
            restore_model("model", self.model, saved.tensors)
        restore_optimizer("optimizer", self.optimizer, saved.tensors)

    def update(self, lines: Sequence[Line], lr_share: float) -> None:
        """One optimizer step on these lines at this share of the peak learning rates."""
        loss, grads = gradients(
            self.model, lines, self.config.micro_batches, self.workers, self.dtype
        )
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.config.max_grad_norm)
        lr = self.config.lr * lr_share
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.steps += 1
        self.tokens += sum(len(line.ids) for line in lines)
        self.metrics = {"sft/loss": loss, "sft/grad_norm": float(norm), "sft/lr": lr}
