"""What survives a change of settings: the same arms under every variant, each compared within its variant first."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from trainorder.metrics import statistics
from trainorder.metrics.correlation import MIN_ITEMS, pearson, spearman

EVERY, SOME, NONE, OPPOSITE = (
    "in every variant",
    "in some variants",
    "in none",
    "with opposite signs",
)


def across(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """From the documents of two or more variants; None for one.

    `differences` holds, for every order with a measured reverse and for the arm with the highest mean against every
    other one, the paired difference under each variant, its verdict there, and whether it survives.
    """
    if len(documents) < 2:
        return None
    first = next(iter(documents.values()))
    pairs = [
        (name, order["reverse"])
        for name, order in first["orders"].items()
        if order["reverse"] is not None and name < order["reverse"]
    ]
    best = first["winner"]["best"]
    pairs += [(best, row["arm"]) for row in first["ranking"] if row["arm"] != best]
    rows = [_pair(documents, a, b) for a, b in dict.fromkeys(pairs)]
    return {
        "winner": {
            v: {k: d["winner"][k] for k in ("verdict", "best")} for v, d in documents.items()
        },
        "recommended": {
            v: d["recommended"]
            and {
                "order": d["recommended"]["order"],
                "verdict": d["recommended"]["verdict"],
            }
            for v, d in documents.items()
        },
        "agreement": [_agreement(documents, v, w) for v, w in combinations(documents, 2)],
        "differences": [row for row in rows if row is not None],
    }


def survives(found: Mapping[str, Mapping[str, Any]]) -> str:
    """`in every variant`, `in some variants`, `in none` or `with opposite signs`.

    `found` holds, by variant, the difference (`value`) and its `verdict`; open ones do not count.

    >>> survives({"a": {"value": .1, "verdict": "settled"}, "b": {"value": .2, "verdict": "open"}})
    'in some variants'
    """
    told = [entry for entry in found.values() if entry["verdict"] != statistics.Verdict.OPEN]
    if not told:
        return NONE
    if len({entry["value"] > 0 for entry in told}) > 1:
        return OPPOSITE
    return EVERY if len(told) == len(found) else SOME


def combined(found: Mapping[str, Mapping[str, Any]]) -> statistics.Verdict:
    """The verdict over all variants: the weakest of them, open where signs differ or some variant is open.

    >>> both = {"a": {"value": .1, "verdict": "settled"}, "b": {"value": .2, "verdict": "on these problems only"}}
    >>> combined(both).value
    'on these problems only'
    """
    if survives(found) != EVERY:
        return statistics.Verdict.OPEN
    settled = all(statistics.identified(entry["verdict"]) for entry in found.values())
    return statistics.Verdict.SETTLED if settled else statistics.Verdict.PROBLEMS


def _pair(documents: Mapping[str, Mapping[str, Any]], a: str, b: str) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for variant, document in documents.items():
        difference = document["differences"].get(a, {}).get(b)
        if difference is None:
            return None
        separated = statistics.side(difference) != 0
        verdict = statistics.verdict(separated, len(document["seeds"])).value
        found[variant] = {"difference": difference, "verdict": verdict}
    entries = {
        v: {"value": f["difference"]["value"], "verdict": f["verdict"]} for v, f in found.items()
    }
    summary = {"survives": survives(entries), "verdict": combined(entries).value}
    return {"a": a, "b": b, "variants": found, **summary}


def _agreement(documents: Mapping[str, Mapping[str, Any]], v: str, w: str) -> dict[str, Any]:
    """Whether two variants rank the orders alike (test means of the orders of several phases)."""
    means = [
        {
            row["arm"]: row["mean"]["value"]
            for row in documents[variant]["ranking"]
            if row["kind"] == "order" and len(row["phases"]) > 1
        }
        for variant in (v, w)
    ]
    names = sorted(set(means[0]) & set(means[1]))
    x, y = (np.array([m[name] for name in names]) for m in means)
    enough = len(names) >= MIN_ITEMS
    return {
        "a": v,
        "b": w,
        "n": len(names),
        "pearson": pearson(x, y) if enough else None,
        "spearman": spearman(x, y) if enough else None,
    }
