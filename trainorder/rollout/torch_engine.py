"""The engine that needs nothing but torch: decodes with the live weights, in this process.

A prompt is read once for all its samples. Prompts of like length share a batch, and rows that have ended are dropped
once there are enough of them. log p and entropy come from the softmax that the token was drawn from.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainorder.llama.decoder import LlamaDecoder
from trainorder.llama.kernels import Kernels
from trainorder.llama.kernels import load as load_kernels
from trainorder.policy import Policy
from trainorder.rollout.base import (
    Completions,
    Request,
    prefix_mask,
    resolved,
    row_seeds,
    rows_of,
    uniforms,
)
from trainorder.rollout.decoders import Decoder, make_decoder
from trainorder.workers import ALONE, WIDE_ROWS, Workers, in_pieces


def max_rows_on(device: str, model: Any = None) -> int:
    """Rows that are decoded together unless the engine is told otherwise."""
    if device != "cpu":
        return 256
    return WIDE_ROWS if model is not None and in_pieces(model) else 64


@dataclass
class TorchEngine:
    """Samples from `policy.model` as it is at the time of the call."""

    policy: Policy
    workers: Workers = ALONE
    """Decode the batches; changes no sample."""
    max_rows: int | None = None
    """Rows decoded together, None for `max_rows_on`. Changes no sample beyond rounding."""
    dead_share: float | None = None
    """Rows that have ended are dropped once they are more than this share of the batch; None: as the decoder likes."""
    own_weights: bool = False
    """Whether the model is a copy, which takes the trainer's weights at a `push`."""
    frozen: bool = False
    """Whether the weights never change: the decoder's copies of them are kept for the next call."""
    _prepared: LlamaDecoder | None = field(default=None, init=False, repr=False)

    def push(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See Engine."""
        if not self.own_weights:
            return
        own = self.policy.model.state_dict()
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)

    def generate(self, requests: Sequence[Request]) -> Completions:
        """See Engine."""
        asked = resolved(self.policy, requests)
        with torch.inference_mode():
            draws, counts, finished = self._generate(asked)
        # All that is returned is made from here on: a tensor made in inference mode cannot enter a loss.
        given = torch.tensor([len(asked[i].prefix_ids) for i in rows_of(asked)])
        lengths = counts + given.to(counts.device)
        places = torch.arange(int(lengths.max()), device=counts.device)
        at = (places - lengths[:, None] + counts[:, None]).clamp(0, draws.ids.shape[1] - 1)
        prefix, trained = (mask.to(counts.device) for mask in prefix_mask(asked, len(places)))
        real = places < lengths[:, None]
        ids = draws.ids.gather(1, at).masked_fill(~real, self.policy.pad_id)
        for row, i in enumerate(rows_of(asked) if prefix.any() else ()):
            known = torch.tensor(asked[i].prefix_ids, dtype=torch.long, device=ids.device)
            ids[row, : len(known)] = known
        sampled = real & ~prefix
        answers = zip(ids.tolist(), lengths.tolist(), strict=True)
        return Completions(
            response_ids=ids,
            loss_mask=(sampled | trained).float(),
            logps=draws.logps.gather(1, at).masked_fill(~sampled, 0.0),
            entropies=draws.entropies.gather(1, at).masked_fill(~sampled, 0.0),
            texts=self.policy.decode_batch([row[:length] for row, length in answers]),
            finished=finished.clone(),
        )

    def _generate(
        self, requests: Sequence[Request]
    ) -> tuple[_Draws, Int[Tensor, " row"], Bool[Tensor, " row"]]:
        """All draws, how many of them count of each row, and whether it ended by itself."""
        device = self.policy.device
        stops = torch.tensor(sorted(self.policy.stop_ids), device=device)
        asked = [requests[i] for i in rows_of(requests)]
        places = torch.tensor([len(row.prefix_ids) for row in asked], device=device)
        limits = torch.tensor([row.max_new_tokens for row in asked], device=device) - places
        rows = _Rows(
            torch.arange(len(asked), device=device), row_seeds(requests).to(device), places, limits
        )
        draws = _Draws.empty((len(asked), int(limits.max())), device)
        longest = max(len(request.prompt_ids) + request.max_new_tokens for request in requests)
        shared = self._prepared or make_decoder(self.policy.model, longest, self.workers)
        if self.frozen and isinstance(shared, LlamaDecoder):  # the others keep no copies
            self._prepared = shared
        starts = [0, *itertools.accumulate(request.samples for request in requests)]

        def decode(batch: list[int]) -> None:
            with torch.inference_mode():
                first = requests[
                    batch[0]
                ]  # _batches: all of a batch want as many samples, at one temperature
                prompts = [[*requests[i].prompt_ids, *requests[i].prefix_ids] for i in batch]
                ids, real = _pad_left(prompts, self.policy.pad_id, device)
                numbers = [row for i in batch for row in range(starts[i], starts[i + 1])]
                own = rows.take(torch.tensor(numbers, device=device))
                decoder = copy.copy(shared)
                logits = decoder.prefill(ids, real, first.samples, int(own.limit.max()))
                self._decode(decoder, logits, own, first.temperature, stops, draws)

        max_rows = self.max_rows or max_rows_on(device.type, self.policy.model)
        for _ in self.workers.map(decode, _batches(requests, max_rows)):
            pass
        ended = torch.isin(draws.ids, stops).int()
        first = torch.where(ended.any(1), ended.argmax(1), draws.ids.shape[1])
        return draws, torch.minimum(first + 1, limits), first < limits

    def _decode(
        self,
        decoder: Decoder,
        logits: Tensor,
        rows: _Rows,
        temperature: float,
        stops: Tensor,
        draws: _Draws,
    ) -> None:
        """Draw until every row has ended. What a row draws between its end and its removal is cut off later."""
        done = torch.zeros_like(rows.number, dtype=torch.bool)
        steps = torch.arange(int(rows.limit.max()), device=done.device)
        noise = uniforms(rows.seed, rows.place[:, None] + steps)
        share = decoder.dead_share if self.dead_share is None else self.dead_share
        start, pending = 0, list[_Draws]()
        for step in range(len(steps)):
            draw = _draw(logits, temperature, noise[:, step])
            pending.append(draw)
            done |= (draw.ids[:, None] == stops).any(1) | (rows.limit <= step + 1)
            num_done = int(done.sum())
            if num_done == len(done) or num_done > share * len(done):
                draws.write(rows.number, start, pending)
                start, pending = step + 1, []
                if num_done == len(done):
                    return
                alive = (~done).nonzero()[:, 0]
                decoder.keep(alive)
                rows, noise, done = rows.take(alive), noise[alive], done[alive]
                draw = _Draws(draw.ids[alive], draw.logps, draw.entropies)
            logits = decoder.step(draw.ids)


@dataclass(frozen=True)
class _Rows:
    """Rows that are being decoded, [row] each."""

    number: Tensor
    """Among all rows of the call."""
    seed: Tensor
    place: Tensor
    """Place in the answer of the first token drawn: after the prefix."""
    limit: Tensor
    """Tokens to draw at most."""

    def take(self, rows: Tensor) -> _Rows:
        """These rows only."""
        return _Rows(self.number[rows], self.seed[rows], self.place[rows], self.limit[rows])


@dataclass(frozen=True)
class _Draws:
    """Tokens with their log p and the entropy they were drawn at; [row] of one step, or [row, token] of a call."""

    ids: Tensor
    logps: Tensor
    entropies: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int], device: torch.device) -> _Draws:
        return cls(
            torch.full(shape, -1, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, device=device),
        )

    def write(self, rows: Tensor, start: int, steps: Sequence[_Draws]) -> None:
        """Put single steps into the table, from column `start` on."""
        columns = slice(start, start + len(steps))
        self.ids[rows, columns] = torch.stack([step.ids for step in steps], 1)
        self.logps[rows, columns] = torch.stack([step.logps for step in steps], 1)
        self.entropies[rows, columns] = torch.stack([step.entropies for step in steps], 1)


def _draw(
    logits: Float[Tensor, "row vocabulary"], temperature: float, noise: Float[Tensor, " row"]
) -> _Draws:
    """One token per row: the first whose cumulative probability exceeds the noise; temperature 0: the likeliest."""
    kernels, _ = load_kernels()
    if kernels is not None and logits.device.type == "cpu":
        return _draw_by_kernel(kernels, logits.contiguous(), temperature, noise)
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    log_probs = logits.log_softmax(-1)
    probs = logits.softmax(-1)
    if temperature:
        cumulative = probs.cumsum(-1)
        threshold = noise[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=logits.shape[1] - 1)
    else:
        ids = logits.argmax(-1, keepdim=True)
    return _Draws(ids[:, 0], log_probs.gather(1, ids)[:, 0], -torch.linalg.vecdot(probs, log_probs))


def _draw_by_kernel(kernels: Kernels, logits: Tensor, temperature: float, noise: Tensor) -> _Draws:
    """`_draw` in one pass over the logits."""
    rows, vocabulary = logits.shape
    draws = _Draws(torch.empty(rows, dtype=torch.long), torch.empty(rows), torch.empty(rows))
    scratch, factor = torch.empty(vocabulary), 1 / temperature if temperature else 0.0
    kernels.sample(
        logits,
        noise.contiguous(),
        draws.ids,
        draws.logps,
        draws.entropies,
        scratch,
        rows,
        vocabulary,
        factor,
    )
    return draws


def _batches(requests: Sequence[Request], max_rows: int) -> list[list[int]]:
    """Numbers of requests by length, cut so that their samples fill a batch; a prompt's samples stay together.

    Within a batch `samples` and `temperature` are equal.
    """

    def kind(i: int) -> tuple[int, float]:
        return requests[i].samples, requests[i].temperature

    def length(i: int) -> int:
        return len(requests[i].prompt_ids) + len(requests[i].prefix_ids)

    batches = []
    in_order = sorted(range(len(requests)), key=lambda i: (*kind(i), length(i), i))
    for (samples, _), numbers in itertools.groupby(in_order, kind):
        own, size = list(numbers), max(1, max_rows // samples)
        batches += [own[i : i + size] for i in range(0, len(own), size)]
    return batches


def _pad_left(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The prompts with their ends in one column, and which entries are real."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    real = [[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(real, device=device)
