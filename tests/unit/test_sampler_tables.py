"""The tables of samplers, from evaluations and records whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import published, samplers
from trainorder import paths
from trainorder.config import load_params
from trainorder.plan import compile_plan

ROOT = Path(__file__).parents[2]


def leave(node: str, scores: dict[str, float], tokens: tuple[int, ...] = ()) -> None:
    """An evaluation with these test scores, and the records of a step per number of tokens."""
    rows = [
        {"node": node, "seed": 0, "split": split, "task": task, "problem": f"{task}/0"}
        | {"metric": "score", "value": value}
        for task, value in scores.items()
        for split in ("dev", "test")
    ]
    paths.evaluation(node).parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(paths.evaluation(node))
    paths.run(node).mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": i, "rollout/tokens": count}) for i, count in enumerate(tokens)]
    (paths.run(node) / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_a_sampler_is_compared_with_even_drawing_of_the_same_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    leave("base", {"math": 0.1, "code": 0.1, "qa": 0.5})
    for seed, lead in ((0, 0.1), (1, 0.3)):
        leave(f"s{seed}--tasks_uniform", {"math": 0.5, "code": 0.3, "qa": 0.6}, (200, 400))
        leave(f"s{seed}--tasks_sec", {"math": 0.5 + lead, "code": 0.3 + lead, "qa": 0.6 - lead}, (900,))  # fmt: skip
    lines = list(samplers.table("tasks", samplers.on_tasks(), ("math", "code")))
    assert lines[2:] == [
        "| `uniform` | 0.400 |  | +0.100 |  | 1.00 x |",
        "| `sec` | 0.600 | +0.200 (se 0.100) | -0.100 | -0.200 (se 0.100) | 1.50 x |",
    ]


def test_the_params_file_has_every_sampler_and_curriculum_beside_even_drawing():
    text = (ROOT / samplers.PARAMS).read_text(encoding="utf-8")
    assert text == samplers.params_text()
    nodes = compile_plan(load_params(ROOT / samplers.PARAMS)).nodes
    listed = {*samplers.SAMPLERS, *samplers.ITEMS, *samplers.CURRICULA}
    every = [*samplers.on_tasks(), *samplers.on_items()]
    assert set(every) == (listed - samplers.LEFT_OUT.keys()) | {*samplers.LEVELS}
    assert len(nodes) == 1 + 3 * len(every)


def test_the_page_has_the_markers_that_the_tables_go_between():
    page = (ROOT / published.FINDINGS).read_text(encoding="utf-8")
    assert [page.count(marker) for marker in published.markers("samplers")] == [1, 1]
