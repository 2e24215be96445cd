"""What MLflow shows of the measurement: orders side by side, and every node's evaluation on its own run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainorder import paths, results, tracking
from trainorder.report.records import nodes
from trainorder.report.words import Bwt
from trainorder.tracking import OrderRecord

MEAN = "ACC"
"""The mean score over the trained tasks; logged first, as MLflow's comparison opens on the first metric."""
ALONG = {"score": "score", "greedy": "greedy", "entropy_own": "entropy", "gold": "gold"}
"""Metric of the evaluation -> its name in MLflow, followed by the task."""


def mirror(bwt: Bwt) -> int:
    """Bring MLflow's experiments `orders` and `nodes` up to date; returns how many runs were added or changed."""
    return tracking.log_orders(list(order_records(bwt))) + tracking.log_final(
        node_metrics(nodes(bwt))
    )


def fill() -> int:
    """Fill an empty store from what a run left here; returns how many node runs that made."""
    made = tracking.fill()
    if made and paths.BWT.is_file():
        mirror(results.load())
    return made


def order_records(bwt: Bwt) -> Iterator[OrderRecord]:
    """One record per arm, seed and variant; the positions of an order are steps, the base is step 0."""
    for other in bwt.get("variants", {}).values():
        yield from order_records(other)
    variant = {} if bwt["variant"] == "default" else {"variant": bwt["variant"]}
    for row in bwt["ranking"]:
        for seed, node in row["nodes"].items():
            order = bwt["orders"].get(row["arm"])
            metrics = [*_along(bwt, order, seed)] if order else [*_final(row, seed)]
            path = order["nodes"][seed] if order else [node]
            if variant and row["kind"] == "base":
                continue  # all variants start from the same bases
            params = {"arm": row["arm"], "seed": seed, **variant}
            params |= {f"pos{i}": phase for i, phase in enumerate(row["phases"] or [], 1)}
            yield OrderRecord(
                name=" ".join(
                    [
                        row["arm"],
                        *variant.values(),
                        *([f"s{seed}"] if len(row["nodes"]) > 1 else []),
                    ]
                ),
                params=params,
                metrics=metrics,
                tags={
                    "order": row["arm"],
                    "kind": row["kind"],
                    "seed": seed,
                    "nodes": ", ".join(path),
                    "node_run_ids": ", ".join(filter(None, map(tracking.read_run_id, path))),
                },
            )


def _along(bwt: Bwt, order: Mapping[str, Any], seed: str) -> Iterator[tuple[str, float, int]]:
    """Every task's metrics at every position, and the mean score over the trained tasks."""
    along = order["along_seeds"][seed]
    trained = [along["score"][task] for task in bwt["trained"]]
    for position, values in enumerate(zip(*trained, strict=True)):
        yield MEAN, sum(values) / len(values), position
    for metric, name in ALONG.items():
        for task, values in along.get(metric, {}).items():
            yield from ((f"{name}/{task}", v, i) for i, v in enumerate(values) if v is not None)


def _final(row: Mapping[str, Any], seed: str) -> Iterator[tuple[str, float, int]]:
    """The end of an arm that has no positions: a merge is step 1, the base step 0."""
    step = int(row["kind"] != "base")
    yield MEAN, row["mean"]["seeds"][seed], step
    for task, found in row["tasks"].items():
        yield f"score/{task}", found["seeds"][seed], step
    if len(row["nodes"]) == 1:  # `metrics` are means over seeds
        others = {name: metric for metric, name in ALONG.items() if metric != "score"}
        for name, metric in others.items():
            for task, value in row["metrics"].get(metric, {}).items():
                if value is not None:
                    yield f"{name}/{task}", value, step


def node_metrics(names: Iterable[str]) -> dict[str, dict[str, float]]:
    """MLflow run id -> `test/score/math` and so on: means over problems (test), of the nodes whose run is known."""
    import pandas

    result = {}
    for name in names:
        run_id = tracking.read_run_id(name)
        file = paths.evaluation(name)
        if run_id is None or not file.is_file():
            continue
        table: Any = pandas.read_parquet(file)
        means = (
            table[table["split"] == "test"]
            .groupby(["split", "metric", "task"])["value"]
            .mean()
            .dropna()
        )
        result[run_id] = {"/".join(key): float(value) for key, value in means.items()}
    return result
