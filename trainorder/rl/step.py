"""The RL step, readable from top to bottom.

    plan -> generate -> reward -> edit -> advantage -> weight
         -> updates x (micro-batches x (term -> reduce) -> AdamW)

Everything up to the weights sees the whole step batch, without grad. It departs from the GRPO paper
in this: prompts of equal rewards cost no forward (their gradient is zero) but stay in the
denominators; old log-probabilities are those captured while sampling; and answers that cannot be
graded get advantage 0 and leave their group's statistics.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config import RlConfig
from trainorder.rl.forward import forward, micro_batches
from trainorder.rl.helpers import flat, k3, log_ratio, mmean
from trainorder.rl.method import Method
from trainorder.rl.problems import TaskSet
from trainorder.rl.reduce import reduction_shares
from trainorder.rl.types import Roll, State
from trainorder.streams import torch_stream
from trainorder.tasks.base import Problem

if TYPE_CHECKING:
    from trainorder.policy import Policy
    from trainorder.rollout import Engine


@dataclass(frozen=True)
class Learner:
    """What the steps of a phase share; only the weights in policy and optimizer change."""

    policy: Policy
    engine: Engine
    task_set: TaskSet
    method: Method
    config: RlConfig
    optimizer: torch.optim.Optimizer
    reference: Any
    """Frozen copy of the phase's parent, or None where no term needs it."""
    phase: str
    seed: int


def rl_step(learner: Learner, state: State) -> dict[str, float]:
    """One step: sample, pay, give credit, update the weights. Returns what is logged."""
    method, config, task_set = learner.method, learner.config, learner.task_set
    generator = torch_stream("rollout", learner.seed, learner.phase, state.step)
    clock: dict[str, float] = defaultdict(float)
    groups, tokens = 0, 0.0

    def sample(counts: Mapping[str, int]) -> Roll:
        nonlocal groups, tokens
        problems = task_set.draw(counts, state, learner.seed)
        with _timed(clock, "generate"):
            roll = generate(learner, problems, generator)
        with _timed(clock, "grade"):
            roll = pay(roll, task_set.grade(roll.problem, roll.text), method, state)
        roll = replace(roll, group=roll.group + groups)
        groups += len(problems)
        tokens += float(roll.mask.sum())
        return roll

    with _timed(clock, "step"), torch.no_grad():
        roll = sample(task_set.share(config.prompts_per_step, state))
        log = describe(roll)
        for edit in method.edit:
            roll = edit(roll, state, sample)
        roll = give_credit(roll, method, state)
        for metric in method.metric:
            log |= {f"rl/{name}": value for name, value in metric(roll, state).items()}
        with _timed(clock, "train"):
            roll = add_reference(roll, learner)
            log |= update(learner, roll, state)
    state.step += 1
    log["rollout/tokens"] = tokens
    return log | {f"time/{name}_seconds": seconds for name, seconds in clock.items()}


def generate(learner: Learner, problems: Sequence[Problem], generator: torch.Generator) -> Roll:
    """Sample a group of answers per problem. Nothing is paid yet."""
    size, policy = learner.config.group_size, learner.policy
    prompts = [policy.encode_prompt(problem.prompt) for problem in problems]
    done = learner.engine.generate(
        prompts,
        samples=size,
        max_new_tokens=[learner.task_set.max_new_tokens[problem.task] for problem in problems],
        temperature=learner.config.temperature,
        generator=generator,
    )
    rows = [i for i in range(len(problems)) for _ in range(size)]
    mask = done.mask.cpu()
    unpaid = mask.new_zeros(len(rows))
    return Roll(
        prompt=[prompts[i] for i in rows],
        ids=done.ids.cpu(),
        mask=mask,
        group=torch.tensor(rows),
        reward=unpaid,
        scored=torch.zeros(len(rows), dtype=torch.bool),
        a=torch.zeros_like(mask),
        w=torch.ones_like(mask),
        problem=[problems[i] for i in rows],
        text=list(done.texts),
        part={"finished": done.finished.cpu().to(mask.dtype)},
        x={"logp": done.logps.cpu(), "H": done.entropies.cpu()},
    )


def pay(roll: Roll, paid: Sequence[float | None], method: Method, state: State) -> Roll:
    """Fill in the grades and add up the reward channels; None leaves a row unscored."""
    graded = roll.reward.new_tensor([0.0 if value is None else value for value in paid])
    scored = torch.tensor([value is not None for value in paid])
    roll = replace(roll, scored=scored, part={**roll.part, "graded": graded})
    reward = torch.zeros_like(graded)
    for channel in method.reward:
        reward = reward + channel.coef * channel(roll, state)
    return replace(roll, reward=torch.where(scored, reward, 0.0))


def give_credit(roll: Roll, method: Method, state: State) -> Roll:
    """Advantages, then token weights; both 0 where nothing may be learned."""
    for advantage in method.advantage:
        credit = _per_token(advantage(roll, state), roll)
        roll = replace(roll, a=torch.where(roll.scored[:, None], credit, 0.0))
    for weight in method.weight:
        roll = replace(roll, w=roll.w * _per_token(weight(roll, state), roll))
    return roll


def add_reference(roll: Roll, learner: Learner) -> Roll:
    """The reference's log-probabilities, if a term needs them."""
    if learner.reference is None:
        return roll
    logps, config = torch.zeros_like(roll.mask), learner.config
    for rows in micro_batches(roll, config.micro_batch_tokens):
        part = roll.rows(rows)
        live = forward(learner.reference, part, temperature=config.temperature)
        logps[rows] = live.logp.to(logps.dtype)
    return replace(roll, x={**roll.x, "ref": logps})


def update(learner: Learner, roll: Roll, state: State) -> dict[str, float]:
    """One or several AdamW updates on the step's rows, each on its own share of the prompts."""
    config, model = learner.config, learner.policy.model
    log: dict[str, float] = defaultdict(float)
    for i, rows in enumerate(split_by_prompt(roll, config.updates_per_batch)):
        sums = accumulate(
            model,
            roll.rows(rows),
            learner.method,
            state,
            budget=config.micro_batch_tokens,
            temperature=config.temperature,
            max_length=max(learner.task_set.max_new_tokens.values()),
        )
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        if not norm.isfinite():
            raise FloatingPointError(
                f"gradient norm is {float(norm)} at step {state.step} of phase {learner.phase!r}; "
                "nothing was saved: lower rl.lr or rl.max_grad_norm"
            )
        lr = learning_rate(config, state.step * config.updates_per_batch + i)
        for group in learner.optimizer.param_groups:
            group["lr"] = lr
        learner.optimizer.step()
        for name, value in {**sums, "grad_norm": float(norm), "lr": lr}.items():
            log[f"rl/{name}"] += value / config.updates_per_batch
    return log


def accumulate(
    model: Any,
    roll: Roll,
    method: Method,
    state: State,
    *,
    budget: int,
    temperature: float,
    max_length: int,
) -> dict[str, float]:
    """Put the gradient of one update's loss into `.grad`; returns the loss and the logged means.

    The loss is a sum over tokens with shares fixed beforehand, so how rows fall into micro-batches
    changes nothing.
    """
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    shares = reduction_shares(
        roll.w,
        roll.mask,
        roll.group,
        how=method.reduction,
        denominator=method.denominator,
        max_length=max_length,
    )
    learning = torch.ones(len(roll), dtype=torch.bool)
    if method.skips_rows_without_credit:
        learning = (roll.a * shares != 0).any(1)
    kept = learning.nonzero().flatten().tolist()
    roll, shares = roll.rows(kept), shares[kept]
    total, sums, tokens = 0.0, defaultdict[str, float](float), float(roll.mask.sum())
    for rows in micro_batches(roll, budget):
        part = roll.rows(rows)
        with torch.enable_grad():
            live = forward(model, part, temperature=temperature, entropy="H" in method.needs)
            losses = [
                term.coef * (term(live, part, state) * shares[rows]).sum() for term in method.terms
            ]
            loss = torch.stack(losses).sum()
            loss.backward()
        total += float(loss.detach())
        live.log["kl_old"] = kl_old(live.logp.detach(), part)
        for name, values in live.log.items():
            sums[name] += float((values * part.mask).sum()) / tokens
    return {"loss": total, **sums}


def kl_old(logps: Float[Tensor, "row token"], roll: Roll) -> Float[Tensor, "row token"]:
    """k3 estimate of KL(old || live): on policy, the mismatch of sampler and trainer."""
    return k3(log_ratio(logps, roll.x["logp"], roll.mask))


def split_by_prompt(roll: Roll, updates: int) -> list[list[int]]:
    """Rows of each update: whole groups, dealt in turn, so that every update sees every task.

    A group's place in the roll decides, so edits that drop groups leave the shares even.
    """
    _, dense = roll.group.unique(return_inverse=True)
    return [(dense % updates == i).nonzero().flatten().tolist() for i in range(updates)]


def learning_rate(config: RlConfig, update: int) -> float:
    """Linear warm-up over `warmup_steps` updates, then constant.

    >>> [learning_rate(RlConfig(lr=1.0, warmup_steps=2), i) for i in range(3)]
    [0.5, 1.0, 1.0]
    """
    return config.lr * min(1.0, (update + 1) / max(1, config.warmup_steps))


def describe(roll: Roll) -> dict[str, float]:
    """What was sampled and paid, overall and per task, before any edit."""
    lengths = roll.mask.sum(1)
    log = {
        "reward/mean": _mean_scored(roll),
        "rollout/length": float(lengths.mean()),
        "rollout/entropy": float(mmean(roll.x["H"], roll.mask)),
        "rollout/finished": float(roll.part["finished"].mean()),
        "rollout/flat_groups": float(flat(roll.reward, roll.group, roll.scored).float().mean()),
    }
    for task in dict.fromkeys(problem.task for problem in roll.problem):
        own = roll.rows([i for i, problem in enumerate(roll.problem) if problem.task == task])
        log[f"reward/mean/{task}"] = _mean_scored(own)
        log[f"reward/unscored/{task}"] = float((~own.scored).sum())
        log[f"rollout/entropy/{task}"] = float(mmean(own.x["H"], own.mask))
    return log


def _mean_scored(roll: Roll) -> float:
    """Mean reward over scored rows; nan, logged as null, where there is none."""
    return float(roll.reward[roll.scored].mean())


def _per_token(values: Tensor, roll: Roll) -> Float[Tensor, "row token"]:
    spread = values[:, None] if values.dim() == 1 else values
    return torch.where(roll.mask > 0, spread.to(roll.mask.dtype), 0.0)


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    clock[name] += time.perf_counter() - start
