"""From the preset to own things: one line of params.yaml for the model, one for rows, one for the judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT
from foreign_model import write_model
from judge_server import judge_server

from trainorder import preflight
from trainorder.config import Params, parse_params
from trainorder.plan import Plan, compile_plan
from trainorder.plan.check import check
from trainorder.project import PRESETS
from trainorder.reading import read_yaml

MODEL = "policy: {path: mine}"
ROWS = "  math:        {data: rows.jsonl, max_new_tokens: 48}"
JUDGE = "judges: {referee: {kind: endpoint, base_url: '%s', model: m, same_in_both_roles: true}}"


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def edited(*lines: str, preset: str = "tiny") -> Params:
    """The preset's params, each of these lines in place of the one that begins with the same key."""
    text = (ROOT / PRESETS[preset]).read_text()
    for line in lines:
        key = line.partition(":")[0].replace("judges", "judge")
        old: Sequence[str] = [row for row in text.splitlines() if row.startswith(f"{key}:")]
        text = text.replace(old[0], line)  # tasks stand before the phases of their names
    Path("params.yaml").write_text(text)
    return parse_params(read_yaml(Path("params.yaml")))


def planned(params: Params) -> Plan:
    check(params)
    return compile_plan(params)


def test_one_line_names_the_model_which_begins_rl_as_it_is():
    write_model(Path("mine"), max_position_embeddings=1024)
    before, plan = planned(edited()), planned(edited(MODEL))
    assert (before.nodes["base"].kind, plan.nodes["base"].kind) == ("base", "model")
    assert plan.nodes.keys() == before.nodes.keys()
    [begins, rate] = preflight.lines(plan.params)
    assert begins == "policy.path mine: begins RL as it is, without a warm-up (`sft`)"
    assert rate.startswith("rl.lr 0.0003 moves all weights of a trained model far; 1e-6 to 1e-5")
    assert preflight.lines(before.params) == []


def test_a_warm_up_that_is_asked_for_is_made_and_its_rates_are_looked_at():
    plan = planned(edited(MODEL, preset="one-gpu"))
    assert plan.nodes["base"].kind == "base"
    assert preflight.lines(plan.params) == []
    sft = {**plan.params.model_dump(exclude_defaults=True), "sft": {"steps": 10}}
    [note] = preflight.lines(parse_params(sft))
    assert note.startswith("sft: its learning rates are those of a model from scratch")


def test_a_model_without_a_section_sft_has_no_warm_up_and_the_built_in_one_has_one():
    given = {
        "tasks": {"math": {}},
        "phases": {"math": {"kind": "structured", "tasks": {"math": 1}, "steps": 1}},
        "orders": {"one": ["math"]},
    }
    assert parse_params(given).sft is not None
    assert parse_params(given | {"policy": {"path": "mine"}}).sft is None
    always = given | {"policy": {"path": "mine"}, "sft": {"steps": 3}}
    assert parse_params(always).sft is not None
    assert parse_params(always | {"sft": {"steps": 3, "when": "scratch"}}).sft is None


def test_one_line_names_the_rows_of_a_task():
    rows = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(200)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = planned(edited(ROWS))
    preflight.check(plan.params)
    [said, _] = preflight.lines(plan.params)
    assert said.startswith("tasks.math: 200 rows of trainorder; train ")
    assert said.endswith("graded by number 200")
    assert plan.nodes.keys() == planned(edited()).nodes.keys()


def test_one_line_names_the_judge():
    with judge_server() as server:
        plan = planned(edited(JUDGE % server.url))
        [said] = preflight.judges.check(plan.params)
        assert len(server.requests) == 2
    assert said.startswith(f"judges.referee: m at {server.url} answers")
    assert set(plan.judges) == {"referee"}
