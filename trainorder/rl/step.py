"""The RL step, readable from top to bottom.

    plan -> generate -> reward -> edit -> advantage -> weight
         -> updates x (micro-batches x (term -> reduce) -> AdamW)

Everything up to the weights sees the whole step batch, without grad. With several ranks each samples,
grades and trains its share of the prompts and holds all of the batch (backend.py). It departs from the GRPO paper
in this: prompts of equal rewards cost no forward (their gradient is zero) but stay in the
denominators; old log-probabilities are those captured while sampling, unless the engine computes
otherwise than the trainer (vLLM, bf16), when they are recomputed; and answers that cannot be
graded get advantage 0 and leave their group's statistics.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config import RlConfig
from trainorder.rl import guard
from trainorder.rl.backend import Backend, in_order, slice_of
from trainorder.rl.forward import flat_tokens, forward
from trainorder.rl.helpers import k3, levelled, log_ratio
from trainorder.rl.learner import Learner
from trainorder.rl.method import Method
from trainorder.rl.problems import split_by_task
from trainorder.rl.records import describe
from trainorder.rl.reduce import reduction_shares
from trainorder.rl.speed import rates
from trainorder.rl.types import Roll, State
from trainorder.rollout import Request
from trainorder.rollout.base import resolved, rows_of
from trainorder.streams import seed_of
from trainorder.tasks.base import Problem


def rl_step(learner: Learner, state: State) -> dict[str, float]:
    """One step: sample, pay, give credit, update the weights. Returns what is logged."""
    method, config, task_set = learner.method, learner.config, learner.task_set
    clock: dict[str, float] = defaultdict(float)
    groups, tokens, sampled = 0, 0.0, list[Roll]()

    def sample(counts: Mapping[str, int]) -> Roll:
        nonlocal groups, tokens
        problems = task_set.draw(counts, state, learner.seed)
        with _timed(clock, "generate"):
            requests = requests_of(learner, problems, state.step, groups)
            part = generate(learner, requests)
        with _timed(clock, "grade"):
            paid = [] if part is None else task_set.grade(part.problem, part.text)
        with _timed(clock, "generate"):
            parts, grades = zip(*learner.backend.gather((part, paid)), strict=True)
            roll = add_old_logps(in_order(parts), learner)
        floor = roll.reward.new_tensor(
            [
                config.min_judged_spread if task_set.is_judged(problem.task) else 0.0
                for problem in roll.problem
            ]
        )
        roll = pay(roll, [value for paid in grades for value in paid], method, state, floor=floor)
        roll = replace(roll, group=roll.group + groups)
        groups += len(problems)
        tokens += float(roll.mask.sum())
        sampled.append(roll)
        return roll

    with _timed(clock, "step"), torch.no_grad():
        with _timed(clock, "push"):
            learner.engine.push(learner.backend.weights())
        roll = sample(task_set.share(config.prompts_per_step, state, learner.seed, learner.phase))
        log = describe(roll)
        for edit in method.edit:
            roll = edit(roll, state, sample)
        roll = give_credit(roll, method, state)
        credited = ((roll.a * roll.w) != 0).any(1)
        log["rl/credited"] = float(credited.sum()) / max(1, len(roll))
        task_set.observe(sampled, roll, state)
        for metric in method.metric:
            log |= {f"rl/{name}": value for name, value in metric(roll, state).items()}
        with _timed(clock, "train"):
            roll = add_reference(roll, learner)
            log |= update(learner, roll, state)
    state.step += 1
    log["rollout/tokens"] = tokens
    read = sum(len(prompt) for roll in sampled for prompt in roll.prompt) / config.group_size
    trained = log.get("rl/forward_tokens", 0.0)
    log |= rates(learner.policy.model, clock, read, tokens, trained, config.threads)
    return log | {f"time/{name}_seconds": seconds for name, seconds in clock.items()}


def requests_of(
    learner: Learner, problems: Sequence[Problem], step: int, first: int = 0
) -> list[Request]:
    """A group of answers to each problem, seeded by the place in the step: `first` and the following."""
    config, rooms = learner.config, learner.task_set.max_new_tokens
    return [
        Request(
            problem,
            samples=config.group_size,
            temperature=config.temperature,
            max_new_tokens=rooms[problem.task],
            seed=seed_of("rollout", learner.seed, learner.phase, step, first + place),
        )
        for place, problem in enumerate(problems)
    ]


def generate(learner: Learner, requests: Sequence[Request]) -> Roll | None:
    """Sample this rank's share of the requests; None where it has none. Nothing is graded yet."""
    first, end = slice_of(len(requests), learner.backend.rank, learner.backend.world)
    if first == end:
        return None
    mine = resolved(learner.policy, requests[first:end])
    done = learner.engine.generate(mine)
    rows = rows_of(mine)
    problems = [mine[i].problem for i in rows]
    assert None not in problems, "the answers to a request without a problem cannot be graded"
    mask = done.loss_mask.cpu()
    unpaid = mask.new_zeros(len(rows))
    entropies = {} if done.entropies is None else {"H": done.entropies.cpu()}
    return Roll(
        prompt=[list(mine[i].prompt_ids) for i in rows],
        ids=done.response_ids.cpu(),
        mask=mask,
        group=first + torch.tensor(rows),
        reward=unpaid,
        scored=torch.zeros(len(rows), dtype=torch.bool),
        a=torch.zeros_like(mask),
        w=torch.ones_like(mask),
        problem=cast("list[Problem]", problems),
        text=list(done.texts),
        part={"finished": done.finished.cpu().to(mask.dtype)},
        x={"sampler": done.logps.cpu(), **entropies},
    )


def add_old_logps(roll: Roll, learner: Learner) -> Roll:
    """The trainer's own log-probabilities and entropies before the update, beside the sampler's."""
    if learner.exact:
        return replace(roll, x={**roll.x, "logp": roll.x["sampler"]})
    logps, entropies = score(learner.policy.model, roll, learner, entropy=True)
    return replace(roll, x={**roll.x, "logp": logps, "H": entropies})


def score(
    model: Any, roll: Roll, learner: Learner, *, entropy: bool = False
) -> tuple[Float[Tensor, "row token"], Float[Tensor, "row token"]]:
    """Log p and entropy (0 unless asked for) of all tokens under `model`, each rank on its share."""
    backend, config = learner.backend, learner.config

    def score_rows(rows: list[int]) -> tuple[list[int], Tensor, Tensor | None]:
        part = roll.rows(rows or _any_row(roll))
        with backend.computing():
            live = forward(model, part, temperature=config.temperature, entropy=entropy)
        return rows, live.logp.float(), live.x["H"].float() if entropy else None

    dealt = backend.deal(roll, config.micro_batch_tokens)
    parts = [part for part in backend.map(score_rows, dealt) if part[0]]
    logps, entropies = torch.zeros_like(roll.mask), torch.zeros_like(roll.mask)
    for rows, logp, h in (item for share in backend.gather(parts) for item in share):
        logps[rows] = logp.to(logps.dtype)
        if h is not None:
            entropies[rows] = h.to(logps.dtype)
    return logps, entropies


def pay(
    roll: Roll,
    paid: Sequence[float | None],
    method: Method,
    state: State,
    *,
    floor: Float[Tensor, " row"] | float = 0.0,
) -> Roll:
    """Fill in the grades and add up the reward channels; None leaves a row unscored.

    Rewards of a group that differ by less than `floor` are made equal, so that every piece takes the
    group as one without spread.
    """
    graded = roll.reward.new_tensor([0.0 if value is None else value for value in paid])
    scored = torch.tensor([value is not None for value in paid])
    roll = replace(roll, scored=scored, part={**roll.part, "graded": graded})
    reward = torch.zeros_like(graded)
    for channel in method.reward:
        reward = reward + channel.coef * channel(roll, state)
    floors = torch.as_tensor(floor, dtype=reward.dtype).expand(len(roll))
    reward = levelled(reward, roll.group, scored, floors)
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
    if learner.reference is None or not len(roll):
        return roll
    logps, _ = score(learner.reference, roll, learner)
    return replace(roll, x={**roll.x, "ref": logps})


def update(learner: Learner, roll: Roll, state: State) -> dict[str, float]:
    """One or several AdamW updates on the step's rows, each on its own share of the prompts."""
    config, backend = learner.config, learner.backend
    log: dict[str, float] = defaultdict(float)
    applied: dict[str, list[float]] = defaultdict(list)
    if config.serial_tasks:
        parts = split_by_task(roll, learner.seed, learner.phase, state.step)
    else:
        parts = split_by_prompt(roll, config.updates_per_batch)
    for rows in parts:
        part = roll.rows(rows)
        alone, factor = task_factors(part, config)
        sums = accumulate(
            learner.policy.model,
            part,
            learner.method,
            state,
            budget=config.micro_batch_tokens,
            temperature=config.temperature,
            max_length=learner.task_set.max_new_tokens,
            backend=backend,
            factor=factor,
        )
        lr, norm = learning_rate(config, state.updates) * alone, 0.0
        wrong = guard.broken({"loss": sums["loss"]}, part)
        if not wrong:
            norm = backend.step(lr)
            wrong = guard.broken({"grad_norm": norm}, part)
        if wrong:
            guard.refuse(learner, part, state, wrong)
            log["rl/refused"] += 1
            continue
        state.mem["refused_in_a_row"] = 0
        state.updates += 1
        log["rl/forward_tokens"] += sums.pop("forward_tokens")
        gap = {name: sums.pop(name) for name in ("mismatch_mean", "mismatch_max") if name in sums}
        if (
            not applied and learner.exact
        ):  # later updates train another policy than the one that sampled
            log |= {f"rollout/{name}": value for name, value in gap.items()}
            log["rollout/mismatch_kl"] = sums.get("kl_old", 0.0)
        for name, value in {**sums, "grad_norm": norm, "lr": lr}.items():
            applied[name].append(value)
    return log | {f"rl/{name}": sum(values) / len(values) for name, values in applied.items()}


def accumulate(
    model: Any,
    roll: Roll,
    method: Method,
    state: State,
    *,
    budget: int,
    temperature: float,
    max_length: Mapping[str, int],
    backend: Backend,
    factor: Tensor | float = 1.0,
) -> dict[str, float]:
    """Add up the gradient of one update's loss; returns the loss and the logged means.

    The loss is a sum over tokens with shares fixed beforehand, so how rows fall into micro-batches
    and ranks changes nothing. `factor`, [row, 1], multiplies each row's shares; `max_length` is each
    task's longest answer in tokens.
    """
    backend.zero_grad()
    shares = reduction_shares(
        roll.w,
        roll.mask,
        roll.group,
        how=method.reduction,
        denominator=method.denominator,
        max_length=roll.mask.new_tensor([max_length[problem.task] for problem in roll.problem]),
    )
    shares = shares * factor
    learning = torch.ones(len(roll), dtype=torch.bool)
    if method.skips_rows_without_credit:
        learning = (roll.a * shares != 0).any(1)
    kept = learning.nonzero().flatten().tolist()
    idle = _any_row(roll)
    whole, roll, shares = roll, roll.rows(kept), shares[kept]
    sums, tokens, gap = defaultdict[str, float](float), float(roll.mask.sum()), 0.0

    def loss_of(rows: list[int]) -> tuple[Tensor, tuple[dict[str, float], float]]:
        part = roll.rows(rows) if rows else whole.rows(idle)
        with backend.computing():
            live = forward(model, part, temperature=temperature, entropy="H" in method.needs)
        if not rows:  # another rank has more micro-batches, and every backward is a collective call
            return 0.0 * live.logp.sum(), ({}, 0.0)
        losses = [
            term.coef * (term(live, part, state) * shares[rows]).sum() for term in method.terms
        ]
        loss, logps = torch.stack(losses).sum(), live.logp.detach()
        apart = log_ratio(logps, part.x["logp"], part.mask).abs()
        logged = {**live.log, "kl_old": kl_old(logps, part), "mismatch_mean": apart}
        means = {name: float((x * part.mask).sum()) / tokens for name, x in logged.items()}
        return loss, ({"loss": float(loss.detach()), **means}, float(apart.max()))

    for means, widest in backend.add_gradients(loss_of, backend.deal(roll, budget)):
        gap = max(gap, widest)
        for name, value in means.items():
            sums[name] += value
    ranks = backend.gather((dict(sums), gap))
    names = dict.fromkeys(name for found, _ in ranks for name in found)
    log = {name: sum(found.get(name, 0.0) for found, _ in ranks) for name in names}
    if "mismatch_mean" in log:
        log["mismatch_max"] = max(gap for _, gap in ranks)
    return {"loss": 0.0, **log, "forward_tokens": float(flat_tokens(roll))}


def task_factors(roll: Roll, config: RlConfig) -> tuple[float, Float[Tensor, "row 1"]]:
    """Factor on the learning rate, and on each row's share of the loss, that `task_lr` asks for.

    One task: its factor on the rate. Several: each its factor on the loss.
    """
    tasks = [problem.task for problem in roll.problem]
    factors = [config.task_lr.get(task, 1.0) for task in tasks]
    if len(set(tasks)) == 1:
        return factors[0], torch.ones_like(roll.mask[:, :1])
    return 1.0, roll.mask.new_tensor(factors)[:, None]


def kl_old(logps: Float[Tensor, "row token"], roll: Roll) -> Float[Tensor, "row token"]:
    """k3 estimate of KL(old || live): on policy, the mismatch of sampler and trainer."""
    return k3(log_ratio(logps, roll.x["logp"], roll.mask))


def split_by_prompt(roll: Roll, updates: int) -> list[list[int]]:
    """Rows of each update: whole groups, dealt in turn, so that every update sees every task.

    A group's place in the roll decides, so edits that drop groups leave the shares even. Of fewer
    groups than updates each is an update of its own; no update is empty.
    """
    groups, dense = roll.group.unique(return_inverse=True)
    parts = range(min(updates, len(groups)))
    return [(dense % len(parts) == i).nonzero().flatten().tolist() for i in parts]


def learning_rate(config: RlConfig, update: int) -> float:
    """Linear warm-up over `warmup_steps` updates, then constant.

    >>> [learning_rate(RlConfig(lr=1.0, warmup_steps=2), i) for i in range(3)]
    [0.5, 1.0, 1.0]
    """
    return config.lr * min(1.0, (update + 1) / max(1, config.warmup_steps))


def _any_row(roll: Roll) -> list[int]:
    """A row with a token, for a forward whose result is not used."""
    return [int(roll.lengths().argmax())]


def _per_token(values: Tensor, roll: Roll) -> Float[Tensor, "row token"]:
    spread = values[:, None] if values.dim() == 1 else values
    return torch.where(roll.mask > 0, spread.to(roll.mask.dtype), 0.0)


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    clock[name] += time.perf_counter() - start
