"""The training forward: log p and entropy of response tokens, for any Hugging Face causal LM.

A prompt is computed once for all its rows (`prefix.Layout`), and no matrix product sees padding. Small Llama models on a
CPU go through `llama.training`; other models through their own modules with our attention; models whose attention cannot
be replaced through padded rows. The LM head runs on response tokens only, in chunks that are recomputed in the backward
pass: a [row, token, vocabulary] tensor never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainorder import llama
from trainorder.likelihood import likelihood
from trainorder.llama import training
from trainorder.llama.kernels import Kernels
from trainorder.prefix import Layout, shares_prefixes, using_prefix_attention
from trainorder.rl import facts
from trainorder.rl.types import Live, Roll

CHUNK_ENTRIES = 2**21
"""Logits alive at one time on a CPU (8 MiB in float32): about a cache, small beside the activations."""
CHUNK_TOKENS = 256
"""Tokens that a chunk has at least, so that a large vocabulary's head is not read once per few tokens."""


def forward(
    model: Any,
    roll: Roll,
    needs: Collection[str] = (),
    models: Mapping[str, Any] | None = None,
    *,
    chunk_entries: int | None = None,
) -> Live:
    """Log p of each response token at the temperature of its row, and the facts of the head that are needed (facts.py).

    `models` holds the frozen models that needs name. `chunk_entries` bounds the logits that exist at one time; None takes
    what suits the device. Masked positions are 0. Has grad wherever torch's grad mode is on.
    """
    if any(isinstance(other, ByTask) for other in (models or {}).values()) and len(roll):
        return _by_task(model, roll, needs, models or {}, chunk_entries)
    device = model.get_input_embeddings().weight.device
    targets = Targets.of(roll, device, informed=facts.reads_gold(needs))
    chunk = chunk_entries or chunk_entries_of(model, device)
    logps, found = of_targets(model, targets, needs, models or {}, llama.kernels_for(model), chunk)

    def spread(values: Tensor) -> Tensor:
        values = values.cpu()
        return values.new_zeros(*roll.loss_mask.shape, *values.shape[1:]).index_put(
            (targets.row, targets.place), values
        )

    return Live(spread(logps), {name: spread(values) for name, values in found.items()})


@dataclass(frozen=True)
class ByTask:
    """Frozen models of which each row is compared with that of its task."""

    models: Mapping[str, Any]
    """Task -> model."""


def _by_task(
    model: Any,
    roll: Roll,
    needs: Collection[str],
    models: Mapping[str, Any],
    chunk_entries: int | None,
) -> Live:
    """`forward` of the rows of each task, with the models of that task."""
    parts, order = list[Live](), list[int]()
    for task in dict.fromkeys(problem.task for problem in roll.problem):
        rows = [i for i, problem in enumerate(roll.problem) if problem.task == task]
        own = {n: m.models[task] if isinstance(m, ByTask) else m for n, m in models.items()}
        parts.append(forward(model, roll.rows(rows), needs, own, chunk_entries=chunk_entries))
        order += rows
    back = torch.tensor(order).argsort()
    found = {n: torch.cat([part.facts[n] for part in parts])[back] for n in parts[0].facts}
    return Live(torch.cat([part.logps for part in parts])[back], found)


@dataclass(frozen=True)
class Targets:
    """The tokens of a roll whose log p is wanted, and what is computed for them."""

    row: Int[Tensor, " target"]
    place: Int[Tensor, " target"]
    batch: _Batch
    at: Int[Tensor, " target"]
    """Flat place of the token that predicts each target."""
    ids: Int[Tensor, " target"]
    temperature: float | Tensor
    informed: tuple[_Batch, Int[Tensor, " target"]] | None = None
    """The rows behind prompts with the gold text, and `at` among these."""

    @classmethod
    def of(cls, roll: Roll, device: torch.device, *, informed: bool = False) -> Targets:
        """All tokens of the roll that may learn; `informed`: also as a model meets them that reads the gold text."""
        row, place = (roll.loss_mask > 0).nonzero(as_tuple=True)

        def predicting(batch: _Batch) -> Tensor:
            return torch.where(place == 0, batch.last[row], batch.first[row] + place - 1).to(device)

        batch = _flatten(roll)
        ids = roll.response_ids[row, place].to(device)
        warmth = _temperature(roll, row, device)
        if not informed:
            return cls(row, place, batch, predicting(batch), ids, warmth)
        told = _flatten(replace(roll, prompt_ids=roll.informed_ids))
        return cls(row, place, batch, predicting(batch), ids, warmth, (told, predicting(told)))


def of_targets(
    model: Any,
    targets: Targets,
    needs: Collection[str],
    models: Mapping[str, Any],
    kernels: Kernels | None,
    chunk_entries: int,
) -> tuple[Float[Tensor, " target"], dict[str, Tensor]]:
    """`forward` of the targets alone, on the model's device: log p, and the facts that are needed."""
    batch, at, temperature = targets.batch, targets.at, targets.temperature
    states = _states(model, kernels, batch, at.device)[at]
    head_needs = [need for need in needs if need not in (facts.HIDDEN, facts.SPANS)]
    if kernels is not None and set(head_needs) <= {"entropy"} and isinstance(temperature, float):
        weight, wanted = model.lm_head.weight, bool(head_needs)
        logps, entropies = training.log_probs(
            kernels, states, weight, targets.ids, temperature, wanted, chunk_entries
        )
        found = {} if entropies is None else {"entropy": entropies}
    else:
        head = _Head.of(model, head_needs, models, targets)
        logps, found = head(states, targets.ids, temperature, chunk_entries)
    if facts.HIDDEN in needs:
        found[facts.HIDDEN] = states
    return logps, found


def _temperature(roll: Roll, row: Tensor, device: torch.device) -> float | Tensor:
    """One number where all rows were sampled at the same temperature, else one per target; greedy rows count as 1."""
    known = roll.row_facts.get("temperature")
    if known is None:
        return 1.0
    values = torch.where(known > 0, known, 1.0)
    if bool((values == values[0]).all()):
        return float(values[0])
    return values[row, None].to(device)


def chunk_entries_of(model: Any, device: torch.device) -> int:
    """Logits that exist at one time.

    It is of all memory, not of what is free: the size of a chunk changes last bits, and a resumed run must repeat them.
    """
    gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if gpu else None
    return chunk_entries_for(model.get_output_embeddings().weight.shape[0], memory)


def chunk_entries_for(vocabulary: int, gpu_memory: int | None) -> int:
    """A GPU gives a 64th of its memory to logits and what softmax and backward hold beside them, 16 bytes an entry."""
    return max(CHUNK_ENTRIES, CHUNK_TOKENS * vocabulary, (gpu_memory or 0) // 64 // 16)


def computed_tokens(roll: Roll) -> int:
    """Tokens that `forward` computes for these rows: each prompt once, each answer without its last token."""
    prompts = {tuple(prompt) for prompt in roll.prompt_ids}
    if not prompts:
        return 0
    return sum(map(len, prompts)) + int((roll.lengths() - 1).clamp(min=0).sum())


def micro_batches(roll: Roll, budget: int, *, shared: bool = True) -> list[list[int]]:
    """Rows of each micro-batch: what `forward` computes and holds of it is at most `budget` tokens, padding included.

    `shared` (see `shares_prompts`): attention pads prompts to the longest one and gives each as many
    rows, as long ones, as any other of the micro-batch has. Otherwise each row is padded to the
    longest behind its prompt. A row larger than the budget is a micro-batch of its own.

    Rows of like length come together, and those of a prompt stay together as far as they fit. Of the
    bounds that need no more micro-batches than the budget does the smallest is taken, so that
    micro-batches side by side end together. Rows without a token to learn from are left out.
    """
    lengths = [max(n - 1, 1) if n else 0 for n in roll.lengths().tolist()]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(range(len(roll)), key=lambda i: (lengths[i], i)):
        if lengths[i]:
            groups.setdefault(tuple(roll.prompt_ids[i]), []).append(i)

    def shape(rows: list[int]) -> _Grid:
        """Of rows of one prompt, in order of length."""
        return _Grid(1, len(rows), len(rows), len(roll.prompt_ids[rows[0]]), lengths[rows[-1]])

    pieces = []
    for rows in groups.values():
        first = 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or shape(rows[first : end + 1]).tokens(shared) > budget:
                pieces.append((shape(rows[first:end]), rows[first:end]))
                first = end
    pieces.sort(key=lambda piece: (piece[0].length, piece[0].width, piece[0].rows, piece[1]))

    def packed(bound: int) -> list[list[int]]:
        batches, last = list[list[int]](), _Grid(0, 0, 0, 0, 0)
        for grid, rows in pieces:
            both = last.beside(grid)
            if not batches or both.tokens(shared) > bound:
                batches.append([])
                both = grid
            batches[-1] += rows
            last = both
        return batches

    fewest = len(packed(budget))
    low, high = 0, budget
    while high - low > 1:
        bound = (low + high) // 2
        low, high = (low, bound) if len(packed(bound)) <= fewest else (bound, high)
    return packed(high)


@dataclass(frozen=True)
class _Grid:
    """What some rows and their prompts take when padded."""

    prompts: int
    rows: int
    """Rows behind a prompt, at most."""
    total: int
    """Rows in all."""
    width: int
    """Tokens of a prompt, at most."""
    length: int
    """Tokens of a row, at most."""

    def beside(self, other: _Grid) -> _Grid:
        """Both in one micro-batch; of other prompts."""
        return _Grid(
            self.prompts + other.prompts,
            max(self.rows, other.rows),
            self.total + other.total,
            max(self.width, other.width),
            max(self.length, other.length),
        )

    def tokens(self, shared: bool) -> int:
        if shared:
            return self.prompts * (self.width + self.rows * self.length)
        return self.total * (self.width + self.length)


def shares_prompts(model: Any, roll: Roll) -> bool:
    """Whether `forward` computes a prompt once for all its rows with this model and this roll."""
    if llama.kernels_for(model) is not None:
        return True
    longest = max(map(len, roll.prompt_ids), default=0) + max(roll.lengths().tolist(), default=0)
    return shares_prefixes(model, longest)


@dataclass(frozen=True)
class _Batch:
    """Some rows as flat tokens: first those of their prompts, then each row without its last, which predicts nothing."""

    ids: Int[Tensor, " token"]
    prompt_lengths: list[int]
    row_lengths: list[int]
    owners: list[int]
    last: Int[Tensor, " row"]
    """Flat place of the last token of a row's prompt."""
    first: Int[Tensor, " row"]
    """Flat place of a row's first token."""

    layouts: dict[torch.device, Layout] = field(default_factory=dict)

    def layout(self, device: torch.device) -> Layout:
        """Made once per device: frozen models read the same rows."""
        if device not in self.layouts:
            self.layouts[device] = Layout.of(
                self.prompt_lengths, self.row_lengths, self.owners, device
            )
        return self.layouts[device]


def _flatten(roll: Roll) -> _Batch:
    lengths = [max(n - 1, 0) for n in roll.lengths().tolist()]
    numbers: dict[tuple[int, ...], int] = {}
    keys = [tuple(prompt) for prompt in roll.prompt_ids]
    owners = [numbers.setdefault(key, len(numbers)) for key in keys]
    ids = [token for prompt in numbers for token in prompt]
    ends = torch.tensor([len(prompt) for prompt in numbers]).cumsum(0)
    total = len(ids)
    for row, length in zip(roll.response_ids.tolist(), lengths, strict=True):
        ids += row[:length]
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths) + total
    return _Batch(
        torch.tensor(ids), [len(p) for p in numbers], lengths, owners, ends[owners] - 1, starts
    )


def _states(
    model: Any, kernels: Kernels | None, batch: _Batch, device: torch.device
) -> Float[Tensor, "token hidden"]:
    """The states after the last norm, of all flat tokens."""
    if kernels is not None:
        return training.hidden_states(model, kernels, batch.ids, batch.layout(device))
    ids = batch.ids.to(device)
    longest = max(batch.prompt_lengths) + max(batch.row_lengths)
    if shares_prefixes(model, longest):
        layout = batch.layout(device)
        with using_prefix_attention(model):
            return _backbone(model)(
                input_ids=ids[None],
                position_ids=layout.positions[None],
                use_cache=False,
                layout=layout,
            )[0][0]
    # Padded on the right, where causal attention never looks: no mask is needed, no number can change.
    total = sum(batch.prompt_lengths)
    prompts = batch.ids[:total].split(batch.prompt_lengths)
    answers = batch.ids[total:].split(batch.row_lengths)
    rows = [torch.cat([prompts[o], a]) for o, a in zip(batch.owners, answers, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    hidden = _backbone(model)(input_ids=padded, use_cache=False)[0]
    first = {o: i for i, o in reversed(list(enumerate(batch.owners)))}
    sizes = batch.prompt_lengths
    parts = [hidden[first[o], :n] for o, n in enumerate(sizes)]
    parts += [
        hidden[i, sizes[o] - 1 :][1 : 1 + n]
        for i, (o, n) in enumerate(zip(batch.owners, batch.row_lengths, strict=True))
    ]
    return torch.cat(parts)


def check_forward(model: Any) -> None:
    """Compare with the model's own logits: an unknown kind of LM head cannot go unnoticed.

    Raises:
        ValueError: this model's head is more than a matrix and the known scalings.
    """
    with torch.no_grad():
        ids = torch.arange(4, device=model.get_input_embeddings().weight.device)[None]
        ours = _logits(model, _backbone(model)(input_ids=ids, use_cache=False)[0])
        theirs = model(input_ids=ids, use_cache=False).logits.to(ours.dtype)
    _check_equal(model, ours, theirs)
    shares_prefixes(model, 1)  # tried now, while all weights are in this process


def check_head(model: Any) -> None:
    """`check_forward` for a model without weights: the same scalings over made-up states and a head of a few tokens.

    A model whose forward needs more weights than those of its backbone and head is not judged.

    Raises:
        ValueError: as `check_forward`.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    backbone, head = _backbone(model), model.get_output_embeddings()
    few, width = torch.nn.Linear(head.weight.shape[1], 8), head.weight.shape[1]
    states: Any = 10 * torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0))
    backbone.forward = lambda *_, **__: BaseModelOutputWithPastAndCrossAttentions(
        last_hidden_state=states
    )
    model.set_output_embeddings(few)
    try:
        with torch.no_grad():
            theirs = model(input_ids=torch.arange(4)[None], use_cache=False).logits
            ours = _logits(model, states)
    except (RuntimeError, AttributeError):  # a tensor without values, another kind of output
        return
    finally:
        model.set_output_embeddings(head)
        del backbone.forward
    if not (ours.is_meta or theirs.is_meta):  # the forward met a weight without values
        _check_equal(model, ours, theirs.to(ours.dtype))


def _check_equal(model: Any, ours: Tensor, theirs: Tensor) -> None:
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way trainorder/rl/forward.py "
            f"does not know (off by {(ours - theirs).abs().max():.2g}): teach `_logits` its head"
        )


@dataclass(frozen=True)
class _Head:
    """The LM head over chunks of targets, with the facts that are computed from its logits."""

    model: Any
    functions: Mapping[str, Callable[..., Tensor]]
    """Need -> its function; `entropy` comes with log p."""
    others: Mapping[str, tuple[Any, Float[Tensor, "target hidden"]]]
    """Need -> the frozen model that it compares with, and this model's states."""
    entropy: bool

    @classmethod
    def of(
        cls, model: Any, needs: Collection[str], models: Mapping[str, Any], targets: Targets
    ) -> _Head:
        """With the states of the frozen models that the needs name."""
        named = {need: name for need in needs if (name := facts.other_model(need)) is not None}
        states, others = (
            {},
            {name: models[name.removesuffix(facts.GOLD)] for name in named.values()},
        )
        with torch.no_grad():
            for name, other in others.items():
                batch, at = targets.batch, targets.at
                if name.endswith(facts.GOLD):
                    assert targets.informed is not None, (
                        "the roll has no prompts with the gold text"
                    )
                    batch, at = targets.informed
                states[name] = _states(other, llama.kernels_for(other), batch, at.device)[at]
        return cls(
            model,
            {need: facts.of_head(need) for need in needs if need != "entropy"},
            {need: (others[name], states[name]) for need, name in named.items()},
            "entropy" in needs,
        )

    def __call__(
        self,
        states: Float[Tensor, "target hidden"],
        targets: Int[Tensor, " target"],
        temperature: float | Tensor,
        chunk_entries: int,
    ) -> tuple[Float[Tensor, " target"], dict[str, Tensor]]:
        """Log p of the targets, and the facts."""
        size = max(1, chunk_entries // self.model.get_output_embeddings().weight.shape[0])
        cuts = [slice(i, i + size) for i in range(0, max(1, len(targets)), size)]

        def piece(states: Tensor, cut: slice) -> dict[str, Tensor]:
            warmth = temperature[cut] if isinstance(temperature, Tensor) else temperature
            scores = _warmed(_logits(self.model, states), warmth)
            logps, entropies = likelihood(scores, targets[cut], entropy=self.entropy)
            found = {"": logps} if entropies is None else {"": logps, "entropy": entropies}
            for need, function in self.functions.items():
                others = []
                if need in self.others:
                    other, known = self.others[need]
                    with torch.no_grad():
                        others.append(_warmed(_logits(other, known[cut]), warmth))
                found[need] = function(scores, targets[cut], *others)
            return found

        if len(cuts) > 1 and torch.is_grad_enabled():
            done = [
                checkpoint(piece, states[cut], cut, use_reentrant=False, preserve_rng_state=False)
                for cut in cuts
            ]
        else:
            done = [piece(states[cut], cut) for cut in cuts]
        joined = {name: torch.cat([part[name] for part in done]) for name in done[0]}
        return joined.pop(""), joined


def _warmed(logits: Tensor, temperature: float | Tensor) -> Tensor:
    if isinstance(temperature, float) and temperature == 1:
        return logits
    return logits / temperature


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
