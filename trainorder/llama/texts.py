"""Loss and gradient of whole texts, forward and backward by hand, for a small Llama whose weights are all trained.

What autograd does around some hundred small operations costs as much as a third of the products themselves at these
sizes: here each is called once on arrays that are known beforehand, weights that are multiplied together are joined once
per update, gradients lie behind one another in one array, and attention (kernels.c) sees no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainorder.llama.kernels import LANES, Kernels

CHUNK_ENTRIES = 2**17
"""Logits that exist at one time: half a MiB, which stays in a core's own cache."""


class Texts:
    """The model's weights as they are now, joined for products, and where each lies in an array of gradients."""

    def __init__(self, model: Any, kernels: Kernels) -> None:
        self.kernels, self.body = kernels, model.model
        self.weights = list(model.parameters())
        ends, places = 0, dict[int, tuple[int, int]]()
        for weight in self.weights:
            places[id(weight)] = ends, ends + weight.numel()
            ends += weight.numel()
        self.size, self.places = ends, places
        self.embedding, self.head = self.body.embed_tokens.weight, model.lm_head.weight
        self.layers = [_Layer(self, layer) for layer in self.body.layers]
        # the norm that stands behind each layer is the next one's first
        self.first = self.body.layers[0].input_layernorm
        self.norms = [*(layer.input_layernorm for layer in self.body.layers[1:]), self.body.norm]

    @staticmethod
    def can(model: Any) -> bool:
        """Whether all weights of this plain Llama are trained, and it is a language model."""
        return hasattr(model, "lm_head") and all(p.requires_grad for p in model.parameters())

    def at(self, gradients: Tensor, *weights: Tensor) -> Tensor:
        """The part of the array that belongs to these weights, which lie behind one another, as one matrix."""
        first, end = self.places[id(weights[0])][0], self.places[id(weights[-1])][1]
        assert end - first == sum(weight.numel() for weight in weights), "weights lie apart"
        return gradients[first:end].view(-1, *weights[0].shape[1:])

    def split(self, gradients: Tensor) -> list[Tensor]:
        """The gradient of each weight, in the model's order, as views of the array."""
        return [self.at(gradients, weight).view(weight.shape) for weight in self.weights]

    @torch.no_grad()
    def gradients(
        self, texts: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]
    ) -> tuple[Tensor, Float[Tensor, " weight"]]:
        """sum(-weight * log p) over the tokens of the texts, each given those before it, and its gradient as one array.

        `weights` has one number per token; the first of each text is not predicted, and one of weight 0 costs no logits.
        """
        kernels, rows = self.kernels, [text[:-1] for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.tensor([token for row in rows for token in row])
        positions = torch.cat([torch.arange(len(row)) for row in rows])
        found = torch.zeros(self.size)
        x = self.embedding[ids]
        cos, sin = (
            full[0, :, : full.shape[-1] // 2].contiguous()
            for full in self.body.rotary_emb(x[None], positions[None])
        )
        y, norm = _norm(kernels, x, None, self.first)
        done = list[Any]()
        for layer, after in zip(self.layers, self.norms, strict=True):
            x, y, kept = layer.forward(kernels, x, y, after, (cos, sin, lengths))
            done.append(kept)
        loss, dy = self._head(y, texts, weights, found)
        dx = None
        for layer, after, kept in zip(self.layers[::-1], self.norms[::-1], done[::-1], strict=True):
            dx, dy = layer.backward(kernels, dx, dy, after, (cos, sin, lengths), kept, found)
        dx = norm(dy, dx, self.at(found, self.first.weight))
        self.at(found, self.embedding).index_add_(0, ids, dx)
        return loss, found

    def _head(
        self,
        y: Float[Tensor, "token hidden"],
        texts: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]],
        found: Tensor,
    ) -> tuple[Tensor, Float[Tensor, "token hidden"]]:
        """The loss and its gradient by the states; adds the head's own."""
        targets = torch.tensor([token for text in texts for token in text[1:]])
        share = torch.tensor([value for text in weights for value in text[1:]])
        counted = share.nonzero().flatten()
        some = len(counted) < len(share)
        states = y[counted] if some else y
        targets, share = targets[counted], share[counted]
        count, back = len(counted), -share
        dhead, size = self.at(found, self.head), max(1, CHUNK_ENTRIES // len(self.head))
        dstates, logps, scales = torch.empty_like(states), torch.empty(count), torch.empty(count)
        for i in range(0, count, size):
            at = slice(i, min(i + size, count))
            logits = F.linear(states[at], self.head)
            self.kernels.log_prob(
                logits, targets[at], logps[at], None, scales[at], *logits.shape, 1.0
            )
            self.kernels.log_prob_backward(
                logits, targets[at], scales[at], back[at], None, None, *logits.shape, 1.0
            )
            torch.mm(logits, self.head, out=dstates[at])
            dhead.addmm_(logits.T, states[at])
        dy = torch.zeros_like(y).index_copy_(0, counted, dstates) if some else dstates
        return -(logps * share).sum(), dy


class _Layer:
    """One layer: its joined weights, forward and backward."""

    def __init__(self, texts: Texts, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        config = attention.config
        self.texts, self.middle = texts, layer.post_attention_layernorm
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size, self.factor = attention.head_dim, attention.scaling
        self.qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        self.gate_up = [mlp.gate_proj.weight, mlp.up_proj.weight]
        self.out, self.down = attention.o_proj.weight, mlp.down_proj.weight
        with torch.no_grad():
            self.qkv_joint, self.gate_up_joint = torch.cat(self.qkv), torch.cat(self.gate_up)

    def forward(
        self, kernels: Kernels, x: Tensor, y: Tensor, after: Any, where: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Any]:
        """The sum behind the layer and its norm, and what `backward` needs."""
        cos, sin, lengths = where
        qkv = F.linear(y, self.qkv_joint)
        wide = _whole_lanes(lengths)
        probs = torch.empty(self.heads * int((lengths * wide).sum()))
        mixed, scratch = x.new_empty(len(x), self.heads * self.size), _scratch(wide, self.size, 3)
        kernels.text_attention(
            qkv, cos, sin, lengths, probs, mixed, scratch,
            len(lengths), self.heads, self.kv_heads, self.size, self.factor,
        )  # fmt: skip
        (x, middle), norm = _norm(kernels, x, F.linear(mixed, self.out), self.middle)
        gate_up = F.linear(middle, self.gate_up_joint)
        inner = gate_up.shape[1] // 2
        gated = x.new_empty(len(x), inner)
        kernels.swiglu(gate_up, gate_up[:, inner:], gated, len(x), inner, 2 * inner)
        (x, last), norm_after = _norm(kernels, x, F.linear(gated, self.down), after)
        return x, last, (y, qkv, probs, mixed, norm, middle, gate_up, gated, norm_after)

    def backward(
        self,
        kernels: Kernels,
        dsum: Tensor | None,
        dy: Tensor,
        after: Any,
        where: tuple[Tensor, ...],
        kept: Any,
        found: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The gradients by the sum before the layer and by its norm; adds those of the weights."""
        cos, sin, lengths = where
        y, qkv, probs, mixed, norm, middle, gate_up, gated, norm_after = kept
        at = self.texts.at
        dx: Tensor = norm_after(dy, dsum, at(found, after.weight))
        at(found, self.down).addmm_(dx.T, gated)
        dgated, inner = torch.mm(dx, self.down, out=gated), gated.shape[1]
        kernels.swiglu_backward(dgated, gate_up, gate_up[:, inner:], len(dx), inner, 2 * inner)
        at(found, *self.gate_up).addmm_(gate_up.T, middle)
        dx = norm(
            torch.mm(gate_up, self.gate_up_joint, out=middle), dx, at(found, self.middle.weight)
        )
        at(found, self.out).addmm_(dx.T, mixed)
        dmixed, dqkv = torch.mm(dx, self.out, out=mixed), torch.empty_like(qkv)
        kernels.text_attention_backward(
            qkv, cos, sin, lengths, probs, dmixed, dqkv, _scratch(_whole_lanes(lengths), self.size, 4),
            len(lengths), self.heads, self.kv_heads, self.size, self.factor,
        )  # fmt: skip
        at(found, *self.qkv).addmm_(dqkv.T, y)
        return dx, torch.mm(dqkv, self.qkv_joint, out=y)


def _norm(kernels: Kernels, x: Tensor, more: Tensor | None, norm: Any) -> tuple[Any, Any]:
    """The norm of x (with `more`: x + more and its norm), and the way back: (dy, dx of the sum, dweight that is added to) -> dx."""
    total = x if more is None else more  # what was added is not needed any more
    y, scale, weight = torch.empty_like(x), x.new_empty(len(x)), norm.weight
    kernels.rms_norm(x, more, weight, total, y, scale, *x.shape, norm.variance_epsilon)

    def back(dy: Tensor, dtotal: Tensor | None, dweight: Tensor) -> Tensor:
        dx = torch.empty_like(total)
        kernels.rms_norm_backward(dy, dtotal, total, weight, scale, dx, dweight, *total.shape)
        return dx

    return y if more is None else (total, y), back


def _whole_lanes(lengths: Tensor) -> Tensor:
    return (lengths + LANES - 1) // LANES * LANES


def _scratch(wide: Tensor, size: int, arrays: int) -> Tensor:
    """Room for `arrays` heads of the longest text, and in the way back (4) for its scores."""
    longest = int(wide.max())
    return torch.empty(arrays * longest * size + (longest**2 if arrays == 4 else 0))
