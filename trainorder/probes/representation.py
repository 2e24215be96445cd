"""What a model's states and weights look like inside: dimensions in use, and what single directions of an update do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.probes.base import ALL, Answer, Checkpoint, Pair, Row, compared, mean, probe
from trainorder.probes.forward import batches, check_vocabulary, forced, targets
from trainorder.reading import ParamsError
from trainorder.streams import torch_stream

ANSWERS = 16
"""Answers per task and checkpoint whose states are compared."""


@probe("forward", neutral={"similarity": 1.0})
def participation_ratio(pair: Pair) -> Iterator[Row]:
    """Dimensions that the hidden states use, layer by layer, and how alike the states of both checkpoints are.

    The ratio is (sum l)^2 / sum l^2, l the eigenvalues of the covariance of the states over the tokens of both
    checkpoints' answers. `similarity` is the linear CKA of the two models' states on the same tokens (arXiv 1905.00414).
    `part` is `layer 0` (embeddings) and so on.
    """
    check_vocabulary(*pair.both)
    answers = [a for task in pair.tasks for one in pair.both for a in one.some(task, ANSWERS)]
    states = [_states(checkpoint, answers) for checkpoint in pair.both]
    if len(states[0]) != len(states[1]):
        raise ParamsError(
            f"{pair.other.name} has {len(states[0]) - 1} layers, {pair.node.name} {len(states[1]) - 1}: not of one architecture"
        )
    for layer, (before, after) in enumerate(zip(*states, strict=True)):
        part = f"layer {layer}"
        yield from compared(ALL, part, "participation_ratio", dimensions(before), dimensions(after))
        likeness = cka(before, after)
        yield Row(ALL, part, "similarity", likeness)
        if layer == len(states[0]) - 1:
            yield Row(ALL, "last", "similarity", likeness)


def _states(checkpoint: Checkpoint, answers: Sequence[Answer]) -> list[Tensor]:
    layers: list[list[Tensor]] = []
    with torch.no_grad():
        for batch in batches(checkpoint.policy, answers):
            found = forced(checkpoint.policy, batch, hidden=True)[1]
            layers = layers or [[] for _ in found]
            for layer, states in zip(layers, found, strict=True):
                layer.append(states.cpu())
    return [torch.cat(layer) for layer in layers]


def dimensions(states: Float[Tensor, "token width"]) -> float:
    """Participation ratio of the states' covariance; 0 where they do not vary.

    >>> dimensions(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), dimensions(torch.tensor([[1.0, 0], [-1, 0]]))
    (2.0, 1.0)
    """
    covariance = _centred(states).T @ _centred(states)
    return _ratio(float(covariance.trace()), float((covariance**2).sum()))


def cka(a: Float[Tensor, "token width"], b: Float[Tensor, "token width"]) -> float:
    """Linear centred kernel alignment: |A^T B|^2 / (|A^T A| |B^T B|); nan where one does not vary.

    >>> x = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    >>> round(cka(x, 3 * x.flip(1)), 6)  # turned and scaled
    1.0
    """
    a, b = _centred(a), _centred(b)
    scale = float((a.T @ a).norm() * (b.T @ b).norm())
    return float(((a.T @ b) ** 2).sum()) / scale if scale else math.nan


def _centred(states: Tensor) -> Tensor:
    return states.double() - states.double().mean(0)


def _ratio(total: float, squares: float) -> float:
    return total**2 / squares if squares > 0 else 0.0


STEPS = (-1.0, -0.5, 0.5, 1.0)
"""How far along a direction the weights are moved, in lengths of the update; -1 along the update is `other` again."""
TASKS = {"entanglement": 0.0, "roughness": 0.0, "asymmetry": 0.0}


@probe("forward", neutral=TASKS | {f"change_at_{step:+g}": 0.0 for step in STEPS})
def perturbation(pair: Pair) -> Iterator[Row]:
    """What moving the weights of `node` along its update does to each task, beside a random direction of the same length.

    Directions (`part`): `update` from `other`, `top`, the first singular direction of every matrix of it, `random`, of the
    update's length in every tensor. Of a task the change v of log p per token of its right answers (all, where none is
    right). `entanglement` is (sum |v|)^2 / sum v^2 over tasks: 1, one task moves alone; as many as there are tasks, all move
    alike. `asymmetry` is v(+1) - v(-1), `roughness` the largest second difference. An adaptation of the weight sweeps of
    arXiv 2505.11581, untested there on language models: exploratory.
    """
    check_vocabulary(*pair.both)
    node = pair.node
    texts = {task: _right(node, task) for task in pair.tasks}
    start = _levels(node, texts)
    weights = dict(node.policy.model.named_parameters())
    before = dict(pair.other.policy.model.named_parameters())
    update = {name: (weights[name] - before[name]).detach() for name in weights}
    for direction, make in DIRECTIONS.items():
        delta = {name: make(own, name) for name, own in update.items()}
        found = {step: _moved(node, delta, step, texts, start) for step in STEPS}
        for step, changes in found.items():
            for task, change in changes.items():
                yield Row(task, direction, f"change_at_{step:+g}", change)
        yield Row(
            ALL,
            direction,
            "entanglement",
            mean([entanglement(list(changes.values())) for changes in found.values()]),
        )
        curves = {
            task: [found[s][task] if s else 0.0 for s in (-1.0, -0.5, 0.0, 0.5, 1.0)]
            for task in start
        }
        for task, curve in curves.items():
            yield Row(task, direction, "asymmetry", curve[-1] - curve[0])
            yield Row(task, direction, "roughness", roughness(curve))


def entanglement(changes: Sequence[float]) -> float:
    """Participation ratio of the tasks' changes; 0 where nothing changed.

    >>> entanglement([1, 0, 0]), entanglement([1, 1, 1]), round(entanglement([2, 1, 1]), 3)
    (1.0, 3.0, 2.667)
    """
    return _ratio(math.fsum(map(abs, changes)), math.fsum(v * v for v in changes))


def roughness(curve: Sequence[float]) -> float:
    """Largest |second difference|.

    >>> roughness([0.0, 1.0, 2.0, 3.0]), roughness([0.0, 1.0, 0.0])
    (0.0, 2.0)
    """
    return max(abs(a - 2 * b + c) for a, b, c in zip(curve, curve[1:], curve[2:], strict=False))


def top(delta: Tensor, name: str) -> Tensor:
    """The part of a matrix along its first singular direction, by 30 power iterations; any other tensor as it is."""
    if delta.dim() != 2 or not bool(delta.any()):
        return delta
    v = torch.randn(delta.shape[1], generator=torch_stream("probe", "top", name)).to(delta)
    for _ in range(30):
        u = delta @ v
        u = u / u.norm().clamp(min=1e-30)
        v = delta.T @ u
        v = v / v.norm().clamp(min=1e-30)
    return torch.outer(delta @ v, v)


def like(delta: Tensor, name: str) -> Tensor:
    """A random tensor of the same shape and length."""
    drawn = torch.randn(delta.shape, generator=torch_stream("probe", "random", name)).to(delta)
    return drawn * (delta.norm() / drawn.norm().clamp(min=1e-30))


DIRECTIONS = {"update": lambda delta, name: delta, "top": top, "random": like}


def _right(node: Checkpoint, task: str) -> list[Answer]:
    answers = node.some(task, ANSWERS)
    return [answer for answer in answers if (answer.score or 0.0) >= 0.5] or answers


def _moved(
    node: Checkpoint,
    delta: Mapping[str, Tensor],
    step: float,
    texts: Mapping[str, Sequence[Answer]],
    start: Mapping[str, float],
) -> dict[str, float]:
    """Task -> change of log p per token with the weights moved; they are put back exactly."""
    weights = dict(node.policy.model.named_parameters())
    kept = {name: weights[name].detach().clone() for name in delta}
    try:
        with torch.no_grad():
            for name, d in delta.items():
                weights[name].add_(d, alpha=step)
        levels = _levels(node, texts)
    finally:
        with torch.no_grad():
            for name, old in kept.items():
                weights[name].copy_(old)
    return {task: levels[task] - start[task] for task in start}


def _levels(node: Checkpoint, texts: Mapping[str, Sequence[Answer]]) -> dict[str, float]:
    """Task -> mean log p per token of its texts."""
    found = {}
    with torch.no_grad():
        for task, answers in texts.items():
            total, tokens = 0.0, 0
            for batch in batches(node.policy, answers):
                logits, _ = forced(node.policy, batch)
                wanted = targets(batch).to(logits.device)[:, None]
                total += float(logits.log_softmax(-1).gather(-1, wanted).double().sum())
                tokens += len(wanted)
            if tokens:
                found[task] = total / tokens
    return found
