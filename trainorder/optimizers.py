"""The optimizers that params.yaml can name: one function per name in OPTIMIZERS, and `make_optimizer`, which every trainer calls.

A variant is a function of (model, config, fused) that gives a `torch.optim.Optimizer`, and one line in OPTIMIZERS. A group
with a peak of its own has `lr_ratio`, its rate over `config.lr`, which `set_lr` keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config import OptimizerName, PreferenceSettings, RlConfig, SftConfig
from trainorder.device import has_fused_adamw

STACK_ENTRIES = 2**20
"""Entries that Muon orthogonalises together; matrices as large as that gain nothing from it."""

OptimizerConfig = SftConfig | PreferenceSettings | RlConfig
"""The sections of params.yaml that name an optimizer."""


def make_optimizer(
    model: Any, config: OptimizerConfig, *, fused: bool = True
) -> torch.optim.Optimizer:
    """The optimizer `config.optimizer` over the weights of `model` that have grad.

    `fused`: one operation per AdamW update where torch has it; False for ZeRO, which splits the weights afterwards.
    """
    return OPTIMIZERS[config.optimizer](model, config, fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups: `lr`, times the group's `lr_ratio` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"] if "lr_ratio" in group else lr


def adamw(model: Any, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) for all weights."""
    return _adamw(_trained(model), config, fused)


def muon(model: Any, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    """Muon (kellerjordan.github.io/posts/muon) for the matrices of the hidden layers, AdamW for all else.

    AdamW takes embeddings, the output head, norms and biases; a model without other matrices gets AdamW alone.
    Muon's step is lr * sqrt(max(1, rows / columns)) times the momentum made orthogonal (torch's `original`), its
    orthogonalisation in bfloat16, matrices of equal shape together; weights decay by lr * weight_decay.
    """
    outer = _outer(model)
    weights = _trained(model)
    matrices = [p for p in weights if p.ndim == 2 and id(p) not in outer]
    chosen = {id(p) for p in matrices}
    rest = _adamw([p for p in weights if id(p) not in chosen], config, fused)
    if not matrices:
        return rest
    hidden = StackedMuon(
        [{"params": matrices, "lr_ratio": config.muon_lr / config.lr}],
        lr=config.muon_lr,
        weight_decay=config.weight_decay,
    )
    return Joined([rest, hidden])


OPTIMIZERS: dict[OptimizerName, Callable[[Any, OptimizerConfig, bool], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
}
"""`optimizer` of sft, judge and rl -> what makes it."""


class StackedMuon(torch.optim.Muon):
    """torch's Muon, with matrices of equal shape orthogonalised by batched products.

    The same numbers and the same state; most of the time of a small matrix by itself is the calls. Stacks have at most
    STACK_ENTRIES entries (or one matrix).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all weights that have a gradient."""
        assert closure is None, "no closure is evaluated"
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.shape, []).append(weight)
            for shape, weights in shapes.items():
                size = max(1, STACK_ENTRIES // shape.numel())
                for i in range(0, len(weights), size):
                    self._update(weights[i : i + size], group)

    def _update(self, weights: Sequence[Tensor], group: dict[str, Any]) -> None:
        updates = []
        for weight in weights:
            state, grad = self.state[weight], weight.grad
            assert grad is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(grad)
            momentum = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
            updates.append(
                grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            )
        rows, columns = weights[0].shape
        lr = group["lr"] * max(1.0, rows / columns) ** 0.5
        made = orthogonal(
            torch.stack(updates), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        for weight, update in zip(weights, made, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update, alpha=-lr)


def orthogonal(
    stack: Float[Tensor, "matrix row column"],
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
) -> Float[Tensor, "matrix row column"]:
    """Newton-Schulz iterations x <- a x + (b x x^T + c (x x^T)^2) x in bfloat16: singular values go to about 1."""
    a, b, c = coefficients
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Joined(torch.optim.Optimizer):
    """Optimizers over disjoint weights as one: their groups in one list, their state in one dictionary."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = [(part, len(part.param_groups)) for part in parts]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update by each part."""
        assert closure is None, "no closure is evaluated"
        first = 0
        for part, count in self.parts:  # load_state_dict replaces both containers
            part.param_groups, part.state = self.param_groups[first : first + count], self.state
            part.step()
            first += count


def _trained(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _outer(model: Any) -> set[int]:
    """Ids of the weights of embeddings and of the head: of a causal LM, or a classifier's `score`."""
    layers = [
        model.get_input_embeddings(),
        model.get_output_embeddings(),
        getattr(model, "score", None),
    ]
    return {id(p) for layer in layers if layer is not None for p in layer.parameters()}


def _adamw(weights: Iterable[Tensor], config: OptimizerConfig, fused: bool) -> Any:
    own = list(weights)
    return torch.optim.AdamW(
        own,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        fused=has_fused_adamw(own[0].device) if fused else None,
    )
