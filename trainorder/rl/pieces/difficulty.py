"""Compress easy problems, explore hard ones (CEEH, arXiv:2602.22642): what a prompt's past answers say of it.

Difficulty is a moving average of a prompt's share of right answers, kept in the state by the problem's id and brought up to
date once a step; steps' answers are right where graded above one half.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainorder.config import Schedule
from trainorder.rl.helpers import gmean
from trainorder.rl.registry import advantage, reward, weight
from trainorder.rl.types import Roll, State

ENTROPY = frozenset({"entropy"})
ACCURACY, SHORTEST = "ceeh/accuracy", "ceeh/shortest"
UP, DOWN = 0.2, 0.05
"""How fast accuracy follows what is better, and what is worse; of the shortest right length, shorter and longer."""
FLOOR = -0.9
Record = list[float]
"""Value now, value before this step, step of the last change."""


def _followed(records: dict[str, Record], key: str, value: float, step: int, rates: tuple) -> None:
    """Bring a record up to date with the step's value, once."""
    up, down = rates
    known = records.get(key)
    if known is None:
        records[key] = [value, value, float(step)]
    elif known[2] != step:
        rate = up if value > known[0] else down
        records[key] = [known[0] + rate * (value - known[0]), known[0], float(step)]


def _keys(roll: Roll) -> list[str]:
    """The problem's id of each row's group; of several the first by name."""
    first: dict[int, str] = {}
    groups = roll.group.tolist()
    for group, problem in zip(groups, roll.problem, strict=True):
        first[group] = min(first.get(group, problem.id), problem.id)
    return [first[group] for group in groups]


def _right(roll: Roll) -> Bool[Tensor, " row"]:
    return (roll.row_facts["graded"] > 0.5) & roll.scored


def _accuracy(roll: Roll, state: State) -> tuple[Tensor, Tensor]:
    """Each row's group accuracy now, and its prompt's moving average before this step."""
    records = state.mem.setdefault(ACCURACY, {})
    now, keys = gmean(_right(roll).double(), roll.group, roll.scored), _keys(roll)
    for key, value in zip(keys, now.tolist(), strict=True):
        _followed(records, key, value, state.step, (UP, DOWN))
    return now, now.new_tensor([records[key][1] for key in keys])


def hard(roll: Roll, state: State) -> Bool[Tensor, " row"]:
    """Rows of prompts whose answers now are right at most as often as the average prompt's seen so far.

    The authors' code counts prompts that were not seen as -1, so that nothing is hard at first; here they do not count.
    """
    now, _ = _accuracy(roll, state)
    seen = [record[0] for record in state.mem[ACCURACY].values()]
    return now <= math.fsum(seen) / len(seen) + 1e-12


@reward
def ceeh_length(roll: Roll, state: State, *, scale: float = 0.5) -> Float[Tensor, " row"]:
    """max(-.9, scale (L - length) / L) for right answers of prompts that are not getting worse, else 0 (CEEH, arXiv:2602.22642).

    L is a moving average of the prompt's shortest right length (.2 towards a shorter one, .05 towards a longer one); a
    prompt is not getting worse where its accuracy now is at least its moving average. scale .5 is that of the authors'
    settings; their README says .1.
    """
    now, before = _accuracy(roll, state)
    records, keys = state.mem.setdefault(SHORTEST, {}), _keys(roll)
    lengths, right = roll.lengths().tolist(), _right(roll).tolist()
    found: dict[str, float] = {}
    for key, length, ok in zip(keys, lengths, right, strict=True):
        if ok:
            found[key] = min(found.get(key, math.inf), float(length))
    for key, length in found.items():
        _followed(records, key, length, state.step, (DOWN, UP))
    rewards = []
    for key, length, ok, fine in zip(keys, lengths, right, (now >= before).tolist(), strict=True):
        least = records[key][1] if ok else 1.0
        rewards.append(max(FLOOR, scale * (least - length) / least) if ok and fine else 0.0)
    return roll.rewards.new_tensor(rewards)


@advantage(scope="batch", needs=ENTROPY)
def ceeh(
    roll: Roll, state: State, *, alpha: float = 0.4, kappa: float = 2.0
) -> Float[Tensor, "row token"]:
    """A + s(t) min(alpha H, |A| / kappa) on rows of hard prompts (CEEH's entropy advantage, arXiv:2602.22642).

    s falls from 1 to 0 on a cosine over the phase. The sign of an advantage never changes. A shaper: after an estimator. alpha and kappa
    are those of the authors' code.
    """
    bonus = torch.minimum(alpha * roll.entropy, roll.advantages.abs() / kappa)
    return roll.advantages + _fade(state) * hard(roll, state)[:, None] * bonus


@weight(scope="batch")
def ceeh_exploration(roll: Roll, state: State, *, factor: float = 5.0) -> Float[Tensor, " row"]:
    """s(t) times `factor` on rows of hard prompts, s(t) on others: weight of CEEH's entropy bonus (arXiv:2602.22642).

    Of the term `entropy_bonus` with the paper's coefficient .001; s as in `ceeh`, instead of which it is used.
    """
    return _fade(state) * torch.where(hard(roll, state), factor, 1.0).to(roll.rewards.dtype)


def _fade(state: State) -> float:
    fade = Schedule(shape="cosine", start=1.0, end=0.0, steps=max(1, state.total))
    return fade.at(state.step, state.total)
