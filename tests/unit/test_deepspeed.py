"""DeepSpeed for real: two ranks on this machine do what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rl_project
import torch

from trainorder.config import TrainingConfig
from trainorder.policy import Policy
from trainorder.rl import ranks as launch

ROOT = Path(__file__).parents[2]
STEPS = 6


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rl_project.make_parent()
    run(folder, "one", {}, ranks=0)
    run(folder, "one3", {}, ranks=0, steps=3)
    return folder


def run(
    folder: Path, out: str, training: dict[str, Any], *, ranks: int = 2, **job: Any
) -> list[dict]:
    """Train in processes of their own, as a launcher starts them; what rank 0 logged."""
    job = {"steps": STEPS, **job, "out": out, "training": training}
    if "hostfile" in training:
        config = TrainingConfig.model_validate(training)
        command = launch.command("rl_project", [json.dumps(job)], config)
    else:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
        command = [sys.executable, "-m", *(launcher if ranks else []), "rl_project"]
        command.append(json.dumps(job))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if ranks == 0 or line.startswith("[rank")]
    assert done.returncode == 0, "\n".join(said[-40:])
    return json.loads((folder / f"{out}.json").read_text())


def assert_same_curve(ours: list[dict], one: list[dict]) -> None:
    assert len(ours) == len(one)
    for a, b in zip(ours, one, strict=True):
        for name in ("rl/loss", "rl/kl_old", "reward/mean"):
            assert a[name] == pytest.approx(b[name], abs=1e-4), name
        # rounding turns the sign of AdamW's first updates here and there, and after some steps one sampled token
        for name in ("rl/grad_norm", "rollout/entropy"):
            assert a[name] == pytest.approx(b[name], rel=0.05), name
        assert a["rollout/tokens"] == b["rollout/tokens"]  # the same answers, token for token


def weights(folder: Path, out: str) -> dict[str, torch.Tensor]:
    return Policy.load(folder / "checkpoints" / out).model.state_dict()


def assert_close_weights(folder: Path, one: str, other: str, *, share: float) -> None:
    """The runs end within this share of the way they went: rounding turns single entries of AdamW's sign."""
    ours, theirs = weights(folder, one), weights(folder, other)
    start = Policy.load(folder / rl_project.PARENT).model.state_dict()
    assert ours.keys() == theirs.keys() == start.keys()

    def norm(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return float(sum(((a[name] - b[name]) ** 2).sum() for name in a) ** 0.5)

    assert norm(ours, theirs) < share * norm(theirs, start)


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_train_like_one_process_and_resume(project: Path, stage: int):
    zero = {"backend": "deepspeed", "zero_stage": stage, "ranks": 2}
    one = json.loads((project / "one.json").read_text())
    first = run(project, f"first{stage}", zero, steps=3)
    second = run(project, f"zero{stage}", zero, steps=3, resume=f"first{stage}")
    assert_same_curve([*first, *second], one)
    for name in ("rl/grad_norm", "rollout/entropy"):  # as long as the same tokens are sampled
        assert [a[name] for a in first] == pytest.approx([b[name] for b in one[:3]], abs=1e-4)
    assert one[0]["rl/loss"] != pytest.approx(one[1]["rl/loss"], abs=1e-3)  # there is a curve
    assert_close_weights(
        project, f"first{stage}", "one3", share=0.02
    )  # no sampled token has turned yet


def test_the_ranks_of_a_hostfile_train_like_one_process(project: Path):
    # one machine, which needs no pdsh; everything else is as with several
    hosts = project / "hosts"
    hosts.write_text("# ours\nlocalhost slots=2\n", encoding="utf-8")
    zero = {"backend": "deepspeed", "zero_stage": 2, "hostfile": str(hosts)}
    found = run(project, "hosts", zero, steps=3)
    assert_same_curve(found, json.loads((project / "one3.json").read_text()))


def test_a_state_goes_from_two_ranks_to_one_process(project: Path):
    if not (project / "first2.pt").exists():
        run(project, "first2", {"backend": "deepspeed", "zero_stage": 2}, steps=3)
    rest = run(project, "local", {}, ranks=0, steps=3, resume="first2")
    assert_same_curve(rest, json.loads((project / "one.json").read_text())[3:])
    assert_close_weights(project, "local", "one", share=0.2)  # 0.39 with AdamW's first moments lost
