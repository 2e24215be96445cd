"""What MLflow shows of the measurement: orders side by side, and every node's evaluation on its own run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainorder import paths, results, tracking
from trainorder.report import words
from trainorder.report.for_dvc import transfer_table
from trainorder.report.markdown import orders_page
from trainorder.report.records import nodes, test_means
from trainorder.report.spending import spending
from trainorder.report.words import Bwt
from trainorder.tracking import ARM, OrderRecord, read_node

MEAN = "mean"
"""The mean score over the trained tasks; logged first, as MLflow's comparison opens on the first metric."""
ALONG = {"greedy": "greedy", "entropy_own": "entropy", "gold": "gold"}
"""Further metric of the evaluation -> its name in MLflow, followed by the task."""


def mirror(bwt: Bwt) -> int:
    """Bring MLflow's experiments `<project>/orders` and `<project>/nodes` up to date; returns how many runs were added or changed."""
    records = [read_node(name, node_metrics(name)) for name in nodes(bwt)]
    records = [record for record in records if record.manifest]  # the others were not pulled
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
        metrics=[(key, v, 0) for one in spending() for key, v in one.metrics.items()],
        tags={
            "kind": "verdict",
            "row": "verdict",
            **{key: str(value) for key, value in shown.items()},
        },
        note=words.summary(bwt),
        files=files,
    )


def view(bwt: Bwt) -> dict[str, Any]:
    """State of the page `orders`: this measurement, best arm first, with the scores and the phases of every order.

    MLflow nests runs only in a table by date, so that seeds would stand among the arms: they are left out, and every
    arm's page names them.
    """
    longest = max((len(order["phases"]) for order in bwt["orders"].values()), default=1)
    columns = [f"metrics.`{MEAN}`", *(f"metrics.`score/{task}`" for task in bwt["tasks"])]
    columns += [f"params.`pos{i}`" for i in range(1, longest + 1)]
    return {
        "selectedColumns": columns,
        "searchFilter": "tags.current = 'true' and tags.row != 'seed'",
        "orderByKey": f"metrics.`{MEAN}`",
        "orderByAsc": False,
    }


def order_records(bwt: Bwt) -> Iterator[OrderRecord]:
    """One record per arm and variant, of several seeds their mean with one record per seed below it.

    The positions of an order are steps, the base is step 0.
    """
    for other in bwt.get("variants", {}).values():
        yield from order_records(other)
    variant = {} if bwt["variant"] == "default" else {"variant": bwt["variant"]}
    for row in bwt["ranking"]:
        if variant and row["kind"] == "base":
            continue  # all variants start from the same bases
        order, seeds = bwt["orders"].get(row["arm"]), list(row["nodes"])
        ways = order["nodes"] if order else {s: [node] for s, node in row["nodes"].items()}
        params = {f"pos{i}": phase for i, phase in enumerate(row["phases"] or [], 1)} | variant
        name = " ".join([row["arm"], *variant.values()])
        tags = {"order": row["arm"], "kind": row["kind"], **variant}
        metrics = [*(_levels(order) if order else _end(row))]
        metrics += _beneath(row, max(step for _, _, step in metrics))
        where = _where(ways[seeds[0]]) | {"seed": seeds[0]} if len(seeds) == 1 else {}
        marks = tags | ARM | {"seeds": ", ".join(seeds)} | where
        yield OrderRecord(name, params, metrics, marks, _note(bwt, row))
        for seed in seeds if len(seeds) > 1 else []:
            metrics = [*(_along(bwt, order, seed) if order else _end_of_seed(row, seed))]
            marks = tags | {"row": "seed", "seed": seed} | _where(ways[seed])
            yield OrderRecord(f"{name} s{seed}", params, metrics, marks, above=name)


def _note(bwt: Bwt, row: Mapping[str, Any]) -> str:
    """An arm's description."""
    mean, level = row["mean"], bwt["settings"]["level"]
    seeds = f"seeds {', '.join(row['nodes'])}" if len(row["nodes"]) > 1 else "one seed"
    return f"Mean of {', '.join(bwt['trained'])} on test, {seeds}: **{words.score(mean['value'])}** ({level:.0%} interval {words.interval(mean)})."


def _where(path: Sequence[str]) -> dict[str, str]:
    """Tags: the checkpoints that the numbers come from, and the runs that made them."""
    made = filter(None, map(tracking.read_run_id, path))
    return {"nodes": ", ".join(path), "node_run_ids": ", ".join(made)}


def _with_ends(name: str, found: Mapping[str, Any], step: int) -> Iterator[tuple[str, float, int]]:
    """A value and, under names of their own, the ends of its interval."""
    for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
        yield f"{name}{end}", found[key], step


def _levels(order: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """An order at every position: means over seeds, with their intervals."""
    levels = order["levels"]
    for name, values in [(MEAN, levels["mean"]), *_by_task(levels["tasks"])]:
        for position, found in enumerate(values):
            yield from _with_ends(name, found, position)
    yield from _others(order["along"])


def _by_task(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((f"score/{task}", found) for task, found in values.items())


def _others(along: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Every task's further metrics at every position."""
    for metric, name in ALONG.items():
        for task, values in along.get(metric, {}).items():
            yield from ((f"{name}/{task}", v, i) for i, v in enumerate(values) if v is not None)


def _along(bwt: Bwt, order: Mapping[str, Any], seed: str) -> Iterator[tuple[str, float, int]]:
    """An order under one seed at every position; the ends of the intervals are over problems."""
    scores, limits = order["along_seeds"][seed]["score"], order["limits_seeds"][seed]
    trained = [scores[task] for task in bwt["trained"]]
    means = [sum(values) / len(values) for values in zip(*trained, strict=True)]
    yield from ((MEAN, value, i) for i, value in enumerate(means))
    for end in ("low", "high"):
        yield from ((f"{MEAN}_{end}", v, i) for i, v in enumerate(limits[f"mean_{end}"]))
    for task, values in scores.items():
        yield from ((f"score/{task}", v, i) for i, v in enumerate(values))
        for end in ("low", "high"):
            ends = limits[end][task]
            yield from ((f"score/{task}_{end}", v, i) for i, v in enumerate(ends))
    yield from _others(order["along_seeds"][seed])


def _end(row: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """The end of an arm that has no positions: a merge is step 1, the base step 0."""
    step = int(row["kind"] != "base")
    for name, found in [(MEAN, row["mean"]), *_by_task(row["tasks"])]:
        yield from _with_ends(name, found, step)
    for metric, name in ALONG.items():
        for task, value in row["metrics"].get(metric, {}).items():
            if value is not None:
                yield f"{name}/{task}", value, step


def _end_of_seed(row: Mapping[str, Any], seed: str) -> Iterator[tuple[str, float, int]]:
    """`_end` under one seed."""
    step = int(row["kind"] != "base")
    for name, found in [(MEAN, row["mean"]), *_by_task(row["tasks"])]:
        yield name, found["seeds"][seed], step


def _beneath(row: Mapping[str, Any], step: int) -> Iterator[tuple[str, float, int]]:
    """What the mean does not show, of all seeds together."""
    found = {"worst": row["worst"]["score"], "rollouts_per_point": row["rollouts_per_point"]}
    found |= {key: (row["turnover"] or {}).get(key) for key in ("gained", "lost")}
    found["rollouts"] = (row["cost"] or {}).get("rollouts")
    yield from ((name, float(value), step) for name, value in found.items() if value is not None)


def node_metrics(name: str) -> dict[str, float]:
    """`test/score/math` and so on: means over problems of a node's evaluation."""
    return {f"test/{metric}/{task}": value for (metric, task), value in test_means(name).items()}
