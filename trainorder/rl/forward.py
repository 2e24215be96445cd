"""The training forward: log p and entropy of response tokens, for any Hugging Face causal LM.

A prompt is computed once for all its rows (`prefix.Layout`), and no matrix product sees padding. Small Llama models on a
CPU go through `llama.training`; other models through their own modules with our attention; models whose attention cannot
be replaced through padded rows. The LM head runs on response tokens only, in chunks that are recomputed in the backward
pass: a [row, token, vocabulary] tensor never exists.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainorder import llama
from trainorder.llama import training
from trainorder.llama.kernels import Kernels
from trainorder.rl import facts
from trainorder.rl.head import Head, chunk_entries_of
from trainorder.rl.states import Batch, flatten, states_of
from trainorder.rl.types import Live, Roll


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
    batch: Batch
    at: Int[Tensor, " target"]
    """Flat place of the token that predicts each target."""
    ids: Int[Tensor, " target"]
    temperature: float | Tensor
    informed: tuple[Batch, Int[Tensor, " target"]] | None = None
    """The rows behind prompts with the gold text, and `at` among these."""

    @classmethod
    def of(cls, roll: Roll, device: torch.device, *, informed: bool = False) -> Targets:
        """All tokens of the roll that may learn; `informed`: also as a model meets them that reads the gold text."""
        row, place = (roll.loss_mask > 0).nonzero(as_tuple=True)

        def predicting(batch: Batch) -> Tensor:
            return torch.where(place == 0, batch.last[row], batch.first[row] + place - 1).to(device)

        batch = flatten(roll)
        ids = roll.response_ids[row, place].to(device)
        warmth = _temperature(roll, row, device)
        if not informed:
            return cls(row, place, batch, predicting(batch), ids, warmth)
        told = flatten(replace(roll, prompt_ids=roll.informed_ids))
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
    states = states_of(model, kernels, batch, at.device)[at]
    head_needs = [need for need in needs if need not in (facts.HIDDEN, facts.SPANS)]
    if kernels is not None and set(head_needs) <= {"entropy"} and isinstance(temperature, float):
        weight, wanted = model.lm_head.weight, bool(head_needs)
        logps, entropies = training.log_probs(
            kernels, states, weight, targets.ids, temperature, wanted, chunk_entries
        )
        found = {} if entropies is None else {"entropy": entropies}
    else:
        head = Head.of(model, head_needs, models, targets)
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
