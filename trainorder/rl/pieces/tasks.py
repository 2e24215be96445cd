"""Several tasks in one step: shares that survive dropped prompts, and how alike the tasks' gradients are."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainorder.rl.registry import metric, weight
from trainorder.rl.types import Roll, State

DIRECTIONS = 16
"""Rows of the random projection of the head's gradient."""
PRIME, BITS = 2_147_483_647, 15


@weight(scope="batch")
def keep_shares(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """Wanted share / share among the rows with credit, of a row's task (MT-GRPO's aim, arXiv:2602.05547).

    Wanted is what the sampler asked of the task in this step, or the task's share of the rows. Prompts without spread have no gradient, so that a task which
    has many of them counts less than its weight says; MT-GRPO samples until the shares hold, which `dynamic_sampling` does
    as far as it can. The factor for what is left is ours. Tasks without credit are left out, 1 where no row has any.
    """
    tasks = [problem.task for problem in roll.problem]
    credited = ((roll.advantages * roll.loss_mask) != 0).any(1).tolist()
    counts = Counter(task for task, has in zip(tasks, credited, strict=True) if has)
    quota = state.mem.get("quota") or Counter(tasks)
    wanted = {task: float(quota.get(task, 0)) for task in counts}
    if not sum(wanted.values()):
        return torch.ones_like(roll.rewards)
    total, size = sum(wanted.values()), sum(counts.values())
    factors = {task: wanted[task] / total * size / count for task, count in counts.items()}
    return roll.rewards.new_tensor([factors.get(task, 1.0) for task in tasks])


@metric(needs=frozenset({"hidden"}))
def task_alignment(roll: Roll, state: State) -> dict[str, float]:
    """Cosine of the tasks' policy gradients, each pair's and each task's mean (TAC's transferability, arXiv:2606.25178).

    The gradient is that of sum A log p in the weights of the LM head, A h of every sampled token, projected on 16 random
    signs per vocabulary entry; the softmax's own part is left out. Which layers the authors project is not in the abstract;
    the head's costs no backward. The sampler `tac` reads the means; as a predictor of transfer it is free beside training.
    0 for tasks without credit; nothing is said of a step of one task.
    """
    names = sorted({problem.task for problem in roll.problem})
    if len(names) < 2:
        return {}
    signs = signs_of(roll.response_ids)  # [row, token, direction]
    credit = (roll.advantages * roll.loss_mask).to(torch.float64)
    states = roll.token_facts["hidden"].to(torch.float64)
    gradients = {}
    for name in names:
        rows = torch.tensor([problem.task == name for problem in roll.problem])
        own = torch.einsum("bt,btd,bth->dh", credit[rows], signs[rows], states[rows])
        gradients[name] = own.flatten()
    found, means = {}, dict.fromkeys(names, 0.0)
    for one, other in itertools.combinations(names, 2):
        cosine = float(torch.cosine_similarity(gradients[one], gradients[other], dim=0))
        found[f"alignment/{one}/{other}"] = cosine
        for name in (one, other):
            means[name] += cosine / (len(names) - 1)
    state.mem["alignment"] = means
    return found | {f"alignment/{name}": mean for name, mean in means.items()}


def signs_of(ids: Int[Tensor, "row token"]) -> Float[Tensor, "row token direction"]:
    """+1 or -1 of each token in each direction, a function of the token's number alone.

    >>> signs_of(torch.tensor([[3, 3, 4]]))[0].unique(dim=0).shape[0]
    2
    """
    odd = torch.arange(1, DIRECTIONS + 1) * 7_919 * 104_729 % PRIME
    mixed = (ids[..., None].long() + 1) * odd % PRIME
    mixed = (mixed * 48_271 + 11) % PRIME
    return ((mixed >> BITS) & 1).double() * 2 - 1
