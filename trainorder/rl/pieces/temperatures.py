"""Arbitrary entropy: right answers sampled hotter or colder pull the policy to a target entropy (AEPO, arXiv:2510.08141)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.pieces.advantages import grpo
from trainorder.rl.registry import advantage, edit
from trainorder.rl.tokens import mean_entropy
from trainorder.rl.types import Roll, Rollouts, State
from trainorder.rollout import Request

FACT = "arbitrary_entropy"


@edit(needs=frozenset({"entropy"}))
def arbitrary_entropy(
    roll: Roll,
    state: State,
    rollouts: Rollouts,
    *,
    target: float = 0.5,
    hot: float = 1.2,
    cold: float = 0.8,
    share: float = 0.25,
    least: float = 0.05,
    raising: int = 60,
    lowering: int = 30,
) -> Roll:
    """Add good answers sampled at another temperature: `hot` where the mean entropy is at most `target`, else `cold` (AEPO, arXiv:2510.08141).

    `share` of the step's prompts are sampled once more at it; answers with a GRPO advantage above `least` are added, at
    most `raising` or `lowering` of them, each a group of its own; `arbitrary_entropy_credit` gives them credit 1. Their
    log-probabilities are those at the policy's own temperature. Values are the authors' code's, which overwrites the
    batch's first rows with them; adding them is the objective of the paper. target .75 is the best row of its table.
    """
    raise_it = mean_entropy(roll) <= target
    order = list(dict.fromkeys(roll.group.tolist()))
    chosen = order[: max(1, round(share * len(order)))] if share > 0 else []
    requests = []
    for group in chosen:
        rows = (roll.group == group).nonzero().flatten().tolist()
        requests.append(
            Request(
                roll.problem[rows[0]],
                prompt_ids=roll.prompt_ids[rows[0]],
                samples=len(rows),
                temperature=hot if raise_it else cold,
                max_new_tokens=_limit(roll, rows[0]),
            )
        )
    if not requests:
        return roll
    found = rollouts.sample(requests)
    good = (grpo(found, state) > least).nonzero().flatten().tolist()
    good = good[: raising if raise_it else lowering]
    if not good:
        return roll
    own = roll.row_facts.get("temperature")
    temperature = 1.0 if own is None else float(own[0])
    again = [
        Request(
            found.problem[row],
            prompt_ids=found.prompt_ids[row],
            prefix_ids=found.response_ids[row, : int(found.lengths()[row])].tolist(),
            temperature=temperature,
            max_new_tokens=_limit(found, row),
            facts={FACT: 1.0},
        )
        for row in good
    ]
    return Roll.cat([roll, rollouts.given(again, None, "replay")])


@advantage
def arbitrary_entropy_credit(
    roll: Roll, state: State, *, alpha: float = 1.0
) -> Float[Tensor, "row token"]:
    """`alpha` on the rows that `arbitrary_entropy` added, as the authors' code; a shaper, after an estimator (arXiv:2510.08141)."""
    added = roll.asked(FACT) == 1.0
    return torch.where(added[:, None], alpha, roll.advantages)


def _limit(roll: Roll, row: int) -> int:
    limit = roll.row_facts.get("limit")
    return int(roll.lengths().max()) if limit is None else int(limit[row])
