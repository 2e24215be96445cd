"""What may be asked of sampling and training, how ranks are started, and that a share of the roll is the roll's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_small import make_roll

from trainorder.config import TrainingConfig, load_params, parse_params
from trainorder.plan import compile_plan
from trainorder.plan.check import check
from trainorder.reading import ParamsError
from trainorder.rl import ranks
from trainorder.rl.backend import slice_of, split_by_size

ROOT = Path(__file__).parents[2]


def params(**sections: Any):
    return parse_params({**load_params(ROOT / "configs/smoke.yaml").model_dump(), **sections})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"ranks": 2}}, "several ranks need `backend: deepspeed`"),
        (
            {"rollout": {"backend": "vllm"}, "training": {"backend": "deepspeed", "ranks": 2}},
            "vllm runs beside one training process",
        ),
        (
            {"rl": {"optimizer": "muon"}, "training": {"backend": "deepspeed"}},
            "rl.optimizer muon needs whole matrices",
        ),
        (
            {
                "rl": {"method": {"terms": [{"clipped_surrogate": {"layers": [0.0, 1.0]}}]}},
                "training": {"backend": "deepspeed"},
            },
            "rl.method.terms.clipped_surrogate.layers needs whole gradients",
        ),
        ({"rl": {"task_lr": {"mth": 0.5}}}, r"rl.task_lr.*mth"),
        (
            {
                "variants": {"v": {"rl": {"optimizer": "muon"}}},
                "training": {"backend": "deepspeed"},
            },
            "variants.v: rl.optimizer muon needs whole matrices",
        ),
        (
            {"variants": {"v": {"phases": {"math": {"rl": {"task_lr": {"mth": 0.5}}}}}}},
            r"variants.v: phases.math.rl.task_lr.*mth",
        ),
    ],
)
def test_impossible_backends_are_refused_at_once(sections: dict[str, Any], message: str):
    with pytest.raises(ParamsError, match=message):
        check(params(**sections))


def settings(**sections: Any) -> dict[str, Any]:
    return compile_plan(params(**sections)).settings()["phases"]["math"]


def test_what_changes_a_checkpoint_is_in_its_settings_and_nothing_else():
    plain = settings()
    assert settings(training={"device": "cpu", "gradient_checkpointing": True}) == plain
    assert settings(rollout={"gpu_memory_share": 0.8, "max_model_len": 512}) == plain
    one, two = (
        settings(**{name: {"threads": n} for name in ("rl", "sft", "evaluation")}) for n in (1, 2)
    )
    assert one == two
    for changed in (
        settings(training={"dtype": "bf16"}),
        settings(training={"lora": {"rank": 4}}),
        settings(training={"backend": "deepspeed", "ranks": 2}),
        settings(rollout={"backend": "vllm"}),
    ):
        assert changed != plain
    hosts = {"backend": "deepspeed", "hostfile": "hosts"}
    assert settings(training=hosts) == settings(training={**hosts, "hostfile": "others"})


def test_several_machines_need_a_hostfile_and_a_way_to_them(tmp_path: Path, monkeypatch):
    training = TrainingConfig(backend="deepspeed", hostfile=str(tmp_path / "hosts"))
    with pytest.raises(ParamsError, match="hosts not found; write one line"):
        ranks.command("stages.rl", ["--node", "x"], training)
    (tmp_path / "hosts").write_text("one slots=2\ntwo slots=2\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ParamsError, match="install pdsh"):
        ranks.command("stages.rl", ["--node", "x"], training)
    (tmp_path / "pdsh").write_text("#!/bin/sh\n")
    (tmp_path / "pdsh").chmod(0o755)
    command = ranks.command("stages.rl", ["--node", "x"], training)
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert command[-4:] == ["--module", "stages.rl", "--node", "x"]
    ports = {c[c.index("--master_port") + 1] for c in (command, ranks.command("x", [], training))}
    assert len(ports) == 2  # two nodes at a time do not meet


def test_noise_of_a_share_is_a_slice_of_the_noise_of_all():
    # what lets each rank sample its prompts as one process would
    whole = torch.rand((6, 17), generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    torch.rand((2, 17), generator=generator)
    assert torch.equal(torch.rand((3, 17), generator=generator), whole[2:5])


def test_shares_cover_everything_once_and_keep_groups_whole():
    roll = make_roll(
        [0.0] * 9, group=[0, 1, 0, 2, 2, 3, 3, 3, 1], lengths=[5, 1, 2, 9, 9, 1, 1, 1, 4]
    )
    for world in (1, 2, 3, 5):
        shares = split_by_size(roll, world)
        assert sorted(i for share in shares for i in share) == list(range(9))
        groups = [set(roll.group[share].tolist()) for share in shares]
        assert sum(map(len, groups)) == 4
        ends = [slice_of(7, rank, world) for rank in range(world)]
        assert [i for first, end in ends for i in range(first, end)] == list(range(7))
