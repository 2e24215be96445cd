"""What a step logs about its rollouts."""

from __future__ import annotations

from trainorder.rl.helpers import equal_in_group, k3, log_ratio, mmean
from trainorder.rl.types import ASKED, Roll, State


def describe(roll: Roll) -> dict[str, float]:
    """What the policy sampled and how it was rewarded, before any edit: overall as `rollout/...`, per task as `task/<task>/...`.

    Rows of other sources (a teacher's answers) say nothing about the policy and are left out; without any of its own
    there is nothing to log.
    """
    mine = roll.is_from("policy")
    if not mine.all():
        roll = roll.rows(mine.nonzero().flatten().tolist())
    if not len(roll):
        return {}
    log = mismatch(roll) | {
        "rollout/finished": float(roll.row_facts["finished"].mean()),
        "rollout/flat_groups": float(
            equal_in_group(roll.rewards, roll.group, roll.scored).float().mean()
        ),
    }
    for name, values in roll.row_facts.items():
        if name.startswith(ASKED) and (known := values[~values.isnan()]).numel():
            log[f"rollout/{name}"] = float(known.mean())
    parts = {"rollout": roll}
    for task in dict.fromkeys(problem.task for problem in roll.problem):
        rows = [i for i, problem in enumerate(roll.problem) if problem.task == task]
        parts[f"task/{task}"] = roll.rows(rows)
    for group, part in parts.items():
        log |= {f"{group}/{name}": value for name, value in _summary(part).items()}
    return log


def _summary(roll: Roll) -> dict[str, float]:
    """Reward is the mean of scored rows (nan, logged as null, where there is none); `strict` the share that kept the asked format."""
    strict = roll.row_facts["strict"]
    known = strict[~strict.isnan()]
    return {
        "reward": float(roll.rewards[roll.scored].mean()),
        "unscored": float((~roll.scored).sum()),
        "length": float(roll.loss_mask.sum(1).mean()),
        "entropy": float(mmean(roll.entropy, roll.loss_mask)),
        **({"strict": float(known.mean())} if known.numel() else {}),
    }


STEPS, PER_STEP = 5, 4
"""Of these many steps, evenly spread over the phase, the first answers of so many prompts are kept to be read."""


def keep_some(roll: Roll, state: State) -> None:
    """Keep some answers in `state.mem["rollouts"]`: prompt, answer, reward (None: not graded), its parts in `advantage`."""
    last = max(state.total - 1, 0)
    if state.step not in {round(i * last / (STEPS - 1)) for i in range(STEPS)}:
        return
    firsts = {int(group): row for row, group in reversed(list(enumerate(roll.group.tolist())))}
    kept = state.mem.setdefault("rollouts", [])
    for row in sorted(firsts.values())[:PER_STEP]:
        problem, own = roll.problem[row], roll.loss_mask[row] > 0
        kept.append(
            {
                "step": state.step,
                "task": problem.task,
                "problem": problem.id,
                "prompt": roll.prompt(row),
                "answer": roll.text[row],
                "reward": float(roll.rewards[row]) if roll.scored[row] else None,
                "advantage": float(roll.advantages[row][own].mean()) if own.any() else 0.0,
                "tokens": int(own.sum()),
            }
        )


def mismatch(roll: Roll) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the trainer's, before the update.

    Of an engine that is not exact (vLLM, bf16). An exact one's comes from the first update's forward, for nothing.
    """
    if roll.sampler_logps is roll.old_logps:
        return {}
    moved = log_ratio(roll.old_logps, roll.sampler_logps, roll.loss_mask)
    return {
        "rollout/mismatch_mean": float(mmean(moved.abs(), roll.loss_mask)),
        "rollout/mismatch_max": float(moved.abs().max()),
        "rollout/mismatch_kl": float(mmean(k3(moved), roll.loss_mask)),
    }
