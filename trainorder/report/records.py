"""What runs left beside their checkpoints, as far as the page shows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.files import read_jsonl
from trainorder.report.words import Bwt


def nodes(bwt: Bwt) -> list[str]:
    """Every checkpoint that a number on the page comes from, shallow ones first."""
    found = [*bwt["base"]["nodes"].values()]
    found += [node for other in bwt.get("variants", {}).values() for node in nodes(other)]
    found += [node for single in bwt["singles"].values() for node in single["nodes"].values()]
    found += [
        n for order in bwt["orders"].values() for path in order["nodes"].values() for n in path
    ]
    found += [node for row in bwt["ranking"] for node in row["nodes"].values()]
    return sorted(dict.fromkeys(found), key=lambda node: node.count("--"))


def manifests(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Node -> manifest, of those that have one."""
    files = {name: paths.run(name) / "manifest.json" for name in names}
    return {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.is_file()}


def made_on(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The machines that made the nodes, and the time it took: `2 cores of Intel Xeon, 7 min of stages`."""
    machines = [m["machine"] for m in found.values() if "machine" in m]
    kinds = dict.fromkeys(f"{m.get('cores')} cores of {m.get('processor')}" for m in machines)
    minutes = sum(m.get("seconds") or 0.0 for m in found.values()) / 60
    return ", ".join([*kinds, f"{minutes:.0f} min of training"]) if kinds else ""


def alarms(found: dict[str, dict[str, Any]]) -> list[str]:
    """One sentence per alarm that sounded while a node was trained (trainorder/rl/guard.py)."""
    return [
        f"{node}: {name} from step {entry['first_step']} on, {entry['steps']} steps, last value {entry['value']:g}"
        for node, manifest in found.items()
        for name, entry in manifest.get("alarms", {}).items()
    ]


DRAWN = ("task/", "rollout/reward", "rollout/entropy", "rollout/kl", "rl/kl_old", "rollout/mismatch_kl", "perf/judge_")  # fmt: skip
"""Metrics of steps that the page and DVC's plots show begin with one of these."""

Curves = Mapping[str, Sequence[tuple[int, float]]]


def curves(node: str) -> Curves:
    """Metric of DRAWN -> (step, value) of every step that logged it. A page asks for each node's several times."""
    file = (paths.run(node) / "metrics.jsonl").absolute()
    if not file.is_file():
        return {}
    stat = file.stat()
    return _curves(file, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=2000)
def _curves(file: Path, stamp: tuple[int, int]) -> Curves:
    result: dict[str, list[tuple[int, float]]] = {}
    for row in read_jsonl(file):
        step = row.pop("step")
        for name, value in row.items():
            if value is not None and name.startswith(DRAWN):
                result.setdefault(name, []).append((step, value))
    return result


def parent_kl(names: Iterable[str]) -> dict[str, float]:
    """Node -> KL to its parent per token of its own answers, nats, at the last step (`trainorder.rl.step.parent_kl`)."""
    logged = {name: curves(name).get("rollout/kl") for name in names}
    return {name: values[-1][1] for name, values in logged.items() if values}


def judge_calls(names: Iterable[str]) -> str:
    """What judges that are asked cost: `Judges were asked 1,200 times in training; 300 verdicts were known`."""
    asked = kept = 0.0
    for name in names:
        logged = curves(name)
        asked += sum(value for _, value in logged.get("perf/judge_asked", ()))
        kept += sum(value for _, value in logged.get("perf/judge_kept", ()))
    if not asked + kept:
        return ""
    return f"Judges were asked {asked:,.0f} times in training; {kept:,.0f} verdicts were known."


def test_means(node: str) -> dict[tuple[str, str], float]:
    """(metric, task) -> mean over test problems; empty where the node was not evaluated."""
    import pandas as pd

    file = paths.evaluation(node)
    if not file.is_file():
        return {}
    table: Any = pd.read_parquet(file, columns=["split", "task", "metric", "value"])
    means = table[table["split"] == "test"].groupby(["metric", "task"])["value"].mean().dropna()
    return {key: float(value) for key, value in means.items()}


def answers(node: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(task, problem) -> prompt, greedy answer and score, of the problems whose answers an evaluation keeps."""
    import pyarrow.parquet

    file = paths.evaluation(node)
    if not file.is_file():
        return {}
    kept = json.loads((pyarrow.parquet.read_schema(file).metadata or {}).get(b"pandas", b"{}"))
    rows = kept.get("attributes", {}).get("answers", [])
    return {(row["task"], row["problem"]): row for row in rows}


def digest(file: Path) -> str | None:
    """The first 12 hex digits of a file's sha256, or None where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else None
