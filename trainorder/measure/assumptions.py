"""Omni-Thinker's assumptions, tested wherever the measured checkpoints allow it; else what to run.

Transfer from the base against transfer after the target was trained; the level one pass reaches from the base against
from a later checkpoint; what a phase does to another as a pair against with a third one between or before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder import order as ordering
from trainorder.measure.evidence import Evidence
from trainorder.metrics import statistics
from trainorder.plan.design import Stage

Array = np.ndarray
PerSeed = Float[Array, "seed draw"]


def assumptions(evidence: Evidence) -> dict[str, Any]:
    """The three tests, on the test split: differences are later minus from the base."""
    stages = [stage for stage in evidence.design.steps() if stage.before]
    return {
        "split": "test",
        "transfer": _transfer(evidence, stages),
        "saturation": _saturation(evidence, stages),
        "triples": _triples(evidence, stages),
        "slopes": _slopes(evidence, stages),
    }


def _transfer(evidence: Evidence, stages: Sequence[Stage]) -> dict[str, Any]:
    """What phase k does to the tasks of j: from the base, and once j was trained."""
    singles = list(evidence.design.singles)
    rows, before, after = [], [], []
    for j, k in permutations(singles, 2):
        found = [s for s in stages if s.phase == k and j in s.before]
        own = _own(evidence, j, k)
        if not found or not own:
            continue
        base = _single(evidence, k, own)
        later = _mean([_change(evidence, s, own) for s in found])
        before.append(base)
        after.append(later)
        rows.append(
            {
                "phase": k,
                "on": j,
                "n": len(found),
                "from_base": evidence.interval(base),
                "after": evidence.interval(later),
                "difference": evidence.interval(later - base),
                "flips": bool(_mean_value(base) * _mean_value(later) < 0),
            }
        )
    have = {(row["on"], row["phase"]) for row in rows}
    missing = [[j, k] for j, k in permutations(singles, 2) if (j, k) not in have]
    return {
        "rows": _with_verdict(evidence, rows, [a - b for a, b in zip(after, before, strict=True)]),
        "flips": sum(row["flips"] for row in rows),
        "n": len(rows),
        "mean_difference": _overall(evidence, [a - b for a, b in zip(after, before, strict=True)]),
        "missing": missing,
        "run": _orders_to_run(missing),
    }


def _saturation(evidence: Evidence, stages: Sequence[Stage]) -> dict[str, Any]:
    """The score on its own tasks just after a phase: from the base, and from a later checkpoint."""
    rows, differences = [], []
    for phase, single in evidence.design.singles.items():
        found = [s for s in stages if s.phase == phase and phase not in s.before]
        if not found:
            continue
        own = evidence.columns(phase)
        scores = evidence.scores["test"]
        base = scores.of(single)[..., own].mean(-1)
        later = _mean([scores.of(s.node)[..., own].mean(-1) for s in found])
        differences.append(later - base)
        places = sorted({len(s.before) for s in found})
        rows.append(
            {
                "phase": phase,
                "n": len(found),
                "from_base": evidence.interval(base),
                "later": evidence.interval(later),
                "difference": evidence.interval(later - base),
                "by_place": {
                    str(place + 1): evidence.interval(
                        _mean(
                            [
                                scores.of(s.node)[..., own].mean(-1)
                                for s in found
                                if len(s.before) == place
                            ]
                        )
                        - base
                    )
                    for place in places
                },
            }
        )
    missing = [p for p in evidence.design.singles if p not in {row["phase"] for row in rows}]
    listed = ", ".join(missing)
    return {
        "rows": _with_verdict(evidence, rows, differences),
        "n": len(rows),
        "mean_difference": _overall(evidence, differences),
        "missing": missing,
        "run": f"no order has {listed} at a later place: add one" if missing else None,
    }


def _triples(evidence: Evidence, stages: Sequence[Stage]) -> dict[str, Any]:
    """What phase c does to a phase trained before it: with two phases before it, minus with that one alone."""
    direct = {(s.before[0], s.phase): s for s in stages if len(s.before) == 1}
    rows, differences = [], []
    for stage in stages:
        if len(stage.before) != 2:
            continue
        for earlier in stage.before:
            pair, own = direct.get((earlier, stage.phase)), _own(evidence, earlier, stage.phase)
            if pair is None or not own:
                continue
            third = _change(evidence, stage, own)
            difference = third - _change(evidence, pair, own)
            differences.append(difference)
            rows.append(
                {
                    "chain": [*stage.before, stage.phase],
                    "on": earlier,
                    "pair": _mean_value(_change(evidence, pair, own)),
                    "triple": _mean_value(third),
                    "difference": evidence.interval(difference),
                }
            )
    values = np.array([_mean_value(d) for d in differences])
    return {
        "rows": _with_verdict(evidence, rows, differences),
        "n": len(rows),
        "mean_difference": _overall(evidence, differences),
        "rms": float(np.sqrt((values**2).mean())) if len(values) else None,
        "run": None
        if rows
        else "needs two orders such as [a, b, c] and [a, c]: what c does to a with and without b between",
    }


def _slopes(evidence: Evidence, stages: Sequence[Stage]) -> dict[str, Any] | None:
    """How a phase's change depends on the score it starts from: -1 (own) and 0 (others) are the assumptions."""
    if not stages or not evidence.design.singles:
        return None
    own, other = ordering.slopes(evidence.measured("test"))
    return {"own": evidence.interval(own), "other": evidence.interval(other)}


def _with_verdict(
    evidence: Evidence, rows: list[dict[str, Any]], differences: Sequence[PerSeed]
) -> list[dict[str, Any]]:
    """Adds `differs`: whether the difference is not 0, with Holm's correction over the rows."""
    p = {str(i): evidence.estimates(d[None])[0].p for i, d in enumerate(differences)}
    adjusted = statistics.holm(p)
    limit = 1 - evidence.config.level
    return [{**row, "differs": adjusted[str(i)] < limit} for i, row in enumerate(rows)]


def _overall(evidence: Evidence, differences: Sequence[PerSeed]) -> dict[str, Any] | None:
    return evidence.interval(_mean(differences)) if differences else None


def _own(evidence: Evidence, earlier: str, later: str) -> list[int]:
    """Columns that `earlier` trains and `later` does not."""
    return [c for c in evidence.columns(earlier) if c not in evidence.columns(later)]


def _change(evidence: Evidence, stage: Stage, columns: list[int]) -> PerSeed:
    scores = evidence.scores["test"]
    return (scores.of(stage.node) - scores.of(stage.parent))[..., columns].mean(-1)


def _single(evidence: Evidence, phase: str, columns: list[int]) -> PerSeed:
    scores, design = evidence.scores["test"], evidence.design
    return (scores.of(design.singles[phase]) - scores.of(design.bases))[..., columns].mean(-1)


def _mean(values: Sequence[PerSeed]) -> PerSeed:
    return np.mean(values, axis=0)


def _mean_value(values: PerSeed) -> float:
    return float(values[:, 0].mean())


def _orders_to_run(missing: Sequence[Sequence[str]]) -> str | None:
    if not missing:
        return None
    few = ", ".join(f"[{j}, {k}]" for j, k in missing[:6])
    more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
    return f"no order trains these one after the other: add {few}{more} to `orders`"
