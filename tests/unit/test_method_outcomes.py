"""The tables of methods, from evaluations and records whose numbers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import measured, method_outcomes, published
from trainorder import paths
from trainorder.config import load_params
from trainorder.config.presets import presets
from trainorder.plan import compile_plan
from trainorder.rl import catalog

ROOT = Path(__file__).parents[2]
ENTROPY = method_outcomes.TABLES["entropy"]


def leave(node: str, scores: dict[str, float], *, slope: float = 0.0) -> None:
    """An evaluation with these test scores, and the records of ten steps."""
    rows = [
        {"node": node, "seed": 0, "split": split, "task": task, "problem": f"{task}/{i}"}
        | {"metric": "score", "value": value + (0.1 if i else -0.1) + (split == "dev")}
        for task, value in scores.items()
        for split in ("dev", "test")
        for i in range(2)
    ]
    paths.evaluation(node).parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(paths.evaluation(node))
    paths.run(node).mkdir(parents=True, exist_ok=True)
    lines = [{"step": i, "rollout/entropy": 1 + slope * i} for i in range(10)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (paths.run(node) / "metrics.jsonl").write_text(text)


def test_a_method_is_compared_with_grpo_of_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, lead in ((0, 0.1), (1, 0.3)):
        leave(f"s{seed}", {"math": 0.2, "qa": 0.5})
        leave(f"s{seed}--math", {"math": 0.5, "qa": 0.4}, slope=-0.01)
        leave(f"s{seed}--siren--math", {"math": 0.5 + lead, "qa": 0.6}, slope=-0.002)
    found = method_outcomes.outcome("siren", "math", 1)
    assert found is not None
    assert (found.score, found.entropy, found.others) == pytest.approx((0.8, -0.2, 0.1))
    method_outcomes.COSTS.parent.mkdir()
    method_outcomes.COSTS.write_text(json.dumps({"math": {"grpo": 1.0, "siren": 1.5}}))
    rows = method_outcomes.numbers(ENTROPY)
    text = measured.tables(rows, {})
    assert "| `grpo` | 0.500 |  | -1.000 |  | -0.100 |  | 1.00 x |" in text
    row = "| `siren` | 0.700 | +0.200 (se 0.100) | -0.200 | +0.800 (se 0.000) | +0.100 | +0.200 (se 0.000) | 1.50 x |"
    assert row in text
    assert "s2--siren--math" in method_outcomes.missing(ENTROPY)
    measured.write(rows, Path("kept.csv"))
    assert measured.read(Path("kept.csv")) == rows


def test_a_verdict_is_open_within_two_standard_errors():
    row = measured.Measured("math", "siren", 3, 0.7, -0.2, 0.1, 1.5, 0.2, 0.1, 0.81, 0.4, 0.2, 0.0)
    clear = replace(row, phase="code", score_minus=-0.21)
    found = measured.verdicts([row, clear], {"rmt": "no worked answer"})
    first, second = "score +0.200 (open), entropy +0.810 (higher)", "score -0.210 (lower)"
    assert found["siren"].startswith(f"math: {first}; code: {second}")
    assert found["rmt"] == "not measured: no worked answer"


def test_rows_of_another_version_say_which_and_what_grpo_scored_there():
    first = measured.Measured("math", "grpo", 3, 0.8, -0.3, 0.1, 1.0, version="abc", grpo=0.8)
    later = replace(first, method="rmt", score=0.5, score_minus=-0.4, version="def", grpo=0.9)
    text = measured.tables([first, later], {})
    assert "Measured at def, all others at abc: `rmt`, where GRPO scores 0.900;" in text
    assert "Measured at" not in measured.tables([first, replace(later, version="abc")], {})


def test_every_method_is_measured_and_on_the_page():
    rows = measured.read()
    tables = method_outcomes.TABLES.values()
    every = set().union(*(method_outcomes.names(table) for table in tables))
    assert sorted((row.phase, row.method) for row in rows) == sorted(every)
    assert {name for _, name in every} | method_outcomes.LEFT_OUT.keys() == presets().keys()
    assert all(row.version and row.grpo for row in rows)
    page = (ROOT / catalog.PAGE).read_text(encoding="utf-8")
    for name, verdict in measured.verdicts(rows, method_outcomes.LEFT_OUT).items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert line.endswith(f"| {verdict} |")


@pytest.mark.parametrize("table", method_outcomes.TABLES.values(), ids=method_outcomes.TABLES)
def test_its_params_are_one_variant_per_method_on_shared_bases(table: method_outcomes.Table):
    params = load_params(ROOT / table.params)
    assert list(params.variants) == [chosen.name for chosen in table.methods()][1:]
    nodes = compile_plan(params).nodes
    trained = {
        method_outcomes.node_of(chosen.name, phase, seed)
        for phase in table.phases
        for chosen in table.methods(phase)
        for seed in (0, 1, 2)
    }
    idle = {node for node in nodes if "--" in node} - trained
    assert trained <= set(nodes)
    one_step = method_outcomes.MATH_ONLY if table is ENTROPY else {}
    assert {node.split("--")[1] for node in idle} == set(one_step)
    assert all(params.variant(name).phases["creative"].steps == 1 for name in one_step)
    assert sum("--" not in node for node in nodes) == 3


@pytest.mark.parametrize("name", ["entropy controls", "other methods"])
def test_the_page_has_the_markers_that_the_table_goes_between(name: str):
    page = (ROOT / published.FINDINGS).read_text(encoding="utf-8")
    assert [page.count(m) for m in published.markers(name)] == [1, 1]
