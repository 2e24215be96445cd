"""Tables of the whole study: what the rules chose, what survives other settings, what later training still learns."""

from __future__ import annotations

from dataclasses import dataclass

from trainorder.metrics.plasticity import area_ratio
from trainorder.registries import ways
from trainorder.report import words
from trainorder.report.records import curves
from trainorder.report.tables import (
    GAIN,
    LOSS,
    NEUTRAL,
    Cell,
    Heat,
    difference,
    fill,
    mix,
    score_cell,
)
from trainorder.report.words import Bwt


def other_ways(bwt: Bwt) -> Heat | None:
    """What every arm is worth in the ways of `evaluation.ways`: means over the tasks that have a value; None without ways."""
    found: dict[str, dict[str, float]] = {}
    for row in bwt["ranking"]:
        for metric, by_task in row["metrics"].items():
            known = [v for v in by_task.values() if v is not None and v == v]
            if metric != "pass_at_k" and metric.startswith(tuple(ways())) and known:
                found.setdefault(metric, {})[row["arm"]] = sum(known) / len(known)
    if not found:
        return None
    arms = [row["arm"] for row in bwt["ranking"]]
    rows = [
        (
            metric,
            [Cell("" if arm not in by_arm else f"{by_arm[arm]:.3g}") for arm in arms],
        )
        for metric, by_arm in sorted(found.items())
    ]
    return Heat("", arms, rows)


def plasticity(bwt: Bwt) -> Heat | None:
    """Area under a phase's learning curve over that of the same phase from the base, by place in the order."""
    cells: dict[str, dict[int, list[float]]] = {}
    for order in bwt["orders"].values():
        for seed, nodes in order["nodes"].items():
            for place, (phase, node) in enumerate(zip(order["phases"], nodes[1:], strict=True), 1):
                single = bwt["singles"].get(phase)
                if single is None or place == 1:
                    continue
                curve, base = (
                    [v for _, v in curves(n).get("rollout/reward", [])]
                    for n in (node, single["nodes"][seed])
                )
                ratio = area_ratio(curve, base)
                if ratio == ratio:
                    cells.setdefault(phase, {}).setdefault(place, []).append(ratio)
    if not cells:
        return None
    places = sorted({place for row in cells.values() for place in row})
    rows = [
        (p, [_ratio_cell(cells[p].get(place)) for place in places])
        for p in words.phases(bwt, cells)
    ]
    return Heat(
        "Plasticity: learning at a later place against from the base",
        [f"place {p}" for p in places],
        rows,
    )


def _ratio_cell(ratios: list[float] | None) -> Cell:
    """Mean ratio; blue above 1, orange below."""
    if not ratios:
        return Cell("")
    mean = sum(ratios) / len(ratios)
    colour = mix(NEUTRAL, GAIN if mean > 1 else LOSS, min(abs(mean - 1) / 0.5, 1.0) ** 0.6)
    return Cell(f"{mean:.2f}", fill(colour), f"n = {len(ratios)}")


def variants(bwt: Bwt) -> Heat | None:
    """Final test mean of every arm under every variant; None without variants."""
    documents = {bwt["variant"]: bwt, **bwt["variants"]}
    if len(documents) < 2:
        return None
    means = {v: {row["arm"]: row["mean"] for row in d["ranking"]} for v, d in documents.items()}
    best = {v: max(i["value"] for i in found.values()) for v, found in means.items()}
    small = len(bwt["ranking"]) <= 2 * words.MANY
    rows = [
        (
            row["arm"],
            [
                score_cell(i["value"], i["value"] == best[v], words.interval(i) if small else "")
                if (i := means[v].get(row["arm"]))
                else Cell("")
                for v in documents
            ],
        )
        for row in bwt["ranking"]
    ]
    return Heat("", list(documents), rows)


@dataclass(frozen=True)
class Survival:
    """One difference under every variant."""

    pair: str
    by_variant: list[str]
    survives: str
    verdict: str


def survival(bwt: Bwt) -> list[Survival]:
    """The differences that matter most, and whether they survive a change of variant."""
    found = bwt["across_variants"]
    return [
        Survival(
            f"{row['a']} - {row['b']}",
            [difference(row["variants"][v]["difference"]) for v in found["winner"]],
            row["survives"],
            row["verdict"],
        )
        for row in (found["differences"] if found else [])
    ]


def rules(bwt: Bwt) -> list[list[str]]:
    """Every rule's order with its predicted gain, expected regret, and measured test mean where it was run."""
    found = bwt["recommended"]
    if found is None:
        return []
    measured = {
        tuple(order["phases"]): row["mean"]["value"]
        for row in bwt["ranking"]
        if (order := bwt["orders"].get(row["arm"]))
    }
    return [
        [
            rule.replace("_", " "),
            words.path(entry["order"]),
            words.signed(entry["value"]),
            words.score(entry["regret"]),
            words.score(measured.get(tuple(entry["order"]))),
        ]
        for rule, entry in found["rules"].items()
    ]
