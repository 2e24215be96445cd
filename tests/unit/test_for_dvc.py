"""What `dvc metrics` and `dvc plots` read is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from order_worlds import default_world

from trainorder import paths
from trainorder.config import MeasureConfig
from trainorder.measure import measure
from trainorder.plan.design import from_plan
from trainorder.report import for_dvc
from trainorder.report.words import Bwt
from trainorder.results import to_json


@pytest.fixture(scope="module")
def bwt() -> Bwt:
    world = default_world(problems=16, merges=("average",))
    return json.loads(
        to_json(measure(world.table(), from_plan(world.plan()), MeasureConfig(bootstrap=100)))
    )


@pytest.fixture
def written(bwt: Bwt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = paths.run("s0--math") / "metrics.jsonl"
    file.parent.mkdir(parents=True)
    rows = [{"step": s, "rollout/reward": s / 10, "rollout/entropy": 1 / s} for s in (1, 2)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"step": 3, "alarm/x": 1}]))
    for_dvc.write(bwt)
    return tmp_path / "reports"


def test_every_arm_has_its_scores_in_a_file_of_its_own(written: Path, bwt: Bwt):
    found = {file.stem: json.loads(file.read_text()) for file in written.glob("metrics/*.json")}
    rows = {row["arm"]: row for row in bwt["ranking"]}
    assert found.keys() == rows.keys() >= {"joint", "average", "base"}
    assert found["joint"]["mean"] == round(rows["joint"]["mean"]["value"], 4)
    assert found["base"]["qa"] == round(rows["base"]["tasks"]["qa"]["value"], 4)


def test_an_order_is_drawn_from_the_base_to_its_last_phase(written: Path):
    table = pd.read_csv(written / "plots/orders.csv")
    own = table[(table["order"] == "structured_first") & (table["task"] == "math")]
    assert list(own["position"]) == list(range(len(own)))
    assert own["phase"].iloc[0] == "base"
    last = json.loads((written / "metrics/structured_first.json").read_text())
    assert own["score"].iloc[-1] == last["math"]
    assert own["entropy"].notna().all()


def test_rewards_and_transfer_are_tables(written: Path, bwt: Bwt):
    curves = pd.read_csv(written / "plots/rewards.csv")
    assert curves.to_dict("list") == {
        "node": ["s0--math"] * 2, "phase": ["math"] * 2, "step": [1, 2], "reward": [0.1, 0.2],
        "entropy": [1.0, 0.5],
    }  # fmt: skip
    change = pd.read_csv(written / "plots/transfer.csv").set_index(["phase", "task"])["change"]
    known = bwt["transfer"]["from_base"]["test"]["math"]["code"]["value"]
    assert change["math", "code"] == round(known, 4)
