"""Who won: every arm's final test score, all paired differences, and whether one arm beats all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder.measure.design import Arm, Design
from trainorder.measure.evidence import Evidence, as_json, mean_metrics
from trainorder.metrics import statistics
from trainorder.streams import numpy_stream

Finals = Mapping[str, Float[np.ndarray, "seed draw"]]
"""Arm -> mean test score over the trained tasks; best arm first."""
Behind = Mapping[str, statistics.Interval]
"""Arm -> its final minus the best arm's, in intervals that hold for all arms at once."""


def ranked(evidence: Evidence) -> tuple[list[Arm], Finals]:
    """All arms by final score, best first."""
    arms = list(evidence.design.arms())
    finals = {arm.name: evidence.mean_score("test", arm.final) for arm in arms}
    score = {arm.name: float(finals[arm.name][:, 0].mean()) for arm in arms}
    arms.sort(key=lambda arm: (-round(score[arm.name], 9), arm.name))
    return arms, {arm.name: finals[arm.name] for arm in arms}


def against_best(evidence: Evidence, arms: list[Arm], finals: Finals) -> Behind:
    """Every other arm minus the best one, corrected for the best having been selected.

    Never narrower than the interval of the pair alone, so an arm that these separate is separated by `compare` too.
    """
    distinct = [a for i, a in enumerate(arms) if a.final not in [b.final for b in arms[:i]]]
    rows = {arm.name: [b.final for b in distinct].index(arm.final) for arm in arms}
    half = statistics.simultaneous(
        np.stack([finals[arm.name] for arm in distinct]),
        num_problems=sum(evidence.scores["test"].used[t] for t in evidence.design.trained),
        level=evidence.config.level,
        rng=numpy_stream("measure", evidence.config.seed, "simultaneous"),
    )[0]
    behind = [arm.name for arm in arms[1:]]
    if not behind:
        return {}
    found = evidence.estimates(np.stack([finals[n] for n in behind]) - finals[arms[0].name])
    return {
        name: one.widened(float(half[rows[name]])) for name, one in zip(behind, found, strict=True)
    }


def ranking(
    evidence: Evidence, arms: list[Arm], finals: Finals, behind: Behind
) -> list[dict[str, Any]]:
    """One row per arm: mean and per-task test scores, and the paired differences that matter most.

    Each difference is split into `parts` (trainorder/measure/parts.py); `best` is corrected for the selection.
    """
    finals_of = {arm.name: arm.final for arm in arms}

    def difference(arm: Arm, key: str, other: str | None) -> dict[str, Any] | None:
        if other is None or other == arm.name:
            return None
        found = (
            behind[arm.name]
            if key == "best"
            else evidence.estimate(finals[arm.name] - finals[other])
        )
        parts = evidence.parts.of(arm.final, finals_of[other])
        return {**as_json(found, evidence.design.seeds), "parts": parts}

    references = {"best": arms[0].name, "joint": joint_arm(evidence.design), "base": "base"}
    rows = []
    for arm in arms:
        own = finals[arm.name]
        reverse = evidence.design.reverse_of(arm.name) if arm.phases else None
        against = {**references, "reverse": reverse}
        metrics = mean_metrics(evidence.means["test"], arm.final.values())
        rows.append(
            {
                "arm": arm.name,
                "kind": arm.kind,
                "phases": list(arm.phases) if arm.phases else None,
                "nodes": {str(seed): node for seed, node in arm.final.items()},
                "same_as": [a.name for a in arms if a.final == arm.final and a is not arm],
                "mean": evidence.interval(own),
                "tasks": evidence.by_task(evidence.scores["test"].of(arm.final)),
                "metrics": metrics,
                "greedy": _mean_over_trained(evidence, metrics, "greedy"),
                "pass_at_k": _mean_over_trained(evidence, metrics, "pass_at_k"),
                "differences": {key: difference(arm, key, other) for key, other in against.items()},
            }
        )
    return rows


def _mean_over_trained(
    evidence: Evidence, metrics: Mapping[str, Mapping[str, float]], metric: str
) -> float | None:
    values = [metrics.get(metric, {}).get(task) for task in evidence.design.trained]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def joint_arm(design: Design) -> str | None:
    """The first joint order that trains all tasks that any phase trains."""
    for arm in design.arms():
        if arm.kind == "joint" and arm.phases is not None:
            tasks = design.phase_tasks[arm.phases[0]]
            if set(tasks) == set(design.trained):
                return arm.name
    return None


def differences(evidence: Evidence, finals: Finals, behind: Behind) -> dict[str, dict[str, Any]]:
    """Every ordered pair of arms: first minus second, paired; those with the best arm as in `behind`."""
    best, *others = finals
    seeds = evidence.design.seeds
    result: dict[str, dict[str, Any]] = {name: {} for name in finals}
    for i, a in enumerate(finals):
        later = others[i:]
        found = [behind[b].negative() for b in later]
        if a != best and later:
            found = evidence.estimates(finals[a] - np.stack([finals[b] for b in later]))
        for b, one in zip(later, found, strict=True):
            result[a][b] = as_json(one, seeds)
            result[b][a] = as_json(one.negative(), seeds)
    return result


def winner(evidence: Evidence, arms: list[Arm], behind: Behind) -> dict[str, Any]:
    """The best arm, which arms cannot be separated from it, and what its lead over the next one is made of.

    Arms that ended in the same checkpoint are one arm here.
    """
    best = arms[0]
    rivals = [arm for arm in arms[1:] if arm.final != best.final]
    tied = [arm.name for arm in rivals if not behind[arm.name].excludes(0.0)]
    verdict = statistics.verdict(bool(rivals) and not tied, len(evidence.design.seeds))
    return {
        "verdict": verdict.value,
        "arm": best.name if statistics.identified(verdict) else None,
        "best": best.name,
        "candidates": [best.name, *tied],
        "lead": _lead(evidence, best, rivals[0], behind) if rivals else None,
    }


def _lead(evidence: Evidence, best: Arm, other: Arm, behind: Behind) -> dict[str, Any]:
    found = behind[other.name]
    return {
        "over": other.name,
        "difference": as_json(found.negative(), evidence.design.seeds),
        "parts": evidence.parts.of(best.final, other.final),
    }
