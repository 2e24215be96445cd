"""dvc.yaml and the files of plan/ against the code: what each stage declares is what it reads."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from trainorder.config import Params, load_params
from trainorder.fingerprint import closure
from trainorder.paths import PIPELINE, PLAN
from trainorder.plan import compile_plan, names
from trainorder.plan.check import check
from trainorder.reading import read_yaml
from trainorder.warm import HEAVY

ROOT = Path(__file__).parents[2]
SHIPPED = compile_plan(load_params(ROOT / "params.yaml"), read_yaml(ROOT / PLAN)["resolved"])
STAGES: dict[str, dict[str, Any]] = read_yaml(ROOT / "dvc.yaml")["stages"] | SHIPPED.stages()
ONE_OF_EACH = [
    *read_yaml(ROOT / "dvc.yaml")["stages"].keys() - {"fingerprint", "mirror"},
    *map(names.address, ("measure_bwt", "report", "metrics", "judge-reward")),
    *map(names.training, ("base", "s0--math", "s0--creative", "s0--joint", "s0--ties")),
    names.evaluation("base"),
]
FOLDED = {
    "rl": "phases",
    "rollout": {
        "stages.rl": "phases",
        "stages.train_judge": "judges",
        "stages.merge": "merges",
        "stages.evaluate": "evaluation",
    },
    "training": {"stages.rl": "phases"},
    "sft": {"stages.build_data": "tasks"},
    "tasks": {"stages.sft_warmup": "sft", "stages.train_judge": "judges"},
    "judges": {
        "stages.rl": "phases",
        "stages.merge": "merges",
        "stages.evaluate": "evaluation",
    },
}
"""Sections that plan.settings() carries inside another: a phase's rl, rollout and training (other
stages take its dtype alone), the rollout of what else samples, the facts of the tasks a section names, the tasks' counts of lines for a warm-up."""


BOUNDS = {"grading"}
"""Sections that may stop a stage, and never change what it makes."""


def module_of(stage: str) -> str:
    return STAGES[stage]["cmd"].split()[2]


def params_of(stage: str) -> set[str]:
    """Sections of params.yaml in the file of values that the stage depends on."""
    prints = [dep for dep in STAGES[stage]["deps"] if dep.startswith(".fingerprints/")]
    values = [Path(dep).name for dep in prints if dep.endswith(".json")]
    return {key for name in values for key in json.loads(SHIPPED.fingerprints()[name])}


@pytest.mark.parametrize("stage", ONE_OF_EACH)
def test_a_stages_params_are_the_sections_its_code_reads(stage: str):
    read: set[str] = set()
    for file in closure(ROOT, module_of(stage)):
        if library(file):
            read |= sections_read(file)
    read -= {"flow"}  # how fast, and how often step checkpoints are written: changes no result
    read -= BOUNDS
    folded = {
        FOLDED[s] if isinstance(FOLDED.get(s), str) else FOLDED.get(s, {}).get(module_of(stage), s)
        for s in read
    }
    assert folded == params_of(stage)


def test_the_probes_stage_reads_what_its_values_hold():
    read = {s for f in closure(ROOT, "stages.probes") if library(f) for s in sections_read(f)}
    assert read - {"flow"} - BOUNDS == {"probes"}


def library(file: str) -> bool:
    return file.endswith(".py") and not file.startswith(("trainorder/config", "trainorder/plan/"))


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


def test_a_stage_depends_on_its_own_fingerprint_and_on_no_other():
    own = {("train", "base"): "sft_warmup", ("judge", "reward"): "judge_reward"}
    own |= {("train", f"s0--{name}"): f"phase_{name}" for name in ("math", "creative", "joint")}
    for stage in ONE_OF_EACH:
        code, *values = [d for d in STAGES[stage]["deps"] if d.startswith(".fingerprints/")]
        does, made = names.parts(stage)
        name = "merge" if made == "s0--ties" else own.get((does, made), does)
        assert code == f".fingerprints/{name}"
        name = "merge_ties" if made == "s0--ties" else name
        assert values == ([f".fingerprints/{name}.json"] if does != "metrics" else [])
    assert all("python -m " in s["cmd"] for s in STAGES.values())


def test_every_fingerprint_that_a_stage_names_is_written():
    named = {dep for stage in STAGES.values() for dep in stage.get("deps", [])}
    prints = {Path(dep).name for dep in named if dep.startswith(".fingerprints/")}
    assert prints == SHIPPED.fingerprints().keys()


def test_the_flow_keeps_the_imports_of_every_stage_that_needs_torch():
    modules = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert modules - set(HEAVY) == {"fingerprint", "build_data"}


def test_every_stage_module_exists_and_takes_the_arguments_it_is_given():
    for stage in STAGES.values():
        source = (ROOT / (stage["cmd"].split()[2].replace(".", "/") + ".py")).read_text()
        for option in re.findall(r" (--\w+)", stage["cmd"]):
            assert f'"{option}"' in source, (stage["cmd"], option)


@pytest.mark.parametrize(
    "file", ["params.yaml", *sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml"))]
)
def test_every_shipped_params_file_can_work_and_plans(file: str):
    params = load_params(ROOT / file)
    check(params)
    assert len(compile_plan(params).nodes) > len(params.orders)


def test_the_committed_plan_is_of_the_committed_params():
    files = [ROOT / PLAN, *(ROOT / PIPELINE.parent).rglob(PIPELINE.name)]
    committed = {file.relative_to(ROOT): file.read_text() for file in files}
    assert committed == SHIPPED.texts()
