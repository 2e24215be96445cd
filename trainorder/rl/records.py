"""What a step logs about its rollouts."""

from __future__ import annotations

from trainorder.rl.helpers import flat, k3, log_ratio, mmean
from trainorder.rl.types import Roll


def describe(roll: Roll) -> dict[str, float]:
    """What was sampled and paid, overall and per task, before any edit."""
    lengths = roll.mask.sum(1)
    log = mismatch(roll) | {
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


def mismatch(roll: Roll) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the trainer's, before the update.

    Of an engine that is not exact (vLLM, bf16). An exact one's comes from the first update's forward, for nothing.
    """
    sampler, logp = roll.x.get("sampler"), roll.x["logp"]
    if sampler is None or sampler is logp:
        return {}
    apart = log_ratio(logp, sampler, roll.mask)
    return {
        "rollout/mismatch_mean": float(mmean(apart.abs(), roll.mask)),
        "rollout/mismatch_max": float(apart.abs().max()),
        "rollout/mismatch_kl": float(mmean(k3(apart), roll.mask)),
    }


def _mean_scored(roll: Roll) -> float:
    """Mean reward over scored rows; nan, logged as null, where there is none."""
    return float(roll.reward[roll.scored].mean())
