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
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        y = _norm(kernels, x, layer.input_layernorm)
        q, k, v = attention.q_proj(y), attention.k_proj(y), attention.v_proj(y)
        mixed = _Attention.apply(kernels, q, k, v, *rotation, layout, attention)
        x = x + attention.o_proj(mixed)
        y = _norm(kernels, x, layer.post_attention_layernorm)
        x = x + mlp.down_proj(_SwiGLU.apply(kernels, mlp.gate_proj(y), mlp.up_proj(y)))
    return _norm(kernels, x, body.norm)


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


def _norm(kernels: Kernels, x: Tensor, norm: Any) -> Tensor:
    return _RmsNorm.apply(kernels, x, norm.weight, norm.variance_epsilon)


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y, scale = torch.empty_like(x), x.new_empty(len(x))
        kernels.rms_norm(x, weight, y, scale, *x.shape, eps)
        ctx.save_for_backward(x, weight, scale)
        ctx.kernels = kernels
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        ctx.kernels.rms_norm_backward(
            grad_outputs[0].contiguous(), x, weight, scale, dx, dweight, *x.shape
        )
        return None, dx, dweight, None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, gate: Tensor, up: Tensor) -> Tensor:
        y = torch.empty_like(gate)
        kernels.swiglu(gate, up, y, *gate.shape, gate.shape[1])
        ctx.save_for_backward(gate, up)
        ctx.kernels = kernels
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        ctx.kernels.swiglu_backward(
            grad_outputs[0].contiguous(), gate, up, dgate, dup, gate.numel()
        )
        return None, dgate, dup


class _Attention(Function):
    """Attention over shared prompts: [token, heads * size] in and out, rotation included.

    Inside, queries are [group * kv, seat * member * position, size], so that all rows of a prompt meet its keys in one
    product, and one softmax covers a row's prompt and its own tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        layout: Layout,
        module: Any,
    ) -> Tensor:
        size, scale = module.head_dim, module.scaling
        pad = _Padding(kernels, layout, cos, sin, size, q.shape[1] // size, k.shape[1] // size)
        qp, qr = pad.split(q, queries=True, rotate=True)
        kp, kr = pad.split(k, queries=False, rotate=True)
        vp, vr = pad.split(v, queries=False, rotate=False)
        seen, width, length = layout.prompt_lengths, layout.width, layout.length
        within = torch.bmm(qp, kp.mT)
        kernels.softmax(None, within, seen, within.numel() // width, 1, 0, width, scale)
        prompts = torch.bmm(within, vp)
        before = torch.bmm(qr.view(len(kp), -1, size), kp.mT)
        own = torch.bmm(qr, kr.mT)
        rows = own.numel() // length
        kernels.softmax(before, own, seen, rows, rows // layout.groups, width, length, scale)
        mixed = torch.bmm(before, vp).view(qr.shape).baddbmm_(own, vr)
        ctx.save_for_backward(qp, qr, kp, kr, vp, vr, within, before, own)
        ctx.pad, ctx.scale = pad, scale
        return pad.join(prompts, mixed, queries=True, rotate=False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        qp, qr, kp, kr, vp, vr, within, before, own = ctx.saved_tensors
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
        # rows against their prompt and themselves
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
        dq = pad.join(dqp, dqr, queries=True, rotate=True)
        dk = pad.join(dkp, dkr, queries=False, rotate=True)
        dv = pad.join(dvp, dvr, queries=False, rotate=False)
        return None, dq, dk, dv, None, None, None, None


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
        self.cos, self.sin = (cos[: self.cut], cos[self.cut :]), (sin[: self.cut], sin[self.cut :])

    def split(self, x: Tensor, *, queries: bool, rotate: bool) -> tuple[Tensor, Tensor]:
        """[token, heads * size] -> prompts [group * kv, member * width, size], rows [group * kv * seat, member * length, size]."""
        layout, (heads, members) = self.layout, self._heads(queries)
        parts = []
        for i, (part, place, seats, length) in enumerate(self._parts(x)):
            blocks = layout.groups * self.kv_heads * seats
            full = len(place) == layout.groups * seats * length
            out = (torch.empty if full else torch.zeros)(blocks, members * length, self.size)
            cos, sin = (self.cos[i], self.sin[i]) if rotate else (None, None)
            self.kernels.pack(
                part, cos, sin, place, out, len(place), heads, members, seats, length, self.size
            )
            parts.append(out)
        return parts[0], parts[1]

    def join(self, prompts: Tensor, rows: Tensor, *, queries: bool, rotate: bool) -> Tensor:
        """The way back of `split`."""
        heads, members = self._heads(queries)
        out = prompts.new_empty(len(self.layout.positions), heads * self.size)
        for i, (part, place, seats, length) in enumerate(self._parts(out)):
            cos, sin = (self.cos[i], self.sin[i]) if rotate else (None, None)
            source = (prompts, rows)[i]
            self.kernels.unpack(
                source, cos, sin, place, part, len(place), heads, members, seats, length, self.size
            )
        return out

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
