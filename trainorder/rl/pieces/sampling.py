"""Which rows a step trains on: prompts drawn again, rows dropped or replaced."""

from __future__ import annotations

from collections import Counter

from trainorder.rl.helpers import equal_in_group, gcnt, gstd
from trainorder.rl.registry import edit
from trainorder.rl.types import Roll, Rollouts, State


@edit
def dynamic_sampling(
    roll: Roll, state: State, rollouts: Rollouts, *, max_rounds: int = 10, min_std: float = 0.0
) -> Roll:
    """Replace groups of equal rewards by new prompts of the same task (DAPO, arXiv:2503.14476).

    Above 0, `min_std` also replaces those whose standard deviation (population) is at most that, as SRL does
    (arXiv:2510.25992; its bound was not read). At most `max_rounds` rounds of generation, the first one included; then the step trains on the
    groups it has. Where no group at all has spread the roll stays as it is (and teaches nothing). max_rounds 10 is verl's.
    """
    wanted = _groups_per_task(roll)
    kept, fresh = [], roll
    for round_ in range(max_rounds):
        if round_ > 0:
            missing = wanted - sum(map(_groups_per_task, kept), Counter[str]())
            if not missing:
                break
            fresh = rollouts.sample(rollouts.requests(dict(missing)))
        group = (fresh.group, fresh.scored)
        spread = ~equal_in_group(fresh.rewards, *group)
        if min_std > 0:
            n = gcnt(*group)
            spread &= gstd(fresh.rewards, *group) * ((n - 1) / n).sqrt() > min_std
        if spread.any():
            kept.append(fresh.rows(spread.nonzero().flatten().tolist()))
    return Roll.cat(kept) if kept else roll


def _groups_per_task(roll: Roll) -> Counter[str]:
    task_of = {int(g): problem.task for g, problem in zip(roll.group, roll.problem, strict=True)}
    return Counter(task_of.values())
