"""`trainorder run --dry-run`: what it tries, what it says, and that nothing is trained."""

from __future__ import annotations

import re
import sys

import pytest
from conftest import Project, make_project
from judge_server import judge_server

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
    assert re.search(r"(?m)^creative .*; rewarded by a judge$", said)
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
