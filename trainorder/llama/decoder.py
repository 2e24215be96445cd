"""Decoding with a Llama on a CPU: fused copies of its matrices, and kernels.c for all between the products."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainorder.llama.kernels import LANES, Kernels

PACKED = 512
"""Models at least this wide have their weights packed into oneDNN's layout once, instead of in every product: a fifth of a decoding step."""
MASKED = -1e30
"""Score of a key that must not be seen; finite, so that a row of padding gives numbers instead of nan."""


class LlamaDecoder:
    """See rollout.decoders.Decoder. Grouped-query attention and rescaled rotary positions included.

    A prompt's keys and values are kept once for all its rows; a row keeps its own, in its place as long as it lives, so that
    dropping others costs nothing. All rows write to the same slot, and a slot's number serves as its position: prompts are
    padded on the left, and rotary attention sees only differences of positions. The norms' weights, the 1/sqrt(d) and the
    order of the rotated pairs are folded into the matrices; `map_layers` may prepare several layers at a time.
    """

    dead_share = 0.1

    def __init__(
        self, model: Any, kernels: Kernels, map_layers: Callable[..., Iterable[_Layer]] = map
    ) -> None:
        config, body = model.config, model.model
        self.kernels = kernels
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size, self.eps = body.layers[0].self_attn.head_dim, config.rms_norm_eps
        self.embedding = model.get_input_embeddings().weight
        self.frequencies = body.rotary_emb.inv_freq.float()
        self.amplitude = body.rotary_emb.attention_scaling
        self.matrix = _Packed if config.hidden_size >= PACKED and _can_pack() else _Plain
        self.layers = list(map_layers(self._fuse, body.layers))
        self.head = self.matrix(model.lm_head.weight * body.norm.weight, copy=False)

    def prefill(
        self,
        ids: Int[Tensor, "prompt position"],
        real: Bool[Tensor, "prompt position"],
        samples: int,
        capacity: int,
    ) -> Float[Tensor, "row vocabulary"]:
        """See Decoder."""
        prompts, width = ids.shape
        rows = prompts * samples
        angles = torch.outer(torch.arange(width + capacity).float(), self.frequencies)
        self.cos, self.sin = (f(angles) * self.amplitude for f in (torch.cos, torch.sin))
        rotation = torch.complex(self.cos[:width], self.sin[:width])
        self.width, self.capacity, self.filled = width, -(-capacity // LANES) * LANES, 0
        self.prompt = torch.arange(prompts).repeat_interleave(samples)
        self.place = torch.arange(rows)
        self.skip = width - real.sum(1)
        self.prefix, self.own = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        seen = torch.where(real[:, None, None, :] & causal, 0.0, MASKED)
        x = self.embedding[ids].flatten(0, 1)
        for weights in self.layers:
            q, k, v = self._split(weights.qkv(self._norm(x)).view(prompts, width, -1), rotation)
            self.prefix.append((F.pad(k.mT, (0, LANES)), v.contiguous()))
            shape = (rows, self.kv_heads, self.capacity * self.size)
            self.own.append((x.new_zeros(shape), x.new_empty(shape)))
            out = F.scaled_dot_product_attention(q, k, v, seen, scale=1.0, enable_gqa=True)
            x = self._finish(x, out.transpose(1, 2).reshape(len(x), -1), weights)
        last = self.head(self._norm(x.view(prompts, width, -1)[:, -1].contiguous()))
        return last.repeat_interleave(samples, 0)

    def step(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocabulary"]:
        """See Decoder."""
        slot = self.width + self.filled
        x = self.embedding[tokens]
        attended = x.new_empty(len(x), self.heads * self.size)
        scratch = x.new_empty(self.width + self.capacity + 2 * LANES)
        for weights, prefix, own in zip(self.layers, self.prefix, self.own, strict=True):
            mixed = weights.qkv(self._norm(x))
            self.kernels.attend(
                mixed, self.cos[slot], self.sin[slot], *prefix, *own, self.place, self.prompt, self.skip, attended, scratch,
                len(x), self.heads, self.kv_heads, self.size, self.width, self.width + LANES, self.capacity, self.filled,
            )  # fmt: skip
            x = self._finish(x, attended, weights)
        self.filled += 1
        return self.head(self._norm(x))

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """See Decoder."""
        self.place, self.prompt = self.place[rows], self.prompt[rows]

    def _norm(self, x: Tensor) -> Tensor:
        """RMSNorm without its weight."""
        y = torch.empty_like(x)
        self.kernels.rms_norm(x, None, None, None, y, None, *x.shape, self.eps)
        return y

    def _split(self, mixed: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values: [prompt, head, position, size] each."""
        heads = mixed.view(*mixed.shape[:2], -1, self.size).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = (
            torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotation).flatten(
                -2
            )
            for x in (q, k)
        )
        return q, k, v

    def _finish(self, x: Tensor, attended: Tensor, weights: _Layer) -> Tensor:
        x = weights.out.added(x, attended)
        mixed = weights.gate_up(self._norm(x))
        inner = mixed.shape[1] // 2
        gated = x.new_empty(len(x), inner)
        self.kernels.swiglu(mixed, mixed[:, inner:], gated, len(x), inner, 2 * inner)
        return weights.down.added(x, gated)

    @torch.inference_mode()
    def _fuse(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        q = self._pair(attention.q_proj.weight * attention.scaling)
        k = self._pair(attention.k_proj.weight)
        qkv = torch.cat([q, k, attention.v_proj.weight]) * layer.input_layernorm.weight
        gate_up = (
            torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
            * layer.post_attention_layernorm.weight
        )
        weights = qkv, attention.o_proj.weight, gate_up, mlp.down_proj.weight
        return _Layer(*map(self.matrix, weights))

    def _pair(self, weight: Tensor) -> Tensor:
        """Lay entry i of a head beside entry i + d/2, with which it is rotated."""
        halves = weight.view(-1, 2, self.size // 2, weight.shape[1])
        return halves.transpose(1, 2).reshape(weight.shape)


def _can_pack() -> bool:
    """Whether this build of torch has oneDNN and the operators for packed weights, which are not public."""
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


class _Plain:
    """The product with a weight [out, in], laid out as [in, out] if `copy`, else used as it is."""

    def __init__(self, weight: Float[Tensor, "out in"], *, copy: bool = True) -> None:
        self.weight = weight.T.contiguous() if copy else weight.T

    def __call__(self, x: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        return x @ self.weight

    def added(
        self, total: Float[Tensor, "row out"], x: Float[Tensor, "row in"]
    ) -> Float[Tensor, "row out"]:
        """`total` plus the product."""
        return torch.addmm(total, x, self.weight)


class _Packed:
    """The same product with a copy of the weight in oneDNN's layout, as torch.compile uses on a CPU."""

    def __init__(self, weight: Float[Tensor, "out in"], *, copy: bool = True) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)

    def __call__(self, x: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")

    def added(
        self, total: Float[Tensor, "row out"], x: Float[Tensor, "row in"]
    ) -> Float[Tensor, "row out"]:
        """`total` plus the product."""
        return total + self(x)


@dataclass(frozen=True)
class _Layer:
    """Matrices of one layer."""

    qkv: _Plain | _Packed
    out: _Plain | _Packed
    gate_up: _Plain | _Packed
    down: _Plain | _Packed
