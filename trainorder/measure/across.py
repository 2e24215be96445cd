"""What survives a change of settings: the same arms under every variant, each compared within its variant first."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from trainorder.metrics.correlation import MIN_ITEMS, pearson, spearman

EVERY, SOME, NONE, OPPOSITE = (
    "in every variant",
    "in some variants",
    "in none",
    "with opposite signs",
)


def across(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """From the documents of two or more variants; None for one.

    `differences` holds, for every order with a measured reverse and for the leader against every other arm, the paired
    difference under each variant and whether it survives.
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

    `found` holds, by variant, the difference (`value`) and whether its interval excludes 0 (`identified`).

    >>> survives({"a": {"value": .1, "identified": True}, "b": {"value": .2, "identified": False}})
    'in some variants'
    """
    told = [entry for entry in found.values() if entry["identified"]]
    if not told:
        return NONE
    if len({entry["value"] > 0 for entry in told}) > 1:
        return OPPOSITE
    return EVERY if len(told) == len(found) else SOME


def _pair(documents: Mapping[str, Mapping[str, Any]], a: str, b: str) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for variant, document in documents.items():
        difference = document["differences"].get(a, {}).get(b)
        if difference is None:
            return None
        identified = difference["low"] > 0 or difference["high"] < 0
        found[variant] = {"difference": difference, "identified": identified}
    entries = {
        v: {"value": f["difference"]["value"], "identified": f["identified"]}
        for v, f in found.items()
    }
    return {"a": a, "b": b, "variants": found, "survives": survives(entries)}


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
