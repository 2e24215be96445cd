"""Supervised warm-up: from a model that knows nothing to the noisy skills that RL can sharpen.

Departs from a textbook language-model run in three ways: prompt tokens count less than the answer's, every step mixes
demonstrations with clean drill lines, and a gate asks for greedy dev accuracy before anything is handed on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainorder import paths
from trainorder.config import Params, SftConfig
from trainorder.files import read_jsonl
from trainorder.process import StageError, fail_point
from trainorder.reading import ParamsError
from trainorder.resume import (
    NOTHING,
    Saved,
    Work,
    model_tensors,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
)
from trainorder.rewards import grading
from trainorder.streams import torch_stream
from trainorder.tasks import load_problems, load_task
from trainorder.workers import Workers

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from trainorder.policy import Policy


LOG_EVERY = 10
"""Updates between two logged lines."""


class Log(Protocol):
    """Where numbers go, e.g. `tracking.Tracker`."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step."""
        ...

    def state(self) -> dict[str, Any]:
        """What was logged, as plain data."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind what `state` holds."""
        ...


class GateError(StageError):
    """The warm-up used all its steps and some task is still below the gate."""


@dataclass(frozen=True)
class Line:
    """One training text: `weights[i]` is what predicting `ids[i]` counts; the first token is never predicted.

    >>> Line([1, 7, 2, 9, 3], [0.0, 0.1, 0.1, 1.0, 1.0]).ids[3:]  # <bos> prompt <sep> answer <eos>
    [9, 3]
    """

    ids: list[int]
    weights: list[float]


def warm_up(
    out: Path, params: Params, seed: int, tracker: Log, work: Work = NOTHING
) -> dict[str, Any]:
    """Train until the gate opens and save the checkpoint to `out`; returns steps, tokens and gate accuracies.

    The weights are a function of params, data and seed; `sft.threads` changes only the time, and a killed
    attempt is resumed from `work`, to the same bytes.

    Raises:
        GateError: after `sft.max_steps` the gate is still shut; nothing is saved.
        ParamsError: the data is not built, or holds too few lines.
    """
    import torch

    from trainorder.policy import Policy

    config = params.sft
    torch.set_num_threads(1)  # micro-batches run side by side instead
    if params.policy.path is None:
        policy = Policy.build_tiny(params.policy, paths.TOKENIZER, seed)
    else:
        policy = Policy.load(params.policy.path)
    batches = _batches(policy, config, seed)
    run = _Run(policy, config, Workers(config.threads))
    saved = work.latest("sft")
    if saved is not None:
        run.restore(saved)
        tracker.restore(saved.state["log"])
        for _ in range(run.steps):
            next(batches)
    summary = _train_to_gate(run, batches, tracker, work)
    policy.save(out)
    return summary


def weighted_nll(
    logits: Float[Tensor, "row token vocab"],
    ids: Int[Tensor, "row token"],
    weights: Float[Tensor, "row token"],
) -> Float[Tensor, ""]:
    """Sum over tokens of -weight[t] * log p(id[t] | ids before t); weight 0 leaves a token out."""
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def lr_fraction(step: int, steps: int, config: SftConfig) -> float:
    """Linear warm-up, then a cosine to `final_lr_fraction`, as a share of the peak; `step` counts from 0.

    >>> config = SftConfig(warmup_steps=10, final_lr_fraction=0.1)
    >>> [round(lr_fraction(step, 110, config), 2) for step in (0, 9, 60, 110)]
    [0.1, 1.0, 0.55, 0.1]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    low = config.final_lr_fraction
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def micro_batches(lines: Sequence[Line], count: int) -> list[list[Line]]:
    """At most `count` parts of about as many tokens each, longest lines first, so that little is padding."""
    ordered = sorted(lines, key=lambda line: -len(line.ids))
    share = sum(len(line.ids) for line in ordered) / count
    parts: list[list[Line]] = [[] for _ in range(count)]
    before = 0
    for line in ordered:
        parts[min(count - 1, int(before / share))].append(line)
        before += len(line.ids)
    return [part for part in parts if part]


def gradients(
    model: Any, lines: Sequence[Line], num_parts: int, workers: Workers
) -> tuple[float, list[Tensor]]:
    """Loss and gradient of sum(weight * nll) / sum(weight) over all lines.

    Parts are summed in their own order, whichever thread is done first, so threads change no bit.
    """
    total = sum(sum(line.weights) for line in lines)
    wanted = [p for p in model.parameters() if p.requires_grad]
    parts = micro_batches(lines, num_parts)
    results = workers.map(lambda part: _part_gradients(model, wanted, part, total), parts)
    loss, grads = next(results)
    for other_loss, others in results:
        loss += other_loss
        for grad, other in zip(grads, others, strict=True):
            grad.add_(other)
    return loss, grads


def check_gate(reached: Mapping[str, float], gate: Mapping[str, float]) -> list[str]:
    """Tasks below their bound, in words.

    >>> check_gate({"math": 0.5, "qa": 0.7}, {"math": 0.9, "qa": 0.7})
    ['math reached 0.500 of 0.900']
    """
    return [
        f"{task} reached {reached[task]:.3f} of {need:.3f}"
        for task, need in gate.items()
        if reached[task] < need
    ]


def _train_to_gate(
    run: _Run, batches: Iterator[list[Line]], tracker: Log, work: Work
) -> dict[str, Any]:
    config = run.config
    while True:
        _train_leg(run, batches, tracker, work)
        fail_point("sft.gate")
        reached = greedy_accuracies(run.policy, config.gate, run.workers)
        tracker.log(run.steps, {f"sft/greedy/{task}": value for task, value in reached.items()})
        shut = check_gate(reached, config.gate)
        if not shut:
            return {"steps": run.steps, "tokens": run.tokens, "greedy": reached, **run.metrics}
        leg = min(config.extension, config.max_steps - run.steps)
        if leg <= 0:
            raise GateError(_gate_text(shut, run.steps))
        run.start_leg(leg, config.extension_lr_fraction)


def _train_leg(run: _Run, batches: Iterator[list[Line]], tracker: Log, work: Work) -> None:
    """The updates left of the run's leg: one schedule that begins at `lr_share` of the peaks."""
    from tqdm import tqdm

    run.model.train()
    first, steps = run.steps - run.leg_start, run.leg
    left = range(first, steps)
    bar = tqdm(left, "sft", steps, leave=False, unit="step", disable=None, initial=first)
    for step in bar:
        run.update(next(batches), run.lr_share * lr_fraction(step, steps, run.config))
        if run.steps % LOG_EVERY == 0 or step == steps - 1:
            tracker.log(run.steps, run.metrics)
        fail_point("sft.step")
        if work.due("sft"):
            work.save("sft", run.tensors(), {**run.state(), "log": tracker.state()})
    run.model.eval()


def greedy_accuracies(policy: Policy, tasks: Iterable[str], workers: Workers) -> dict[str, float]:
    """Task -> mean dev grade of greedy answers; answers that cannot be graded are left out; 0 where none is left."""
    names = list(tasks)
    found = workers.map(lambda task: _greedy_accuracy(policy, task), names)
    return dict(zip(names, found, strict=True))


def _greedy_accuracy(policy: Policy, task: str) -> float:
    from trainorder.rollout import Request
    from trainorder.rollout.torch_engine import TorchEngine

    problems = load_problems(task, "dev")
    card = json.loads((paths.TASK_DATA / task / "task.json").read_text(encoding="utf-8"))
    room = card["max_new_tokens"]
    answers = TorchEngine(policy).generate(
        [Request(problem, max_new_tokens=room, temperature=0.0) for problem in problems]
    )
    rewards = grading.grade(load_task(task), answers.texts, problems)
    known = [reward.value for reward in rewards if reward.value is not None]
    return sum(known) / max(1, len(known))


def _gate_text(shut: Sequence[str], steps: int) -> str:
    return (
        f"the SFT gate is still shut after {steps} steps (sft.max_steps): {'; '.join(shut)} (greedy dev accuracy). "
        "RL on a skill the base lacks destroys it. In params.yaml raise sft.max_steps, give the task more "
        "demonstrations or drills, make it easier (its options), or lower its bound in sft.gate"
    )


class _Run:
    """The state of one warm-up: model, optimiser, counts, and the leg of the schedule it is in."""

    COUNTS = ("steps", "tokens", "leg", "leg_start", "lr_share", "metrics")

    def __init__(self, policy: Policy, config: SftConfig, workers: Workers) -> None:
        self.policy, self.model, self.config, self.workers = policy, policy.model, config, workers
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimisers = _optimisers(self.model, config)
        self.steps, self.tokens = 0, 0
        self.metrics: dict[str, float] = {}
        self.start_leg(min(config.steps, config.max_steps), 1.0)

    def start_leg(self, steps: int, lr_share: float) -> None:
        """Begin a schedule of `steps` updates."""
        self.leg, self.leg_start, self.lr_share = steps, self.steps, lr_share

    def state(self) -> dict[str, Any]:
        """The counts, as plain data."""
        return {name: getattr(self, name) for name in self.COUNTS}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimisers."""
        found = model_tensors("model", self.model)
        for i, (optimiser, _) in enumerate(self.optimisers):
            found |= optimizer_tensors(f"optimizer{i}", optimiser)
        return found

    def restore(self, saved: Saved) -> None:
        """Put back what `state` and `tensors` took."""
        for name in self.COUNTS:
            setattr(self, name, saved.state[name])
        restore_model("model", self.model, saved.tensors)
        for i, (optimiser, _) in enumerate(self.optimisers):
            restore_optimizer(f"optimizer{i}", optimiser, saved.tensors)

    def update(self, lines: Sequence[Line], lr_share: float) -> None:
        """One optimiser step on these lines at this share of the peak learning rates."""
        import torch

        loss, grads = gradients(self.model, lines, self.config.micro_batches, self.workers)
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.config.max_grad_norm)
        for optimiser, peak in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * lr_share
            optimiser.step()
        self.steps += 1
        self.tokens += sum(len(line.ids) for line in lines)
        lr = self.config.lr * lr_share
        self.metrics = {"sft/loss": loss, "sft/grad_norm": float(norm), "sft/lr": lr}


def _optimisers(model: Any, config: SftConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimisers with their peak learning rates. Muon's part: matrices, but neither embeddings nor the output head."""
    import torch

    from trainorder.muon import Muon

    outer = {
        id(p)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        for p in layer.parameters()
    }
    weights = [p for p in model.parameters() if p.requires_grad]
    matrices = (
        [p for p in weights if p.ndim == 2 and id(p) not in outer]
        if config.optimizer == "muon"
        else []
    )
    chosen = {id(p) for p in matrices}
    adamw = torch.optim.AdamW(
        [p for p in weights if id(p) not in chosen],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        fused=True,
    )
    muon = (
        [(Muon(matrices, config.muon_lr, weight_decay=config.weight_decay), config.muon_lr)]
        if matrices
        else []
    )
    return [(adamw, config.lr), *muon]


def _part_gradients(
    model: Any, wanted: list[Any], part: list[Line], total: float
) -> tuple[float, list[Tensor]]:
    import torch

    ids, weights = _pad(part)
    loss = weighted_nll(model(input_ids=ids, use_cache=False).logits, ids, weights) / total
    return loss.item(), list(torch.autograd.grad(loss, wanted))


def _pad(lines: Sequence[Line]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows filled on the right with weight 0; a causal model needs no attention mask for that."""
    import torch

    width = max(len(line.ids) for line in lines)
    ids = torch.tensor([line.ids + [0] * (width - len(line.ids)) for line in lines])
    weights = torch.tensor([line.weights + [0.0] * (width - len(line.weights)) for line in lines])
    return ids, weights


def _batches(policy: Policy, config: SftConfig, seed: int) -> Iterator[list[Line]]:
    """Endless batches of demonstrations and drills."""
    demonstrations = _read_rows(paths.SFT_DATA / "demonstrations.jsonl")
    drills = _read_rows(paths.SFT_DATA / "drills.jsonl") if config.drill_batch_size else []
    if not demonstrations:
        raise ParamsError(
            "data/sft/demonstrations.jsonl is empty: set tasks.<task>.demonstrations above 0"
        )
    shown = _shuffled(
        demonstration_lines(policy, demonstrations, config.prompt_weight), "demonstrations", seed
    )
    drilled = _shuffled(drill_lines(policy, drills), "drills", seed) if drills else iter(())
    while True:
        batch = [next(shown) for _ in range(config.batch_size)]
        yield batch + [next(drilled) for _ in range(config.drill_batch_size if drills else 0)]


def demonstration_lines(
    policy: Policy, rows: Sequence[Mapping[str, str]], prompt_weight: float
) -> list[Line]:
    """Prompt and answer as one line each; the prompt's tokens count `prompt_weight`, the answer's 1."""
    prompt, answer = cache(policy.encode_prompt), cache(policy.encode_completion)
    pairs = [(prompt(row["prompt"]), answer(row["completion"])) for row in rows]
    for p, a in pairs:
        policy.check_fits(len(p), len(a))
    return [Line(p + a, [0.0] + [prompt_weight] * (len(p) - 1) + [1.0] * len(a)) for p, a in pairs]


def drill_lines(policy: Policy, rows: Sequence[Mapping[str, str]]) -> list[Line]:
    """Plain text between the begin token, where the tokenizer has one, and the end token; all of it counts 1."""
    begin: list[Any] = (
        [] if policy.tokenizer.bos_token_id is None else [policy.tokenizer.bos_token_id]
    )
    texts: list[list[int]] = [begin + policy.encode_completion(row["text"]) for row in rows]
    return [Line(ids, [0.0] + [1.0] * (len(ids) - 1)) for ids in texts]


def _shuffled(lines: Sequence[Line], name: str, seed: int) -> Iterator[Line]:
    """All lines once per epoch, in an order that is a function of (seed, epoch)."""
    import torch

    epoch = 0
    while True:
        order = torch.randperm(len(lines), generator=torch_stream("sft", name, seed, epoch))
        yield from (lines[i] for i in order.tolist())
        epoch += 1


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ParamsError(f"{path} not found: run `dvc repro build_data`")
    return read_jsonl(path)
