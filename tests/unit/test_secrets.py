"""Keys reach no file, no log and no database; checkpoints bring no code that runs; servers listen on loopback."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import Project, make_project
from judge_server import judge_server

from trainorder.config import load_params, parse_params
from trainorder.data import write_tokenizer
from trainorder.measure.parts import same_judge
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.ui import mlflow_server, prefect_server, reach

KEY = "sk-canary-5f1e77b2d94a"
OTHER = "hf_canary77b2d94a5f1e"
PARAMS = """\
policy: {{hidden_size: 16, num_layers: 1, num_heads: 2, mlp_size: 16}}
tasks:
  math:     {{train: 8, dev: 4, test: 4, demonstrations: 40}}
  code:     {{train: 8, dev: 4, test: 4, demonstrations: 40}}
  creative: {{train: 40, dev: 2, test: 2, demonstrations: 200}}
sft: {{steps: 80, max_steps: 80, gate: {{}}, batch_size: 8, drill_batch_size: 0, threads: 1}}
judge:
  {{task: creative, prompts: 1, heldout_prompts: 19, answers: 4, min_agreement: 0.5, corrupted: 0.2, flat: 0.7,
   backend: endpoint, endpoint: {{base_url: "{url}", model: words, api_key_env: JUDGE_KEY, same_in_both_roles: true}}}}
rl: {{prompts_per_step: 3, group_size: 2}}
phases:
  joint: {{kind: mixed, tasks: {{code: 1, creative: 1, math: 1}}, steps: 2}}
orders: {{only: [joint]}}
evaluation: {{samples: 1}}
"""
STAGES = (
    ["stages.build_data"],
    ["stages.sft_warmup", "--node", "s0", "--seed", "0"],
    [
        "stages.train_judge",
        "--judge",
        "endpoint",
        "--base",
        "s0",
        "--tasks",
        "creative",
        "--seed",
        "0",
        "--first",
        "0",
    ],
    [
        "stages.rl",
        "--node",
        "s0--joint",
        "--parent",
        "s0",
        "--phase",
        "joint",
        "--variant",
        "default",
        "--seed",
        "0",
    ],
    ["stages.evaluate", "--node", "s0--joint", "--seed", "0"],
)


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]
) -> tuple[Project, str, list[str | None]]:
    """A pipeline whose judge is an endpoint with a key, everything it wrote, and the keys the endpoint was shown."""
    project = make_project(tmp_path_factory.mktemp("secrets") / "project")
    project, said = replace(project, settings=warm), ""
    with judge_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUDGE_KEY", KEY)
        patch.setenv("HF_TOKEN", OTHER)
        (project.root / "params.yaml").write_text(PARAMS.format(url=server.url))
        for command in (["trainorder.cli", "check"], ["trainorder.cli", "plan"], *STAGES):
            done = project.run(sys.executable, "-m", *command)
            said += done.stdout + done.stderr
        keys = list(server.keys)
    return project, said, keys


@pytest.mark.long("stages run in processes of their own")
def test_the_endpoint_pays_a_phase_and_saw_the_key(
    ran: tuple[Project, str, list[str | None]],
) -> None:
    project, _, keys = ran
    assert set(keys) == {f"Bearer {KEY}"}
    rows = [
        json.loads(line)
        for line in (project.root / "runs/s0--joint/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["task/creative/unscored"] for row in rows] == [0.0, 0.0]
    report = json.loads((project.root / "checkpoints/judge/endpoint.json").read_text())
    assert report["unscored"] == 0.0
    assert [p.name for p in (project.root / "checkpoints/judge/endpoint").iterdir()] == [
        "judge.json"
    ]


@pytest.mark.long("stages run in processes of their own")
def test_one_endpoint_in_both_roles_is_asked_once_and_found_in_the_table(
    ran: tuple[Project, str, list[str | None]],
) -> None:
    table = pd.read_parquet(ran[0].root / "evaluations/s0--joint.parquet")
    assert same_judge(table) == {"creative"}
    table.loc[table["metric"] == "reward_judge", "value"] += 0.01
    assert same_judge(table) == set()


@pytest.mark.long("stages run in processes of their own")
def test_the_isolation_reached_is_shown_and_tagged(
    ran: tuple[Project, str, list[str | None]],
) -> None:
    project, said, _ = ran
    level = re.search(r"model-written programs run at isolation (\w+)", said)
    assert level is not None
    assert level[1] in ("filtered", "namespaces")
    assert b"sandbox" in (project.root / "mlflow.db").read_bytes()


@pytest.mark.long("stages run in processes of their own")
def test_no_key_is_left_anywhere(ran: tuple[Project, str, list[str | None]]) -> None:
    project, said, _ = ran
    files = [file for file in project.root.rglob("*") if file.is_file()]
    assert {"mlflow.db", "manifest.json", "metrics.jsonl", "endpoint.json", "plan.yaml"} <= {
        f.name for f in files
    }
    for secret in (KEY, OTHER):
        assert secret not in said
        assert [f for f in files if secret.encode() in f.read_bytes()] == []


def test_a_key_in_the_params_is_refused_unseen(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    project.edit("params.yaml", "judge: {task", f"judge: {{endpoint: {{model: {KEY}}}, task")
    for command in (["trainorder.cli", "check"], ["stages.build_data"]):
        done = project.run(sys.executable, "-m", *command, ok=False)
        assert done.returncode == 2
        assert "judge.endpoint.model: this looks like a secret" in done.stderr
        assert KEY not in done.stdout + done.stderr


LETTERS = "Ab3dEf6hIj9lMn2pQr5tUv8xYz1B4d7f"
SECRETS = [
    *(f"{start}{LETTERS}" for start in (
        "sk-", "sk-proj-", "sk-ant-api03-", "hf_", "ghp_", "ghu_", "github_pat_", "glpat-", "xoxb-", "xoxe-", "xoxe.xoxp-1-",
        "ya29.a0", "npm_", "pypi-AgEI", "SG.", "sk_live_", "rk_test_", "r8_", "dop_v1_", "AIza", "gsk_", "nvapi-", "dckr_pat_",
        "xai-", "pplx-", "hvs.", "shpat_", "GOCSPX-", "whsec_", "figd_", "glsa_", "tskey-auth-", "lin_api_", "dapi", "Bearer ",
        "lsv2_pt_", "pcsk_", "ops_eyJ", "password: ", "--token ", "xi-api-key: ", '"api_key": "', "--api-key=",
    )),
    "sk_0123456789abcdef0123456789abcdef0123456789abcdef", "smtp password : hunter2hunter2",
    "AKIAIOSFODNN7EXAMPLE", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "-----BEGIN OPENSSH PRIVATE KEY-----",
    "https://host/v1?api_key=x", "https://host/v1?token=x", "https://host/v1?version=2&access_token=x", "https://h/v1?sig=x",
    "https://host/v1?subscription-key=x", "https://TOKEN@host/v1", "https://me:pass@host/v1", "http://:pass@host", "//h?key=x",
    "https://host/v1?%61pi_key=x", "Basic dXNlcjpwYXNzd29yZA==", "AccountKey=abc", "0123456789abcdef0123456789abcdef",
    "https://hooks.slack.com/services/T0/B0/x", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY9", LETTERS,
]  # fmt: skip
HARMLESS = [
    "http://127.0.0.1:8000/v1", "https://host.example/openai/v1?api-version=2024-02-01", "Qwen/Qwen3-0.6B-Base", "a risk-averse model",
    "meta-llama/Llama-3.1-8B-Instruct", "models/Qwen3ForCausalLMWithLongName2/snapshots/0123456789abcdef0123456789abcdef01234567",
    "data/my_questions.train.jsonl", "~/Modelle/x", "q_proj", "all-linear", "/data/hub/models--Qwen--Qwen3-0.6B/snapshots/x",
    "ModelsOfTheYear2025/MetaLlama3InstructQuantized4Bit", "JUDGE_KEY", "basic arithmetic", "gpt-4o-mini-2024-07-18",
    "unsloth/Qwen2.5-7B-Instruct-bnb-4bit", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "task-skills-of-a-model",
    "the password: say it", "which secret: a, b or c ?", "run it with --token first", "sk_learn_0123456789",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_of_any_usual_form_is_refused_in_any_field_and_not_repeated(secret: str) -> None:
    whole = {"tasks": {"math": {}}, "phases": {}, "orders": {}}
    fields = (
        {"judge": {"endpoint": {"base_url": secret}}},
        {"policy": {"path": f"{secret}"}},
        {"tasks": {"math": {"options": {"x": [{"y": secret}]}}}},
        {"rl": {"method": {"terms": [{secret: 1}]}}},
    )
    for changes in fields:
        with pytest.raises(ParamsError, match="this looks like a secret") as caught:
            parse_params(whole | changes)
        assert secret not in str(caught.value)


@pytest.mark.parametrize("text", HARMLESS)
def test_names_paths_and_addresses_are_no_secrets(text: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse_params({"tasks": {"math": {"options": {"x": text}}}, "phases": {}, "orders": {}})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["api_key", "password", "token", "hf_token", "apikey", "private_key", "Authorization"])  # fmt: skip
@pytest.mark.parametrize("value", ["hunter2", 12345, ["hunter2"], {"x": "hunter2"}])
def test_whatever_stands_under_the_name_of_a_secret_is_refused(key: str, value: object) -> None:
    data = {"tasks": {"math": {"options": {key: value}}}, "phases": {}, "orders": {}}
    with pytest.raises(ParamsError, match=f"tasks.math.options.{key}: this looks like a secret"):
        parse_params(data)


@pytest.mark.parametrize("text", [
    "a: {k}\na: 1\n", "a: !{k} 1\n", "a: !!int {k}\n", "a: *{k}\n", 'a: "{k}\n', "a: {k}: b\n", "{k}: 1\n{k}: 2\n", "a: [{k}\n",
])  # fmt: skip
def test_a_file_that_cannot_be_parsed_is_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text.format(k=KEY.replace(" ", "")))
    with pytest.raises(ParamsError) as caught:
        load_params(tmp_path / "params.yaml")
    assert KEY not in str(caught.value)


# Checkpoints run no code


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model whose folder brings code that leaves a trace when it runs."""
    from trainorder.config import PolicyConfig

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    write_tokenizer(tmp_path / "tokenizer", ["a", " a"])
    sizes = PolicyConfig(hidden_size=8, num_layers=1, num_heads=2, mlp_size=8, max_positions=16)
    Policy.build_tiny(sizes, tmp_path / "tokenizer", 0).save(tmp_path / "model")
    return tmp_path / "model"


def test_a_checkpoint_with_code_is_refused_unless_params_trust_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    trace = tmp_path / "ran"
    code = (
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    (model / "own.py").write_text(code)
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},
    }
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ParamsError, match=r"brings its own code \(auto_map in config\.json\).*trust_remote_code"
    ):
        Policy.load(model)
    assert not trace.exists()
    root = Path(__file__).parents[2]
    (tmp_path / "params.yaml").write_text(
        "policy: {trust_remote_code: true}\n"
        + (root / "configs/smoke.yaml").read_text().split("\n", 2)[2]
    )
    assert Policy.load(model).model.config.hidden_size == 8
    assert trace.exists()
    assert "running code from" in capsys.readouterr().err


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("ran", "w")


def test_pickled_weights_are_not_loaded(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((OSError, ParamsError)):
        Policy.load(model)
    assert not (tmp_path / "ran").exists()


# Servers


@pytest.mark.parametrize("server", [prefect_server, mlflow_server])
def test_servers_listen_on_loopback_unless_told_otherwise(server: object) -> None:
    assert callable(server)
    command = server()._command
    assert command[command.index("--host") + 1] == "127.0.0.1"
    other = server(0, "0.0.0.0")._command
    assert other[other.index("--host") + 1] == "0.0.0.0"
    assert server(0, "0.0.0.0").url.startswith("http://127.0.0.1:")


def test_what_is_open_to_the_network_says_so() -> None:
    assert reach("127.0.0.1").startswith("reachable from this machine only")
    assert reach("127.evil.example").startswith("warning: listening on 127.evil.example")
    assert reach("0.0.0.0").startswith(
        "warning: listening on 0.0.0.0: anybody who reaches this machine"
    )


def test_nothing_of_ours_listens_on_all_addresses() -> None:
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [shutil.which("grep") or "grep", "-rnE", r"0\.0\.0\.0", "trainorder", "flows", "stages", "Makefile", "--include=*.py"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert [line for line in found.stdout.splitlines() if "ANYWHERE = (" not in line] == []
