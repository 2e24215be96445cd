"""Reward channels and what they say."""

from __future__ import annotations

from collections import Counter

from jaxtyping import Float
from torch import Tensor

from trainorder.rewards import format
from trainorder.rl.helpers import gdeviation
from trainorder.rl.registry import metric, reward
from trainorder.rl.types import Roll, State


@reward
def graded(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """The grade of the task's verifier or of the judge, in [0, 1]; of no paper."""
    return roll.row_facts["graded"]


@metric
def reward_spread(roll: Roll, state: State) -> dict[str, float]:
    """Mean over rows of the group's reward standard deviation (ddof 1; 0 in flat groups): what there is to learn from. Of no paper."""
    return {"reward_spread": float(gdeviation(roll.rewards, roll.group, roll.scored).mean())}


@reward
def majority(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """1 where the answer is the one that most answers of the group give, else 0: reward without labels (SPINE, arXiv:2511.17938).

    Answers are compared as texts, without case and surrounding space (`trainorder.rewards.format.answer`; the whole text
    where it presents none). Of answers given equally often all count; a group without two equal answers earns nothing.
    """
    said = [(format.answer(text) or text).strip().casefold() for text in roll.text]
    voters = list(zip(roll.group.tolist(), said, strict=True))
    votes = Counter(voters)
    most: dict[int, int] = {}
    for (group, _), count in votes.items():
        most[group] = max(most.get(group, 0), count)
    won = [votes[voter] == most[voter[0]] > 1 for voter in voters]
    return roll.rewards.new_tensor([float(value) for value in won])
