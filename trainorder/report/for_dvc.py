"""The measurement as `dvc metrics`, `dvc plots` and `dvc exp show` read it.

    reports/metrics/<arm>.json       an arm's scores on test: `mean` over the trained tasks, and every task
    reports/plots/orders.csv         score and entropy after every phase of every order
    reports/plots/rewards.csv        mean reward and entropy over the steps of every phase that was trained
    reports/plots/transfer.csv       what each phase does to each task from the base

dvc.yaml says how they are drawn, with the templates in .dvc/plots. A variant's arms lie in a folder of its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder import paths
from trainorder.config import DEFAULT
from trainorder.files import write_text
from trainorder.report.records import curves, nodes
from trainorder.report.words import Bwt

if TYPE_CHECKING:
    from pandas import DataFrame

DIGITS = 4
CURVES = {"rollout/reward": "reward", "rollout/entropy": "entropy"}
"""Metric of a step -> its column in rewards.csv."""


def write(bwt: Bwt) -> None:
    """Write all of them; DVC has emptied both folders before."""
    for file, values in metrics(bwt).items():
        _put(paths.METRICS / file, json.dumps(values, indent=1) + "\n")
    tables = {"orders": orders(bwt), "rewards": rewards(bwt), "transfer": transfer_table(bwt)}
    for name, table in tables.items():
        _put(paths.PLOTS / f"{name}.csv", table.round(DIGITS).to_csv(index=False))


def metrics(bwt: Bwt) -> dict[str, dict[str, float]]:
    """File under reports/metrics -> an arm's mean score and its score on every task, on test."""
    found = {}
    for each in _variants(bwt):
        folder = "" if each["variant"] == DEFAULT else f"{each['variant']}/"
        for row in each["ranking"]:
            values = {"mean": row["mean"], **row["tasks"]}
            found[f"{folder}{row['arm']}.json"] = {
                name: round(value["value"], DIGITS) for name, value in values.items()
            }
    return found


def orders(bwt: Bwt) -> DataFrame:
    """Variant, order, position (0 is the base), phase and task -> score and entropy on test, means over seeds."""
    import pandas

    rows = []
    for each in _variants(bwt):
        for name, order in each["orders"].items():
            along = order["along"]
            for task, scores in along["score"].items():
                entropies = along.get("entropy_own", {}).get(task) or [None] * len(scores)
                phases = ["base", *order["phases"]]
                for position, values in enumerate(zip(phases, scores, entropies, strict=True)):
                    rows.append((each["variant"], name, position, values[0], task, *values[1:]))
    columns = ["variant", "order", "position", "phase", "task", "score", "entropy"]
    return pandas.DataFrame(rows, columns=columns)


def transfer_table(bwt: Bwt) -> DataFrame:
    """What each phase does to each task from the base, on test: one row a pair."""
    import pandas

    rows = [
        {"phase": phase, "task": task, "change": i["value"], "low": i["low"], "high": i["high"]}
        for phase, by_task in bwt["transfer"]["from_base"]["test"].items()
        for task, i in by_task.items()
        if i is not None
    ]
    return pandas.DataFrame(rows, columns=["phase", "task", "change", "low", "high"])


def rewards(bwt: Bwt) -> DataFrame:
    """Node, phase and step -> mean reward and entropy of the rollouts, of all trained nodes."""
    import pandas

    rows = []
    for node in nodes(bwt):
        logged = curves(node)
        found = {column: dict(logged.get(name, [])) for name, column in CURVES.items()}
        for step, reward in found["reward"].items():
            phase = node.rpartition("--")[2]
            rows.append((node, phase, step, reward, found["entropy"].get(step)))
    return pandas.DataFrame(rows, columns=["node", "phase", "step", *CURVES.values()])


def _variants(bwt: Bwt) -> Iterator[Bwt]:
    yield bwt
    yield from bwt.get("variants", {}).values()


def _put(path: Path, text: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
