"""How widely each token looks back: the entropy of its attention in one layer, for pieces that need `attention_entropy:DEPTH`."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainorder.prefix import for_heads, shares_prefixes, using_prefix_attention
from trainorder.reading import ParamsError
from trainorder.rl.types import Roll

CHUNK = 256
"""Queries whose attention to all tokens before exists at one time."""
ONE_AT_A_TIME = threading.Lock()
"""The way a model attends is a setting of the whole model."""


def attention_entropy(model: Any, roll: Roll, depth: float) -> Float[Tensor, "row token"]:
    """Entropy of the attention of each answer's tokens over all tokens up to itself, / ln of their number; in [0, 1].

    The mean over heads of the attention probabilities at the layer that lies at `depth` of the stack (0 the first, 1 the
    last), as arXiv:2605.07660 measures it. One forward per row, without grad; 0 where masked.

    Raises:
        ParamsError: the model's attention cannot be replaced, and so not be looked at.
    """
    longest = max(map(len, roll.prompt_ids)) + roll.response_ids.shape[1]
    if not shares_prefixes(model, longest):
        raise ParamsError(
            f"a piece needs the entropy of attention, which {type(model).__name__} does not show: leave the piece out"
        )
    layer = round(depth * (model.config.num_hidden_layers - 1))
    device = model.get_input_embeddings().weight.device
    found = torch.zeros_like(roll.loss_mask)
    for row, (prompt, length) in enumerate(
        zip(roll.prompt_ids, roll.lengths().tolist(), strict=True)
    ):
        if not length:
            continue
        ids = torch.tensor([*prompt, *roll.response_ids[row, :length].tolist()], device=device)
        watch = _Watch(layer)
        with torch.no_grad(), ONE_AT_A_TIME, using_prefix_attention(model):
            model.base_model(
                input_ids=ids[None],
                position_ids=torch.arange(len(ids), device=device)[None],
                use_cache=False,
                layout=watch,
            )
        assert watch.entropy is not None
        found[row, :length] = watch.entropy[len(prompt) :].to(found)
    return torch.where(roll.loss_mask > 0, found, 0.0)


class _Watch:
    """Plain causal attention of one row, which keeps the entropies of one layer."""

    def __init__(self, layer: int) -> None:
        self.layer, self.entropy = layer, None

    layer: int
    entropy: Float[Tensor, " token"] | None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[head, token, size]; q scaled, k and v by kv head."""
        k, v = (for_heads(x, len(q)) for x in (k, v))
        if layer == self.layer:
            self.entropy = torch.cat(
                [row_entropy(q[:, i : i + CHUNK], k, i) for i in range(0, q.shape[1], CHUNK)]
            )
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)


def row_entropy(
    q: Float[Tensor, "head query size"], k: Float[Tensor, "head token size"], first: int
) -> Float[Tensor, " query"]:
    """Entropies of the head-averaged attention of queries `first`, `first + 1`, ..., over ln of the tokens each sees."""
    places = torch.arange(first, first + q.shape[1], device=q.device)
    hidden = torch.arange(k.shape[1], device=q.device) > places[:, None]
    probs = (q @ k.mT).float().masked_fill(hidden, -math.inf).softmax(-1).mean(0)
    return normalised_entropy(probs, places + 1)


def normalised_entropy(
    probs: Float[Tensor, "query token"], seen: Tensor
) -> Float[Tensor, " query"]:
    """-sum p ln p / ln seen; 0 for a query that sees one token.

    >>> probs = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    >>> normalised_entropy(probs, torch.tensor([4, 4])).tolist()
    [1.0, 0.5]
    """
    entropy = torch.special.entr(probs).sum(-1)
    return torch.where(seen > 1, entropy / seen.clamp(min=2).log(), 0.0)
