"""The flow over the real plan, DVC and a real Prefect server; the stages write a line instead of training."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from io import StringIO
from pathlib import Path

import httpx
import ordinary_user
import pytest
from browser import browsing
from conftest import Project, make_project, make_toy_project
from order_worlds import World
from rich.console import Console
from serving import Quiet, serving

from trainorder import paths
from trainorder.config import MeasureConfig
from trainorder.flow import state
from trainorder.flow.dvc import Runner
from trainorder.flow.progress import Display
from trainorder.flow.schedule import Schedule, topological
from trainorder.measure import measure
from trainorder.plan.design import from_plan
from trainorder.results import to_json
from trainorder.ui import prefect_server

TOY = '''
"""A stage that notes its execution and writes small outputs of the right names."""
import sys, time
from pathlib import Path
from trainorder.process import die_with_parent

die_with_parent()
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
stage, parent = Path(__file__).stem, options.get("--parent")
node = options.get("--node") or options.get("--judge")
judge = options.get("--judge")


def write(path, text="1"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def control(name):
    return Path(name).read_text().strip() if Path(name).exists() else ""


with open("executions.log", "a") as log:
    log.write(f"{stage} {node or judge or ''}\\n")
print(f"the last words of {node}", flush=True)
if control("fail_at") == (node or stage):
    sys.exit("planted failure")
time.sleep(float(control("seconds") or 0))
if stage == "build_data":
    for task in ("math", "qa", "creative"):
        for file in ("task.json", "train.jsonl", "dev.jsonl", "test.jsonl"):
            write(f"data/tasks/{task}/{file}")
    for path in ("data/sft/rows", "data/tokenizer/t", "data/summary.json"):
        write(path)
elif stage == "train_judge":
    for path in (f"{judge}/w", f"{judge}.json"):
        write(f"checkpoints/judge/{path}")
elif stage in ("sft_warmup", "rl", "merge"):
    before = Path(f"checkpoints/{parent}/w").read_text() if parent else ""
    write(f"checkpoints/{node}/w", f"{before} {node}")
    files = ("manifest.json", "metrics.jsonl", "run.json", "drawn.jsonl")
    for file in files[: {"merge": 1, "sft_warmup": 3}.get(stage)]:
        write(f"runs/{node}/{file}", '{"run_id": null}')
elif stage == "evaluate":
    write(f"evaluations/{node}.parquet", Path(f"checkpoints/{node}/w").read_text())
elif stage == "measure_bwt":
    write("reports/bwt.json", control("toy_bwt.json"))
elif stage == "report":
    write("reports/report.html")
elif stage == "metrics":
    for file in ("metrics/one.json", "plots/orders.csv"):
        write(f"reports/{file}")
'''
long = pytest.mark.long("every run of the flow starts a Prefect server and DVC")
STAGES = (
    "build_data",
    "sft_warmup",
    "train_judge",
    "rl",
    "merge",
    "evaluate",
    "measure_bwt",
    "report",
    "metrics",
    "mirror",
)
TASKS = ("math", "qa", "creative")
HARM = {"creative": {"math": -0.3, "qa": -0.3}, "qa": {"math": -0.3}}
"""creative harms both others and qa harms math: creative, qa, math is the best order by far."""


def chain(*names: str) -> dict[str, set[str]]:
    return {name: set(names[:i][-1:]) for i, name in enumerate(names)}


def test_the_longest_remaining_path_starts_first():
    parents = {"base": set(), **{k: v or {"base"} for k, v in chain("a1", "a2", "a3").items()}}
    parents |= {"b1": {"base"}, "c1": {"base"}}
    schedule = Schedule(parents, dict.fromkeys(parents, 10.0), dict.fromkeys(parents, 1), workers=2)
    assert schedule.start() == ["base"]
    schedule.finish("base")
    assert schedule.start() == ["a1", "b1"]
    assert schedule.start() == []
    schedule.finish("a1")
    assert schedule.start() == ["a2"]


def test_a_stage_that_needs_all_workers_runs_alone_and_is_not_overtaken():
    parents: dict[str, set[str]] = {"wide": set(), "long": set(), "short": set()}
    seconds = {"wide": 50.0, "long": 100.0, "short": 1.0}
    schedule = Schedule(parents, seconds, {"wide": 8, "long": 1, "short": 1}, workers=2)
    assert schedule.start() == ["long"]
    assert schedule.start() == []
    schedule.finish("long")
    assert schedule.start() == ["wide"]
    schedule.finish("wide")
    assert schedule.start() == ["short"]


def test_a_failure_blocks_what_needs_it_and_nothing_else():
    parents = {**chain("base", "a", "aa"), "b": {"base"}, "sum": {"aa", "b"}}
    schedule = Schedule(parents, dict.fromkeys(parents, 1.0), dict.fromkeys(parents, 1), workers=2)
    schedule.start()
    schedule.finish("base")
    schedule.start()
    schedule.finish("a", ok=False)
    assert schedule.blocked == {"a", "aa", "sum"}
    schedule.finish("b")
    assert not schedule.open


def test_the_estimate_plays_the_schedule_forward():
    # two workers: base 10, then {a 30 then aa 30} beside {b 20, c 20}: 10 + max(60, 40) = 70
    parents = {**chain("base", "a", "aa"), "b": {"base"}, "c": {"base"}}
    seconds = {"base": 10.0, "a": 30.0, "aa": 30.0, "b": 20.0, "c": 20.0}
    schedule = Schedule(parents, seconds, dict.fromkeys(parents, 1), workers=2)
    assert schedule.remaining(lambda stage: 0.0) == 70
    schedule.start()
    assert schedule.remaining(lambda stage: 4.0) == 66
    schedule.finish("base")
    schedule.start()
    schedule.finish("a")  # aa 30 beside the rest of b 15 and c 20
    assert schedule.remaining(lambda stage: 5.0) == 35


def test_a_stage_that_never_ran_takes_what_the_plan_says_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run of a 135M model began with the minutes of the tiny one."""
    monkeypatch.chdir(tmp_path)
    kinds = {"train@a": "structured", "train@b": "structured", "evaluate@a": "evaluate"}
    expected = {"train@a": 900.0, "train@b": 800.0, "evaluate@a": None}
    assert state.estimates(kinds, expected) == expected | {"evaluate@a": 5.0}
    state.remember({"train@a": 70.0})
    assert state.estimates(kinds, expected)["train@b"] == 70.0


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_last_reward_and_time_left_of_what_runs_and_a_log_file_does_not(
    terminal, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    stages = [
        "plan/s0--math/dvc.yaml:train",
        "plan/s0--qa/dvc.yaml:train",
        "plan/s0/dvc.yaml:evaluate",
    ]
    schedule = Schedule(
        {stage: set() for stage in stages}, dict.fromkeys(stages, 90.0), dict.fromkeys(stages, 1), 3
    )
    display = Display(Console(file=StringIO(), force_terminal=terminal, width=160))
    display.show(schedule, 0)
    before = paths.run("s0--qa") / "metrics.jsonl"  # of an earlier run: no news of this one
    for stage in schedule.start():
        display.started(stage)
    for node in ("s0--math", "s0--qa"):
        file = paths.run(node) / "metrics.jsonl"
        file.parent.mkdir(parents=True)
        rows = [{"step": step, "rollout/reward": reward} for step, reward in ((0, 0.25), (1, 0.5))]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2, "rew')
    os.utime(before, (1, 1))
    display.tick()
    (task,) = display._bar.tasks
    shown = "s0--math (reward 0.500, 1:30 min left), s0--qa (1:30 min left), evaluate s0 (1:30 min left)"
    assert (shown in re.sub("1:29", "1:30", task.description)) == terminal
    assert ("reward" in task.description) == terminal


def test_a_quiet_display_prints_warnings_only():
    display = Display(Console(file=(said := StringIO()), force_terminal=True), quiet=True)
    with display:
        display.say("live until the run ends")
        display.say("warning: a judge was slow")
    assert said.getvalue() == "warning: a judge was slow\n"


def test_parents_come_before_children_whatever_the_order_of_the_names():
    assert topological({"z": {"y"}, "x": set(), "y": {"x"}}) == ["x", "y", "z"]


def toy_project(root: Path) -> Project:
    """The smoke project with toy stages; `joint` needs no merge of trained weights."""
    project = make_toy_project(root, dict.fromkeys(STAGES, TOY))
    phases = {**{task: (task,) for task in TASKS}, "joint": TASKS}
    orders = {"structured_first": TASKS, "joint": ("joint",)}
    world = World(tasks=TASKS, phases=phases, orders=orders, effects=HARM, problems=100)
    plan = world.plan()
    found = measure(world.table(), from_plan(plan), MeasureConfig(bootstrap=100))
    assert found["recommended"]["order"] == ["creative", "qa", "math"]
    (root / "toy_bwt.json").write_text(to_json(found))
    project.edit("params.yaml", "  creative_first: [creative, qa, math]\n", "")
    project.edit("params.yaml", "  dare: {method: dare, density: 0.5, scale: 0.5}\n", "")
    return project


def in_odd_surroundings(project: Project, folder: Path) -> Project:
    """The project for a user without a name who can write nowhere else: no git, ASCII, private files, no stdin."""
    shutil.rmtree(project.root / ".git")
    (project.root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    programs, scratch = folder / "bin", folder / "t m#p"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    scratch.mkdir()
    scratch.chmod(0o777)
    start = [sys.executable, ordinary_user.__file__, "34567", str(programs), str(scratch), "--"]
    shell = ["/bin/sh", "-c", 'umask 077; exec "$@" <&-', "sh"]
    unnamed = dict.fromkeys(("USER", "LOGNAME", "LNAME", "USERNAME"), "")
    places = {"HOME": "/proc/nohome", "TMPDIR": str(scratch), "PATH": str(programs)}
    settings = {"LC_ALL": "C", "LANG": "C", **unnamed, **places}
    return replace(project, settings=settings, prefix=(*start, *shell))


def flow(project: Project, *, ok: bool = True) -> subprocess.CompletedProcess[str]:
    return project.run(sys.executable, "-m", "trainorder.flow.run", ok=ok)


def executions(project: Project) -> Counter[str]:
    """What ran since this was asked last."""
    log = project.root / "executions.log"
    found = Counter(log.read_text().splitlines() if log.exists() else [])
    log.unlink(missing_ok=True)
    return found


def last_flow_run(project: Project) -> tuple[str, Counter[str]]:
    """State of the newest flow run in Prefect's database, and the states of its tasks."""
    with sqlite3.connect(project.root / ".prefect" / "prefect.db") as database:
        query = "select id, state_name from flow_run order by created desc limit 1"
        key, state = database.execute(query).fetchone()
        tasks = database.execute("select state_name from task_run where flow_run_id = ?", [key])
        return state, Counter(name for (name,) in tasks)


def processes(project: Project) -> list[str]:
    """Command lines of all processes that work in the project."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink() == project.root:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A toy project in which the flow ran once, where every surrounding is odd."""
    folder = tmp_path_factory.mktemp("flow").resolve()
    project = toy_project(folder / "pro ject#?%41'ä")
    done = in_odd_surroundings(project, folder).cli("run")
    (project.root / "first_run.txt").write_text(done.stdout)
    return project


@long
def test_the_first_run_trains_each_node_once_and_then_the_recommended_order(project):
    ran = executions(project)
    trained = {line.split()[1] for line in ran if line.startswith("rl ")}
    singles = {"s0--math", "s0--qa", "s0--creative"}
    structured = {"s0--math--qa", "s0--math--qa--creative"}
    recommended = {"s0--creative--qa", "s0--creative--qa--math"}
    assert trained == singles | structured | recommended | {"s0--joint"}
    assert ran.pop("measure_bwt ") == 2
    assert set(ran.values()) == {1}
    assert "recommended: [creative, qa, math]" in (project.root / "plan.yaml").read_text()
    state, tasks = last_flow_run(project)
    assert state == "Completed"
    assert set(tasks) <= {"Completed", "Cached"}
    text = (project.root / "first_run.txt").read_text()
    assert "recommended order: creative > qa > math (o" in text  # open, or on these problems only
    assert "says how sure it is)" in text
    assert str(project.root / "reports" / "report.html") in text
    with sqlite3.connect(project.root / ".prefect" / "prefect.db") as database:
        ((key,),) = database.execute("select id from flow_run")
    key = str(uuid.UUID(key))
    assert (
        re.search(r"live until the run ends: http://127.0.0.1:\d+/runs/flow-run/(\S+)", text)[1]
        == key
    )


@long
def test_a_flow_run_is_named_after_its_orders(project):
    with sqlite3.connect(project.root / ".prefect" / "prefect.db") as database:
        names = {name for (name,) in database.execute("select name from flow_run")}
    assert names == {"structured_first, recommended, joint"}


@long
def test_a_failed_node_is_named_and_stops_only_what_needs_it(project):
    executions(project)
    project.edit(
        "params.yaml",
        "structured_first: [math, qa, creative]",
        "structured_first: [qa, math, creative]",
    )
    (project.root / "fail_at").write_text("s0--qa--math")
    in_the_way = project.root / ".prefect" / ".durations.json.tmp"  # the times cannot be written
    in_the_way.mkdir()
    done = flow(project, ok=False)
    in_the_way.rmdir()
    (project.root / "fail_at").unlink()
    assert (done.returncode, done.stderr) == (1, "")
    assert "plan/s0--qa--math/dvc.yaml:train failed" in done.stdout
    assert "the last words of s0--qa--math" in done.stdout
    assert executions(project) == Counter({"rl s0--qa--math": 1})
    state, tasks = last_flow_run(project)
    assert state == "Failed"
    # not ready: 1 node, 2 evaluations, measure, report, metrics, mirror
    assert (tasks["Failed"], tasks["NotReady"]) == (1, 7)
    measured = project.root / "toy_bwt.json"  # another file, so that MLflow is to be told
    measured.write_text(measured.read_text().replace("{", "{ ", 1))
    (project.root / "fail_at").write_text("mirror")
    done = flow(project)  # without MLflow all the rest is done and shown
    (project.root / "fail_at").unlink()
    assert "warning: planted failure" in done.stdout
    assert "report.html" in done.stdout
    again = executions(project)
    assert again["rl s0--qa--math"] == again["rl s0--qa--math--creative"] == 1
    assert sum(line.startswith("rl ") for line in again) == 2
    flow(project)
    assert executions(project) == Counter({"mirror ": 1})  # tried again, and nothing else


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@long
def test_a_killed_flow_leaves_no_process_and_the_next_one_goes_on_quietly_if_asked(project, number):
    executions(project)
    lr = {signal.SIGKILL: "1", signal.SIGTERM: "2"}[number]  # either makes s0--joint stale
    text = (project.root / "params.yaml").read_text()
    text = text.replace("kind: mixed, tasks", f"kind: mixed, rl: {{lr: {lr}.0e-4}}, tasks")
    previous = project.root.joinpath("params.yaml").read_text()
    (project.root / "params.yaml").write_text(text)
    (project.root / "seconds").write_text("60")
    command = [sys.executable, "-m", "trainorder.flow.run"]
    with subprocess.Popen(
        command, cwd=project.root, env=project.env, stdout=subprocess.DEVNULL
    ) as started:
        wait_for(lambda: any("--node s0--joint" in line for line in processes(project)))
        if number == signal.SIGTERM:
            second = flow(project, ok=False)
            assert second.returncode == 1
            assert f"another process ({started.pid}) runs a flow in this folder" in second.stdout
        os.kill(started.pid, number)
        started.wait(timeout=30)
    wait_for(lambda: not processes(project))
    (project.root / "seconds").unlink()
    (project.root / "params.yaml").write_text(previous)
    executions(project)
    quiet = project.cli("run", "--quiet").stdout
    assert not any(line.startswith("rl ") for line in executions(project))
    assert quiet.split("\n")[1].split()[:2] == ["arm", "mean"]
    assert "structured_first" in quiet
    assert "/runs/flow-run/" not in quiet
    assert "report.html" not in quiet
    with sqlite3.connect(project.root / ".prefect" / "prefect.db") as database:
        for table in ("flow_run", "task_run"):
            left = database.execute(f"select count(*) from {table} where state_type = 'RUNNING'")
            assert left.fetchone() == (0,), table


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_wrong_params_end_at_once_with_code_2_and_start_no_server(tmp_path):
    project = make_project(tmp_path / "project")
    project.edit("params.yaml", "recommended: recommended", "recommended: [maht]")
    done = flow(project, ok=False)
    assert done.returncode == 2
    assert "maht" in done.stdout
    assert not (project.root / ".prefect" / "server.log").exists()
    assert not (project.root / "plan.yaml").exists()


@long
def test_durations_of_the_last_run_are_the_next_estimate(project):
    known = json.loads((project.root / ".prefect" / "durations.json").read_text())
    assert known.keys() >= {
        "build_data",
        "plan/s0--math/dvc.yaml:train",
        "plan/dvc.yaml:measure_bwt",
    }


# In a terminal, and beside a user's own servers and settings

DEAD_PROXY = dict.fromkeys(
    ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
    "http://127.0.0.1:9",
) | {"no_proxy": "", "NO_PROXY": ""}


def in_terminal(project: Project, *command: str, **env: str) -> str:
    """What a command prints to a terminal of 24 lines."""
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    env = project.env | {"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "24"} | env
    with subprocess.Popen(command, cwd=project.root, env=env, **streams) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 65536)
            except OSError:  # the other side was closed
                break
    os.close(ours)
    assert process.returncode == 0, said.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())


@long
def test_a_rerun_in_a_terminal_behind_a_dead_proxy_runs_nothing_and_says_so_in_a_few_lines(project):
    executions(project)
    text = in_terminal(project, sys.executable, "-m", "trainorder.flow.run", **DEAD_PROXY)
    assert text.count("\n") <= 40, text
    assert "Collecting files" not in text
    assert "structured_first" in text
    assert "/runs/flow-run/" in text
    assert executions(project) == Counter()
    state, tasks = last_flow_run(project)
    assert (state, set(tasks)) == ("Completed", {"Cached"})


@long
def test_a_prefect_address_that_does_not_answer_costs_one_line(project):
    command = [sys.executable, "-m", "trainorder.flow.run"]
    env = project.env | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run(command, cwd=project.root, env=env, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1].startswith(
        "error: Prefect at http://127.0.0.1:9/api does not answer"
    )
    assert "unset PREFECT_API_URL" in done.stdout


@pytest.fixture(scope="module")
def users_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A Prefect server that is not the project's; its folder and address."""
    folder = tmp_path_factory.mktemp("users")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with prefect_server() as server:
            yield folder, server.wait_until_ready()


def ask(
    url: str, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, object]:
    """Status and body (or headers, without a body) of one HTTP request, exactly as given."""
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
        sent = {"Content-Type": "application/json"} | headers
        connection.request(method, path, json.dumps(body), sent)
        answer = connection.getresponse()
        text = answer.read()
    assert "*" not in (answer.getheader("access-control-allow-origin") or "")
    return answer.status, json.loads(text) if answer.status in (200, 201) else text


PAGES = {
    "another origin": {"Origin": "http://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "no origin of its own": {"Origin": "null"},
    "another name": {"Host": "evil.example"},
    "another name and its origin": {"Host": "evil.example", "Origin": "http://evil.example"},
}


@long
@pytest.mark.parametrize("page", PAGES)
def test_prefect_answers_no_page_but_its_own(users_server, page: str):
    _, url = users_server
    variable = {"name": f"x{len(page)}", "value": "y"}
    assert ask(url, "POST", "/api/flow_runs/filter", {}, **PAGES[page])[0] == 403
    assert ask(url, "POST", "/api/variables/", variable, **PAGES[page])[0] == 403
    preflight = {"Access-Control-Request-Method": "DELETE"} | PAGES[page]
    assert ask(url, "OPTIONS", "/api/variables/", **preflight)[0] == 403


@long
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_prefects_own_pages_read_it(users_server, name: str):
    _, url = users_server
    own = {"Host": url.removeprefix("http://"), "Origin": url.replace("127.0.0.1", name)}
    assert ask(url, "POST", "/api/flow_runs/filter", {}, **own)[0] == 200
    assert ask(url, "GET", "/ui-settings")[1]["api_url"] == f"{url}/api"


@long
def test_a_users_prefect_profile_is_used_and_only_own_runs_are_swept(project, users_server):
    folder, url = users_server
    (folder / "profiles.toml").write_text(
        f'active = "ours"\n[profiles.ours]\nPREFECT_API_URL = "{url}/api"\n'
    )
    _, made = ask(url, "POST", "/api/flows/", {"name": "trainorder"})
    mark = json.loads((project.root / "mlartifacts" / "project.json").read_text())["id"]
    script = "import json; from trainorder.owner import identity; print(json.dumps(identity()))"
    said = project.run(sys.executable, "-c", script).stdout
    own = ["=".join(pair) for pair in json.loads(said).items()]
    assert f"project={mark}" in own
    running = {"flow_id": made["id"], "state": {"type": "RUNNING"}}
    left = {}
    for whose, marks in {
        "ours": own,
        "theirs": [*own[:-1], "folder=/elsewhere"],
        "others": [],
    }.items():
        left[whose] = ask(url, "POST", "/api/flow_runs/", running | {"tags": marks})[1]["id"]
    before = last_flow_run(project)
    command = [sys.executable, "-m", "trainorder.flow.run"]
    env = project.env | {"PREFECT_PROFILES_PATH": str(folder / "profiles.toml")}
    done = subprocess.run(command, cwd=project.root, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"live until the run ends: {url}/runs/flow-run/" in done.stdout
    states = {
        whose: ask(url, "GET", f"/api/flow_runs/{key}")[1]["state_type"]
        for whose, key in left.items()
    }
    assert states == {"ours": "CRASHED", "theirs": "RUNNING", "others": "RUNNING"}
    _, there = ask(url, "POST", "/api/flow_runs/filter", {"sort": "START_TIME_DESC"})
    assert [run["name"] for run in there if run["state_type"] == "COMPLETED"] == [
        "structured_first, recommended, joint"
    ]
    assert last_flow_run(project) == before  # nothing in the project's own


# From Prefect's UI

SLOW = 300.0
"""Seconds: Prefect asks for new runs every ten, and starts a process for each."""


@pytest.fixture(scope="module")
def deployed(project: Project) -> Iterator[tuple[str, str]]:
    """`trainorder deploy` in the toy project: the address of its server, and the deployment's id."""
    command = [sys.executable, "-m", "trainorder.cli", "deploy", "--port", "0"]
    streams = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=project.root, env=project.env, **streams) as started:
        form = next(line.split()[-1] for line in started.stdout if line.startswith("deployment"))
        url, _, key = form.partition("/deployments/deployment/")
        yield url, key
        started.terminate()
    wait_for(lambda: not processes(project))


def run_from_ui(deployed: tuple[str, str], **parameters: object) -> str:
    """Start a run as the UI's form does; its id."""
    url, key = deployed
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    form = f"/api/deployments/{key}/create_flow_run"
    status, made = ask(url, "POST", form, body)
    end = time.monotonic() + 60
    while status == 503 and time.monotonic() < end:  # its database is busy: press the button again
        time.sleep(1)
        status, made = ask(url, "POST", form, body)
    assert status == 201, made
    return made["id"]


def state_of(deployed: tuple[str, str], run: str) -> str:
    return ask(deployed[0], "GET", f"/api/flow_runs/{run}")[1]["state_type"]


@long
def test_orders_edited_in_the_run_form_train_only_what_is_new_and_cancelling_stops_it(
    project, deployed
):
    executions(project)
    url, key = deployed
    _, form = ask(url, "GET", f"/api/deployments/{key}")
    assert form["parameters"]["orders"]["joint"] == ["joint"]
    assert set(form["parameter_openapi_schema"]["properties"]) == {
        "params", "orders", "seeds", "workers",
    }  # fmt: skip
    params = (project.root / "params.yaml").read_text()
    orders = {**form["parameters"]["orders"], "mine": ["math", "creative", "qa"]}
    (project.root / "seconds").write_text("60")
    cancelled = run_from_ui(deployed, orders=orders)
    wait_for(lambda: any("--node s0--math--creative" in line for line in processes(project)), SLOW)
    status, _ = ask(
        url,
        "POST",
        f"/api/flow_runs/{cancelled}/set_state",
        {"state": {"type": "CANCELLING"}, "force": False},
    )
    assert status in (200, 201)
    wait_for(lambda: not any("--node" in line for line in processes(project)), SLOW)
    wait_for(lambda: state_of(deployed, cancelled) == "CANCELLED", SLOW)
    (project.root / "seconds").unlink()
    executions(project)
    run = run_from_ui(deployed, orders=orders)
    wait_for(lambda: state_of(deployed, run) in ("COMPLETED", "FAILED", "CRASHED"), SLOW)
    assert state_of(deployed, run) == "COMPLETED"
    trained = sorted(line for line in executions(project) if line.startswith("rl "))
    assert trained == ["rl s0--math--creative", "rl s0--math--creative--qa"]
    assert (project.root / "params.yaml").read_text() == params
    _, tasks = ask(
        url,
        "POST",
        "/api/task_runs/filter",
        {"flow_runs": {"id": {"any_": [run]}}, "limit": 200},
    )
    tags = {task["name"]: set(task["tags"]) for task in tasks}
    assert tags["train s0--math--creative"] == {
        "train", "creative", "phase=creative", "order=mine", "seed=0",
    }  # fmt: skip
    found = {"flow_runs": {"id": {"any_": [run]}}, "limit": 200}
    _, artifacts = ask(url, "POST", "/api/artifacts/filter", found)
    assert {artifact["key"] for artifact in artifacts} == {
        "arms", "transfer", "verdict", "progress", "report", "stages",
    }  # fmt: skip


@long
def test_prefects_pages_show_a_run_with_its_tasks_and_the_run_form_with_the_orders(
    project, deployed
):
    url, key = deployed
    _, (run, *_) = ask(
        url,
        "POST",
        "/api/flow_runs/filter",
        {"sort": "START_TIME_DESC", "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}},
    )
    with browsing(viewport={"width": 1500, "height": 1400}) as tab:
        tab.open(f"{url}/runs/flow-run/{run['id']}")
        tab.shows(run["name"], "Completed", "Parameters", "Artifacts")
        tab.page.get_by_text("Task Runs", exact=True).click()
        tab.shows("train s0--math", "evaluate s0--math")
        tab.open(f"{url}/deployments/deployment/{key}/run")
        tab.shows("trainorder", "orders (Optional)", "workers (Optional)")
        tab.page.get_by_text('"structured_first"').first.wait_for()
    assert tab.errors == []


def test_a_work_pool_is_refused_without_a_server_and_a_remote_that_its_workers_reach(
    tmp_path, monkeypatch
):
    from trainorder.flow.pool import Pool

    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINORDER_EMBEDDED", "1")
    with pytest.raises(
        state.FlowError, match=r"flow.pool: trainers needs a Prefect server .*PREFECT_API_URL"
    ):
        Pool("trainers", Runner(), print)
    monkeypatch.delenv("TRAINORDER_EMBEDDED")
    with pytest.raises(state.FlowError, match=r"flow.pool: trainers needs a DVC remote"):
        Pool("trainers", Runner(), print)


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not():
    from prefect.exceptions import PrefectHTTPStatusError

    from trainorder.flow.pool import patiently

    said = [503, 503, 200, 409]

    class Busy(Quiet):
        def do_GET(self) -> None:
            self.send_response(said.pop(0))
            self.end_headers()

    with serving(Busy) as address:

        def asked() -> int:
            try:
                answer = httpx.get(f"http://{address}", trust_env=False)
                return answer.raise_for_status().status_code
            except httpx.HTTPStatusError as error:
                raise PrefectHTTPStatusError.from_httpx_error(error) from error

        assert patiently(asked) == 200
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            patiently(asked)
    assert said == []
