"""The training forward of a small Llama on a CPU: the model's own matrices, everything between them by kernels.c.

At these sizes half of the time of an ordinary forward and backward goes into norms, rotations, masks, softmaxes and copies,
each a few passes over memory. Here each is one pass, and attention is computed over shared prompts (`prefix.Layout`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from trainorder.llama.kernels import Kernels
from trainorder.prefix import Layout


def hidden_states(
    model: Any, kernels: Kernels, ids: Int[Tensor, " token"], layout: Layout
) -> Float[Tensor, "token hidden"]:
    """The states behind the last norm, of all flat tokens."""
    body = model.model
    x = body.embed_tokens(ids)
    cos, sin = body.rotary_emb(x[None], layout.positions[None])
    half = cos.shape[-1] // 2
    rotation = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
    y = _norm(kernels, x, None, body.layers[0].input_layernorm)
    norms = [*(layer.input_layernorm for layer in body.layers[1:]), body.norm]
    for layer, norm in zip(body.layers, norms, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        qkv = _joint(y, attention.q_proj, attention.k_proj, attention.v_proj)
        mixed = attention.o_proj(_Attention.apply(kernels, qkv, *rotation, layout, attention))
        x, y = _norm(kernels, x, mixed, layer.post_attention_layernorm)
        gate_up = _joint(y, mlp.gate_proj, mlp.up_proj)
        x, y = _norm(kernels, x, mlp.down_proj(_SwiGLU.apply(kernels, gate_up)), norm)
    return y


def log_probs(
    kernels: Kernels,
    states: Float[Tensor, "target hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    targets: Int[Tensor, " target"],
    temperature: float,
    entropy: bool,
    chunk_entries: int,
) -> tuple[Float[Tensor, " target"], Float[Tensor, " target"] | None]:
    """Log p of the targets, and the entropy if wanted, without ever holding more than `chunk_entries` logits."""
    logps, entropies = _LogProb.apply(
        kernels, states, weight, targets, temperature, entropy, chunk_entries
    )
    return logps, entropies if entropy else None


def _joint(x: Tensor, *layers: Any) -> Tensor:
    """Their outputs side by side, by one product instead of several narrow ones."""
    return F.linear(x, torch.cat([layer.weight for layer in layers]))


def _norm(kernels: Kernels, x: Tensor, more: Tensor | None, norm: Any) -> Any:
    """The norm of x; with `more`, x + more and the norm of that."""
    return _RmsNorm.apply(kernels, x, more, norm.weight, norm.variance_epsilon)


class _RmsNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, x: Tensor, more: Tensor | None, weight: Tensor, eps: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = x.contiguous()
        total = x if more is None else torch.empty_like(x)
        y, scale = torch.empty_like(x), x.new_empty(len(x))
        kernels.rms_norm(x, more, weight, total, y, scale, *x.shape, eps)
        ctx.save_for_backward(total, weight, scale)
        ctx.kernels, ctx.added = kernels, more is not None
        ctx.set_materialize_grads(False)
        return (total, y) if ctx.added else y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, scale = ctx.saved_tensors
        dtotal, dy = grad_outputs if ctx.added else (None, grad_outputs[0])
        assert dy is not None
        dtotal = dtotal if dtotal is None else dtotal.contiguous()
        dx, dweight = torch.empty_like(total), torch.zeros_like(weight)
        ctx.kernels.rms_norm_backward(
            dy.contiguous(), dtotal, total, weight, scale, dx, dweight, *total.shape
        )
        return None, dx, dx if ctx.added else None, dweight, None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, gate_up: Tensor) -> Tensor:
        rows, inner = len(gate_up), gate_up.shape[1] // 2
        y = gate_up.new_empty(rows, inner)
        kernels.swiglu(gate_up, gate_up[:, inner:], y, rows, inner, 2 * inner)
        ctx.kernels, ctx.gate_up = kernels, gate_up
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad, ctx.gate_up = ctx.gate_up, None
        # turned into its own gradient: the product that made it does not need it
        rows, inner = len(grad), grad.shape[1] // 2
        dy = grad_outputs[0].contiguous()
        ctx.kernels.swiglu_backward(dy, grad, grad[:, inner:], rows, inner, 2 * inner)
        return None, grad


class _Attention(Function):
    """Attention over shared prompts: queries, keys and values side by side in, [token, heads * size] out, with rotation.

    Inside, queries are [group * kv, seat * member * position, size], so that all rows of a prompt meet its keys in one
    product, and one softmax covers a row's prompt and its own tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        layout: Layout,
        module: Any,
    ) -> Tensor:
        size, scale = module.head_dim, module.scaling
        config = module.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        pad = _Padding(kernels, layout, cos, sin, size, heads, kv_heads)
        q, k, v = pad.columns(qkv)
        qp, qr = pad.split(q, queries=True, rotate=True)
        kp, kr = pad.split(k, queries=False, rotate=True)
        vp, vr = pad.split(v, queries=False, rotate=False)
        seen, width, length = layout.prompt_lengths, layout.width, layout.length
        within = torch.bmm(qp, kp.mT)
        kernels.softmax(None, within, seen, within.numel() // width, 1, 0, width, scale)
        prompts = torch.bmm(within, vp)
        ctx.pad, ctx.scale = pad, scale
        out = qkv.new_empty(len(qkv), heads * size)
        if not pad.has_rows:
            ctx.save_for_backward(qp, kp, vp, within)
            pad.join(prompts, None, out, queries=True, rotate=False)
            return out
        before = torch.bmm(qr.view(len(kp), -1, size), kp.mT)
        own = torch.bmm(qr, kr.mT)
        rows = own.numel() // length
        kernels.softmax(before, own, seen, rows, rows // layout.groups, width, length, scale)
        mixed = torch.bmm(before, vp).view(qr.shape).baddbmm_(own, vr)
        ctx.save_for_backward(qp, kp, vp, within, qr, kr, vr, before, own)
        pad.join(prompts, mixed, out, queries=True, rotate=False)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        qp, kp, vp, within, *of_rows = ctx.saved_tensors
        pad, scale = ctx.pad, ctx.scale
        kernels, layout = pad.kernels, pad.layout
        seen, width, length = layout.prompt_lengths, layout.width, layout.length
        dp, dr = pad.split(grad_outputs[0].contiguous(), queries=True, rotate=False)
        # prompts among themselves
        dwithin = torch.bmm(dp, vp.mT)
        rows = within.numel() // width
        kernels.softmax_backward(None, within, None, dwithin, seen, rows, 1, 0, width, scale)
        dvp = torch.bmm(within.mT, dp)
        dqp, dkp = torch.bmm(dwithin, kp), torch.bmm(dwithin.mT, qp)
        if not of_rows:
            return None, pad.joined((dqp, None), (dkp, None), (dvp, None)), None, None, None, None
        # rows against their prompt and themselves
        qr, kr, vr, before, own = of_rows
        grouped = dr.view(len(kp), -1, pad.size)
        dbefore, down = torch.bmm(grouped, vp.mT), torch.bmm(dr, vr.mT)
        rows = own.numel() // length
        kernels.softmax_backward(
            before, own, dbefore, down, seen, rows, rows // layout.groups, width, length, scale
        )
        dvp.baddbmm_(before.mT, grouped)
        dvr = torch.bmm(own.mT, dr)
        dqr = torch.bmm(dbefore, kp).view(qr.shape).baddbmm_(down, kr)
        dkp.baddbmm_(dbefore.mT, qr.view(grouped.shape))
        dkr = torch.bmm(down.mT, qr)
        return None, pad.joined((dqp, dqr), (dkp, dkr), (dvp, dvr)), None, None, None, None


class _Padding:
    """Flat tokens to padded heads and back."""

    def __init__(
        self,
        kernels: Kernels,
        layout: Layout,
        cos: Tensor,
        sin: Tensor,
        size: int,
        heads: int,
        kv_heads: int,
    ) -> None:
        self.kernels, self.layout, self.size = kernels, layout, size
        self.heads, self.kv_heads = heads, kv_heads
        self.cut = len(layout.prompt_place)
        self.has_rows = len(layout.row_place) > 0
        """Whether there are tokens behind the prompts: whole texts are prompts without any."""
        self.cos, self.sin = (cos[: self.cut], cos[self.cut :]), (sin[: self.cut], sin[self.cut :])

    def columns(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Views of queries, keys and values that lie side by side."""
        kv = self.kv_heads * self.size
        return qkv.split([self.heads * self.size, kv, kv], 1)

    def joined(self, *parts: tuple[Tensor, Tensor | None]) -> Tensor:
        """The gradients of queries, keys and values, each of prompts and rows, side by side, with the inverse rotation."""
        out = parts[0][0].new_empty(
            len(self.layout.positions), (self.heads + 2 * self.kv_heads) * self.size
        )
        for i, (part, to) in enumerate(zip(parts, self.columns(out), strict=True)):
            self.join(*part, to, queries=i == 0, rotate=i < 2)
        return out

    def split(self, x: Tensor, *, queries: bool, rotate: bool) -> tuple[Tensor, Tensor]:
        """[token, heads * size] -> prompts [group * kv, member * width, size], rows [group * kv * seat, member * length, size].

        Rows are empty where there are none.
        """
        layout, (heads, members) = self.layout, self._heads(queries)
        parts = []
        for i, (part, place, seats, length) in enumerate(self._parts(x)):
            if i and not self.has_rows:
                parts.append(x.new_empty(0))
                continue
            blocks = layout.groups * self.kv_heads * seats
            full = len(place) == layout.groups * seats * length
            out = (torch.empty if full else torch.zeros)(blocks, members * length, self.size)
            cos, sin = (self.cos[i], self.sin[i]) if rotate else (None, None)
            self.kernels.pack(
                part, cos, sin, place, out, len(place), part.stride(0), heads, members, seats, length, self.size
            )  # fmt: skip
            parts.append(out)
        return parts[0], parts[1]

    def join(
        self, prompts: Tensor, rows: Tensor | None, out: Tensor, *, queries: bool, rotate: bool
    ) -> None:
        """The way back of `split`, into `out`."""
        heads, members = self._heads(queries)
        for i, (part, place, seats, length) in enumerate(self._parts(out)):
            cos, sin = (self.cos[i], self.sin[i]) if rotate else (None, None)
            source = (prompts, rows)[i]
            if source is None:
                continue
            self.kernels.unpack(
                source, cos, sin, place, part, len(place), part.stride(0), heads, members, seats, length, self.size
            )  # fmt: skip

    def _heads(self, queries: bool) -> tuple[int, int]:
        return (self.heads, self.heads // self.kv_heads) if queries else (self.kv_heads, 1)

    def _parts(self, x: Tensor) -> list[tuple[Tensor, Tensor, int, int]]:
        layout = self.layout
        return [
            (x[: self.cut], layout.prompt_place, 1, layout.width),
            (x[self.cut :], layout.row_place, layout.rows, layout.length),
        ]


class _LogProb(Function):
    """The LM head and the log-softmax of the targets, chunk by chunk; logits are recomputed unless one chunk holds all."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        states: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        want_entropy: bool,
        chunk_entries: int,
    ) -> tuple[Tensor, Tensor]:
        rows, vocabulary = len(states), len(weight)
        size = max(1, chunk_entries // vocabulary)
        logps, scales, entropies = (states.new_zeros(rows) for _ in range(3))
        logits = None
        for i in range(0, rows, size):
            at = slice(i, min(i + size, rows))
            logits = F.linear(states[at], weight)
            kernels.log_prob(
                logits, targets[at], logps[at], entropies[at] if want_entropy else None,
                scales[at], len(logits), vocabulary, 1 / temperature,
            )  # fmt: skip
        ctx.save_for_backward(states, weight, targets, scales, entropies)
        ctx.logits = logits if rows <= size else None
        ctx.kernels, ctx.size, ctx.factor, ctx.want_entropy = (
            kernels,
            size,
            1 / temperature,
            want_entropy,
        )
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets, scales, entropies = ctx.saved_tensors
        kept, ctx.logits = ctx.logits, None  # turned into its own gradient
        dstates, dweight = torch.empty_like(states), torch.zeros_like(weight)
        dlogps = grad_outputs[0].contiguous()
        dh = grad_outputs[1].contiguous() if ctx.want_entropy else None
        for i in range(0, len(states), ctx.size):
            at = slice(i, min(i + ctx.size, len(states)))
            logits = F.linear(states[at], weight) if kept is None else kept
            ctx.kernels.log_prob_backward(
                logits, targets[at], scales[at], dlogps[at], None if dh is None else dh[at],
                entropies[at], len(logits), len(weight), ctx.factor,
            )  # fmt: skip
            torch.mm(logits, weight, out=dstates[at])
            dweight.addmm_(logits.T, states[at])
        return None, dstates, dweight, None, None, None, None
