"""Whole texts through a causal LM: log-probabilities and entropies of their tokens, with or without gradient.

Small Llamas on a CPU take trainorder/llama, which sees no padding; any other model, and any other device, its own modules
over rows padded on the right, where causal attention never looks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.likelihood import likelihood
from trainorder.llama import training
from trainorder.llama.kernels import Kernels
from trainorder.prefix import Layout

CHUNK_ENTRIES = 2**21
"""Logits that trainorder/llama holds at one time (8 MiB in float32)."""


def log_probs(
    model: Any,
    rows: Sequence[Sequence[int]],
    firsts: Sequence[int],
    *,
    entropy: bool = False,
    kernels: Kernels | None = None,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, " target"], Float[Tensor, " target"] | None]:
    """Log p of each row's tokens from `firsts[row]` (at least 1) to its end, given all before them, row after row.

    With `entropy` also the entropy in nats of the distribution that each of them is drawn from. Both on the model's device,
    in float32. `kernels` are those of `llama.kernels_for(model)`, which the caller asks for once for many calls.
    """
    device = model.get_input_embeddings().weight.device
    targets = [token for row, first in zip(rows, firsts, strict=True) for token in row[first:]]
    wanted = torch.tensor(targets, device=device)
    if kernels is not None:
        lengths = [len(row) - 1 for row in rows]
        starts = itertools.accumulate(lengths[:-1], initial=0)
        places = [
            start + place
            for start, first, length in zip(starts, firsts, lengths, strict=True)
            for place in range(first - 1, length)
        ]
        states = _states(model, kernels, [row[:-1] for row in rows])
        head = model.lm_head.weight
        return training.log_probs(
            kernels, states[places], head, wanted, temperature, entropy, CHUNK_ENTRIES
        )
    width, before = max(map(len, rows)) - 1, min(firsts) - 1
    padded = [[*row[:-1], *[0] * (width - len(row) + 1)] for row in rows]
    logits = model(
        input_ids=torch.tensor(padded, device=device),
        use_cache=False,
        logits_to_keep=width - before,
    ).logits
    real = [
        [first - 1 <= place < len(row) - 1 for place in range(before, width)]
        for row, first in zip(rows, firsts, strict=True)
    ]
    kept = logits[torch.tensor(real, device=device)].float()
    if temperature != 1:
        kept = kept / temperature
    logps, entropies = likelihood(kept, wanted, entropy=entropy)
    return logps, entropies


def next_logits(
    model: Any, row: Sequence[int], *, kernels: Kernels | None = None
) -> Float[Tensor, " vocabulary"]:
    """Logits of the token after a row, in float32 on the CPU, without gradient: a function of the row alone, to the bit."""
    with torch.no_grad():
        if kernels is not None:
            return model.lm_head(_states(model, kernels, [row])[-1]).float()
        device = model.get_input_embeddings().weight.device
        ids = torch.tensor([list(row)], device=device)
        return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float().cpu()


def _states(model: Any, kernels: Kernels, rows: Sequence[Sequence[int]]) -> Any:
    """States after the last norm, one per token, the rows behind one another."""
    ids = torch.tensor([token for row in rows for token in row])
    layout = Layout.of([len(row) for row in rows], [0], [0])
    return training.hidden_states(model, kernels, ids, layout)
