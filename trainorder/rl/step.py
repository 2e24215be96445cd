"""The RL step, readable from top to bottom.

    plan -> sample -> reward -> edit -> advantage -> weight
         -> updates x (micro-batches x (term -> reduce) -> AdamW)

Everything up to the weights sees the whole step batch, without grad. With several ranks each samples, grades and trains its
share of the prompts and holds all of the batch (backend.py). It departs from the GRPO paper in this: prompts of equal
rewards cost no forward (their gradient is zero) but stay in the denominators; old log-probabilities are those captured while
sampling, unless the engine computes otherwise than the trainer (vLLM, bf16), when they are recomputed; and answers that
cannot be graded get advantage 0 and leave their group's statistics.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config import RlConfig
from trainorder.rl import facts, guard
from trainorder.rl.backend import Backend
from trainorder.rl.forward import forward
from trainorder.rl.helpers import k3, log_ratio, mmean
from trainorder.rl.learner import Learner
from trainorder.rl.looks import looking
from trainorder.rl.method import Bound, Method
from trainorder.rl.packing import computed_tokens
from trainorder.rl.problems import split_by_prompt, split_by_task
from trainorder.rl.records import describe, keep_some
from trainorder.rl.reduce import reduction_shares
from trainorder.rl.rollouts import StepRollouts, longest_row, sampled_tokens, score
from trainorder.rl.speed import rates, timed
from trainorder.rl.types import Roll, State

COUNTS = ("own_tokens", "tokens")
OF_OWN = {"kl_old": "own_tokens", "mismatch_mean": "own_tokens"}
"""Logged means over the policy's own tokens; others are over all tokens of a forward."""
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
"""Where the name of a weight has the number of its layer."""


def rl_step(learner: Learner, state: State) -> dict[str, float]:
    """One step: sample, grade, give credit, update the weights. Returns what is logged."""
    method, config, task_set = learner.method, learner.config, learner.task_set
    clock: dict[str, float] = defaultdict(float)
    with timed(clock, "step"), torch.no_grad():
        with timed(clock, "push"):
            learner.engine.push(learner.backend.weights())
        rollouts = StepRollouts(learner, state, clock)
        rollouts.look = looking(learner, rollouts)
        counts = task_set.share(config.prompts_per_step, state, learner.seed, learner.phase)
        roll = rollouts.sample(rollouts.requests(counts))
        log = describe(roll)
        for edit in method.edit:
            roll = edit(roll, state, rollouts)
        with timed(clock, "train"):
            roll = add_reference(roll, learner)
        roll = give_credit(roll, method, state)
        keep_some(roll, state)
        if "ref_logps" in roll.token_facts:
            log |= divergence(roll, roll.ref_logps)
        by_advantage = any(term.entry.scales_with_advantage for term in method.terms)
        effect = roll.advantages if by_advantage else roll.loss_mask  # distillation: all rows teach
        credited = ((effect * roll.weights) != 0).any(1)
        log["rl/credited"] = float(credited.sum()) / max(1, len(roll))
        task_set.observe(rollouts.sampled, roll, state)
        for metric in method.metric:
            log |= {f"rl/{name}": value for name, value in metric(roll, state).items()}
        if state.step + 1 == state.total and "rollout/kl" not in log:
            log |= parent_kl(rollouts.sampled, learner)
        with timed(clock, "train"):
            log |= update(learner, roll, state)
            learner.follow()
    state.mem.setdefault("order", []).append({"step": state.step, **task_set.order()})
    state.step += 1
    log["rollout/tokens"] = rollouts.tokens
    log |= task_set.judge_calls() | task_set.realised()
    log |= rates(
        learner.policy.model,
        clock,
        rollouts.prompt_tokens,
        rollouts.tokens,
        log.get("rl/forward_tokens", 0.0),
        config.threads,
    )
    return log | {f"perf/{name}_seconds": seconds for name, seconds in clock.items()}


def add_reference(roll: Roll, learner: Learner) -> Roll:
    """The reference's log-probabilities, if a piece needs them."""
    if "ref_logps" not in learner.method.needs or not len(roll):
        return roll
    found = score(learner.models["reference"], roll, learner)
    return replace(roll, token_facts={**roll.token_facts, "ref_logps": found["logps"]})


def parent_kl(sampled: Sequence[Roll], learner: Learner) -> dict[str, float]:
    """`divergence` of all answers of a step, for which the parent scores them once more; empty where it is not in memory."""
    if "reference" not in learner.models or not sampled:
        return {}
    roll = Roll.cat(sampled)
    theirs = score(learner.models["reference"], roll, learner)["logps"]
    return divergence(roll, theirs)


def divergence(roll: Roll, theirs: Float[Tensor, "row token"]) -> dict[str, float]:
    """`rollout/kl`: KL(policy || phase's parent) per token of the policy's own answers, nats (k3), also per task.

    How far the phase has moved the model on what it trains, which is said to predict what it forgets elsewhere (RL's Razor,
    arXiv:2509.04259). `theirs` are the parent's log-probabilities. Logged at every step where a piece needs them, else at the
    last one.
    """
    mask = sampled_tokens(roll) & roll.is_from("policy")[:, None]
    if not mask.any():
        return {}
    mask = mask.to(roll.loss_mask)
    kl = k3(log_ratio(theirs, roll.old_logps, mask))
    log = {"rollout/kl": float(mmean(kl, mask))}
    for task in dict.fromkeys(problem.task for problem in roll.problem):
        own = [i for i, problem in enumerate(roll.problem) if problem.task == task]
        if mask[own].any():
            log[f"task/{task}/kl"] = float(mmean(kl[own], mask[own]))
    return log


def give_credit(roll: Roll, method: Method, state: State) -> Roll:
    """Advantages, then token weights, those of single terms last; all 0 where nothing may be learned."""
    for advantage in method.advantage:
        credit = _per_token(advantage(roll, state), roll)
        roll = replace(roll, advantages=torch.where(roll.scored[:, None], credit, 0.0))
    for weight in method.weight:
        roll = replace(roll, weights=roll.weights * _per_token(weight(roll, state), roll))
    for number, term in enumerate(method.terms):
        if term.weight:
            own = roll.weights
            for weight in term.weight:
                own = own * _per_token(weight(roll, state), roll)
            roll = replace(roll, token_facts={**roll.token_facts, _weights_name(number): own})
    return roll


def update(learner: Learner, roll: Roll, state: State) -> dict[str, float]:
    """One or several AdamW updates on the step's rows, each on its own share of the prompts."""
    config, backend = learner.config, learner.backend
    log: dict[str, float] = defaultdict(float)
    applied: dict[str, list[float]] = defaultdict(list)
    if config.serial_tasks:
        updates = split_by_task(roll, learner.seed, learner.phase, state.step)
    else:
        updates = split_by_prompt(roll, config.updates_per_batch)
    for rows in updates:
        batch = roll.rows(rows)
        rate_factor, loss_factor = task_factors(batch, config)
        sums = accumulate(
            learner.policy.model,
            batch,
            learner.method,
            state,
            budget=config.micro_batch_tokens,
            max_length=learner.task_set.max_new_tokens,
            backend=backend,
            factor=loss_factor,
            models=learner.models,
        )
        progress = state.step / max(1, state.total - 1)
        lr, norm = learning_rate(config, state.updates, progress) * rate_factor, 0.0
        not_finite = guard.broken({"loss": sums["loss"]}, batch)
        if not not_finite:
            norm = backend.step(lr)
            not_finite = guard.broken({"grad_norm": norm}, batch)
        if not_finite:
            guard.refuse(learner, batch, state, not_finite)
            log["rl/refused"] += 1
            continue
        state.mem["refused_in_a_row"] = 0
        state.updates += 1
        log["rl/forward_tokens"] += sums.pop("forward_tokens")
        gap = {name: sums.pop(name) for name in ("mismatch_mean", "mismatch_max") if name in sums}
        if not applied and learner.exact:  # later updates train another policy than what sampled
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
    max_length: Mapping[str, int],
    backend: Backend,
    factor: Tensor | float = 1.0,
    models: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Add up the gradient of one update's loss; returns the loss and the logged means.

    The loss is a sum over tokens with shares fixed beforehand, so how rows fall into micro-batches and ranks changes
    nothing. Terms with factors per layer have a pass of their own. `factor`, [row, 1], multiplies each row's shares; `max_length` is each task's longest answer in tokens.
    """
    shares = [
        term_shares(term, number, roll, method, max_length) * factor
        for number, term in enumerate(method.terms)
    ]
    layered = [number for number, term in enumerate(method.terms) if term.layers is not None]
    passes, held = [[number] for number in layered], list[dict[str, Tensor]]()
    together = [number for number in range(len(method.terms)) if number not in layered]
    found = []
    backend.zero_grad()
    for numbers in [*passes, *([together] if together else [])]:
        terms = [(method.terms[number], shares[number]) for number in numbers]
        found.append(_add_terms(model, roll, terms, state, budget, backend, models))
        if numbers in passes:
            held.append(_by_layer(backend.gradients(), method.terms[numbers[0]].layers or [1, 1]))
            backend.zero_grad()
    for gradients in held:
        for name, gradient in backend.gradients().items():
            gradient += gradients[name]
    return _joined(found)


def _joined(passes: Sequence[dict[str, float]]) -> dict[str, float]:
    """What several passes over an update's rows logged: sums of losses and tokens, means over the tokens of all.

    >>> one = {"loss": 1.0, "forward_tokens": 3.0, "kl_old": 0.25, "mismatch_max": 2.0, "own_tokens": 2.0, "tokens": 3.0}
    >>> _joined([one, one | {"kl_old": 0.75, "nll": 4.0}])
    {'loss': 2.0, 'forward_tokens': 6.0, 'kl_old': 0.5, 'mismatch_max': 2.0, 'nll': 4.0}
    """
    joined: dict[str, float] = {}
    for name in dict.fromkeys(name for found in passes for name in found if name not in COUNTS):
        known = [found for found in passes if name in found]
        values = [found[name] for found in known]
        if name in ("loss", "forward_tokens"):
            joined[name] = sum(values)
        elif name == "mismatch_max":
            joined[name] = max(values)
        elif len(values) == 1:
            joined[name] = values[0]
        else:
            counts = [found[OF_OWN.get(name, "tokens")] for found in known]
            total = math.fsum(v * n for v, n in zip(values, counts, strict=True))
            joined[name] = total / max(1.0, sum(counts))
    return joined


def _by_layer(gradients: Mapping[str, Tensor], ends: Sequence[float]) -> dict[str, Tensor]:
    """Copies, each times the factor of its layer."""
    factors = layer_factors(list(gradients), ends)
    return {name: factors[name] * gradient for name, gradient in gradients.items()}


def layer_factors(names: Sequence[str], ends: Sequence[float]) -> dict[str, float]:
    """Weight -> a factor on a line from the first to the last layer; what lies before and behind them has the ends'.

    >>> layer_factors(["embed.w", "layers.0.w", "layers.1.w", "layers.2.w", "head.w"], [0.0, 1.0])
    {'embed.w': 0.0, 'layers.0.w': 0.0, 'layers.1.w': 0.5, 'layers.2.w': 1.0, 'head.w': 1.0}
    """
    first, last = ends
    layers = {name: int(found[1]) for name in names if (found := LAYER.search(name))}
    deepest = max(layers.values(), default=0)
    factors = {
        name: first + (last - first) * (layer / deepest if deepest else 1.0)
        for name, layer in layers.items()
    }
    return {n: factors.get(n, first if "embed" in n or "wte" in n else last) for n in names}


def _add_terms(
    model: Any,
    roll: Roll,
    terms: Sequence[tuple[Bound, Tensor]],
    state: State,
    budget: int,
    backend: Backend,
    models: Mapping[str, Any] | None,
) -> dict[str, float]:
    """Add up the gradient of some terms, each with its tokens' shares; what they need, and nothing else, is computed."""
    needs = frozenset().union(*(facts.live(term.needs) for term, _ in terms))
    all_rows, kept = roll, []
    for term, share in terms:
        effect = roll.advantages if term.entry.scales_with_advantage else 1.0
        kept.append((effect * share != 0).any(1))
    learning = torch.stack(kept).any(0).nonzero().flatten().tolist()
    roll, terms = roll.rows(learning), [(term, share[learning]) for term, share in terms]
    idle = longest_row(all_rows)
    sums, gap = defaultdict[str, float](float, loss=0.0), 0.0
    own = float((roll.loss_mask * roll.is_from("policy")[:, None]).sum())
    counts = {"own_tokens": own, "tokens": float(roll.loss_mask.sum())}

    def loss_of(rows: list[int]) -> tuple[Tensor, tuple[dict[str, float], float]]:
        batch = roll.rows(rows) if rows else all_rows.rows(idle)
        with backend.computing():
            live = forward(model, batch, needs, models)
        if not rows:  # another rank has more micro-batches, and every backward is a collective call
            return 0.0 * live.logps.sum(), ({}, 0.0)
        losses = [
            term.coef_at(state) * (term(live, batch, state) * share[rows]).sum()
            for term, share in terms
        ]
        loss, logps = torch.stack(losses).sum(), live.logps.detach()
        sampled = batch.loss_mask * batch.is_from("policy")[:, None]
        moved = log_ratio(logps, batch.old_logps, sampled)
        logged = {**live.log, "kl_old": k3(moved), "mismatch_mean": moved.abs()}
        means = {
            name: float((values * batch.loss_mask).sum())
            / max(1.0, counts[OF_OWN.get(name, "tokens")])
            for name, values in logged.items()
        }
        return loss, ({"loss": float(loss.detach()), **means}, float(moved.abs().max()))

    for means, widest in backend.add_gradients(loss_of, backend.micro_batches(roll, budget)):
        gap = max(gap, widest)
        for name, value in means.items():
            sums[name] += value
    ranks = backend.gather((dict(sums), gap))
    names = dict.fromkeys(name for found, _ in ranks for name in found)
    log = {name: sum(found.get(name, 0.0) for found, _ in ranks) for name in names}
    if "mismatch_mean" in log:
        log["mismatch_max"] = max(gap for _, gap in ranks)
    return {**log, "forward_tokens": float(computed_tokens(roll)), **counts}


def term_shares(
    term: Bound, number: int, roll: Roll, method: Method, max_length: Mapping[str, int]
) -> Float[Tensor, "row token"]:
    """Each token's share of one term: of the rows that it is of, by its own reduction or the method's."""
    mine = torch.ones_like(roll.scored) if term.source is None else roll.is_from(term.source)
    rows = mine.nonzero().flatten().tolist()
    part = roll.rows(rows) if len(rows) < len(roll) else roll
    found = reduction_shares(
        part.token_facts.get(_weights_name(number), part.weights),
        part.loss_mask,
        part.group,
        how=term.reduction or method.reduction,
        denominator=term.denominator or method.denominator,
        max_length=part.loss_mask.new_tensor([max_length[p.task] for p in part.problem]),
    )
    return found if part is roll else torch.zeros_like(roll.weights).index_put((mine,), found)


def task_factors(roll: Roll, config: RlConfig) -> tuple[float, Float[Tensor, "row 1"]]:
    """Factor on the learning rate, and on each row's share of the loss, that `task_lr` asks for.

    One task: its factor on the rate. Several: each its factor on the loss.
    """
    tasks = [problem.task for problem in roll.problem]
    factors = [config.task_lr.get(task, 1.0) for task in tasks]
    if len(set(tasks)) == 1:
        return factors[0], torch.ones_like(roll.loss_mask[:, :1])
    return 1.0, roll.loss_mask.new_tensor(factors)[:, None]


def learning_rate(config: RlConfig, update: int, progress: float = 0.0) -> float:
    """Linear warm-up over `warmup_steps` updates, times what `lr_end` leaves at this `progress` (0 to 1) of the phase.

    >>> [learning_rate(RlConfig(lr=1.0, warmup_steps=2), i) for i in range(3)]
    [0.5, 1.0, 1.0]
    >>> [learning_rate(RlConfig(lr=1.0, warmup_steps=0, lr_end=0.25), 9, p) for p in (0.0, 0.5, 1.0)]
    [1.0, 0.625, 0.25]
    """
    left = 1 + (config.lr_end - 1) * progress
    return config.lr * left * min(1.0, (update + 1) / max(1, config.warmup_steps))


def _weights_name(term: int) -> str:
    """The fact that holds the token weights of a term with weight pieces of its own."""
    return f"weights_of_term_{term}"


def _per_token(values: Tensor, roll: Roll) -> Float[Tensor, "row token"]:
    spread = values[:, None] if values.dim() == 1 else values
    return torch.where(roll.loss_mask > 0, spread.to(roll.loss_mask.dtype), 0.0)
