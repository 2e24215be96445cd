"""A LoRA node is its adapter: small, read by peft, continued by its children, refused where it cannot be trusted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_project import PARENT, build_parent, settings
from typer.testing import CliRunner

from trainorder.adapters import weights_hash
from trainorder.cli import app
from trainorder.config import LoraConfig, MergeConfig, PhaseConfig, TrainingConfig
from trainorder.merge import merge_folders
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.resume import Work
from trainorder.rl.step import rl_step
from trainorder.rl.trainer import make_learner, train_phase
from trainorder.rl.types import State

TASK = {"train": 6, "dev": 2, "test": 2, "demonstrations": 5, "max_new_tokens": 48}
LORA = TrainingConfig(lora=LoraConfig(rank=2, alpha=4.0))
PHASE = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=2)
ONE, TWO = Path("checkpoints/one"), Path("checkpoints/two")
IDS = torch.tensor([[1, 7, 9, 4, 12, 5]])
TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


class Log:
    """Keeps nothing; stops before line `end`, as a kill would."""

    def __init__(self, end: int = 99) -> None:
        self.end = end

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step == self.end:
            raise KeyboardInterrupt

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def train(parent: Path, out: Path, work: Work | None = None, log: Log | None = None) -> None:
    train_phase(
        parent,
        out,
        "math",
        PHASE,
        settings(lr=0.02),
        0,
        log or Log(),
        work or Work(),
        training=LORA,
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and two phases with adapters on it."""
    folder = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_parent({"math": TASK})
        train(PARENT, ONE)
        train(ONE, TWO)
    return folder


@pytest.fixture(autouse=True)
def inside(order: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(order)


@pytest.mark.parametrize("node", [ONE, TWO])
def test_peft_reads_a_node_and_computes_what_we_do(node: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(PARENT), node)
    ours = Policy.load(node).model
    torch.testing.assert_close(logits(ours), logits(theirs), **TOLERANCE)
    assert not torch.allclose(logits(ours), logits(Policy.load(PARENT).model), **TOLERANCE)


def test_a_node_holds_its_adapter_and_no_weights_of_the_base():
    base = (PARENT / "model.safetensors").stat().st_size
    for node in (ONE, TWO):
        assert not list(node.glob("model*.safetensors"))
        assert (node / "adapter_model.safetensors").stat().st_size < base / 3
    assert weights_hash(ONE) != weights_hash(TWO)


def test_a_child_begins_as_its_parent_merged_and_is_compared_with_it_on_one_base():
    learner = make_learner(ONE, "math", PHASE, settings(lr=0.02), 0, training=LORA)
    model, reference = learner.policy.model, learner.models["reference"]
    parent = logits(Policy.load(ONE).model)
    torch.testing.assert_close(logits(model), parent, **TOLERANCE)
    rl_step(learner, State(total=9))
    assert not torch.allclose(logits(model), parent, **TOLERANCE)
    torch.testing.assert_close(logits(reference), parent, **TOLERANCE)
    own = {p.data_ptr() for p in model.parameters() if not p.requires_grad}
    apart = [p for p in reference.parameters() if p.data_ptr() not in own]
    assert sum(p.numel() for p in apart) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert not any(name.startswith("reference") for name in learner.tensors())


def test_a_killed_phase_ends_with_the_same_bytes(tmp_path: Path):
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        train(ONE, tmp_path / "two", Work(work, seconds=0), Log(end=1))
    assert list(work.rglob("tensors.safetensors"))
    train(ONE, tmp_path / "two", Work(work, seconds=0))
    assert weights_hash(tmp_path / "two") == weights_hash(TWO)


def test_a_child_with_all_weights_trained_begins_from_the_merged_parent():
    learner = make_learner(ONE, "math", PHASE, settings(), 0)
    torch.testing.assert_close(
        logits(learner.policy.model), logits(Policy.load(ONE).model), **TOLERANCE
    )


def test_merging_takes_the_weights_that_adapters_make(tmp_path: Path):
    merge_folders(PARENT, [ONE, TWO], tmp_path / "mean", MergeConfig(method="average"))
    parts = [Policy.load(node).model.state_dict() for node in (ONE, TWO)]
    for name, weight in Policy.load(tmp_path / "mean").model.state_dict().items():
        torch.testing.assert_close(weight, (parts[0][name] + parts[1][name]) / 2)


def test_export_writes_what_transformers_reads(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", "two", str(out)])
    assert done.exit_code == 0, done.output
    theirs = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(theirs), logits(Policy.load(TWO).model))
    assert CliRunner().invoke(app, ["export", "two", str(out)]).exit_code == 2  # it exists now


def cut(node: Path) -> None:
    file = node / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def change_base(node: Path) -> None:
    policy = Policy.load(PARENT)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.01)
    policy.save(node.parent / "base")
    text = (node / "base.json").read_text()
    (node / "base.json").write_text(text.replace(str(PARENT), str(node.parent / "base")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"two holds a damaged adapter \(.*\): delete it"),
        (lambda n: (n / "adapter_model.safetensors").unlink(), r"two holds a damaged adapter"),
        (lambda n: (n / "adapter_config.json").write_text("{}"), r"two holds a damaged adapter"),
        (lambda n: (n / "base.json").write_text("[]"), r"base\.json cannot be read"),
        (change_base, r"two is an adapter on .*base, whose weights have changed since"),
    ],
)
def test_a_damaged_adapter_or_a_changed_base_is_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
):
    node = tmp_path / "two"
    shutil.copytree(TWO, node)
    damage(node)
    with pytest.raises(ParamsError, match=message) as refused:
        Policy.load(node)
    assert "\n" not in str(refused.value)


def test_a_child_with_other_adapters_is_refused():
    other = TrainingConfig(lora=LoraConfig(rank=3, alpha=4.0))
    with pytest.raises(
        ParamsError, match=r"rank 2 and alpha 4 on \d+ layers, training\.lora asks for rank 3"
    ):
        make_learner(ONE, "math", PHASE, settings(), 0, training=other)
