"""Rows as flat tokens, each prompt once, and their states behind the last norm, by the fastest way that a model allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainorder import llama
from trainorder.llama import training
from trainorder.llama.kernels import Kernels
from trainorder.prefix import Layout, shares_prefixes, using_prefix_attention
from trainorder.rl.types import Roll


def shares_prompts(model: Any, roll: Roll) -> bool:
    """Whether `forward` computes a prompt once for all its rows with this model and this roll."""
    if llama.kernels_for(model) is not None:
        return True
    longest = max(map(len, roll.prompt_ids), default=0) + max(roll.lengths().tolist(), default=0)
    return shares_prefixes(model, longest)


@dataclass(frozen=True)
class Batch:
    """Some rows as flat tokens: first those of their prompts, then each row without its last, which predicts nothing."""

    ids: Int[Tensor, " token"]
    prompt_lengths: list[int]
    row_lengths: list[int]
    owners: list[int]
    last: Int[Tensor, " row"]
    """Flat place of the last token of a row's prompt."""
    first: Int[Tensor, " row"]
    """Flat place of a row's first token."""

    layouts: dict[torch.device, Layout] = field(default_factory=dict)

    def layout(self, device: torch.device) -> Layout:
        """Made once per device: frozen models read the same rows."""
        if device not in self.layouts:
            self.layouts[device] = Layout.of(
                self.prompt_lengths, self.row_lengths, self.owners, device
            )
        return self.layouts[device]


def flatten(roll: Roll) -> Batch:
    """The rows of a roll; equal prompts are one."""
    lengths = [max(n - 1, 0) for n in roll.lengths().tolist()]
    numbers: dict[tuple[int, ...], int] = {}
    keys = [tuple(prompt) for prompt in roll.prompt_ids]
    owners = [numbers.setdefault(key, len(numbers)) for key in keys]
    ids = [token for prompt in numbers for token in prompt]
    ends = torch.tensor([len(prompt) for prompt in numbers]).cumsum(0)
    total = len(ids)
    for row, length in zip(roll.response_ids.tolist(), lengths, strict=True):
        ids += row[:length]
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths) + total
    return Batch(
        torch.tensor(ids), [len(p) for p in numbers], lengths, owners, ends[owners] - 1, starts
    )


def states_of(
    model: Any, kernels: Kernels | None, batch: Batch, device: torch.device
) -> Float[Tensor, "token hidden"]:
    """The states after the last norm, of all flat tokens."""
    if kernels is not None:
        return training.hidden_states(model, kernels, batch.ids, batch.layout(device))
    ids = batch.ids.to(device)
    longest = max(batch.prompt_lengths) + max(batch.row_lengths)
    if shares_prefixes(model, longest):
        layout = batch.layout(device)
        with using_prefix_attention(model):
            return backbone(model)(
                input_ids=ids[None],
                position_ids=layout.positions[None],
                use_cache=False,
                layout=layout,
            )[0][0]
    # Padded on the right, where causal attention never looks: no mask is needed, no number can change.
    total = sum(batch.prompt_lengths)
    prompts = batch.ids[:total].split(batch.prompt_lengths)
    answers = batch.ids[total:].split(batch.row_lengths)
    rows = [torch.cat([prompts[o], a]) for o, a in zip(batch.owners, answers, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    hidden = backbone(model)(input_ids=padded, use_cache=False)[0]
    first = {o: i for i, o in reversed(list(enumerate(batch.owners)))}
    sizes = batch.prompt_lengths
    parts = [hidden[first[o], :n] for o, n in enumerate(sizes)]
    parts += [
        hidden[i, sizes[o] - 1 :][1 : 1 + n]
        for i, (o, n) in enumerate(zip(batch.owners, batch.row_lengths, strict=True))
    ]
    return torch.cat(parts)


def backbone(model: Any) -> Any:
    """The model without its head."""
    return getattr(model, model.base_model_prefix)
