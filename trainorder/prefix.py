"""Prompts once, completions behind them: the layout of a micro-batch, and attention over it for any Hugging Face model.

The answers to one prompt share it. Their tokens are laid out flat, first those of all prompts, then those of all rows, so
that matrix products see no padding and no prompt twice. Only attention needs the structure: a row's token sees its prompt
and its own row up to itself. Hydragen (arXiv 2402.05099) does this for decoding; here it serves training as well.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

ATTENTION = "trainorder_shared_prefix"
"""Name under which `attention` is known to transformers."""

WAYS = ("products", "sdpa")
"""How rows attend: by products of our own with all scores in memory, or by torch's fused attention over a copy of the prompt's
keys for each row. `machine.py` measures which is faster; see `use_way`."""
MAX_SCORES = 2**26
"""Scores of a layer (256 MiB in float32) above which rows attend by sdpa whatever is faster."""
_way = "products"

FOREIGN = ("softcap", "s_aux")
"""What some models pass to their attention and this one does not know."""


@dataclass(frozen=True)
class Layout:
    """Where the flat tokens of some prompts and of the rows behind them stand when they are padded.

    Two prompts of 3 and 2 tokens, two rows of 2 and 1 behind the first, one of 2 behind the second:

    >>> layout = Layout.of([3, 2], [2, 1, 2], [0, 0, 1])
    >>> layout.positions.tolist()
    [0, 1, 2, 0, 1, 3, 4, 3, 2, 3]
    >>> layout.groups, layout.rows, layout.width, layout.length  # padded: prompts [2, 3], rows [2, 2, 2]
    (2, 2, 3, 2)
    >>> layout.prompt_place.tolist(), layout.row_place.tolist()
    ([0, 1, 2, 3, 4], [0, 1, 2, 4, 5])
    """

    groups: int
    """Prompts."""
    rows: int
    """Rows behind a prompt, at most."""
    width: int
    """Tokens of a prompt, at most."""
    length: int
    """Tokens of a row, at most; at least 1."""
    prompt_lengths: Int[Tensor, " group"]
    prompt_place: Int[Tensor, " prompt_token"]
    """Place of each prompt token in [group, width]."""
    row_place: Int[Tensor, " row_token"]
    """Place of each row token in [group, row, length]."""
    positions: Int[Tensor, " token"]
    """Position of each token, prompts' first."""

    @classmethod
    def of(
        cls,
        prompt_lengths: Sequence[int],
        row_lengths: Sequence[int],
        owners: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> Layout:
        """The layout of prompts, and of rows that each belong to the prompt `owners[row]`."""
        counts = [0] * len(prompt_lengths)
        seats = []
        for owner in owners:
            seats.append(counts[owner])
            counts[owner] += 1
        rows, width, length = max(counts), max(prompt_lengths), max(1, *row_lengths, 1)
        prompts, answers = torch.tensor(prompt_lengths), torch.tensor(row_lengths)
        owner = torch.tensor(owners)
        group, within = _ragged(prompts)
        row, step = _ragged(answers)
        seat = owner * rows + torch.tensor(seats)
        positions = torch.cat([within, prompts[owner[row]] + step])
        return cls(
            len(prompt_lengths),
            rows,
            width,
            length,
            prompts.to(device),
            (group * width + within).to(device),
            (seat[row] * length + step).to(device),
            positions.to(device),
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of flat tokens, [head, token, size] each, q scaled: a token sees its prompt, and its row up to itself."""
        k, v = (for_heads(x, len(q)) for x in (k, v))
        cut, heads, size = len(self.prompt_place), q.shape[0], q.shape[2]
        g, s, p, t = self.groups, self.rows, self.width, self.length
        qp, kp, vp = (_pad(x[:, :cut], self.prompt_place, (g, p)) for x in (q, k, v))
        qr, kr, vr = (_pad(x[:, cut:], self.row_place, (g, s, t)) for x in (q, k, v))
        prompts = F.scaled_dot_product_attention(qp, kp, vp, is_causal=True, scale=1.0)
        seen = torch.arange(p, device=q.device) < self.prompt_lengths[:, None, None]
        past = torch.ones(t, t, dtype=torch.bool, device=q.device).tril()
        if _way == "sdpa" or heads * g * s * t * (p + t) > MAX_SCORES:
            keys, values = (
                torch.cat([whole[:, :, None].expand(-1, -1, s, -1, -1), own], -2).flatten(1, 2)
                for whole, own in ((kp, kr), (vp, vr))
            )
            mask = torch.cat([seen.expand(g, t, p), past.expand(g, t, t)], -1)
            mask = mask.repeat_interleave(s, 0)[None]
            # four dimensions: of five torch takes the slow path, which holds all scores
            mixed = F.scaled_dot_product_attention(qr.flatten(1, 2), keys, values, mask, scale=1.0)
        else:
            before = (qr.reshape(heads, g, s * t, size) @ kp.mT).masked_fill(~seen, -torch.inf)
            own = (qr @ kr.mT).masked_fill(~past, -torch.inf)
            both = _softmax(torch.cat([before.view(heads, g, s, t, p), own], -1))
            before = (both[..., :p].reshape(heads, g, s * t, p) @ vp).view_as(qr)
            mixed = before + both[..., p:] @ vr
        flat = (
            prompts.reshape(heads, -1, size)[:, self.prompt_place],
            mixed.reshape(heads, -1, size)[:, self.row_place],
        )
        return torch.cat(flat, 1)


def for_heads(x: Float[Tensor, "kv_head ..."], heads: int) -> Float[Tensor, "head ..."]:
    """Keys or values once for each query head that shares them."""
    repeats = heads // len(x)
    return x.repeat_interleave(repeats, 0) if repeats > 1 else x


def use_way(way: str) -> None:
    """Let rows attend this way from now on; one of WAYS."""
    global _way
    _way = way


def _ragged(lengths: Int[Tensor, " item"]) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """Of each token of items laid end to end: its item, and its place within."""
    item = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    starts = lengths.cumsum(0) - lengths
    return item, torch.arange(len(item)) - starts[item]


def _softmax(scores: Tensor) -> Tensor:
    """In float32 where the scores are of half precision."""
    wide = torch.float32 if scores.dtype.itemsize < 4 else scores.dtype
    return scores.softmax(-1, dtype=wide).to(scores.dtype)


def _pad(x: Float[Tensor, "head token size"], place: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[head, token, size] -> [head, *shape, size], zeros where there is no token."""
    heads, _, size = x.shape
    whole = x.new_zeros(heads, math.prod(shape), size)
    return whole.index_copy(1, place, x).view(heads, *shape, size)


class PrefixCache:
    """Keys and values while decoding: one copy per prompt, and a static cache for the rows after it.

    Query heads that share keys and values share their copy too; they meet it side by side in one product.
    """

    def __init__(self, real: Bool[Tensor, "prompt position"], samples: int, capacity: int) -> None:
        self.real, self.samples, self.capacity = real, samples, capacity
        self.prefix: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.filled, self.decoding = 0, False

    def start_rows(self) -> None:
        """The prompts are read; from now on rows are decoded."""
        self.decoding = True
        prompts = torch.arange(len(self.real), device=self.real.device)
        self._seat(prompts.repeat_interleave(self.samples))

    def advance(self) -> None:
        """All layers have written a step."""
        self.filled += 1

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows only."""
        for layer in list(self.own):  # one by one: never two whole caches
            k, v = self.own.pop(layer)
            self.own[layer] = k[:, rows], v[:, rows]
        self._seat(self.prompt[rows])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """While reading prompts [head, prompt * position, size], afterwards [head, row, size]; q scaled, k and v by kv head."""
        return (self._step if self.decoding else self._read)(layer, q, k, v)

    def _read(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        prompts, width = self.real.shape
        q, k, v = (x.unflatten(1, (prompts, width)) for x in (q, k, v))
        self.prefix[layer] = k, v
        causal = torch.ones(width, width, dtype=torch.bool, device=q.device).tril()
        seen = (self.real[:, None, :] & causal) | torch.eye(
            width, dtype=torch.bool, device=q.device
        )
        k, v = (for_heads(x, len(q)) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, seen, scale=1.0).flatten(1, 2)

    def _step(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, rows, size = q.shape
        shared, prompts = len(k), len(self.real)
        if layer not in self.own:
            shape = (shared, rows, self.capacity, size)
            self.own[layer] = k.new_empty(shape), v.new_empty(shape)
        keys, values = self.own[layer]
        keys[:, :, self.filled], values[:, :, self.filled] = k, v
        keys, values = keys[:, :, : self.filled + 1], values[:, :, : self.filled + 1]
        prompt_keys, prompt_values = self.prefix[layer]

        def with_prompts(x: Tensor, other: Tensor) -> Tensor:
            """The product of each row with what its prompt holds, [head, row, in] -> [head, row, out]."""
            seated = _pad(x, self.seat, (prompts, self.seats)).unflatten(0, (shared, -1))
            product = seated.transpose(1, 2).flatten(2, 3) @ other
            product = product.unflatten(2, (-1, self.seats)).transpose(1, 2)
            return product.reshape(heads, prompts * self.seats, -1)[:, self.seat]

        def with_own(x: Tensor, other: Tensor) -> Tensor:
            """The product of each row with what itself holds."""
            product = x.unflatten(0, (shared, -1)).transpose(1, 2) @ other
            return product.transpose(1, 2).reshape(heads, rows, -1)

        seen = self.real[self.prompt]
        before = with_prompts(q, prompt_keys.mT).masked_fill(~seen, -torch.inf)
        both = _softmax(torch.cat([before, with_own(q, keys.mT)], -1))
        width = before.shape[-1]
        mixed = with_prompts(both[..., :width], prompt_values)
        return mixed + with_own(both[..., width:], values)

    def _seat(self, prompt: Int[Tensor, " row"]) -> None:
        """Give each row a place among the rows of its prompt, which lie side by side."""
        self.prompt = prompt
        counts = torch.bincount(prompt, minlength=len(self.real))
        starts = counts.cumsum(0) - counts
        self.seats = int(counts.max())
        rows = torch.arange(len(prompt), device=prompt.device)
        self.seat = prompt * self.seats + rows - starts[prompt]


def attention(
    module: Any,
    query: Float[Tensor, "batch head token size"],
    key: Float[Tensor, "batch kv_head token size"],
    value: Float[Tensor, "batch kv_head token size"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | PrefixCache | None = None,
    **other: Any,
) -> tuple[Float[Tensor, "batch token head size"], None]:
    """What transformers calls in place of a model's attention; `layout` is passed through the model's forward."""
    if layout is None or any(other.get(name) is not None for name in FOREIGN):
        raise NotImplementedError(f"attention of {type(module).__name__} over shared prefixes")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    batch, heads = query.shape[:2]
    q, k, v = (x.transpose(0, 1).flatten(1, 2) for x in (query * scale, key, value))
    out = layout.attend(module.layer_idx, q, k, v)
    return out.view(heads, batch, query.shape[2], -1).permute(1, 2, 0, 3), None


def using_prefix_attention(model: Any) -> AbstractContextManager[None]:
    """Within this block the model's attention is `attention`; its forward takes `layout=`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if ATTENTION not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
    return _with_attention(model.config, ATTENTION)


_INSIDE: dict[int, tuple[int, str]] = {}
"""Of a config whose attention is replaced: how many blocks of all threads are at work, and what it was before the first."""
_LOCK = threading.Lock()


@contextmanager
def _with_attention(config: Any, name: str) -> Iterator[None]:
    """Threads share the model: the first that begins replaces its attention, the last that ends puts it back."""
    key = id(config)
    with _LOCK:
        count, before = _INSIDE.get(key, (0, config._attn_implementation))
        _INSIDE[key] = count + 1, before
        config._attn_implementation = name
    try:
        yield
    finally:
        with _LOCK:
            count, _ = _INSIDE.pop(key)
            if count == 1:
                config._attn_implementation = before
            else:
                _INSIDE[key] = count - 1, before


def recomputing_alike(model: Any) -> Callable[[], tuple[Any, Any]]:
    """`context_fn` of gradient checkpointing: a layer is recomputed with the attention it was computed with."""

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _with_attention(model.config, model.config._attn_implementation)

    return contexts


def shares_prefixes(model: Any, tokens: int) -> bool:
    """Whether sequences of up to `tokens` give the same numbers with `attention` as with the model's own.

    Tried once per model; a model that looks back over a sliding window shares prefixes of sequences within it.
    """
    window = getattr(model.config, "sliding_window", None)
    if window is not None and tokens > window:
        return False
    known = getattr(model, "_shares_prefixes", None)
    if known is None:
        known = model._shares_prefixes = _tried(model)
    return known


def _tried(model: Any) -> bool:
    if not getattr(model, "_supports_attention_backend", False):
        return False
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[5, 6, 7, 8, 9]], device=device) % model.config.vocab_size
    layout = Layout.of([3], [2], [0], device)
    with torch.no_grad():
        theirs = model(input_ids=ids, use_cache=False).logits.float()
        try:
            with using_prefix_attention(model):
                ours = model(
                    input_ids=ids,
                    position_ids=layout.positions[None],
                    use_cache=False,
                    layout=layout,
                ).logits.float()
        except (NotImplementedError, TypeError):
            return False
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 5e-2
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
