"""An experiment that begins at a model of the user's, through DVC, to its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import Project, make_project
from foreign_model import write_gguf

from trainorder.reading import read_yaml

pytestmark = pytest.mark.long(
    "two seeds of two phases (RL, then SFT on rows) from a GGUF model in a package, by DVC"
)
TASK = {"kind": "math", "train": 8, "dev": 2, "test": 2, "max_new_tokens": 120}
PARAMS = {
    "policy": {"path": "package:llm_tiny"},
    "sft": None,
    "tasks": {"sums": TASK, "more": TASK},
    "rl": {"prompts_per_step": 2, "group_size": 2, "warmup_steps": 0},
    "training": {"lora": {"rank": 2}},
    "phases": {
        "sums": {"kind": "structured", "tasks": {"sums": 1.0}, "steps": 1},
        "more": {"kind": "sft", "tasks": {"more": 1.0}, "steps": 2, "data": "rows.jsonl"},
    },
    "orders": {"first": ["sums", "more"]},
    "merges": {"mean": {"method": "average"}},
    "seeds": [0, 1],
    "evaluation": {"samples": 1},
    "measure": {"bootstrap": 100},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]) -> Project:
    """The project, brought up to date by `dvc repro`."""
    project = make_project(tmp_path_factory.mktemp("own") / "project")
    package = project.root / "llm_tiny"
    package.mkdir()
    (package / "__init__.py").touch()
    write_gguf(tmp_path_factory.mktemp("made") / "tiny.gguf").rename(package / "tiny.gguf")
    (project.root / "rows.jsonl").write_text('{"prompt": "2 + 2 = ?", "completion": "4"}\n')
    (project.root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    project = replace(project, settings=warm)
    project.cli("plan")
    project.dvc("repro")
    return project


def nodes(project: Project) -> list[str]:
    return sorted(path.name for path in (project.root / "checkpoints").iterdir())


def test_seeds_begin_at_one_base_that_is_evaluated_once(done: Project):
    assert (
        "stages.sft_phase --node s1--sums--more"
        in (done.root / "plan/s1--sums--more/dvc.lock").read_text()
    )
    singles = [f"s{seed}--{rest}" for seed in (0, 1) for rest in ("mean", "more", "sums", "sums--more")]  # fmt: skip
    assert nodes(done) == ["base", *singles]
    assert not list((done.root / "checkpoints" / "base").glob("*.safetensors"))
    assert sorted(path.stem for path in (done.root / "evaluations").iterdir()) == nodes(done)
    bwt = json.loads((done.root / "reports" / "bwt.json").read_text())
    base = next(row for row in bwt["ranking"] if row["arm"] == "base")
    assert base["nodes"] == {"0": "base", "1": "base"}
    assert "2 training seeds of RL from one base" in bwt["intervals"]["note"]
    for seed in (0, 1):
        record = json.loads((done.root / f"checkpoints/s{seed}--sums/base.json").read_text())
        assert record["base"] == "checkpoints/base"


def test_all_of_it_is_current_and_as_recorded(done: Project):
    assert done.dvc("status").stdout == "fingerprint:\n\talways changed\n"
    assert done.cli("verify").stdout == "every node: as recorded\n"
    shown = done.cli("plan").stdout
    assert "base  package:llm_tiny as it is  cached" in shown
    assert "s1 sums  structured  cached" in shown
    assert "converted" not in done.cli("gc").stdout  # what params.yaml names is in use
    locks = {file.parent.name: file.read_text() for file in done.root.glob("plan/*/dvc.lock")}
    assert not [node for node, text in locks.items() if "sft_warmup" in text]
    assert "llm_tiny" not in json.dumps(
        read_yaml(done.root / "plan/base/dvc.lock")["stages"]["train"]["deps"]
    )


def test_a_node_is_exported_whole_and_another_model_stales_the_base(done: Project, tmp_path: Path):
    done.cli("export", "s0--sums", str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 40_000
    other = done.root / "llm_tiny" / "tiny.gguf"
    kept = other.read_bytes()
    try:
        other.unlink()
        other.write_bytes(write_gguf(tmp_path / "other.gguf", seed=1).read_bytes())
        stale = done.cli("plan").stdout
        assert "9 new, 0 restorable, 0 cached" in stale
        assert "a converted model that params.yaml does not name" in done.cli("gc").stdout
    finally:
        other.write_bytes(kept)
        done.cli("plan")
