"""Muon: momentum whose direction is made orthogonal, for the weight matrices of hidden layers.

https://kellerjordan.github.io/posts/muon; scaling of arXiv 2502.16982 left out. Equal shapes are orthogonalised as one
batch, in float32: at the sizes of a tiny model the usual loop over matrices would cost more than the update.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of X <- a X + (b A + c A^2) X with A = X X^T: five rounds bring all singular values near 1."""


def orthogonalise(
    matrices: Float[Tensor, "matrix row column"], rounds: int = 5
) -> Float[Tensor, "matrix row column"]:
    """U V^T of each matrix U S V^T, up to singular values in about 0.7..1.2 (Newton-Schulz)."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(b * gram, gram, gram, alpha=c), x)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """w <- (1 - lr wd) w - lr sqrt(max(1, rows / columns)) orthogonalise(nesterov momentum of the gradient)."""

    def __init__(
        self,
        weights: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; every weight is a matrix with a gradient."""
        assert closure is None, "Muon evaluates no closure"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                by_shape.setdefault(weight.shape, []).append(weight)
            for shape, weights in by_shape.items():
                directions = orthogonalise(
                    torch.stack([self._direction(w, group["momentum"]) for w in weights])
                )
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for weight, direction in zip(weights, directions, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                        direction, alpha=-scale
                    )

    def _direction(self, weight: Tensor, momentum: float) -> Tensor:
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(average, momentum)
