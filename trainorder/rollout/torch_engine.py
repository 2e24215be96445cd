"""The engine that needs nothing but torch: decodes with the live weights, in this process.

A prompt is read once for all its samples. Prompts of like length share a batch, and rows that have ended are dropped
once that pays. log p and entropy come from the softmax that the token was drawn from.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainorder.llama.kernels import Kernels
from trainorder.llama.kernels import load as load_kernels
from trainorder.policy import Policy
from trainorder.rollout.base import Completions, check_request
from trainorder.rollout.decoders import Decoder, make_decoder
from trainorder.workers import ALONE, Workers


@dataclass
class TorchEngine:
    """Samples from `policy.model` as it is at the time of the call."""

    policy: Policy
    workers: Workers = ALONE
    """Decode the batches; changes no sample."""
    max_rows: int | None = None
    """Rows decoded together, None for 64 on a CPU and 256 on a GPU. Changes no sample beyond rounding."""
    dead_share: float | None = None
    """Rows that have ended are dropped once they are more than this share of the batch; None: as the decoder likes."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_new_tokens: int | Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Completions:
        """See Engine."""
        rooms = check_request(self.policy, prompts, samples, max_new_tokens, temperature)
        with torch.inference_mode():
            draws, lengths, finished = self._generate(
                prompts, samples, rooms, temperature, generator
            )
        # All that is returned is made from here on: a tensor made in inference mode cannot enter a loss.
        width = int(lengths.max())
        mask = torch.arange(width, device=lengths.device) < lengths[:, None]
        ids = draws.ids[:, :width].masked_fill(~mask, self.policy.pad_id)
        rows = zip(ids.tolist(), lengths.tolist(), strict=True)
        return Completions(
            ids=ids,
            mask=mask.float(),
            logps=draws.logps[:, :width].masked_fill(~mask, 0.0),
            entropies=draws.entropies[:, :width].masked_fill(~mask, 0.0),
            texts=self.policy.decode_batch([row[:length] for row, length in rows]),
            finished=finished.clone(),
        )

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        rooms: Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> tuple[_Draws, Int[Tensor, " row"], Bool[Tensor, " row"]]:
        """All draws, the length of each row, and whether it ended by itself."""
        device = self.policy.device
        stops = torch.tensor(sorted(self.policy.stop_ids), device=device)
        room = torch.tensor(rooms, device=device).repeat_interleave(samples)
        shape = (len(room), max(rooms))
        noise = torch.rand(shape, generator=generator, device=generator.device).to(device)
        draws = _Draws.empty(shape, device)
        longest = max(len(prompt) + room for prompt, room in zip(prompts, rooms, strict=True))
        shared = make_decoder(self.policy.model, longest)
        task = _Task(room, stops, noise, temperature, draws)

        def decode(batch: list[int]) -> None:
            with torch.inference_mode():
                ids, real = _pad_left([prompts[i] for i in batch], self.policy.pad_id, device)
                rows = (
                    torch.tensor(batch, device=device)[:, None] * samples
                    + torch.arange(samples, device=device)
                ).flatten()
                decoder = copy.copy(shared)
                logits = decoder.prefill(ids, real, samples, int(room[rows].max()))
                self._decode(decoder, logits, rows, task)

        max_rows = self.max_rows or (64 if device.type == "cpu" else 256)
        for _ in self.workers.map(decode, _batches(prompts, samples, max_rows)):
            pass
        first = torch.isin(draws.ids, stops).int()
        first = torch.where(first.any(1), first.argmax(1), shape[1])
        return draws, torch.minimum(first + 1, room), first < room

    def _decode(self, decoder: Decoder, logits: Tensor, rows: Tensor, task: _Task) -> None:
        """Draw until every row has ended. What a row draws between its end and its removal is cut off later."""
        done = torch.zeros_like(rows, dtype=torch.bool)
        room, noise = task.room[rows], task.noise[rows]
        share = decoder.dead_share if self.dead_share is None else self.dead_share
        start, pending = 0, list[_Draws]()
        for step in range(int(room.max())):
            draw = _draw(logits, task.temperature, noise[:, step])
            pending.append(draw)
            done |= (draw.ids[:, None] == task.stops).any(1) | (room <= step + 1)
            num_done = int(done.sum())
            if num_done == len(rows) or num_done > share * len(rows):
                task.draws.write(rows, start, pending)
                start, pending = step + 1, []
                if num_done == len(rows):
                    return
                alive = (~done).nonzero()[:, 0]
                decoder.keep(alive)
                rows, room, noise, done = rows[alive], room[alive], noise[alive], done[alive]
                draw = _Draws(draw.ids[alive], draw.logps, draw.entropies)
            logits = decoder.step(draw.ids)


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


@dataclass(frozen=True)
class _Task:
    """What holds for all batches of a call."""

    room: Tensor
    stops: Tensor
    noise: Tensor
    temperature: float
    draws: _Draws


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


def _batches(prompts: Sequence[Sequence[int]], samples: int, max_rows: int) -> list[list[int]]:
    """Prompt numbers by length, cut so that their samples fill a batch; a prompt's samples stay together."""
    by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    size = max(1, max_rows // samples)
    return [by_length[i : i + size] for i in range(0, len(by_length), size)]


def _pad_left(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The prompts with their ends in one column, and which entries are real."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    real = [[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(real, device=device)
