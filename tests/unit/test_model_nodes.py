"""`sft: null`: the model of the user is the one base of all seeds, a node without a copy of its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_model import edit_weights
from rl_project import TINY, build_parent, settings

from trainorder import paths
from trainorder.adapters import base_of, weights_hash, weights_of
from trainorder.config import (
    LoraConfig,
    MergeConfig,
    Params,
    PhaseConfig,
    TrainingConfig,
    parse_params,
)
from trainorder.data import build
from trainorder.files import write_json
from trainorder.merge import merge_folders
from trainorder.plan.check import check
from trainorder.plan.compile import compile_plan
from trainorder.plan.design import from_plan
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.report import node as nodes
from trainorder.resume import Work
from trainorder.rl.trainer import train_phase

BASE = paths.checkpoint("base")
LORA = TrainingConfig(lora=LoraConfig(rank=2, alpha=4.0))
TASK = {"train": 6, "dev": 2, "test": 2, "demonstrations": 5, "max_new_tokens": 48}
IDS = torch.tensor([[1, 7, 9, 4, 12, 5]])


class Log:
    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def params(**changes: Any) -> Params:
    phases = {n: {"kind": "structured", "tasks": {"math": 1.0}, "steps": 1} for n in ("a", "b")}
    return parse_params(
        {
            "policy": {"path": "mine"},
            "sft": None,
            "tasks": {"math": TASK},
            "phases": phases,
            "orders": {"ab": ["a", "b"], "ba": ["b", "a"]},
            "merges": {"mean": {"method": "average"}},
            "seeds": [0, 1],
            **changes,
        }
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in `mine`, its node, and of each of two seeds a LoRA phase on it."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_parent({"math": TASK}, TINY.model_copy(update={"max_positions": 160}))
        paths.checkpoint("s0").rename("mine")
        Policy.load("mine", weights=False).save_as_model_node(BASE, "mine")
        phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=1)
        for seed in (0, 1):
            method = {"reward": ["even_tokens"], "terms": ["clipped_surrogate"]}
            rl = settings(lr=0.02, prompts_per_step=2, method=method)
            out = paths.checkpoint(f"s{seed}--a")
            train_phase(BASE, out, "a", phase, rl, seed, Log(), Work(), training=LORA)
    return folder


@pytest.fixture(autouse=True)
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


def test_one_base_serves_all_seeds_and_variants_and_is_evaluated_once():
    plan = compile_plan(params(variants={"slow": {"rl": {"lr": 1e-6}}}))
    assert [node.id for node in plan.bases()] == ["base"]
    parents = {node.parents[0] for node in plan.nodes.values() if len(node.id.split("--")) == 2}
    assert parents == {"base"}
    assert plan.nodes["s1--slow--a"].parents == ("base",)
    assert [e for e in plan.data()["evaluations"] if "--" not in e] == ["evaluations/base.parquet"]
    assert plan.data()["model"] == {"base": {"seeds": [0, 1]}}
    assert "mine" in plan.stages()["plan/base/dvc.yaml:train"]["deps"]
    assert plan.data()["bases"] == {}
    designs = from_plan(plan.data())
    for design in designs.values():
        assert design.bases == {0: "base", 1: "base"}
        assert design.one_start
        assert set(design.merges["mean"]) == {0, 1}


def test_seeds_share_the_warm_up_unless_each_asks_for_its_own():
    shared = compile_plan(params(policy={}, sft={}))
    assert [(node.id, node.kind, node.seed) for node in shared.bases()] == [("base", "base", 0)]
    assert shared.data()["bases"] == {"base": {"seeds": [0, 1]}}
    assert from_plan(shared.data())["default"].one_start
    assert "--seed 0" in shared.stages()["plan/base/dvc.yaml:train"]["cmd"]
    more = compile_plan(params(policy={}, sft={}, seeds=[0, 1, 5]))
    assert more.stages()["plan/base/dvc.yaml:train"] == shared.stages()["plan/base/dvc.yaml:train"]
    own = compile_plan(params(policy={}, sft={"per_seed": True}))
    assert own.data()["bases"] == {"s0": {"seeds": [0]}, "s1": {"seeds": [1]}}
    assert not from_plan(own.data())["default"].one_start
    assert own.settings()["sft"] == shared.settings()["sft"]


def test_the_model_as_it_is_is_shown_as_that_and_not_as_a_merge(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    manifest = {
        "node": "base",
        "seed": 0,
        "phase": None,
        "steps": None,
        "seconds": 1.0,
        "tokens": 0,
    }
    manifest |= {"files": {}, "parents": {}, "params": {}, "data": {}, "weights": "ab" * 9}
    write_json(paths.run("base") / "manifest.json", manifest | {"code": {}, "hash": ""})
    first, *_ = nodes.lines(nodes.facts(compile_plan(params()), "base"))
    assert first == "[bold]base[/]  the model as it is, 1.0 s"


def test_without_a_warm_up_no_stage_depends_on_its_settings():
    planned = compile_plan(params())
    settings = planned.settings()
    assert "sft" not in settings
    assert settings["tasks"]["math"]["demonstrations"] == 0
    assert "base_model" in planned.code()
    assert "sft_warmup" not in planned.code()
    other_seeds = compile_plan(params(seeds=[5]))
    assert other_seeds.nodes["base"] == planned.nodes["base"]
    with_sft = compile_plan(params(sft={"gate": {}}))
    assert with_sft.settings()["tasks"]["math"]["demonstrations"] == 5
    assert [node.id for node in with_sft.bases()] == ["base"]


def test_nothing_is_written_for_a_warm_up_that_there_is_not(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    build(params())
    assert (paths.SFT_DATA / "demonstrations.jsonl").read_bytes() == b""


def test_the_built_in_model_needs_a_warm_up():
    with pytest.raises(ParamsError, match=r"sft: null begins RL at the model of policy\.path"):
        check(params(policy={}))
    check(params())


def test_the_node_holds_no_weights_and_loads_those_of_the_model():
    assert not list(BASE.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 40_000
    assert weights_hash(BASE) == weights_hash("mine")
    assert torch.equal(logits(Policy.load(BASE).model), logits(Policy.load("mine").model))
    assert Policy.load(BASE, weights=False).encode_prompt("2 + 2") == Policy.load(
        "mine"
    ).encode_prompt("2 + 2")
    Policy.load(BASE).save("exported")
    assert weights_hash("exported") == weights_hash("mine")


def test_adapters_lie_on_the_node_wherever_the_model_is():
    for seed in (0, 1):
        node = paths.checkpoint(f"s{seed}--a")
        assert base_of(node) == BASE
        assert weights_of(node) == Path("mine")
        assert not (node / "model.json").exists()
    own, other = (logits(Policy.load(paths.checkpoint(f"s{s}--a")).model) for s in (0, 1))
    assert not torch.allclose(own, other, atol=1e-6)  # seeds differ from the first phase on
    assert not torch.allclose(own, logits(Policy.load("mine").model), atol=1e-6)


@pytest.mark.parametrize("method", ["average", "ties", "sce", "ram"])
def test_merges_read_the_weights_of_the_model(method: Any, tmp_path: Path):
    nodes = [paths.checkpoint(f"s{s}--a") for s in (0, 1)]
    merge_folders(BASE, nodes, tmp_path / "merged", MergeConfig(method=method))
    merged = Policy.load(tmp_path / "merged").model.state_dict()
    if method == "average":
        parts = [Policy.load(node).model.state_dict() for node in nodes]
        for name, weight in merged.items():
            torch.testing.assert_close(weight, (parts[0][name] + parts[1][name]) / 2)
    assert not (tmp_path / "merged" / "model.json").exists()


def test_a_model_that_changed_is_refused(tmp_path: Path):
    shutil.copytree("mine", tmp_path / "kept")
    edit_weights(Path("mine"), lambda w: {name: t * 1.01 for name, t in w.items()})
    try:
        for node in (BASE, paths.checkpoint("s0--a")):
            with pytest.raises(
                ParamsError,
                match=r"base is the model mine, whose weights in mine have changed since",
            ):
                Policy.load(node)
        (BASE / "model.json").rename("kept.json")
        (BASE / "model.json").write_text("{}")
        with pytest.raises(ParamsError, match=r"model\.json cannot be read"):
            Policy.load(BASE)
        Path("kept.json").rename(BASE / "model.json")
    finally:
        shutil.rmtree("mine")
        shutil.copytree(tmp_path / "kept", "mine")
