"""The training forward: log p and entropy of response tokens, for any Hugging Face causal LM.

Prompt and response are padded on the right, where causal attention never looks, so no attention
mask is needed and padding cannot change a number. The LM head runs on response tokens only, in
chunks that are recomputed in the backward pass: a [row, token, vocabulary] tensor never exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainorder.rl.types import Live, Roll

CHUNK_ENTRIES = 2**20
"""Logits alive at one time (4 MiB in float32): stays in cache, small beside the activations."""


def forward(
    model: Any,
    roll: Roll,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk_entries: int = CHUNK_ENTRIES,
) -> Live:
    """Log p of each response token at `temperature`, and its entropy if asked for.

    Masked positions are 0. Has grad wherever torch's grad mode is on.
    """
    device = model.get_input_embeddings().weight.device
    lengths = roll.lengths().tolist()
    hidden = _backbone(model)(input_ids=_inputs(roll, lengths).to(device), use_cache=False)[0]
    row, place = (roll.mask > 0).nonzero(as_tuple=True)
    starts = torch.tensor([len(p) - 1 for p in roll.prompt])
    flat = (row * hidden.shape[1] + starts[row] + place).to(device)
    states = hidden.flatten(0, 1).index_select(0, flat)
    targets = roll.ids[row, place].to(device)
    logps, entropies = _head(model, states, targets, temperature, entropy, chunk_entries)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(roll.mask.shape).index_put((row, place), values)

    x = {} if entropies is None else {"H": spread(entropies.cpu())}
    return Live(spread(logps.cpu()), x)


def micro_batches(roll: Roll, budget: int) -> Iterator[list[int]]:
    """Rows in order of length, cut so that rows x longest stays within `budget` tokens.

    At least one row each. Rows without a token to learn from are left out.
    """
    sizes = [len(p) + n for p, n in zip(roll.prompt, roll.lengths().tolist(), strict=True)]
    alive = [i for i, n in enumerate(roll.lengths().tolist()) if n]
    batch: list[int] = []
    for i in sorted(alive, key=lambda i: (sizes[i], i)):
        if batch and (len(batch) + 1) * sizes[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def check_forward(model: Any) -> None:
    """Compare with the model's own logits: an unknown kind of LM head cannot go unnoticed.

    Raises:
        ValueError: this model's head is more than a matrix and the known scalings.
    """
    with torch.no_grad():
        ids = torch.arange(4, device=model.get_input_embeddings().weight.device)[None]
        ours = _logits(model, _backbone(model)(input_ids=ids, use_cache=False)[0])
        theirs = model(input_ids=ids, use_cache=False).logits.to(ours.dtype)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way trainorder/rl/forward.py "
            f"does not know (off by {(ours - theirs).abs().max():.2g}): teach `_logits` its head"
        )


def _inputs(roll: Roll, lengths: Sequence[int]) -> Int[Tensor, "row position"]:
    """Prompt and response without its last token, which predicts nothing; padded on the right."""
    ids = roll.ids.tolist()
    rows = [
        p + ids[i][: max(n - 1, 0)]
        for i, (p, n) in enumerate(zip(roll.prompt, lengths, strict=True))
    ]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def _head(
    model: Any,
    states: Float[Tensor, "target hidden"],
    targets: Int[Tensor, " target"],
    temperature: float,
    entropy: bool,
    chunk_entries: int,
) -> tuple[Float[Tensor, " target"], Float[Tensor, " target"] | None]:
    def piece(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores = _logits(model, states)
        scores = scores if temperature == 1 else scores / temperature
        scale = scores.logsumexp(-1)
        logps = scores.gather(-1, targets[:, None])[:, 0] - scale
        # H = logsumexp(z) - sum p z
        return logps, scale - (scores.softmax(-1) * scores).sum(-1) if entropy else logps.detach()

    size = max(1, chunk_entries // model.get_output_embeddings().weight.shape[0])
    cuts = list(zip(states.split(size), targets.split(size), strict=True))
    if len(cuts) > 1 and torch.is_grad_enabled():
        done = [
            checkpoint(piece, *cut, use_reentrant=False, preserve_rng_state=False) for cut in cuts
        ]
    else:
        done = [piece(*cut) for cut in cuts]
    logps = torch.cat([logp for logp, _ in done])
    return logps, torch.cat([h for _, h in done]) if entropy else None


def _backbone(model: Any) -> Any:
    return getattr(model, model.base_model_prefix)


def _logits(model: Any, states: Tensor) -> Tensor:
    """The LM head with the known scalings: Granite divides, Cohere multiplies, Gemma caps."""
    config = model.config
    logits = model.get_output_embeddings()(states)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
