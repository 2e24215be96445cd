"""What an engine returns, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Completions:
    """Sampled answers. Rows are grouped: all samples of prompt 0, then those of prompt 1, and so on.

    With answers `a b <eos>` and `a` (out of room): ids [[a, b, eos], [a, pad, pad]], mask [[1, 1, 1], [1, 0, 0]],
    finished [True, False].
    """

    ids: Int[Tensor, "row token"]
    """The sampled tokens with the end token, then padding."""
    mask: Float[Tensor, "row token"]
    """1 on sampled tokens, the end token included."""
    logps: Float[Tensor, "row token"]
    """log p of each sampled token under the distribution it was drawn from; greedy: at temperature 1. 0 on padding."""
    entropies: Float[Tensor, "row token"]
    """Entropy in nats of that whole distribution. 0 on padding."""
    texts: list[str]
    """The answers without special tokens."""
    finished: Bool[Tensor, " row"]
    """Whether the row reached an end token before its room was used up."""


class Engine(Protocol):
    """Samples from the policy as it is now: every call sees the latest weights."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_new_tokens: int | Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Completions:
        """Sample `samples` answers to each prompt.

        Args:
            prompts: token ids, at least one per prompt.
            samples: answers per prompt.
            max_new_tokens: room for an answer; one number, or one per prompt.
            temperature: logits are divided by it; 0 takes the most likely token.
            generator: the only source of randomness. It gives one uniform number per row and token up front, so a
                sample does not depend on how rows are batched.
        """
        ...
