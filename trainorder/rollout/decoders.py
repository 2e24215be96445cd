"""Models as decoders: prompts once, then one token per row and step, with a key/value cache."""

from __future__ import annotations

from typing import Any, Protocol

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainorder import llama
from trainorder.llama.decoder import LlamaDecoder
from trainorder.prefix import PrefixCache, shares_prefixes, using_prefix_attention
from trainorder.workers import ALONE, Workers

FUSED_PARAMETERS = 500_000_000
"""Models up to this size are decoded with fused copies of their weights. At 135 million these take half a GiB and about a second to
make, and sampling 64 rows of 48 tokens takes 7 s instead of 11. A training step frees them before its activations take more memory than that."""


class Decoder(Protocol):
    """One batch of rows being decoded. The rows of a prompt lie side by side."""

    dead_share: float
    """Rows that have ended are worth dropping once they are more than this share of the batch."""

    def prefill(
        self,
        ids: Int[Tensor, "prompt position"],
        real: Bool[Tensor, "prompt position"],
        samples: int,
        capacity: int,
    ) -> Float[Tensor, "row vocabulary"]:
        """Read left-padded prompts, make `samples` rows of each with space for `capacity` tokens; the first logits."""
        ...

    def step(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocabulary"]:
        """Append one token to every row; the next logits."""
        ...

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows only, in this order."""
        ...


def make_decoder(model: Any, tokens: int, workers: Workers = ALONE) -> Decoder:
    """The fastest decoder that is exact for this model and sequences of up to `tokens`; `workers` prepare its weights."""
    kernels = llama.kernels_for(model)
    if kernels is not None and model.num_parameters() <= FUSED_PARAMETERS:
        return LlamaDecoder(model, kernels, workers.map)
    return PrefixDecoder(model) if shares_prefixes(model, tokens) else HfDecoder(model)


class PrefixDecoder:
    """Any model whose attention can be replaced: one copy of a prompt's keys and values, and a static cache of rows."""

    dead_share = 0.25

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, ids: Tensor, real: Tensor, samples: int, capacity: int) -> Tensor:
        """See Decoder."""
        self.cache = PrefixCache(real, samples, capacity)
        positions = (real.long().cumsum(1) - 1).clamp(min=0)
        logits = self._forward(ids, positions)
        self.cache.start_rows()
        self.next = (positions[:, -1] + 1).repeat_interleave(samples)
        return logits.repeat_interleave(samples, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See Decoder."""
        logits = self._forward(tokens[:, None], self.next[:, None])
        self.next += 1
        self.cache.advance()
        return logits

    def keep(self, rows: Tensor) -> None:
        """See Decoder."""
        self.cache.keep(rows)
        self.next = self.next[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        with using_prefix_attention(self.model):
            out = self.model(
                input_ids=ids,
                position_ids=positions,
                use_cache=False,
                logits_to_keep=1,
                layout=self.cache,
            )
        return out.logits[:, -1].float()


class HfDecoder:
    """Any causal LM that accepts `attention_mask`, `position_ids` and `past_key_values`."""

    dead_share = 0.25

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, ids: Tensor, real: Tensor, samples: int, capacity: int) -> Tensor:
        """See Decoder."""
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        self.real = real.long()
        logits = self._forward(ids, (self.real.cumsum(1) - 1).clamp(min=0))
        self.cache.batch_repeat_interleave(samples)
        self.real = self.real.repeat_interleave(samples, 0)
        return logits.repeat_interleave(samples, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See Decoder."""
        self.real = F.pad(self.real, (0, 1), value=1)
        return self._forward(tokens[:, None], self.real.sum(1, keepdim=True) - 1)

    def keep(self, rows: Tensor) -> None:
        """See Decoder."""
        self.cache.batch_select_indices(rows)
        self.real = self.real[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        out = self.model(
            input_ids=ids,
            attention_mask=self.real,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()
