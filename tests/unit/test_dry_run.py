"""`trainorder run --dry-run`: what it tries, what it says, and that nothing is trained."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Project, make_project
from foreign_model import byte_tokenizer
from hub_server import hub_server
from judge_server import judge_server

from trainorder.project import PRESETS

pytestmark = pytest.mark.long("builds the data by DVC and loads transformers")
JUDGES = 'judges: {{taste: {{kind: preference, role: reward, prompts: 80, answers: 4, heldout_prompts: 20}}, referee: {{kind: endpoint, role: evaluation, base_url: "{url}", model: m, outage_seconds: 0}}}}\n'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]) -> Project:
    made = make_project(tmp_path_factory.mktemp("dry") / "project")
    return Project(made.root, settings=warm)


def test_a_dry_run_tries_one_problem_of_each_task_and_judge_and_trains_nothing(project: Project):
    text = (project.root / "configs" / "smoke.yaml").read_text()
    with judge_server() as server:
        judged = re.sub(r"(?m)^judge: .*\n", JUDGES.format(url=server.url), text)
        (project.root / "params.yaml").write_text(judged)
        said = project.run(sys.executable, "-m", "trainorder.flow.dry").stdout
        assert len(server.requests) == 2  # one pair in both positions
    assert "model   the built-in one: 31,680 weights, context 192" in said
    for task in ("math", "qa"):
        line = rf"(?m)^{task} +prompt \d+ tokens, room for 48, a known answer has \d+ and scores 1, an empty one 0$"
        assert re.search(line, said), said
    assert re.search(r"(?m)^creative .* rewarded by a judge$", said)
    assert "judge   taste: trained by the run, on 80 prompts with 4 answers each" in said
    assert "judge   judges.referee: m at http://127.0.0.1:" in said
    assert "judges  score about 144 answers in RL" in said
    assert "11 new, 0 restorable, 0 cached" in said
    assert (project.root / "data" / "summary.json").is_file()
    assert not (project.root / "checkpoints").exists()
    assert not (project.root / "runs").exists()


def test_a_known_answer_longer_than_its_room_is_named(project: Project):
    text = (project.root / "configs" / "smoke.yaml").read_text()
    (project.root / "params.yaml").write_text(
        text.replace("max_new_tokens: 48", "max_new_tokens: 12")
    )
    done = project.run(sys.executable, "-m", "trainorder.flow.dry", ok=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: tasks\.math\.max_new_tokens: the longest right answer has \d+ tokens .*, got 12\n",
        done.stderr,
    ), done.stderr


def params_of(preset: str) -> str:
    """The preset's params, its endpoint at a port where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = (ROOT / PRESETS[preset]).read_text()
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")


def test_the_preset_tiny_goes_through_all_of_a_dry_run(project: Project):
    (project.root / "params.yaml").write_text(params_of("tiny"))
    said = project.run(sys.executable, "-m", "trainorder.flow.dry").stdout
    scored = re.findall(r"(?m)^(\w+) +prompt \d+ tokens, .* scores 1, an empty one 0$", said)
    assert scored == ["math", "code", "qa", "constraints"]
    assert "46 new, 0 restorable, 0 cached" in said
    assert "missing" not in said


@pytest.mark.parametrize("preset", ["one-gpu", "multi-gpu", "multi-node"])
def test_a_preset_whose_model_is_not_here_is_tried_as_far_as_it_goes(project: Project, preset: str):
    (project.root / "params.yaml").write_text(params_of(preset))
    project = Project(project.root, {**project.settings, "HF_HUB_CACHE": str(project.root / "hub")})
    done = project.run(sys.executable, "-m", "trainorder.flow.dry", ok=False)
    said = done.stdout
    assert done.returncode == 1, done.stderr
    assert re.search(r"(?m)^model   Qwen/\S+: not here; template, tokens .* not tried$", said)
    for task in ("math", "qa"):
        assert re.search(rf"(?m)^{task} +a known answer scores 1, an empty one 0$", said), said
    missing = [line.partition(" ")[2] for line in said.splitlines() if line.startswith("missing")]
    found = {
        "hostfile": any("training.hostfile: hostfile not found" in line for line in missing),
        "model": any(re.match(r"Qwen/.* no model of that name in the cache", m) for m in missing),
        "judge": any("gave no answer for 5 s" in line for line in missing),
    }
    asked = preset != "one-gpu"
    assert found == {"hostfile": preset == "multi-node", "model": True, "judge": asked}
    assert ("judge   reward: trained by the run" in said) is not asked
    assert re.search(r"judges  score about [\d,]+ answers in RL", said)
    assert re.search(r"plan    \d+ new, .*\nplan    .* \d+ checkpoints of unknown size", said)
    assert said.endswith("`trainorder run` goes on from there once nothing is missing\n")


def test_a_model_of_the_hub_is_tried_by_its_config_and_tokenizer_before_its_weights_are_fetched(
    project: Project, tmp_path: Path
):
    name = "Qwen/Qwen2.5-0.5B-Instruct"
    folder = tmp_path / "model"
    byte_tokenizer().save_pretrained(folder)
    shutil.copy(ROOT / "configs/models/Qwen2.5-0.5B-Instruct.json", folder / "config.json")
    (folder / "model.safetensors").write_bytes(b"not fetched")
    (project.root / "params.yaml").write_text(params_of("one-gpu"))
    with hub_server({name: folder}) as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path)}
        done = Project(project.root, online).run(
            sys.executable, "-m", "trainorder.flow.dry", ok=False
        )
    said = done.stdout
    assert f"model   {name}: 494,032,768 weights, context 32768\n" in said, done.stderr
    for task in ("math", "qa"):
        scored = r"prompt \d+ tokens, room for \d+, a known answer has \d+ and scores 1"
        assert re.search(rf"(?m)^{task} +{scored}, an empty one 0$", said), said
    assert "memory  the evaluation of a node: " in said
    assert {"config.json", "tokenizer.json"} <= set(hub.fetched)
    assert "model.safetensors" not in hub.fetched
    lacking = re.findall(r"(?m)^missing (.*)$", said)  # memory, on a small machine
    assert done.returncode == bool(lacking)
    assert all("needs at least" in line for line in lacking)
