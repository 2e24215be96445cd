"""DeepSpeed for real: every ZeRO stage, on one rank in this process and on two ranks started by its launcher, trains like plain torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import rl_project
import torch

from trainorder.config import TrainingConfig
from trainorder.policy import Policy
from trainorder.rl import ranks as launch
from trainorder.rl.deepspeed_backend import leave
from trainorder.rl.registry import TERMS
from trainorder.rl.replay import replay
from trainorder.rl.step import rl_step
from trainorder.rl.types import State

pytestmark = pytest.mark.long("DeepSpeed starts in this process and in two ranks of its launcher")
ROOT = Path(__file__).parents[2]
STAGES = [1, 2, 3]
EVERY_ROW = {"terms": ["clipped_surrogate", {"kl": {"coef": 0.01}}]}
CASES: dict[str, dict[str, Any]] = {
    "several updates, refused for their loss in the middle": {
        "terms": ["infinite_loss"],
        "updates_per_batch": 2,
    },
    "serial tasks, one refused for its gradient": {
        "terms": ["infinite_gradient"],
        "serial_tasks": True,
        "task_lr": {"math": 0.5},
    },
}
ONE_REFUSED = CASES["serial tasks, one refused for its gradient"]


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"backend": "deepspeed", "zero_stage": stage, **more}


def rl(**changes: Any) -> dict[str, Any]:
    """Four prompts of three answers, in micro-batches of few tokens."""
    method = {"reward": ["even_tokens"], **EVERY_ROW}
    if "terms" in changes:
        method = {**method, "advantage": ["dr_grpo"], "terms": changes.pop("terms")}
    small = {"prompts_per_step": 4, "group_size": 3, "micro_batch_tokens": 64, "method": method}
    return {**small, "on_nonfinite": "skip", **changes}


@dataclass
class Project:
    """The folder, and what plain torch logged in it."""

    root: Path
    plain: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def curve(self, case: dict[str, Any], count: int = 3) -> list[dict[str, float]]:
        """Steps of plain torch."""
        key = json.dumps([case, count])
        if key not in self.plain:
            made = rl_project.learner_of(rl=rl_project.settings(**rl(**case)))
            self.plain[key] = rl_project.steps(made, State(total=9), count)
        return self.plain[key]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A process group of this process alone."""
    folder = tmp_path_factory.mktemp("deepspeed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**alone, "MASTER_PORT": port}.items():
            patch.setenv(name, str(value))
        for name, entry in rl_project.BROKEN.items():
            patch.setitem(TERMS, name, entry)
        rl_project.make_parent()
        yield Project(folder)
        leave()


def assert_same_curve(ours: list[dict[str, float]], plain: list[dict[str, float]]) -> None:
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain, strict=True):
        assert a["rollout/tokens"] == b["rollout/tokens"]  # the same answers, token for token
        assert a.get("rl/refused") == b.get("rl/refused")
        assert ("rl/grad_norm" in a) == ("rl/grad_norm" in b)
        if "rl/grad_norm" in a:
            assert a["rl/grad_norm"] == pytest.approx(b["rl/grad_norm"], rel=1e-5)
            assert a["rl/loss"] == pytest.approx(b["rl/loss"], rel=1e-5, abs=1e-6)
            assert a["rl/lr"] == b["rl/lr"]
        for name in ("rollout/reward", "rollout/entropy"):
            assert a[name] == pytest.approx(b[name], rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_the_gradient_of_thirteen_micro_batches_is_that_of_plain_torch(
    project: Project, stage: int
):
    config = rl_project.settings(prompts_per_step=1, group_size=13, method=rl()["method"])
    config = config.model_copy(update={"micro_batch_tokens": 1})  # a row each
    found = []
    for training in (TrainingConfig(), TrainingConfig.model_validate(zero(stage))):
        made = rl_project.learner_of(rl=config, training=training)
        sizes = list[int]()
        backend: Any = made.backend
        micro_batches = backend.micro_batches

        def counting(
            *args: Any, micro_batches: Any = micro_batches, sizes: list[int] = sizes
        ) -> Any:
            sizes.append(len(batches := micro_batches(*args)))
            return batches

        backend.micro_batches = counting
        found.append(rl_step(made, State(total=1)))
        assert set(sizes) == {13}
    assert found[1]["rl/grad_norm"] == pytest.approx(found[0]["rl/grad_norm"], rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", CASES)
def test_a_curve_is_that_of_plain_torch(project: Project, stage: int, case: str):
    training = TrainingConfig.model_validate(zero(stage))
    made = rl_project.learner_of(rl=rl_project.settings(**rl(**CASES[case])), training=training)
    plain = project.curve(CASES[case])
    assert_same_curve(rl_project.steps(made, State(total=9), 3), plain)
    assert 0 < sum(line.get("rl/refused", 0) for line in plain) < 4
    assert any("rl/grad_norm" in line for line in plain)


def test_a_dump_of_adapters_under_zero_3_holds_the_weights_that_the_update_met(
    project: Project, tmp_path: Path
):
    training = TrainingConfig.model_validate(zero(3, lora={"rank": 2}))
    config = rl_project.settings(**rl(terms=["infinite_loss"]))
    made = replace(rl_project.learner_of(rl=config, training=training), dumps=tmp_path)
    rl_project.steps(made, State(total=9), 2)  # the second is refused
    (place,) = tmp_path.iterdir()
    dumped = Policy.load(place / "policy").model.state_dict()
    for name, weight in made.backend.weights():
        torch.testing.assert_close(dumped[name], weight, msg=name)
    found = replay(place)
    assert found["again"] == found["not_finite"] == ["loss"]
    parent = Policy.load(rl_project.PARENT).model.state_dict()
    assert not all(torch.equal(parent[name], weight) for name, weight in dumped.items())


def test_two_ranks_of_a_hostfile_train_like_one_process_and_go_on_from_its_state(project: Project):
    """One launch: it takes longer than all that the ranks compute."""
    rl_project.run_job({"out": "start", "steps": 2, "rl": rl(), "training": {}})
    (project.root / "hosts").write_text("# ours\nlocalhost slots=2\n", encoding="utf-8")
    jobs = [
        {"out": f"zero{stage}", "steps": 1, "rl": rl(), "training": zero(stage), "resume": "start"}
        for stage in STAGES
    ]
    for stage in (2, 3):  # whole; in parts from its step checkpoints, the newest one damaged
        job = {"rl": rl(), "training": zero(stage)}
        parts = {**job, "shards": f"shards{stage}"}
        jobs.append({**job, "out": f"whole{stage}", "steps": 3})
        jobs.append({**parts, "out": f"begun{stage}", "steps": 2})
        jobs.append({**parts, "out": f"again{stage}", "steps": 2})
        jobs.append({**parts, "out": f"resumed{stage}", "steps": 3, "damage": True})
    jobs.append({"out": "refused", "steps": 2, "rl": rl(**ONE_REFUSED), "training": zero(3)})
    training = TrainingConfig.model_validate(zero(3, hostfile=str(project.root / "hosts")))
    done = subprocess.run(
        launch.command("rl_project", [json.dumps(jobs)], training),
        env={
            **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")},
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OMP_NUM_THREADS": "1",
        },
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    plain = project.curve({}, 4)
    assert plain[1]["rl/loss"] != pytest.approx(plain[2]["rl/loss"], abs=1e-3)  # there is a curve
    for stage in STAGES:
        assert_same_curve(read(project.root / f"zero{stage}.json"), plain[2:3])
    for stage in (2, 3):
        assert len(read(project.root / f"again{stage}.json")) == 0  # all was done
        assert (
            len(read(project.root / f"resumed{stage}.json")) == 2
        )  # from the one before the damaged
        whole, resumed = (torch.load(f"{name}{stage}.pt") for name in ("whole", "resumed"))
        assert whole["state"] == resumed["state"]
        assert whole["tensors"].keys() == resumed["tensors"].keys()
        for name, tensor in whole["tensors"].items():
            assert torch.equal(tensor, resumed["tensors"][name]), name
        folders = sorted((project.root / f"shards{stage}").iterdir())
        assert [folder.name for folder in folders] == ["rl-0000-of-0002", "rl-0001-of-0002"]
        assert [sorted(p.name for p in folder.iterdir()) for folder in folders] == [
            ["000002", "000003"]
        ] * 2
        sizes = [bytes_of(folder / "000003") for folder in folders]
        assert sum(sizes) == pytest.approx(bytes_of_tensors(whole["tensors"]), rel=0.05)
        assert max(sizes) < 0.6 * sum(sizes)
    assert_same_curve(read(project.root / "refused.json"), project.curve(ONE_REFUSED)[:2])
    dumps = sorted((project.root / "dumps" / "refused").iterdir())
    assert [replay(place)["again"] for place in dumps] == [["grad_norm"]]
    # back from two ranks to one process: the same state, and the same next step
    ours, made = rl_project.learner_of(rl=rl_project.settings(**rl())), torch.load("zero3.pt")
    ours.backend.restore(made["tensors"])
    state = State.from_state_dict(made["state"])
    assert (state.step, state.updates) == (3, 3)
    assert_same_curve([rl_step(ours, state)], plain[3:])


def bytes_of(folder: Path) -> int:
    return (folder / "tensors.safetensors").stat().st_size


def bytes_of_tensors(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def read(file: Path) -> list[dict[str, float]]:
    return json.loads(file.read_text(encoding="utf-8"))
