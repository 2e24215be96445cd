"""What an engine returns, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainorder.policy import Policy


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
    entropies: Float[Tensor, "row token"] | None
    """Entropy in nats of that whole distribution. 0 on padding. None from an engine that does not see it."""
    texts: list[str]
    """The answers without special tokens."""
    finished: Bool[Tensor, " row"]
    """Whether the row reached an end token before its room was used up."""


class Engine(Protocol):
    """Samples from the policy as it is now, or as it was at the last `push` of an engine that has one."""

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
            generator: the only source of randomness. It gives one uniform number per row and token up front, as one
                [row, longest room] table, so a sample does not depend on how rows are batched or dealt to ranks.
        """
        ...


def check_request(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    samples: int,
    max_new_tokens: int | Sequence[int],
    temperature: float,
) -> list[int]:
    """The room of each prompt's answers.

    Raises:
        ValueError: what `generate` cannot do.
        ParamsError: a prompt and its room are longer than the model's context.
    """
    if not prompts or not all(map(len, prompts)):
        raise ValueError(
            f"generate needs prompts of at least one token each, got {len(prompts)} prompts"
        )
    single = isinstance(max_new_tokens, int)
    rooms = [max_new_tokens] * len(prompts) if single else list(max_new_tokens)
    if len(rooms) != len(prompts):
        raise ValueError(
            f"max_new_tokens must be one number or one per prompt: {len(rooms)} for {len(prompts)} prompts"
        )
    if samples < 1 or min(rooms) < 1 or not temperature >= 0:
        raise ValueError(
            f"samples and max_new_tokens must be at least 1 and temperature at least 0, "
            f"got {samples}, {min(rooms)} and {temperature}"
        )
    policy.check_fits(
        *max(((len(prompt), room) for prompt, room in zip(prompts, rooms, strict=True)), key=sum)
    )
    return rooms


def cut(done: Completions, rooms: Sequence[int], policy: Policy) -> Completions:
    """End rows that were given more room than they have."""
    room = torch.tensor(rooms, device=done.mask.device)
    keep = torch.arange(done.mask.shape[1], device=room.device) < room[:, None]
    if not (done.mask * ~keep).any():
        return done
    mask = done.mask * keep
    longer = done.mask.sum(1) > room
    texts = [
        policy.decode(row[:n]) if long else text
        for row, n, long, text in zip(
            done.ids.tolist(), rooms, longer.tolist(), done.texts, strict=True
        )
    ]
    return Completions(
        ids=done.ids.masked_fill(mask == 0, policy.pad_id),
        mask=mask,
        logps=done.logps * mask,
        entropies=None if done.entropies is None else done.entropies * mask,
        texts=texts,
        finished=done.finished & ~longer,
    )
