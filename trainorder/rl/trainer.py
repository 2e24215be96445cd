"""One phase of RL on top of a parent checkpoint."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from trainorder import paths
from trainorder.adapters import base_of, is_adapter_node
from trainorder.config import PhaseConfig, RlConfig, RolloutConfig, TrainingConfig
from trainorder.device import device_of
from trainorder.policy import Policy
from trainorder.prefix import recomputing_alike
from trainorder.process import fail_point
from trainorder.reading import ParamsError
from trainorder.registries import BACKENDS, load
from trainorder.resume import NOTHING, Work
from trainorder.rl import facts, items
from trainorder.rl.adapters import (
    add_adapters,
    continue_adapters,
    save_node,
    sharing_base,
    with_adapter_of,
)
from trainorder.rl.averaging import Average
from trainorder.rl.backend import Backend, holds_whole_weights
from trainorder.rl.forward import ByTask
from trainorder.rl.guard import under, watch
from trainorder.rl.head import check_forward
from trainorder.rl.items import Picker
from trainorder.rl.learner import Learner
from trainorder.rl.method import Method
from trainorder.rl.problems import TaskSet
from trainorder.rl.scheduler import Scheduler
from trainorder.rl.shards import SHARED, Shards
from trainorder.rl.speed import Trace
from trainorder.rl.step import rl_step
from trainorder.rl.types import State
from trainorder.rollout import Engine, make_engine
from trainorder.workers import workers_for

SAMPLING, PLAIN = RolloutConfig(), TrainingConfig()
"""The defaults: the torch engine, plain torch."""


Teacher = Path | str | Mapping[str, Path | str]
"""Where the teacher lies, or those of the tasks."""

PARENT_BYTES = 1 << 28
"""Weights of a model that is small: a copy of it is kept to be compared with at the end of a phase."""

NO_TEACHER = (
    "rl.method names a piece that needs a teacher, and there is none: set rl.teacher to a node of the plan "
    "(`s{seed}--math`) or to {path: FOLDER}"
)


class Log(Protocol):
    """Where metrics go; tracking.Tracker is one."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one step."""
        ...

    def state(self) -> dict[str, Any]:
        """What was logged, as plain data."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after what `state` holds."""
        ...


def train_phase(
    parent: Path,
    out: Path,
    phase_name: str,
    phase: PhaseConfig,
    rl: RlConfig,
    seed: int,
    tracker: Log,
    work: Work = NOTHING,
    *,
    rollout: RolloutConfig = SAMPLING,
    training: TrainingConfig = PLAIN,
    judges: Mapping[str, str] | None = None,
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """Train `parent` through a phase and save the result as `out`.

    A pure function of its arguments and the built data: every draw comes from a stream keyed by
    seed, phase and step, and the optimiser starts fresh. A killed attempt is resumed from
    `work`, to the same bytes.

    Returns:
        `steps`, `tokens` sampled, `seconds`, `tasks`, whether any was `judged`, `last`, the
        metrics of the last step, the `alarms` that sounded (trainorder/rl/guard.py), some `rollouts` to read (records.py), and of every step the
        `order`: the problems in the order that they were drawn, and the answers asked of each.

    Raises:
        ParamsError: an unknown piece or option, or more updates than prompts.
        NonFiniteError: an update was not finite and was refused; see `rl.on_nonfinite`.
    """
    start = time.perf_counter()
    learner = make_learner(
        parent,
        phase_name,
        phase,
        rl,
        seed,
        rollout=rollout,
        training=training,
        judges=judges,
        teacher=teacher,
    )
    learner = replace(learner, dumps=paths.DUMPS / out.name)
    state = State(total=phase.steps, key=(seed, phase_name))
    tokens, metrics = 0.0, dict[str, float]()
    backend = learner.backend
    shards, average = Shards(backend, work), Average(rl.average, phase.steps)
    saved = shards.latest()
    if saved is not None:
        learner.restore(saved.tensors)
        average.restore(saved.tensors)
        state = State.from_state_dict(saved.state["state"], under(SHARED, saved.tensors))
        tokens, metrics = saved.state["tokens"], saved.state["metrics"]
        tracker.restore(saved.state["log"])
    elif rl.inherit_items:
        state.mem["known"] = items.inherited(parent)
    trace = Trace(out.name)
    for step in _progress(phase_name, state.step, phase.steps):
        trace.before(step)
        metrics = rl_step(learner, state)
        trace.after(step, last=step + 1 == phase.steps)
        metrics |= watch(metrics, state, rl.alarms, rl.prompts_per_step * rl.group_size)
        tokens += metrics["rollout/tokens"]
        tracker.log(step, metrics)
        average.see(learner, step)
        fail_point("rl.step")
        if shards.due():
            facts = {"state": state.state_dict(), "tokens": tokens, "metrics": metrics}
            kept = {f"{SHARED}{name}": values for name, values in state.tensors.items()}
            kept |= average.tensors()
            shards.save(state.step, learner.tensors() | kept, {**facts, "log": tracker.state()})
    fail_point("rl.end")
    average.put(learner)
    save(learner, out, parent)
    if backend.rank == 0:
        items.leave(out, state.mem.get("known", {}))
    shards.done()
    seconds = time.perf_counter() - start + work.earlier
    return {
        "steps": phase.steps,
        "tokens": int(tokens),
        "seconds": seconds,
        "tasks": list(phase.tasks),
        "judged": bool(learner.task_set.judges),
        "last": metrics,
        "alarms": state.mem.get("alarms", {}),
        "rollouts": state.mem.get("rollouts", []),
        "order": state.mem.get("order", []),
    }


def make_learner(
    parent: Path,
    phase_name: str,
    phase: PhaseConfig,
    rl: RlConfig,
    seed: int,
    *,
    rollout: RolloutConfig = SAMPLING,
    training: TrainingConfig = PLAIN,
    judges: Mapping[str, str] | None = None,
    teacher: Teacher | None = None,
) -> Learner:
    """Load everything a phase needs; settings are checked before anything slow is loaded.

    `teacher` is where `rl.teacher` lies, or that of each task; it is loaded only if a piece needs it.

    Raises:
        ParamsError: an unknown piece or option, a package or device that is not there, a teacher that is missing or has
            another vocabulary.
    """
    method = Method.from_config(rl.method)
    if any(term.layers for term in method.terms) and training.backend != "local":
        raise ParamsError(
            f"rl.method.terms: `layers` needs whole gradients, and training.backend: {training.backend} splits them; leave it "
            "out or train with the backend `local`"
        )
    if rl.average and training.backend != "local":
        raise ParamsError(
            f"rl.average needs whole weights, and training.backend: {training.backend} splits them; leave it out or train with the "
            "backend `local`"
        )
    picker = Picker.of(rl.items)
    asks_teacher = facts.ANSWERS in method.needs or "teacher_rate" in picker.item.looks
    wanted = method.models | ({"teacher"} if asks_teacher else set())
    if "teacher" in wanted and teacher is None:
        raise ParamsError(NO_TEACHER)
    if rl.updates_per_batch > rl.prompts_per_step:
        raise ParamsError(
            f"rl.updates_per_batch is {rl.updates_per_batch}, but a step has only "
            f"{rl.prompts_per_step} prompts to split: raise prompts_per_step or lower it"
        )
    device = device_of(training.device)
    task_set = TaskSet.load(
        phase.tasks,
        Scheduler.from_config(rl),
        device,
        judges,
        picker=picker,
        keeps_known=facts.KNOWN in method.needs,
    )
    load(BACKENDS, training.backend, "training.backend").join(device)
    continues = training.lora is not None and is_adapter_node(parent)
    policy = Policy.load(base_of(parent) if continues else parent).to(device)
    policy.model.eval()  # no dropout: the policy that samples is the policy that is trained
    check_forward(policy.model)
    engine = _engine(policy, rl, rollout, training)
    if training.lora is not None:
        add_adapters(policy.model, training.lora, seed)
        if continues:
            continue_adapters(policy.model, parent, training.lora)
    compared = (wanted - {"teacher"}) | (
        {"reference"} if _parent_costs_little(policy, training) else set()
    )
    models = {name: _frozen(name, policy, parent, training) for name in sorted(compared)}
    answers = None
    if "teacher" in wanted and teacher is not None:
        models["teacher"] = load_teacher(teacher, policy, base_of(parent), training)
        if asks_teacher:
            if isinstance(teacher, Mapping):
                raise ParamsError(
                    "rl: a piece has the teacher answer, and there is one for each task: take it out"
                )
            answers = make_engine(
                SAMPLING, Policy(models["teacher"], policy.tokenizer), frozen=True
            )
    if training.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": recomputing_alike(policy.model)}
        )
        _drop_dropout(policy.model)
    return Learner(
        policy,
        engine,
        task_set,
        method,
        rl,
        make_backend(policy.model, rl, training),
        models,
        phase_name,
        seed,
        exact=rollout.backend == "torch" and training.dtype == "fp32",
        teacher=answers,
    )


def load_teacher(
    place: Teacher, policy: Policy, base: Path | None = None, training: TrainingConfig = PLAIN
) -> Any:
    """The frozen model at `place`, whose logits can be compared with the policy's, entry by entry; or that of each task.

    A node that is an adapter on the policy's own `base` shares its weights.

    Raises:
        ParamsError: it has another vocabulary.
    """
    if isinstance(place, Mapping):
        places = dict.fromkeys(place.values())
        loaded = {one: load_teacher(one, policy, base, training) for one in places}
        return ByTask({task: loaded[one] for task, one in place.items()})
    if training.lora is not None and not _is_split(training) and is_adapter_node(Path(place)):
        on_base = base_of(Path(place)) == base
        other = with_adapter_of(policy.model, Path(place), training.lora) if on_base else None
        if other is not None:
            return other
    found = Policy.load(place)
    ours, theirs = policy.tokenizer.get_vocab(), found.tokenizer.get_vocab()
    if ours != theirs:
        different = sorted(
            token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token)
        )
        raise ParamsError(
            f"rl.teacher: {place} has another vocabulary than the policy ({len(theirs)} and {len(ours)} tokens, {len(different)} "
            f"of them different, {different[0]!r} for one), and distillation compares token by token: take a teacher that was "
            "trained from the same tokenizer"
        )
    models: tuple[Any, Any] = found.model, policy.model
    sizes = [model.get_output_embeddings().weight.shape[0] for model in models]
    if sizes[0] != sizes[1]:
        raise ParamsError(
            f"rl.teacher: {place} has {sizes[0]} logits and the policy {sizes[1]}, though their tokens are the same: pad the "
            "embeddings of one to the size of the other"
        )
    return found.to(policy.device.type).model.requires_grad_(False).eval()


def _frozen(name: str, policy: Policy, parent: Path, training: TrainingConfig) -> Any:
    """The phase's parent, for pieces that compare with it: of adapters a copy of these on the policy's own base.

    A second model only where the base is split over ranks, or where all weights change.
    """
    if training.lora is None:
        return copy.deepcopy(policy.model).requires_grad_(False)
    if name == "reference" and not _is_split(training):
        return sharing_base(policy.model)
    return Policy.load(parent).to(policy.device.type).model.requires_grad_(False)


def _parent_costs_little(policy: Policy, training: TrainingConfig) -> bool:
    """Whether the phase's parent is kept for `parent_kl` alone: as adapters on the same base, or as a small model."""
    if training.lora is not None:
        return not _is_split(training)
    return sum(p.numel() * p.element_size() for p in policy.model.parameters()) <= PARENT_BYTES


def _is_split(training: TrainingConfig) -> bool:
    """Whether each rank holds a part of the weights only."""
    return training.backend == "deepspeed" and training.zero_stage == 3


def _engine(
    policy: Policy, rl: RlConfig, rollout: RolloutConfig, training: TrainingConfig
) -> Engine:
    """The torch engine shares the policy's weights where these are whole; any other engine has its own."""
    if rollout.backend != "torch":
        return make_engine(rollout, policy, training.dtype)
    own = not holds_whole_weights(training)
    if own:
        policy = Policy(copy.deepcopy(policy.model).requires_grad_(False), policy.tokenizer)
    workers = workers_for(policy.model, rl.threads)
    return make_engine(rollout, policy, workers=workers, own_weights=own)


def make_backend(model: Any, rl: RlConfig, training: TrainingConfig) -> Backend:
    """What computes the updates of `model`."""
    return load(BACKENDS, training.backend, "training.backend")(model, rl, training)


def save(learner: Learner, out: Path, parent: Path) -> None:
    """Write the node: the adapters alone where only they are trained, else a Hugging Face folder. All ranks call it."""
    backend = learner.backend
    lora = backend.training.lora
    if lora is not None:
        kept = backend.tensors()
        tensors = {n.removeprefix("model/"): t for n, t in kept.items() if n.startswith("model/")}
        if backend.rank == 0:
            save_node(out, parent, tensors, lora)
    elif (policy := learner.whole_policy()) is not None:
        policy.save(out)
    backend.gather(None)  # all ranks wait until it is written


def _drop_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "hidden_dropout"):
        for module in [model, *model.modules()]:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _progress(name: str, first: int, steps: int) -> Any:
    """The numbers of the steps left, with a bar and an estimate where stderr is a terminal."""
    if not sys.stderr.isatty():
        return range(first, steps)
    from rich.console import Console
    from rich.progress import track

    return track(
        range(first, steps),
        total=steps,
        completed=first,
        description=f"RL {name}",
        console=Console(stderr=True),
    )
