"""Who won: every arm's final test score, all paired differences, and whether one arm beats all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder.measure.design import Arm, Design
from trainorder.measure.evidence import Evidence, mean_metrics
from trainorder.metrics.statistics import covers

Finals = Mapping[str, Float[np.ndarray, "seed draw"]]
"""Arm -> mean test score over the trained tasks; best arm first."""


def ranked(evidence: Evidence) -> tuple[list[Arm], Finals]:
    """All arms by final score, best first."""
    arms = list(evidence.design.arms())
    finals = {arm.name: evidence.mean_score("test", arm.final) for arm in arms}
    score = {arm.name: float(finals[arm.name][:, 0].mean()) for arm in arms}
    arms.sort(key=lambda arm: (-round(score[arm.name], 9), arm.name))
    return arms, {arm.name: finals[arm.name] for arm in arms}


def ranking(evidence: Evidence, arms: list[Arm], finals: Finals) -> list[dict[str, Any]]:
    """One row per arm: mean and per-task test scores, and the paired differences that matter most."""
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
                "differences": {
                    key: evidence.interval(own - finals[other])
                    if other is not None and other != arm.name
                    else None
                    for key, other in against.items()
                },
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


def differences(evidence: Evidence, finals: Finals) -> dict[str, dict[str, Any]]:
    """Every ordered pair of arms: first minus second, paired."""
    return {
        a: {b: evidence.interval(finals[a] - finals[b]) for b in finals if b != a} for a in finals
    }


def winner(evidence: Evidence, arms: list[Arm], finals: Finals) -> dict[str, Any]:
    """The best arm, if its paired interval against every other arm excludes 0.

    Arms that ended in the same checkpoint are one arm here.
    """
    best = arms[0]
    rivals = [arm for arm in arms[1:] if arm.final != best.final]
    equal = [
        arm.name
        for arm in rivals
        if not evidence.estimate(finals[best.name] - finals[arm.name]).excludes(0.0)
    ]
    identified = bool(rivals) and not equal
    scope = covers(len(evidence.design.seeds))
    if not rivals:
        note = "there is only one arm"
    elif identified:
        note = f"the paired interval over {scope} against every other arm excludes 0"
    else:
        note = f"the paired interval over {scope} against these arms includes 0"
    return {
        "verdict": "identified" if identified else "not identified",
        "arm": best.name if identified else None,
        "best": best.name,
        "not_told_apart": [] if identified else [best.name, *equal],
        "note": note,
    }
