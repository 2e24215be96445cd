"""Who won: every arm's final test score, all paired differences, and whether one arm beats all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder.measure.beneath import beneath
from trainorder.measure.evidence import Evidence, as_json, mean_metrics
from trainorder.metrics import statistics
from trainorder.plan.design import Arm, Design
from trainorder.streams import numpy_stream

Finals = Mapping[str, Float[np.ndarray, "seed draw"]]
"""Arm -> mean test score over the trained tasks; best arm first."""
Paired = Mapping[tuple[str, str], statistics.Interval]
"""(a, b) -> final of a minus final of b, in intervals that hold for all pairs of arms at once."""


def ranked(evidence: Evidence) -> tuple[list[Arm], Finals]:
    """All arms by final score, best first."""
    arms = list(evidence.design.arms())
    finals = {arm.name: evidence.mean_score("test", arm.final) for arm in arms}
    score = {arm.name: float(finals[arm.name][:, 0].mean()) for arm in arms}
    arms.sort(key=lambda arm: (-round(score[arm.name], 9), arm.name))
    return arms, {arm.name: finals[arm.name] for arm in arms}


def paired(evidence: Evidence, arms: list[Arm], finals: Finals) -> Paired:
    """Every two arms, corrected for being looked at together; the only intervals that a verdict on arms is taken from.

    Never narrower than the interval of the pair alone.
    """
    distinct = [a for i, a in enumerate(arms) if a.final not in [b.final for b in arms[:i]]]
    rows = {arm.name: [b.final for b in distinct].index(arm.final) for arm in arms}
    half = statistics.simultaneous(
        np.stack([finals[arm.name] for arm in distinct]),
        num_problems=sum(evidence.scores["test"].used[t] for t in evidence.design.trained),
        level=evidence.level,
        rng=numpy_stream("measure", evidence.config.seed, "simultaneous"),
    )
    names = [arm.name for arm in arms]
    result: dict[tuple[str, str], statistics.Interval] = {}
    for i, a in enumerate(names[:-1]):
        later = names[i + 1 :]
        found = evidence.estimates(
            finals[a] - np.stack([finals[b] for b in later]), level=evidence.level
        )
        for b, one in zip(later, found, strict=True):
            result[a, b] = one.widened(float(half[rows[a], rows[b]]))
            result[b, a] = result[a, b].negative()
    return result


def ranking(
    evidence: Evidence, arms: list[Arm], finals: Finals, pairs: Paired
) -> list[dict[str, Any]]:
    """One row per arm: mean and per-task test scores, and the paired differences that matter most.

    Each difference is split into `parts` (trainorder/measure/parts.py).
    """
    finals_of = {arm.name: arm.final for arm in arms}

    def difference(arm: Arm, other: str | None) -> dict[str, Any] | None:
        if other is None or other == arm.name:
            return None
        parts = evidence.parts.of(arm.final, finals_of[other])
        return {**as_json(pairs[arm.name, other], evidence.design.seeds), "parts": parts}

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
                "differences": {key: difference(arm, other) for key, other in against.items()},
                **beneath(
                    evidence, arm, float(own[:, 0].mean()), float(finals["base"][:, 0].mean())
                ),
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


def differences(evidence: Evidence, finals: Finals, pairs: Paired) -> dict[str, dict[str, Any]]:
    """Every ordered pair of arms: first minus second."""
    seeds = evidence.design.seeds
    return {a: {b: as_json(pairs[a, b], seeds) for b in finals if b != a} for a in finals}


def winner(evidence: Evidence, arms: list[Arm], pairs: Paired) -> dict[str, Any]:
    """The best arm, which arms cannot be separated from it, and what its lead over the next one is made of.

    Arms that ended in the same checkpoint are one arm here.
    """
    best = arms[0]
    rivals = [arm for arm in arms[1:] if arm.final != best.final]
    tied = [arm.name for arm in rivals if not pairs[best.name, arm.name].excludes()]
    verdict = statistics.verdict(bool(rivals) and not tied, len(evidence.design.seeds))
    return {
        "verdict": verdict.value,
        "arm": best.name if statistics.identified(verdict) else None,
        "best": best.name,
        "candidates": [best.name, *tied],
        "lead": _lead(evidence, best, rivals[0], pairs) if rivals else None,
    }


def _lead(evidence: Evidence, best: Arm, other: Arm, pairs: Paired) -> dict[str, Any]:
    return {
        "over": other.name,
        "difference": as_json(pairs[best.name, other.name], evidence.design.seeds),
        "parts": evidence.parts.of(best.final, other.final),
    }
