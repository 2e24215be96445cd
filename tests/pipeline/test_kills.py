"""Killed anywhere and started again, every stage leaves the bytes of the run that was not killed.

Real stages in real processes on a policy of a few thousand weights; a fail-point is a SIGKILL at a named place.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project, make_project
from stage_runner import StageRunner

from trainorder.process import exclusive

pytestmark = pytest.mark.long("every kind of stage trains several times in processes of its own")
PARAMS = """
policy: {hidden_size: 16, num_layers: 1, num_heads: 2, mlp_size: 16, max_positions: 96}
tasks:
  math:     {train: 20, dev: 4, test: 4, max_new_tokens: 48, demonstrations: 60, drills: 40}
  creative: {train: 130, dev: 4, test: 4, max_new_tokens: 48, demonstrations: 60}
sft: {steps: 6, extension: 3, max_steps: 9, gate: {math: 0.0}, batch_size: 8, drill_batch_size: 4, warmup_steps: 2, threads: 2}
judge: {task: creative, prompts: 40, answers: 4, heldout_prompts: 20, epochs: 3, batch_size: 8, min_agreement: 0.5}
rl:
  prompts_per_step: 4
  group_size: 3
  lr: 5.0e-3
  warmup_steps: 3
  updates_per_batch: 2
  method:
    edit: [{dynamic_sampling: {max_rounds: 2}}]
    advantage: [dr_grpo]
    terms: [clipped_surrogate, {kl: {coef: 0.1}}]
phases:
  math:     {kind: structured, tasks: {math: 1}, steps: 4}
  creative: {kind: creative, tasks: {creative: 1}, steps: 4}
  joint:    {kind: mixed, tasks: {math: 1, creative: 2}, steps: 8, rl: {sampler: sec, curriculum: {unlock: {window: 2}}}}
  distil:   {kind: distill, tasks: {math: 1, creative: 1}, steps: 3}
orders: {one: [math, creative], joint: [joint], distil: [distil]}
merges: {dare: {method: dare, density: 0.5}}
evaluation: {samples: 2}
measure: {bootstrap: 100}
flow: {checkpoint_seconds: 0}
allow_unequal_budgets: true
"""
JUDGE = ("--base", "s0", "--tasks", "creative")
RL = ("--seed", "0", "--parent", "s0")
STAGES = {
    "sft_warmup": ("--node", "s0", "--seed", "0"),
    "train_judge": ("--judge", "reward", *JUDGE, "--seed", "0", "--first", "0"),
    "referee": ("--judge", "evaluation", *JUDGE, "--seed", "1", "--first", "60"),
    "rl": ("--node", "s0--joint", "--phase", "joint", "--variant", "default", *RL),
    "structured": ("--node", "s0--math", "--phase", "math", "--variant", "default", *RL),
    "creative": ("--node", "s0--creative", "--phase", "creative", "--variant", "default", *RL),
    "distill": (
        *("--node", "s0--distil", "--phase", "distil", "--variant", "default", *RL),
        *("--teachers", "math=s0--math,creative=s0--creative"),
    ),
    "merge": (
        "--node",
        "s0--dare",
        "--merge",
        "dare",
        "--base",
        "s0",
        "--parents",
        "s0--math,s0--creative",
        "--tasks",
        "math,creative",
        "--seed",
        "0",
    ),
    "evaluate": ("--node", "s0", "--seed", "0"),
}
MODULES = {"structured": "rl", "creative": "rl", "referee": "train_judge"}
"""Entries of STAGES that are runs of one module."""
OUTPUTS = {
    "sft_warmup": ("checkpoints/s0/*", "runs/s0/metrics.jsonl"),
    "train_judge": ("checkpoints/judge/reward/*", "checkpoints/judge/reward.json"),
    "rl": ("checkpoints/s0--joint/*", "runs/s0--joint/drawn.jsonl"),
    "structured": ("checkpoints/s0--math/*", "runs/s0--math/drawn.jsonl"),
    "creative": ("checkpoints/s0--creative/*",),
    "distill": ("checkpoints/s0--distil/*",),
    "merge": ("checkpoints/s0--dare/*",),
    "evaluate": ("evaluations/s0.parquet",),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which every stage of STAGES ran once, undisturbed."""
    project = make_project(tmp_path_factory.mktemp("resume") / "project")
    (project.root / "params.yaml").write_text(PARAMS)
    project.cli("plan")
    return project


@pytest.fixture(scope="module")
def run(project: Project) -> Iterator[StageRunner]:
    runner = StageRunner(project)
    try:
        for stage, arguments in {"fingerprint": (), "build_data": (), **STAGES}.items():
            assert runner(MODULES.get(stage, stage), *arguments) == 0, runner.said()
        yield runner
    finally:
        runner.close()


def content(project: Project, stage: str) -> dict[str, str]:
    found = [
        p for pattern in OUTPUTS[stage] for p in sorted(project.root.glob(pattern)) if p.is_file()
    ]
    assert found
    return {
        str(p.relative_to(project.root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found
    }


def remove_outputs(project: Project, stage: str) -> None:
    """As DVC does before it runs a stage."""
    for pattern in OUTPUTS[stage]:
        for path in project.root.glob(pattern):
            if path.is_file():
                path.unlink()


def metrics(project: Project, node: str) -> list[dict]:
    lines = (project.root / "runs" / node / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines
    ]


KILLS = [
    ("sft_warmup", ["sft.step:1", "sft.step:3"]),
    ("sft_warmup", ["sft.gate"]),
    ("sft_warmup", ["resume.torn:3", "folder.rename:2"]),
    ("train_judge", ["judge.answers"]),
    ("train_judge", ["judge.step:5", "judge.step:3"]),
    ("rl", ["rl.step:1", "rl.step:3", "resume.saved:2"]),
    ("rl", ["resume.torn:4", "rl.end"]),
    ("structured", ["rl.step:2", "resume.torn:3"]),
    ("creative", ["rl.step:3", "folder.rename:1"]),
    ("distill", ["rl.step:2", "resume.torn:2"]),
    ("merge", ["resume.file", "folder.rename"]),
    ("evaluate", ["resume.part:3", "resume.part:4", "file.rename:3"]),
]


@pytest.mark.parametrize(("stage", "kills"), KILLS, ids=lambda value: str(value))
def test_killed_and_started_again_it_leaves_the_same_bytes(project, run, stage, kills):
    module, before = MODULES.get(stage, stage), content(project, stage)
    lines = metrics(project, "s0--joint") if stage == "rl" else None
    shutil.rmtree(project.root / ".resume", ignore_errors=True)
    for kill in kills:
        remove_outputs(project, stage)
        assert run(module, *STAGES[stage], fail_at=kill) == -9, run.said()
    remove_outputs(project, stage)
    assert run(module, *STAGES[stage]) == 0, run.said()
    assert content(project, stage) == before
    if lines is not None:
        assert metrics(project, "s0--joint") == lines


def test_a_resumed_stage_does_not_begin_anew(project, run):
    shutil.rmtree(project.root / ".resume", ignore_errors=True)
    assert run("rl", *STAGES["rl"], fail_at="rl.step:6") == -9
    # 5 steps are saved; of the 8 only 3 are left
    assert run("rl", *STAGES["rl"], fail_at="rl.step:4") == 0


@pytest.mark.parametrize("damage", ["tensors cut off", "one bit of the state"])
def test_a_damaged_step_checkpoint_is_skipped_for_the_one_before(project, run, damage):
    before = content(project, "rl")
    shutil.rmtree(project.root / ".resume", ignore_errors=True)
    assert run("rl", *STAGES["rl"], fail_at="rl.step:5") == -9
    newest = max(project.root.glob(".resume/s0--joint/*/rl/0*"))
    file = newest / ("tensors.safetensors" if damage == "tensors cut off" else "state.json")
    data = bytearray(file.read_bytes())
    if damage == "tensors cut off":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert run("rl", *STAGES["rl"]) == 0, run.said()
    assert f"{newest.relative_to(project.root)} is damaged" in run.said()
    assert content(project, "rl") == before


def test_a_changed_setting_never_goes_on_from_a_stale_state(project, run):
    shutil.rmtree(project.root / ".resume", ignore_errors=True)
    params = (project.root / "params.yaml").read_text()
    changed = params.replace("lr: 5.0e-3", "lr: 4.0e-3")
    (project.root / "params.yaml").write_text(changed)
    assert run("rl", *STAGES["rl"]) == 0
    expected = content(project, "rl")
    shutil.rmtree(project.root / ".resume", ignore_errors=True)
    (project.root / "params.yaml").write_text(params)
    assert run("rl", *STAGES["rl"], fail_at="rl.step:4") == -9
    stale = set(project.root.glob(".resume/s0--joint/*"))
    (project.root / "params.yaml").write_text(changed)
    assert run("rl", *STAGES["rl"]) == 0
    (project.root / "params.yaml").write_text(params)
    assert content(project, "rl") == expected
    assert not stale & set(project.root.glob(".resume/s0--joint/*"))


def test_what_the_next_stage_reads_is_no_longer_kept(project, run):
    (project.root / ".resume" / "s0" / "key").mkdir(parents=True, exist_ok=True)
    assert run("evaluate", *STAGES["evaluate"]) == 0
    assert not (project.root / ".resume" / "s0").exists()


def test_after_a_kill_the_same_mlflow_run_goes_on_without_a_doubled_or_lost_step(project, run):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.root}/mlflow.db")

    def runs() -> dict[str, str]:
        experiment = client.get_experiment_by_name(f"{project.root.name}/nodes")
        found = client.search_runs([experiment.experiment_id])
        return {r.info.run_id: r.info.status for r in found if r.data.tags["node"] == "s0--math"}

    shutil.rmtree(project.root / ".resume", ignore_errors=True)
    before = runs()
    assert run("rl", *STAGES["structured"], fail_at="rl.step:3") == -9
    assert run("rl", *STAGES["structured"]) == 0, run.said()
    after = runs()
    assert set(after.values()) == {"FINISHED"}
    (new,) = after.keys() - before.keys()
    assert json.loads((project.root / "runs/s0--math/run.json").read_text())["run_id"] == new
    for name in ("rollout/reward", "rl/loss"):
        history = client.get_metric_history(new, name)
        assert sorted(m.step for m in history) == [0, 1, 2, 3], name


def test_a_second_process_never_makes_the_same_node(project, run):
    remove_outputs(project, "rl")
    with exclusive(project.root / ".resume" / "s0--joint.lock", "makes s0--joint"):
        assert run("rl", *STAGES["rl"], TRAINORDER_PATIENCE="0.5") == 1
    assert "makes s0--joint; waiting for it" in run.said()
    assert "wait for it or end it" in run.said()
    assert not list((project.root / "checkpoints" / "s0--joint").glob("*.safetensors"))
    assert run("rl", *STAGES["rl"]) == 0, run.said()


def mounted(place: Path, kilobytes: int) -> bool:
    """A small disk of its own at `place`; False where this user may not mount."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def kilobytes_of(folder: Path) -> int:
    """What the files take on a disk with blocks of 4 KiB."""
    sizes = [f.stat().st_size for f in folder.rglob("*") if f.is_file()]
    return sum(-(-size // 4096) * 4 for size in sizes)


@pytest.mark.parametrize("full", [".resume", "checkpoints"])
def test_a_disk_that_fills_in_the_middle_is_said_and_after_making_room_it_goes_on(
    project, run, full
):
    before = content(project, "rl")
    assert run("rl", *STAGES["rl"], fail_at="rl.step:3") in (0, -9)  # step checkpoints are there
    step = kilobytes_of(max(project.root.glob(".resume/s0--joint/*/rl/0*")))
    remove_outputs(project, "rl")
    place, aside = project.root / full, project.root / "aside"
    if full == ".resume":
        shutil.rmtree(place)
        kilobytes = step * 3 // 2  # one fits
    else:
        place.rename(aside)
        kilobytes = kilobytes_of(aside) + 24  # all but the last fit
    if not mounted(place, kilobytes):
        if full == "checkpoints":
            aside.rename(place)
        pytest.skip(
            "this user may not mount a small disk; the file size limit below is tested everywhere"
        )
    try:
        if full == "checkpoints":
            shutil.copytree(aside, place, dirs_exist_ok=True)
        assert run("rl", *STAGES["rl"]) == 1
        assert "no space left on the disk" in run.said()
        assert "run the same command again" in run.said()
        assert "Traceback" not in run.said()
        assert not list((project.root / "checkpoints").glob(".*.tmp"))
        assert not list((project.root / "checkpoints/s0--joint").glob("*.safetensors"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(place)], check=True)
        assert run("rl", *STAGES["rl"], fail_at="rl.step:8") == 0, (
            run.said()
        )  # not from the beginning
        assert content(project, "rl") == before
        if full == "checkpoints":
            shutil.rmtree(aside)
            shutil.copytree(place, aside)
    finally:
        subprocess.run(["umount", str(place)], check=True)
        if full == "checkpoints":
            place.rmdir()
            aside.rename(place)
    if full == ".resume":
        return
    assert content(project, "rl") == before


def test_a_file_that_may_not_grow_leaves_the_one_before_and_no_traceback(project, run):
    before = content(project, "rl")
    remove_outputs(project, "rl")
    shutil.rmtree(project.root / ".resume", ignore_errors=True)
    assert run("rl", *STAGES["rl"], fail_at="rl.step:3") == -9
    # the older one makes room for the one that is written
    newest = sorted(p.name for p in project.root.glob(".resume/s0--joint/*/rl/*"))[-1:]
    elsewhere = {"MLFLOW_TRACKING_URI": "sqlite:////proc/nowhere/mlflow.db"}
    assert run("rl", *STAGES["rl"], TEST_FILE_SIZE="9000", **elsewhere) == 1, run.said()
    assert "no space left on the disk" in run.said()
    assert "Traceback" not in run.said()
    assert sorted(p.name for p in project.root.glob(".resume/s0--joint/*/rl/*")) == newest
    assert run("rl", *STAGES["rl"]) == 0
    assert content(project, "rl") == before
