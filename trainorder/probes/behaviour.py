"""How a model behaves on the answers that evaluations keep: divergence, plasticity, gradients. Forward and backward passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.probes.base import (
    ALL,
    PAIRED,
    Answer,
    Checkpoint,
    Pair,
    Row,
    compared,
    mean,
    module_of,
    probe,
)
from trainorder.probes.forward import MOST, batches, check_vocabulary, forced, targets


@probe(
    "forward",
    neutral=dict.fromkeys(("forward", "reverse", "forward_answer", "reverse_answer"), 0.0),
)
def kl(pair: Pair) -> Iterator[Row]:
    """Kullback-Leibler divergence both ways on every task, in nats per token and per answer.

    Forward is KL(other || node) on samples of `other`, reverse KL(node || other) on samples of `node`; exact over the
    vocabulary at every token. RL's Razor (arXiv 2509.04259): the forward one on the new task predicts what is forgotten.
    """
    check_vocabulary(*pair.both)
    each: dict[str, list[tuple[float, float]]] = {}
    for task in pair.tasks:
        ways = {"forward": pair.both, "reverse": pair.both[::-1]}
        for way, (first, second) in ways.items():
            total, tokens, rows = divergence(first, second, first.some(task, MOST))
            if tokens:
                yield Row(task, ALL, way, total / tokens)
                yield Row(task, ALL, f"{way}_answer", total / rows)
                each.setdefault(way, []).append((total / tokens, total / rows))
    for way, found in each.items():
        yield Row(ALL, ALL, way, mean([token for token, _ in found]))
        yield Row(ALL, ALL, f"{way}_answer", mean([answer for _, answer in found]))


def divergence(
    first: Checkpoint, second: Checkpoint, answers: Sequence[Answer]
) -> tuple[float, int, int]:
    """Sum over tokens of KL(first || second), the tokens, and the answers."""
    total, tokens, rows = 0.0, 0, 0
    with torch.no_grad():
        for batch in batches(first.policy, answers):
            own, other = (forced(one.policy, batch)[0] for one in (first, second))
            total += float(kl_of(own, other).double().sum())
            tokens, rows = tokens + sum(batch.lengths), rows + len(batch.rows)
    return total, tokens, rows


def kl_of(
    logits: Float[Tensor, "token vocabulary"], other: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, " token"]:
    """KL of the first distribution to the second at every token, nats.

    >>> half, most = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(kl_of(half, most).item(), 4), round(kl_of(most, half).item(), 4)
    (0.5108, 0.3681)
    """
    a, b = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1).clamp(min=0)


DORMANT = 0.025
"""A unit whose mean |activation| is at most this share of its layer's mean is dormant (arXiv 2302.12902)."""
DELTA = 0.01
"""`state_rank` is the least number of singular values that carry 1 - DELTA of their sum (arXiv 2010.14498)."""
DOWN = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "wo")
"""Names of the last matrix of an MLP, whose inputs are its units."""


@probe("forward")
def plasticity(pair: Pair) -> Iterator[Row]:
    """What can be read of a checkpoint's plasticity without training it again: dormant units, rank of its states, norms.

    The share of dormant MLP units and the rank of the last hidden states (over their width) on the answers of both
    checkpoints, and the norm of all weights. Whether it still learns is measured where the plan trains the same phase from
    it and from the base: the report's table of areas under reward curves (arXiv 2605.12484 trains a probe for that).
    """
    answers = [answer for task in pair.tasks for one in pair.both for answer in one.some(task, 8)]
    found = [_condition(checkpoint, answers) for checkpoint in pair.both]
    for measure in found[0]:
        yield from compared(ALL, ALL, measure, *(one[measure] for one in found))


def _condition(checkpoint: Checkpoint, answers: Sequence[Answer]) -> dict[str, float]:
    policy = checkpoint.policy
    sums: dict[str, Tensor] = {}
    hooks = []
    for name, module in policy.model.named_modules():
        if name.rpartition(".")[2] in DOWN and "attn" not in name and "attention" not in name:

            def add(module: Any, inputs: Any, name: str = name) -> None:
                size = inputs[0].detach().abs().double().flatten(0, -2).sum(0).cpu()
                sums[name] = sums.get(name, torch.zeros_like(size)) + size

            hooks.append(module.register_forward_pre_hook(add))
    try:
        states = []
        with torch.no_grad():
            for batch in batches(policy, answers):
                states.append(forced(policy, batch, hidden=True)[1][-1].cpu())
    finally:
        for hook in hooks:
            hook.remove()
    norm = math.sqrt(
        sum(float((p.detach().double() ** 2).sum()) for p in policy.model.parameters())
    )
    return {
        "dormant_share": dormant_share(list(sums.values())),
        "state_rank": state_rank(torch.cat(states)) if states else math.nan,
        "weight_norm": norm,
    }


def dormant_share(layers: Sequence[Tensor]) -> float:
    """Share of units whose mean |activation| is at most DORMANT of their layer's mean; nan without layers.

    >>> dormant_share([torch.tensor([0.0, 1.0, 1.0, 2.0])])
    0.25
    """
    dead = sum(int((layer <= DORMANT * layer.mean()).sum()) for layer in layers)
    units = sum(len(layer) for layer in layers)
    return dead / units if units else math.nan


def state_rank(states: Float[Tensor, "token width"], delta: float = DELTA) -> float:
    """Singular values that carry 1 - delta of their sum, as a share of the width.

    >>> state_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0])), delta=0.3) * 3
    1.0
    """
    values = torch.linalg.svdvals(states.double())
    carried = values.cumsum(0) / values.sum().clamp(min=1e-300)
    return float((carried < 1 - delta).sum() + 1) / states.shape[1]


@probe("backward")
def gradient_cosine(pair: Pair) -> Iterator[Row]:
    """Cosine of the policy gradients of every two tasks, by kind of module, at both checkpoints.

    A task's gradient is that of the mean of (score - mean score of its problem) log p over the checkpoint's own samples, which is what
    one more step of RL would follow; nothing of a task whose samples all score alike. TAC (arXiv 2606.25178) takes such an
    alignment as transfer. `task` is `code+math`; `norm` is a task's own.
    """
    (norms, cosines), (norms_after, cosines_after) = (
        _agreement(checkpoint, tuple(pair.tasks)) for checkpoint in pair.both
    )
    for task in pair.tasks:
        yield from compared(task, ALL, "norm", norms.get(task), norms_after.get(task))
    for key in sorted({*cosines, *cosines_after}):
        yield from compared(*key, "cosine", cosines.get(key), cosines_after.get(key))


def _agreement(
    checkpoint: Checkpoint, tasks: tuple[str, ...]
) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Norms of the tasks' gradients, and (two tasks, kind of module) -> cosine."""
    key = ("gradient_cosine", tasks)
    if key not in checkpoint.known:
        gradients = _gradients(checkpoint, tasks)
        cosines = {
            (f"{one}{PAIRED}{two}", part): value
            for one, two in combinations(tasks, 2)
            if one in gradients and two in gradients
            for part, value in gradients[one].cosines(gradients[two]).items()
        }
        norms = {task: gradient.norm() for task, gradient in gradients.items()}
        checkpoint.known[key] = norms, cosines
    return checkpoint.known[key]


class _Gradient:
    """The gradient of one task, tensor by tensor."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def norm(self) -> float:
        return math.sqrt(sum(float((t.double() ** 2).sum()) for t in self.tensors.values()))

    def cosines(self, other: _Gradient) -> dict[str, float]:
        """Kind of module -> cosine; ALL of all weights together."""
        sums: dict[str, list[float]] = {}
        for name, tensor in self.tensors.items():
            a, b = tensor.double(), other.tensors[name].double()
            found = [float((a * b).sum()), float((a * a).sum()), float((b * b).sum())]
            for part in (ALL, module_of(name)):
                old = sums.get(part, [0.0] * 3)
                sums[part] = [x + y for x, y in zip(old, found, strict=True)]
        return {p: dot / math.sqrt(a * b) for p, (dot, a, b) in sums.items() if a > 0 and b > 0}


def _gradients(checkpoint: Checkpoint, tasks: Sequence[str]) -> dict[str, _Gradient]:
    found = {}
    for task in tasks:
        tensors = _gradient(checkpoint, task)
        if tensors is not None:
            found[task] = _Gradient(tensors)
    return found


def _gradient(checkpoint: Checkpoint, task: str) -> dict[str, Tensor] | None:
    answers, weights, asked = [], [], 0
    for group in checkpoint.sampled(task):
        graded = [answer for answer in group if answer.score is not None]
        level = mean([answer.score or 0.0 for answer in graded])
        asked += len(graded)
        for answer in graded:
            if answer.score != level:
                answers.append(answer)
                weights.append((answer.score or 0.0) - level)
    if not answers:
        return None
    weights = [weight / asked for weight in weights]
    policy = checkpoint.policy
    model = policy.model
    model.zero_grad()
    for batch in batches(policy, answers):
        logits, _ = forced(policy, batch)
        logps = logits.log_softmax(-1).gather(-1, targets(batch).to(logits.device)[:, None])[:, 0]
        each = [weights[i] for i, n in zip(batch.of, batch.lengths, strict=True) for _ in range(n)]
        (logps * torch.tensor(each, device=logps.device)).sum().backward()
    tensors = {
        name: p.grad.detach().cpu() for name, p in model.named_parameters() if p.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return tensors
