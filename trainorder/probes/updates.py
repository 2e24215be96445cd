"""Updates: what training changed in the weights, and where two updates meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainorder.probes.base import (
    ALL,
    Change,
    Checkpoint,
    Pair,
    Row,
    changes,
    compared,
    mean,
    module_of,
    probe,
)

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-5
"""An entry that changed by no more counts as unchanged (arXiv 2505.11711)."""
TOP = 0.1
"""The share of a tensor's largest changes that `top_overlap` looks at."""


@probe("weights", neutral={"unchanged": 1.0, "unchanged_bf16": 1.0, "relative_norm": 0.0})
def sparsity(pair: Pair) -> Iterator[Row]:
    """Share of weights that the update from `other` to `node` leaves alone, within 1e-5 and as bfloat16 sees them.

    Also |update| / |weights before|. Small subnetworks: RL changes 5 to 30 % of the weights, SFT nearly all (arXiv
    2505.11711); that holds for bfloat16 weights, so both are given, by kind of module and for all.
    """
    counts: dict[str, list[float]] = {}
    for change in changes(*pair.both):
        delta, before = change.delta.double(), change.before.double()
        same = change.before.bfloat16() == (change.before + change.delta).bfloat16()
        found = [
            float(delta.numel()),
            float((delta.abs() <= TOLERANCE).sum()),
            float(same.sum()),
            float((delta**2).sum()),
            float((before**2).sum()),
        ]
        for part in (ALL, module_of(change.name)):
            old = counts.get(part, [0.0] * 5)
            counts[part] = [a + b for a, b in zip(old, found, strict=True)]
    for part, (size, same, rounded, moved, norm) in counts.items():
        yield Row(ALL, part, "unchanged", same / size)
        yield Row(ALL, part, "unchanged_bf16", rounded / size)
        if norm:
            yield Row(ALL, part, "relative_norm", (moved / norm) ** 0.5)


RANKS = ("numerical_rank", "energy_rank", "effective_rank", "stable_rank")


@probe("weights", neutral=dict.fromkeys(RANKS, 0.0))
def rank(pair: Pair) -> Iterator[Row]:
    """Rank of the update from `other` to `node`, as a share of the full rank: a mean over matrices, by kind and for all.

    Of the singular values s: numerical, those above 1e-3 of the largest; energy, how many carry 99 % of the sum of squares;
    effective, exp of the entropy of s / sum s (Roy and Vetterli 2007); stable, sum s^2 / max s^2. Updates of RL are sparse
    but nearly of full rank (arXiv 2505.11711).
    """
    found: dict[str, list[tuple[float, ...]]] = {}
    for change in changes(*pair.both):
        if change.delta.dim() == 2:
            for part in (ALL, module_of(change.name)):
                found.setdefault(part, []).append(ranks(change.delta))
    for part, rows in found.items():
        for measure, values in zip(RANKS, zip(*rows, strict=True), strict=True):
            yield Row(ALL, part, measure, mean(values))


def ranks(matrix: Tensor) -> tuple[float, ...]:
    """RANKS of a matrix, each over min(rows, columns); all 0 of one that is 0 everywhere.

    >>> import torch
    >>> [round(r, 3) for r in ranks(torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))]
    [0.75, 0.75, 0.75, 0.75]
    """
    import torch

    tall = matrix.double() if len(matrix) >= matrix.shape[1] else matrix.double().T
    squares = torch.linalg.eigvalsh(tall.T @ tall).clamp(min=0).flip(0)  # of the smaller side
    if not squares[0] > 0:
        return (0.0,) * len(RANKS)
    values = squares.sqrt()
    p = values / values.sum()
    energy = squares.cumsum(0) / squares.sum()
    found = [
        float((values > 1e-3 * values[0]).sum()),
        float((energy < 0.99).sum() + 1),
        float(torch.special.entr(p).sum().exp()),
        float(squares.sum() / squares[0]),
    ]
    return tuple(value / len(values) for value in found)


@probe(
    "weights",
    "parents",
    neutral={
        "overlap_of_other": 1.0,
        "overlap_of_node": 1.0,
        "jaccard": 1.0,
        "top_overlap": 1.0,
    },
)
def overlap(pair: Pair) -> Iterator[Row]:
    """Where the own updates of both checkpoints meet, each from what it was trained from; nothing for a base.

    Of the entries I that changed by more than 1e-5: |I1 and I2| / |I1|, / |I2| and / |I1 or I2|. By chance the first would be
    the density of `node`, the second that of `other`. `top_overlap` takes the largest tenth of each tensor's changes (chance
    .1), which also tells dense updates apart. arXiv 2505.11711.
    """
    import torch

    counts: dict[str, list[float]] = {}
    for one, two in _own_updates(pair):
        a, b = one.delta.abs().flatten(), two.delta.abs().flatten()
        kept = max(1, round(TOP * len(a)))
        tops = torch.zeros(2, len(a), dtype=torch.bool)
        for row, values in zip(tops, (a, b), strict=True):
            row[values.topk(kept).indices] = True
        moved = bool(a.any()) and bool(b.any())
        left, right = a > TOLERANCE, b > TOLERANCE
        found = [
            float(len(a)),
            float(left.sum()),
            float(right.sum()),
            float((left & right).sum()),
            float(kept) if moved else 0.0,
            float((tops[0] & tops[1]).sum()) if moved else 0.0,
        ]
        for part in (ALL, module_of(one.name)):
            old = counts.get(part, [0.0] * len(found))
            counts[part] = [x + y for x, y in zip(old, found, strict=True)]
    for part, (size, first, second, met, tops_size, tops_met) in counts.items():
        yield from compared(ALL, part, "density", first / size, second / size)
        if first and second:
            yield Row(ALL, part, "overlap_of_other", met / first)
            yield Row(ALL, part, "overlap_of_node", met / second)
            yield Row(ALL, part, "jaccard", met / (first + second - met))
        if tops_size:
            yield Row(ALL, part, "top_overlap", tops_met / tops_size)


@probe("weights", "parents", neutral={"cosine": 1.0, "same_sign": 1.0})
def cosine(pair: Pair) -> Iterator[Row]:
    """Cosine of the own updates of both checkpoints, each from what it was trained from; nothing for a base.

    Also the share of entries that both changed and in the same direction, of those that both changed. Of LoRA nodes the
    updates are those of the adapted weights.
    """
    counts: dict[str, list[float]] = {}
    for one, two in _own_updates(pair):
        a, b = one.delta.double(), two.delta.double()
        both = (a != 0) & (b != 0)
        found = [
            float((a * b).sum()),
            float((a * a).sum()),
            float((b * b).sum()),
            float(both.sum()),
            float((a.sign() == b.sign())[both].sum()),
        ]
        for part in (ALL, module_of(one.name)):
            old = counts.get(part, [0.0] * 5)
            counts[part] = [x + y for x, y in zip(old, found, strict=True)]
    for part, (dot, left, right, both, same) in counts.items():
        if left and right:
            yield Row(ALL, part, "cosine", dot / (left * right) ** 0.5)
        if both:
            yield Row(ALL, part, "same_sign", same / both)


def _own_updates(pair: Pair) -> Iterator[tuple[Change, Change]]:
    """Tensor by tensor the updates of `other` and of `node` from their parents."""
    first, second = (_own_update(checkpoint) for checkpoint in pair.both)
    return iter(()) if first is None or second is None else zip(first, second, strict=True)


def _own_update(checkpoint: Checkpoint) -> Iterator[Change] | None:
    return None if checkpoint.parent is None else changes(checkpoint.parent, checkpoint)
