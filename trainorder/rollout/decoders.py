"""Models as decoders: prompts once, then one token per row and step, with a key/value cache.

`LlamaDecoder` computes small Llama models itself, because there the time goes into calls, not into arithmetic: fused
matrices, a preallocated cache, no module code. `HfDecoder` takes any Hugging Face causal LM.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

MASKED = -1e30
"""Score of a key that must not be seen; finite, so that a row of padding gives numbers instead of nan."""

SMALL_MODEL_PARAMETERS = 50_000_000
"""Up to this size fusing copies of the weights on every call costs nothing; beyond it, calls are not the bottleneck."""


class Decoder(Protocol):
    """One batch of rows being decoded. The rows of a prompt lie side by side."""

    def prefill(
        self,
        ids: Int[Tensor, "prompt position"],
        real: Bool[Tensor, "prompt position"],
        samples: int,
        room: int,
    ) -> Float[Tensor, "row vocabulary"]:
        """Read left-padded prompts, make `samples` rows of each with space for `room` tokens; the first logits."""
        ...

    def step(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocabulary"]:
        """Append one token to every row; the next logits."""
        ...

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows only, in this order."""
        ...


def make_decoder(model: Any) -> Decoder:
    """The fastest decoder that is exact for this model."""
    return LlamaDecoder(model) if LlamaDecoder.takes(model) else HfDecoder(model)


class HfDecoder:
    """Any causal LM that accepts `attention_mask`, `position_ids` and `past_key_values`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, ids: Tensor, real: Tensor, samples: int, room: int) -> Tensor:
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


class LlamaDecoder:
    """A float32 Llama without biases, grouped-query attention and rescaled rotary positions included.

    All rows write to the same slot of the cache, and a slot's number serves as its position: prompts are padded on the
    left, and rotary attention sees only differences of positions. The norms' weights, the 1/sqrt(d) and the order of
    the rotated pairs are folded into the matrices; pairs lie side by side, so a rotation is one complex product.
    """

    def __init__(self, model: Any) -> None:
        config, body = model.config, model.model
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size, self.eps = body.layers[0].self_attn.head_dim, config.rms_norm_eps
        self.embedding = model.get_input_embeddings().weight
        self.frequencies, self.amplitude = (
            body.rotary_emb.inv_freq,
            body.rotary_emb.attention_scaling,
        )
        self.layers = [self._fuse(layer) for layer in body.layers]
        self.head = (model.lm_head.weight * body.norm.weight).T

    @classmethod
    def takes(cls, model: Any) -> bool:
        """Whether this class computes exactly what the model computes."""
        if (
            type(model).__name__ != "LlamaForCausalLM"
            or model.num_parameters() > SMALL_MODEL_PARAMETERS
        ):
            return False
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        return (
            model.config.hidden_act == "silu"
            and model.model.rotary_emb.rope_type in ("default", "linear", "llama3", "yarn")
            and all(type(m) is nn.Linear and m.bias is None for m in linear)
            and len(linear) == 1 + 7 * model.config.num_hidden_layers
            and all(p.dtype == torch.float32 for p in model.parameters())
        )

    def prefill(self, ids: Tensor, real: Tensor, samples: int, room: int) -> Tensor:
        """See Decoder."""
        prompts, width = ids.shape
        self.slot, self.rows = width, prompts * samples
        slots = torch.arange(width + room, device=ids.device)
        angles = torch.outer(slots.float(), self.frequencies.float())
        self.rotation = torch.polar(torch.full_like(angles, self.amplitude), angles)
        self.rotation = self.rotation.repeat(1, self.heads + self.kv_heads)
        shape = (2, self.rows, self.kv_heads, width + room, self.size)
        self.caches = [ids.new_empty(shape, dtype=torch.float32) for _ in self.layers]
        self.bias = self._bias(real, samples, room)
        visible = real[:, None, None, :] & (slots[:width, None] >= slots[:width])
        seen = torch.where(visible, 0.0, MASKED)
        x = self.embedding[ids].flatten(0, 1)
        for weights, cache in zip(self.layers, self.caches, strict=True):
            mixed = (_norm(x, self.eps) @ weights.qkv).view(prompts, width, -1)
            q, k, v = self._split(mixed, self.rotation[:width])
            target = cache.view(2, prompts, samples, *shape[2:])[:, :, :, :, :width]
            target.copy_(torch.stack([k, v]).transpose(2, 3)[:, :, None])
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, seen, scale=1.0, enable_gqa=True)
            x = self._finish(x, out.transpose(1, 2).reshape(len(x), -1), weights)
        return (_norm(x.view(prompts, width, -1)[:, -1], self.eps) @ self.head).repeat_interleave(
            samples, 0
        )

    def step(self, tokens: Tensor) -> Tensor:
        """See Decoder."""
        rows, slot, group = self.rows, self.slot, self.heads // self.kv_heads
        kv_width, end = 2 * self.kv_heads * self.size, slot + 1
        rotation = self.rotation[slot]
        x = self.embedding[tokens]
        for weights, cache in zip(self.layers, self.caches, strict=True):
            mixed = _norm(x, self.eps) @ weights.qkv
            torch.view_as_complex(mixed.view(rows, -1, 2))[:, : len(rotation)].mul_(rotation)
            entry = mixed[:, -kv_width:].view(rows, 2, self.kv_heads, self.size)
            cache[:, :, :, slot].copy_(entry.transpose(0, 1))
            keys, values = cache.view(2, rows * self.kv_heads, -1, self.size)[:, :, :end].unbind()
            q = mixed[:, : self.heads * self.size].reshape(-1, group, self.size)
            if self.bias is None:
                scores = torch.bmm(q, keys.mT)
            else:
                scores = torch.baddbmm(self.bias[:, :, :end], q, keys.mT)
            out = torch.bmm(scores.softmax(-1), values)
            x = self._finish(x, out.view(rows, -1), weights)
        self.slot = end
        return _norm(x, self.eps) @ self.head

    def keep(self, rows: Tensor) -> None:
        """See Decoder."""
        for i, old in enumerate(self.caches):
            new = old.new_empty(2, len(rows), *old.shape[2:])
            torch.index_select(old[:, :, :, : self.slot], 1, rows, out=new[:, :, :, : self.slot])
            self.caches[i] = new
        if self.bias is not None:
            self.bias = self.bias.view(self.rows, self.kv_heads, 1, -1)[rows].flatten(0, 1)
        self.rows = len(rows)

    def _bias(self, real: Tensor, samples: int, room: int) -> Tensor | None:
        """What is added to a row's scores, or None where no prompt is padded."""
        if real.all():
            return None
        bias = F.pad(torch.where(real, 0.0, MASKED), (0, room))
        return bias.repeat_interleave(samples * self.kv_heads, 0)[:, None]

    def _split(self, mixed: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values: [prompt, position, head, size] each."""
        pairs = torch.view_as_complex(mixed.view(*mixed.shape[:2], -1, 2))
        pairs[:, :, : rotation.shape[1]].mul_(rotation)
        heads = mixed.view(*mixed.shape[:2], -1, self.size)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        return q, k, v

    def _finish(self, x: Tensor, attended: Tensor, weights: _Layer) -> Tensor:
        x = torch.addmm(x, attended, weights.out)
        gate, up = (_norm(x, self.eps) @ weights.gate_up).chunk(2, -1)
        return x.addmm_(F.silu(gate).mul_(up), weights.down)

    def _fuse(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        q = self._pair(attention.q_proj.weight * self.size**-0.5)
        k = self._pair(attention.k_proj.weight)
        qkv = torch.cat([q, k, attention.v_proj.weight]) * layer.input_layernorm.weight
        gate_up = (
            torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
            * layer.post_attention_layernorm.weight
        )
        return _Layer(qkv.T, attention.o_proj.weight.T, gate_up.T, mlp.down_proj.weight.T)

    def _pair(self, weight: Tensor) -> Tensor:
        """Lay entry i of a head beside entry i + d/2, with which it is rotated."""
        return (
            weight.view(-1, 2, self.size // 2, weight.shape[1])
            .transpose(1, 2)
            .reshape(weight.shape)
        )


class _Layer:
    """Matrices of one layer, [in, out]."""

    def __init__(self, qkv: Tensor, out: Tensor, gate_up: Tensor, down: Tensor) -> None:
        self.qkv, self.out, self.gate_up, self.down = (
            w.contiguous() for w in (qkv, out, gate_up, down)
        )


def _norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without its weight."""
    return F.rms_norm(x, x.shape[-1:], None, eps)
