"""`rl: {method: {preset: NAME}}`: what it stands for, what stands beside it, and what depends on it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from trainorder.cli import app
from trainorder.config import (
    EvaluationConfig,
    JudgeConfig,
    MergeConfig,
    MethodConfig,
    Params,
    RlConfig,
    parse_params,
)
from trainorder.config.presets import presets
from trainorder.evaluation import ways  # noqa: F401  fills WAYS
from trainorder.evaluation.sitting import WAYS
from trainorder.fingerprint import Code, closure, compute
from trainorder.order import PREDICTORS, RULES, TEXT_RULES
from trainorder.plan import compile_plan
from trainorder.reading import ParamsError
from trainorder.registries import PROBES
from trainorder.rl import catalog, choosers
from trainorder.rl.elsewhere import ELSEWHERE, HERE_OR_LEFT_OUT
from trainorder.rl.items import Picker
from trainorder.rl.method import Method
from trainorder.rl.registry import SLOTS, Entry

ROOT = Path(__file__).parents[2]


def params(*, phase: dict[str, Any] | None = None, rl: dict[str, Any] | None = None) -> Params:
    return parse_params(
        {
            "tasks": {"math": {}},
            "rl": rl or {},
            "phases": {
                "math": {
                    "kind": "structured",
                    "tasks": {"math": 1.0},
                    "steps": 2,
                    "rl": phase or {},
                }
            },
            "orders": {"one": ["math"]},
        }
    )


def test_a_preset_is_the_method_that_it_spells_out():
    written = {"method": {"advantage": ["grpo"], "terms": ["gspo"], "reduction": "sequence"}}
    spelled = params(phase={**written, "updates_per_batch": 4})
    short = params(phase={"method": {"preset": "gspo"}})
    assert short.phase_rl("math") == spelled.phase_rl("math")
    assert short.phase_rl("math").pieces() >= {("terms", "gspo")}


def test_keys_beside_a_preset_replace_its_own_and_settings_beside_the_method_too():
    rl = RlConfig.model_validate(
        {"updates_per_batch": 2, "method": {"preset": "gspo", "reduction": "token"}}
    )
    assert (rl.method.terms, rl.method.reduction, rl.updates_per_batch) == (["gspo"], "token", 2)


def test_a_phase_with_a_preset_takes_nothing_of_the_common_method():
    base = {"method": {"weight": ["finished_only"], "terms": ["cispo"]}, "group_size": 4}
    rl = params(rl=base, phase={"method": {"preset": "rloo"}}).phase_rl("math")
    assert rl.method == MethodConfig(
        advantage=["rloo"], terms=["clipped_surrogate"], reduction="sequence"
    )
    assert rl.group_size == 4


def test_a_variant_replaces_the_preset_of_a_phase():
    given = params(phase={"method": {"preset": "gspo", "weight": ["finished_only"]}}).model_dump()
    given["variants"] = {"other": {"phases": {"math": {"rl": {"method": {"preset": "rloo"}}}}}}
    rl = parse_params(given).variant("other").phase_rl("math")
    assert (rl.method.advantage, rl.method.weight) == (["rloo"], [])


@pytest.mark.parametrize("where", ["phase", "rl"])
def test_an_unknown_preset_is_refused_with_the_nearest_one(where):
    with pytest.raises(ParamsError, match=r"no preset 'gsop' \(did you mean 'gspo'\?\)"):
        params(**{where: {"method": {"preset": "gsop"}}})


def test_records_hold_the_expanded_method_and_stages_depend_on_no_preset():
    plan = compile_plan(params(phase={"method": {"preset": "gspo"}}))
    code = plan.code()["phase_math"]
    recorded = plan.params.phases["math"].results()["rl"]["method"]
    assert "preset" not in recorded
    assert recorded["terms"] == ["gspo"]
    files = compute({"phase_math": code}, ROOT)["phase_math"]
    assert "trainorder/rl/pieces/losses.py" in files
    assert "presets" not in files
    assert not [f for f in closure(ROOT, "stages.report") if "presets" in f]


def test_a_new_piece_in_every_family_changes_no_phase_though_it_names_all_others(tmp_path: Path):
    for name in ("trainorder", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    named = frozenset((slot, name) for slot, listed in SLOTS.items() for name in listed)
    code = {"phase": Code("stages.rl", pieces=named)}
    before = compute(code, tmp_path)
    families = [f for f in (tmp_path / "trainorder/rl/pieces").glob("*.py") if f.stem != "__init__"]
    for number, file in enumerate(families):
        new = f"\n\n@listed\ndef brand_new_{number}(roll, state):\n    return {{}}\n"
        listed = "\n\nfrom trainorder.rl.registry import metric as listed"
        file.write_text(file.read_text() + listed + new)
    assert len(families) > 20
    assert compute(code, tmp_path) == before
    losses = tmp_path / "trainorder/rl/pieces/losses.py"
    losses.write_text(losses.read_text().replace("1 - clip_low", "1 - 2 * clip_low"))
    assert compute(code, tmp_path) != before


def test_the_command_lists_every_preset_and_prints_what_one_is():
    run = CliRunner()
    rows = json.loads(run.invoke(app, ["methods", "--json"]).output)
    methods, rest = rows[: len(presets())], rows[len(presets()) :]
    assert [row["name"] for row in methods] == list(presets())
    chosen = {(key, name) for key, listed in catalog.CHOOSERS.items() for name in listed}
    used = {piece for name in presets() for piece in RlConfig(method={"preset": name}).pieces()}
    lone = {(slot, name) for slot, listed in SLOTS.items() for name in listed} - used
    assert {(row["slots"][0], row["name"]) for row in rest} >= chosen | lone
    assert {("plan", "distracted"), ("weight", "answer_reranking")} <= lone
    assert {row["name"] for row in rest if "method" in row["family"]} <= {n for _, n in lone} | {
        "graded"
    }
    keys = {"name", "family", "slots", "needs", "papers", "neutral", "status", "summary"}
    assert all(keys <= set(row) for row in rows)
    assert {row["status"] for row in rows} == {"grounded", "partly", "ours"}
    for row in rest:  # the line reads back, and names what it says
        read = RlConfig.model_validate(yaml.safe_load(row["params"])["rl"])
        assert (row["slots"][0], row["name"]) in read.pieces()
    shown = run.invoke(app, ["methods", "dapo"]).output
    for text in ("arXiv:2503.14476", "rl: {method: {preset: dapo}}", "edit: [dynamic_sampling]"):
        assert text in shown
    assert "clip_low: 0.2, clip_high: 0.2, dual_clip: null" in shown
    assert "Not offered: max_asym, the default mode" in run.invoke(app, ["methods", "lead"]).output
    told = run.invoke(app, ["methods", "sec_buckets"]).output
    assert "rl: {items: {sec_buckets: {by: length, bins: 4, alpha: 0.1," in told
    assert "Per-token estimate of KL" in run.invoke(app, ["methods", "kl"]).output


def test_a_piece_from_outside_of_the_package_is_listed_as_ours(monkeypatch):
    entry = Entry("reward", "from_outside", lambda roll, state: roll.rewards)
    monkeypatch.setitem(SLOTS["reward"], "from_outside", entry)
    (row,) = [row for row in catalog.rest() if row["name"] == "from_outside"]
    assert (row["status"], row["needs"], row["presets"]) == ("ours", [], [])


def test_every_name_of_the_package_says_how_far_it_is_grounded():
    lone = {row["name"] for row in catalog.rest() if row["status"] == "ours"}
    outside = {
        entry.name
        for listed in SLOTS.values()
        for entry in listed.values()
        if not entry.function.__module__.startswith("trainorder.")
    }
    assert lone - outside == choosers.OURS


def test_one_name_as_json_is_all_that_has_it():
    run = CliRunner()

    def asked(name: str) -> list[dict[str, Any]]:
        return json.loads(run.invoke(app, ["methods", name, "--json"]).output)

    assert [row["family"] for row in asked("cures")] == ["curricula", "rl.items"]
    (kl,) = asked("kl")
    assert (kl["slots"], kl["needs"], kl["status"]) == (["terms"], ["ref_logps"], "grounded")
    assert "grpo" in kl["presets"]
    (edco,) = [row for row in asked("edco") if row["family"] == "rl.items"]
    assert (edco["needs"], edco["neutral"], edco["status"]) == (["prefix_entropy"], None, "partly")
    assert [row["neutral"] for row in asked("mt_grpo")][1] == {"lr": 0.0}


def test_the_lines_that_are_printed_read_back_as_the_preset():
    for name, chosen in presets().items():
        for text in (catalog.short_rows(chosen), catalog.long_rows(chosen)):
            read = RlConfig.model_validate(yaml.safe_load(text)["rl"])
            assert read == catalog.config_of(chosen), name


def test_a_name_that_is_neither_method_nor_piece_is_refused_with_the_nearest_one():
    with pytest.raises(
        ParamsError, match=r"no method or piece 'cispoo' \(did you mean 'cispo'\?\)"
    ):
        catalog.describe("cispoo")
    run = CliRunner()
    assert run.invoke(app, ["methods", "cispoo"]).exit_code == 2
    told = run.invoke(app, ["methods", "sec_bucket", "--json"])
    assert (told.exit_code, "did you mean 'sec_buckets'?" in told.output) == (2, True)


def test_what_stands_in_for_a_left_out_idea_exists():
    words, rows = [], []
    for one in (*ELSEWHERE, *HERE_OR_LEFT_OUT):
        quoted = re.findall(r"`([^`]+)`", one.here)
        words += [word for word in quoted if re.fullmatch(r"[a-z_]+", word)]
        rows += [text for text in quoted if re.match(r"(rl|evaluation): ", text)]
    pieces = [name for listed in (*SLOTS.values(), *catalog.CHOOSERS.values()) for name in listed]
    options = [*RlConfig.model_fields, *MergeConfig.model_fields, *JudgeConfig.model_fields, "anti"]
    known = {*presets(), *pieces, *PROBES, *WAYS, *RULES, *TEXT_RULES, *PREDICTORS, *options}
    assert len(words) > 15
    assert set(words) <= known
    assert len(rows) > 10
    for text in rows:
        ((section, value),) = yaml.safe_load(text).items()
        parsed = {"rl": RlConfig, "evaluation": EvaluationConfig}[section].model_validate(value)
        if section == "rl":
            Method.from_config(parsed.method)
            Picker.of(parsed.items)
