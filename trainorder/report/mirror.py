"""What MLflow shows of the measurement: orders side by side, and every node's evaluation on its own run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainorder import paths, results, tracking
from trainorder.report import words
from trainorder.report.markdown import orders_page
from trainorder.report.records import nodes, test_means
from trainorder.report.words import Bwt
from trainorder.tracking import OrderRecord, read_node

if TYPE_CHECKING:
    import pandas

MEAN = "ACC"
"""The mean score over the trained tasks; logged first, as MLflow's comparison opens on the first metric."""
ALONG = {"score": "score", "greedy": "greedy", "entropy_own": "entropy", "gold": "gold"}
"""Metric of the evaluation -> its name in MLflow, followed by the task."""


def mirror(bwt: Bwt) -> int:
    """Bring MLflow's experiments `orders` and `nodes` up to date; returns how many runs were added or changed."""
    records = [read_node(name, node_metrics(name)) for name in nodes(bwt)]
    changed = tracking.log_orders([*order_records(bwt), verdict_record(bwt)], view(bwt))
    changed += tracking.log_nodes(records)
    best = next(iter(words.leader(bwt)["nodes"].values()))
    tracking.register(best, f"{words.headline(bwt)} {words.verdict(bwt)}")
    return changed


def fill() -> int:
    """Fill an empty store from what a run left here; returns how many node runs that made."""
    made = sorted(file.parent.name for file in paths.run("x").parent.glob("*/manifest.json"))
    count = tracking.fill([read_node(name) for name in made])
    if count and paths.BWT.is_file():
        mirror(results.load())
    return count


def verdict_record(bwt: Bwt) -> OrderRecord:
    """The measurement as a whole: its answer as the description; the page and the tables as files."""
    import pandas

    shown = {
        key: value for key, value in bwt["winner"].items() if key in ("verdict", "best", "arm")
    }
    arms = [a | b for a, b in zip(words.arms(bwt), words.beneath(bwt), strict=True)]
    files = {
        "arms.csv": pandas.DataFrame(arms).to_csv(index=False).encode(),
        "orders.md": orders_page(bwt).encode(),
        "transfer.csv": transfer_table(bwt).to_csv(index=False).encode(),
    }
    if paths.REPORT.is_file():
        files["report.html"] = paths.REPORT.read_bytes()
    return OrderRecord(
        name="verdict",
        params={},
        metrics=[],
        tags={"kind": "verdict", **{key: str(value) for key, value in shown.items()}},
        note=words.summary(bwt),
        files=files,
    )


def transfer_table(bwt: Bwt) -> pandas.DataFrame:
    """What each phase does to each task from the base, on test: one row a pair."""
    import pandas

    rows = [
        {"phase": phase, "task": task, "change": i["value"], "low": i["low"], "high": i["high"]}
        for phase, by_task in bwt["transfer"]["from_base"]["test"].items()
        for task, i in by_task.items()
        if i is not None
    ]
    return pandas.DataFrame(rows, columns=["phase", "task", "change", "low", "high"])


def view(bwt: Bwt) -> dict[str, Any]:
    """State of the page `orders`: this measurement, best first, with the scores and the phases of every order."""
    longest = max((len(order["phases"]) for order in bwt["orders"].values()), default=1)
    columns = [f"metrics.`{MEAN}`", *(f"metrics.`score/{task}`" for task in bwt["tasks"])]
    columns += [f"params.`pos{i}`" for i in range(1, longest + 1)]
    return {
        "selectedColumns": columns,
        "searchFilter": "tags.current = 'true'",
        "orderByKey": f"metrics.`{MEAN}`",
        "orderByAsc": False,
    }


def order_records(bwt: Bwt) -> Iterator[OrderRecord]:
    """One record per arm, seed and variant; the positions of an order are steps, the base is step 0."""
    for other in bwt.get("variants", {}).values():
        yield from order_records(other)
    variant = {} if bwt["variant"] == "default" else {"variant": bwt["variant"]}
    for row in bwt["ranking"]:
        for seed, node in row["nodes"].items():
            order = bwt["orders"].get(row["arm"])
            metrics = [*_along(bwt, order, seed)] if order else [*_final(row, seed)]
            metrics += _beneath(row, max(step for _, _, step in metrics))
            path = order["nodes"][seed] if order else [node]
            if variant and row["kind"] == "base":
                continue  # all variants start from the same bases
            params = {f"pos{i}": phase for i, phase in enumerate(row["phases"] or [], 1)}
            params |= variant
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
                    **variant,
                    "node_run_ids": ", ".join(filter(None, map(tracking.read_run_id, path))),
                },
            )


def _along(bwt: Bwt, order: Mapping[str, Any], seed: str) -> Iterator[tuple[str, float, int]]:
    """Every task's metrics at every position, and the mean score over the trained tasks."""
    along = order["along_seeds"][seed]
    trained = [along["score"][task] for task in bwt["trained"]]
    for position, values in enumerate(zip(*trained, strict=True)):
        yield MEAN, sum(values) / len(values), position
    limits = order["limits"][seed]
    for end in ("low", "high"):
        yield from ((f"{MEAN}_{end}", v, i) for i, v in enumerate(limits[f"mean_{end}"]))
        for task, values in limits[end].items():
            yield from ((f"score/{task}_{end}", v, i) for i, v in enumerate(values))
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


def _beneath(row: Mapping[str, Any], step: int) -> Iterator[tuple[str, float, int]]:
    """What the mean does not show, of all seeds together."""
    found = {"worst": row["worst"]["score"], "rollouts_per_point": row["rollouts_per_point"]}
    found |= {key: (row["turnover"] or {}).get(key) for key in ("gained", "lost")}
    found["rollouts"] = (row["cost"] or {}).get("rollouts")
    yield from ((name, float(value), step) for name, value in found.items() if value is not None)


def node_metrics(name: str) -> dict[str, float]:
    """`test/score/math` and so on: means over problems of a node's evaluation."""
    return {f"test/{metric}/{task}": value for (metric, task), value in test_means(name).items()}
