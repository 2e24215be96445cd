"""dvc.yaml against the code: what each stage declares is what it reads."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from trainorder.config import Params, load_params
from trainorder.fingerprint import closure
from trainorder.plan import compile_plan
from trainorder.plan.check import check
from trainorder.plan.compile import GROUPS, SLOTS, STAGE_OF
from trainorder.reading import read_yaml

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = {
    k: v.get("do", v) for k, v in read_yaml(ROOT / "dvc.yaml")["stages"].items()
}
PHASES = {f"{kind}_rl": "phases" for kind in ("structured", "creative", "joint")}
FOLDED = {
    "rl": "phases",
    "rollout": {**PHASES, "train_judge": "judges", "merge": "merges", "evaluate": "evaluation"},
    "training": PHASES,
    "sft": {"build_data": "tasks"},
    "tasks": {"sft_warmup": "sft", "train_judge": "judges"},
    "judges": {**PHASES, "merge": "merges", "evaluate": "evaluation"},
}
"""Sections that plan.settings() carries inside another: a phase's rl, rollout and training (other
stages take its dtype alone), the rollout of what else samples, the facts of the tasks a section names, the tasks' counts of lines for a warm-up."""


BOUNDS = {"grading"}
"""Sections that may stop a stage, and never change what it makes."""


def module_of(stage: str) -> str:
    return STAGES[stage]["cmd"].split()[2]


def params_of(stage: str) -> set[str]:
    """Sections of .fingerprints/params.json that the stage declares."""
    declared = [p.get(".fingerprints/params.json", []) for p in STAGES[stage].get("params", [])]
    keys = {key for keys in declared for key in keys}
    own = "judges" if stage == "train_judge" else "phases"
    return {own if key == "${item.settings}" else key.partition(".")[0] for key in keys}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_params_are_the_sections_its_code_reads(stage: str):
    if stage == "fingerprint":
        return
    read: set[str] = set()
    for file in closure(ROOT, module_of(stage)):
        if file.endswith(".py") and not file.startswith(("trainorder/config", "trainorder/plan/")):
            read |= sections_read(file)
    read -= {"flow"}  # how fast, and how often step checkpoints are written: changes no result
    read -= BOUNDS
    folded = {
        FOLDED[s] if isinstance(FOLDED.get(s), str) else FOLDED.get(s, {}).get(stage, s)
        for s in read
    }
    assert folded == params_of(stage)


METHODS = {"phase_rl": "phases", "named_judges": "judges", "judges_of": "judges"}


@cache
def sections_read(file: str) -> set[str]:
    """`params.sft`, `load_params(...).sft`, `params.phase_rl(...)`."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if owner == "params" or owner.startswith(("load_params(", "self.params")):
            found.add(METHODS.get(node.attr, node.attr))
    return found & Params.model_fields.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_own_fingerprint_and_on_no_other(stage: str):
    if stage == "fingerprint":
        return
    prints = [d for d in STAGES[stage]["deps"] if d.startswith(".fingerprints/")]
    own = "${item.code}" if stage.endswith("_rl") or stage == "train_judge" else stage
    assert prints == [f".fingerprints/{own}"]
    assert all("python -m " in s["cmd"] for s in STAGES.values())


def test_every_stage_module_exists_and_takes_the_arguments_it_is_given():
    for stage in STAGES.values():
        source = (ROOT / (stage["cmd"].split()[2].replace(".", "/") + ".py")).read_text()
        for option in re.findall(r"--\w+", stage["cmd"]):
            assert f'"{option}"' in source, (stage["cmd"], option)


def test_dvc_yaml_has_the_slots_that_the_plan_fills():
    for kind, stage in STAGE_OF.items():
        slots = [d for d in STAGES[stage]["deps"] if "item.inputs[" in d]
        assert slots == [f"${{item.inputs[{i}]}}" for i in range(SLOTS[kind])]
    slots = [d for d in STAGES["train_judge"]["deps"] if "item.inputs[" in d]
    assert slots == [f"${{item.inputs[{i}]}}" for i in range(SLOTS["judge"])]
    exams = [d for d in STAGES["evaluate"]["deps"] if "exams[" in d]
    assert exams == [f"${{exams[{i}]}}" for i in range(SLOTS["exams"])]


def test_groups_of_the_plan_collide_with_no_section_of_the_params():
    # DVC merges params.yaml and plan.yaml into one namespace
    used = read_yaml(ROOT / "dvc.yaml")["vars"][0].partition(":")[2].split(",")
    assert set(GROUPS) < set(used)
    assert not set(used) & Params.model_fields.keys()


@pytest.mark.parametrize(
    "file", ["params.yaml", *sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml"))]
)
def test_every_shipped_params_file_can_work_and_plans(file: str):
    params = load_params(ROOT / file)
    check(params)
    assert len(compile_plan(params).nodes) > len(params.orders)


def test_the_committed_plan_is_of_the_committed_params():
    known = read_yaml(ROOT / "plan.yaml")
    assert (ROOT / "plan.yaml").read_text() == compile_plan(
        load_params(ROOT / "params.yaml"), known["resolved"]
    ).text()
