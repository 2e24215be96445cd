"""Both models over the answers that evaluations keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.probes.base import Answer, Checkpoint
from trainorder.reading import ParamsError

if TYPE_CHECKING:
    from trainorder.policy import Policy

MOST = 32
"""Answers per task and checkpoint that a probe reads with a model."""
BATCH_LOGITS = 2**22
"""Logits of a batch at most (16 MiB of float32, and twice that in float64 of both models); of one row, whatever it has."""


class Batch(NamedTuple):
    """Rows of tokens, padded on the right where they are read; the answer of a row begins at `firsts`."""

    rows: list[list[int]]
    firsts: list[int]
    of: list[int]
    """Number of each row's answer among those given."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer, its end included."""
        return [len(row) - first for row, first in zip(self.rows, self.firsts, strict=True)]


def batches(policy: Policy, answers: Sequence[Answer]) -> Iterator[Batch]:
    """The answers behind their prompts, in order of length; those longer than the model's context are left out."""
    prompts = policy.encode_prompts([answer.prompt for answer in answers])
    rows = policy.encode_completions([answer.text for answer in answers])
    whole = [[*prompt, *row] for prompt, row in zip(prompts, rows, strict=True)]
    fits = [i for i, row in enumerate(whole) if len(row) <= (policy.context or len(row))]
    vocabulary = policy.model.config.get_text_config().vocab_size
    batch: list[int] = []
    for i in sorted(fits, key=lambda i: (len(whole[i]), i)):
        if batch and (len(batch) + 1) * len(whole[i]) * vocabulary > BATCH_LOGITS:
            yield Batch([whole[j] for j in batch], [len(prompts[j]) for j in batch], batch)
            batch = []
        batch.append(i)
    if batch:
        yield Batch([whole[j] for j in batch], [len(prompts[j]) for j in batch], batch)


def forced(
    policy: Policy, batch: Batch, *, hidden: bool = False
) -> tuple[Float[Tensor, "token vocabulary"], list[Float[Tensor, "token width"]]]:
    """Logits of every token of the answers, in float32, and with `hidden` the states of every layer where they are predicted."""
    width = max(map(len, batch.rows)) - 1
    padded = [[*row[:-1], *[0] * (width - len(row) + 1)] for row in batch.rows]
    model: Any = policy.model
    out = model(
        input_ids=torch.tensor(padded, device=policy.device),
        use_cache=False,
        output_hidden_states=hidden,
    )
    real = torch.tensor(
        [
            [first - 1 <= place < len(row) - 1 for place in range(width)]
            for row, first in zip(batch.rows, batch.firsts, strict=True)
        ],
        device=policy.device,
    )
    states = [layer[real].float() for layer in out.hidden_states] if hidden else []
    return out.logits[real].float(), states


def targets(batch: Batch) -> Tensor:
    """The tokens of the answers, row after row."""
    return torch.tensor(
        [t for row, first in zip(batch.rows, batch.firsts, strict=True) for t in row[first:]]
    )


def check_vocabulary(one: Checkpoint, two: Checkpoint) -> None:
    """Refuse models that do not read the same tokens.

    Raises:
        ParamsError: their tokenizers differ.
    """
    if one.policy.tokenizer.get_vocab() != two.policy.tokenizer.get_vocab():
        raise ParamsError(
            f"{one.name} and {two.name} have different tokenizers: their distributions over tokens cannot be compared"
        )
