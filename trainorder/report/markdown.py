"""All orders as Markdown, for documents: predicted by each predictor, measured, and how well the two agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainorder.report import advice, words
from trainorder.report.words import Bwt


def orders_page(bwt: Bwt) -> str:
    """The tables of reports/bwt.json, one section for each variant, and what survives the change of variant."""
    return "\n".join([*_page(bwt)]) + "\n"


def orders_document(bwt: Bwt) -> dict[str, Any]:
    """Variant -> its arms, best first, with what each predictor said of the orders; the numbers behind `orders_page`."""
    documents = {bwt["variant"]: bwt, **bwt["variants"]}
    return {name: [*_arms(document)] for name, document in documents.items()}


def _arms(bwt: Bwt) -> Iterator[dict[str, Any]]:
    for row in bwt["ranking"]:
        predicted = (bwt["prediction"] or {}).get("orders", {}).get(row["arm"], {})
        shown = {
            key: row[key]
            for key in ("arm", "kind", "phases", "mean", "tasks", "differences", "cost")
        }
        yield {**shown, "predicted": predicted.get("by", {})}


def _page(bwt: Bwt) -> Iterator[str]:
    documents = {bwt["variant"]: bwt, **bwt["variants"]}
    yield "# Orders: predicted and measured"
    for name, document in documents.items():
        yield ""
        if len(documents) > 1:
            yield from [f"## Variant `{name}`", ""]
        yield from _variant(document, "###" if len(documents) > 1 else "##")
    if bwt["across_variants"] is not None:
        yield ""
        yield from across(bwt)


def _variant(bwt: Bwt, mark: str) -> Iterator[str]:
    seeds = words.listed([str(seed) for seed in bwt["seeds"]])
    yield words.summary(bwt)
    yield ""
    plural = "s" if len(bwt["seeds"]) > 1 else ""
    yield f"Seed{plural} {seeds}; mean test score over {words.listed(bwt['trained'])}; predicted from dev."
    yield from ["", f"{mark} How well each predictor orders the orders", ""]
    yield from agreement(bwt)
    yield from ["", f"{mark} Every order", ""]
    yield from order_rows(bwt)
    others = [row for row in bwt["ranking"] if row["arm"] not in bwt["prediction"]["orders"]]
    if others:
        yield from ["", f"{mark} Other ways to spend the budget", ""]
        rows = [
            [
                row["arm"],
                row["kind"],
                words.score(row["mean"]["value"]),
                words.interval(row["mean"]),
                _best(row),
            ]
            for row in others
        ]
        yield from _table(["arm", "kind", "measured", "interval", "minus the best arm"], rows)
    yield from ["", f"{mark} Beneath the mean", ""]
    below = words.beneath(bwt)
    yield from _table(list(below[0]), [list(row.values()) for row in below])
    yield from ["", words.BENEATH]
    yield from ["", f"{mark} What the transfer recommends", ""]
    for key, title in TRANSFERS.items():
        yield f"- {title}: {' '.join(advice.recommendation(bwt, key)) or 'no phase was trained alone.'}"
    yield from ["", f"{mark} Omni-Thinker's assumptions", ""]
    yield from (f"- {line}" for line in advice.assumptions(bwt))


TRANSFERS = {
    "recommended": "Transfer from the base",
    "recommended_two_stage": "Transfer after the target was trained",
}


def agreement(bwt: Bwt) -> Iterator[str]:
    """One row per predictor: correlation with the measured means over orders, error, and what its choice would lose."""
    heads = [
        "predictor",
        "Spearman",
        "Pearson",
        "mean error (bias)",
        "RMSE",
        "its choice",
        "rank",
        "regret",
    ]
    rows = []
    for name, found in bwt["prediction"]["predictors"].items():
        if found is None:
            rows.append([name, "needs pairs trained one after the other", *[""] * 6])
            continue
        n = found["n"]
        rows.append(
            [
                name,
                words.correlation(found["spearman"], n),
                words.correlation(found["pearson"], n),
                words.signed(found["mean_error"]),
                words.score(found["rmse"]),
                found["chosen"],
                f"{found['rank_of_chosen']} of {n}",
                words.score(found["regret"]),
            ]
        )
    yield from _table(heads, rows)


def order_rows(bwt: Bwt) -> Iterator[str]:
    """One row per predicted order, best measured first."""
    rows = bwt["prediction"]["orders"]
    names = sorted(rows, key=lambda name: (-rows[name]["measured"]["value"], name))
    predictors = list(bwt["prediction"]["predictors"])
    table = [
        [
            str(i),
            words.path(bwt["orders"][name]["phases"]) + _alias(bwt, name),
            words.score(rows[name]["measured"]["value"]),
            words.interval(rows[name]["measured"]),
            *(words.score((rows[name]["by"][p] or {}).get("value")) for p in predictors),
        ]
        for i, name in enumerate(names, 1)
    ]
    yield from _table(["", "order", "measured", "interval", *predictors], table)


def across(bwt: Bwt) -> Iterator[str]:
    """What the variants agree on."""
    found = bwt["across_variants"]
    yield from ["## What survives the change of variant", ""]
    rows = [
        [
            v,
            f"{winner['best']} ({winner['verdict']})",
            _recommended(found["recommended"][v]),
        ]
        for v, winner in found["winner"].items()
    ]
    yield from _table(["variant", "highest measured", "recommended"], rows)
    yield ""
    for pair in found["agreement"]:
        yield (
            f"Spearman of the orders' measured means between {pair['a']} and {pair['b']}: "
            f"{words.correlation({'value': pair['spearman'], 'low': None}, pair['n'])}."
        )
    yield ""
    variants = list(found["winner"])
    table = [
        [
            f"{row['a']} - {row['b']}",
            *(words.with_interval(row["variants"][v]["difference"]) for v in variants),
            row["survives"],
            row["verdict"],
        ]
        for row in found["differences"]
    ]
    yield from _table(["difference", *variants, "excludes 0", "verdict"], table)


def _recommended(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{words.path(found['order'])} ({found['verdict']})"


def _alias(bwt: Bwt, name: str) -> str:
    """The order's name, unless it is spelled from its phases."""
    return "" if name == "_".join(bwt["orders"][name]["phases"]) else f" ({name})"


def _best(row: Mapping[str, Any]) -> str:
    found = row["differences"]["best"]
    return "" if found is None else words.with_interval(found)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
