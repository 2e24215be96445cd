"""Weights by how widely a token looks back (arXiv:2605.07660)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config import Schedule
from trainorder.rl.registry import weight
from trainorder.rl.types import Roll, State


def _needs(options: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({f"attention_entropy:{options['depth']}"})


@weight(needs=_needs)
def attention_ranks(
    roll: Roll, state: State, *, depth: float = 0.67, start: float = -0.5, end: float = 0.5
) -> Float[Tensor, "row token"]:
    """1 + lambda (2 rank - 1), rank = place / tokens of the answer by entropy of attention, lowest first (arXiv:2605.07660).

    lambda goes linearly from `start` to `end` over the phase: tokens that look at few others (anchors) weigh more at
    first, those that look widely (explorers) later. Only the paper's abstract was read: that a dynamic soft re-weighting
    helps is its claim; formula, layer and schedule are ours. `depth` is the layer's place in the stack.
    """
    values, mask = roll.token_facts[f"attention_entropy:{depth}"], roll.loss_mask > 0
    order = torch.where(mask, values, torch.inf).argsort(dim=1, stable=True)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(1, order.shape[1] + 1).expand_as(order)
    )
    rank = place.to(roll.loss_mask) / mask.sum(1, keepdim=True).clamp(min=1)
    moved = Schedule(shape="linear", start=start, end=end).at(state.step, state.total)
    return torch.where(mask, 1 + moved * (2 * rank - 1), 0.0).to(roll.loss_mask.dtype)
