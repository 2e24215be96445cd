"""`trainorder ui` in a clone, servers behind a proxy, MLflow and the pages of others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import requests
from browser import browsing
from order_worlds import World
from serving import Quiet, serving, started

from trainorder import ui
from trainorder.config import MeasureConfig
from trainorder.measure import from_plan, measure, to_json
from trainorder.process import keep_loopback_direct

pytestmark = pytest.mark.long("starts MLflow and Prefect, and a process for every request")
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
ROLLOUT = {"step": 1, "task": "math", "problem": "math/1", "prompt": "1 + 1?", "answer": "it is 2"}
RECORDS = {
    "s0": {"seed": 0, "phase": "sft", "parents": {}, "params": {"sft": {"lr": 0.1}}},
    "s0--math": {
        "seed": 0,
        "phase": "math",
        "parents": {"s0": "abc"},
        "params": {"rl": {"lr": 0.2}},
        "weights": "abcd",
        "steps": 2,
        "data": {"data/tasks/math/train.jsonl": "0f0f5d0788c0ffff"},
        "rollouts": [{**ROLLOUT, "reward": 1.0, "advantage": 0.5, "tokens": 3}],
    },
}
WORLD = World(
    ("math", "code"),
    {"math": ("math",), "code": ("code",)},
    {"math_first": ("math", "code"), "code_first": ("code", "math")},
    seeds=(0, 1),
    problems=8,
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `trainorder ui` prints in a clone that pulled: records of nodes, a measurement, and no store."""
    folder = tmp_path_factory.mktemp("clone")
    found = measure(WORLD.table(), from_plan(WORLD.plan()), MeasureConfig(bootstrap=100))
    (folder / "reports").mkdir()
    (folder / "reports" / "bwt.json").write_text(to_json(found))
    for node, manifest in RECORDS.items():
        run = folder / "runs" / node
        run.mkdir(parents=True)
        (run / "manifest.json").write_text(json.dumps(manifest))
        (run / "run.json").write_text(json.dumps({"run_id": f"there-{node}"}))
        lines = [
            {"step": 0, "rollout/reward": 0.25, "rl/loss": None},
            {"step": 1, "rollout/reward": 0.5},
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "trainorder.cli", "ui"]
    with started(command, folder, ENV) as said:
        yield said


def ask(opened: str, path: str, body: dict, **headers: str) -> requests.Response:
    (address,) = set(re.findall(r"(http://\S+?)/#/", opened))
    return requests.post(f"{address}/api/2.0/mlflow/{path}", json=body, headers=headers, timeout=60)


def node_runs(opened: str) -> dict[str, dict]:
    (experiment,) = set(re.findall(r"nodes, table +\S+/experiments/(\d+)/runs\?", opened))
    found = ask(opened, "runs/search", {"experiment_ids": [experiment]}).json()["runs"]
    return {run["info"]["run_name"]: run for run in found}


def test_a_clone_that_pulled_sees_the_runs_in_mlflow(opened: str):
    assert "2 runs filled in from runs/" in opened
    runs = node_runs(opened)
    assert runs.keys() == RECORDS.keys()  # of what was measured, the rest was not pulled
    data = runs["s0--math"]["data"]
    tags = {tag["key"]: tag["value"] for tag in data["tags"]}
    assert {tag: tags[tag] for tag in ("node", "seed", "phase", "recorded_run_id")} == {
        "node": "s0--math",
        "seed": "0",
        "phase": "math",
        "recorded_run_id": "there-s0--math",
    }
    assert tags["parent_run_id"] == runs["s0"]["info"]["run_id"]
    assert {(p["key"], p["value"]) for p in data["params"]} == {("rl.lr", "0.2")}
    metrics = {
        (m["key"], m["step"], m["value"]) for m in data["metrics"] if m["key"] == "rollout/reward"
    }
    assert metrics == {("rollout/reward", 1, 0.5)}
    assert runs["s0"]["info"]["artifact_uri"].startswith("mlflow-artifacts:/nodes/")


def test_the_compare_page_has_the_orders_and_no_arm_without_phases(opened: str):
    (listed,) = re.findall(r"compare-runs\?runs=([^&]+)", opened)
    (experiment,) = re.findall(r"orders, table +\S+/experiments/(\d+)/runs\?", opened)
    runs = ask(opened, "runs/search", {"experiment_ids": [experiment]}).json()["runs"]
    names = {run["info"]["run_id"]: run["info"]["run_name"] for run in runs}
    compared = [names[run] for run in json.loads(urllib.parse.unquote(listed))]
    assert sorted(compared) == ["code_first", "math_first"]


def test_orders_of_another_work_tree_in_the_same_store_are_not_compared(
    opened: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (experiment,) = re.findall(r"orders, table +\S+/experiments/(\d+)/runs\?", opened)
    (address,) = set(re.findall(r"(http://\S+?)/#/", opened))
    runs = ask(opened, "runs/search", {"experiment_ids": [experiment]}).json()["runs"]
    tags = next(run["data"]["tags"] for run in runs if run["info"]["run_name"] == "math_first")
    own = {tag["key"]: tag["value"] for tag in tags}
    monkeypatch.chdir(own["folder"])
    before = ui._current_orders(address, experiment)
    assert len(before) == 2
    made = {}
    for folder in (tmp_path, tmp_path / "gone"):
        given = {**own, "folder": str(folder), "mlflow.runName": folder.name}
        listed = [{"key": key, "value": value} for key, value in given.items()]
        body = {"experiment_id": experiment, "start_time": 0, "tags": listed}
        run = ask(opened, "runs/create", body).json()["run"]["info"]["run_id"]
        ask(opened, "runs/log-parameter", {"run_id": run, "key": "pos1", "value": "math"})
        made[folder.name] = run
    compared = ui._current_orders(address, experiment)
    for run in made.values():  # other tests look at this server's pages
        ask(opened, "runs/delete", {"run_id": run}).raise_for_status()
    assert set(compared) == {*before, made["gone"]}


def test_mlflows_pages_show_the_arms_side_by_side_and_a_nodes_model_data_and_rollouts(opened: str):
    with browsing(viewport={"width": 1500, "height": 1400}) as tab:
        links = dict(re.findall(r"^(MLflow: .+?)  +(http\S+)$", opened, re.MULTILINE))
        tab.open(links["MLflow: orders compared"])
        tab.shows("Comparing 2 Runs from 1 Experiment", "math_first", "code_first", "pos2")
        assert tab.page.get_by_text("math_first s0").count() == 0
        tab.open(links["MLflow: orders, table"])
        tab.shows("math_first", "code_first", "4", "score/math", "pos1")
        run = node_runs(opened)["s0--math"]["info"]
        page = f"/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"
        tab.open(links["MLflow: nodes, table"].partition("/#/")[0] + page)
        tab.shows("s0--math", "rollout/reward", "Parent run", "s0")
        tab.page.get_by_text("math/train").first.wait_for()
        tab.page.get_by_role("tab", name="Traces").click()
        tab.page.get_by_text("it is 2").first.wait_for()
    assert tab.errors == []


@pytest.mark.parametrize("page", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_mlflow_answers_no_page_but_its_own(opened: str, page: dict[str, str]):
    assert ask(opened, "experiments/create", {"name": f"planted {page}"}, **page).status_code == 403


@pytest.fixture
def address() -> Iterator[str]:
    """A server on loopback that says which path it was asked for."""

    class Answer(Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

    with serving(Answer) as where:
        yield where


ASKING = (
    "import urllib.request as u, sys; print(u.urlopen(sys.argv[1], timeout=20).read().decode())"
)
CLIENTS = {
    # urlopen keeps the proxies of its first call in this process
    "urllib": lambda url: urllib.request.build_opener().open(url, timeout=20).read().decode(),
    "requests": lambda url: requests.get(url, timeout=20).text,
    "httpx": lambda url: httpx.get(url, timeout=20).text,
    "child": lambda url: subprocess.run(
        [sys.executable, "-c", ASKING, url], text=True, capture_output=True, check=True
    ).stdout.strip(),
}


@pytest.mark.parametrize("given", ["", "internal.example", " internal.example , 127.0.0.1", "*"])
@pytest.mark.parametrize("client", CLIENTS)
def test_loopback_is_asked_without_the_proxy(monkeypatch, address: str, client: str, given: str):
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, given)
    keep_loopback_direct()
    for name in ("127.0.0.1", "localhost"):
        url = f"http://{address.replace('127.0.0.1', name)}/here"
        assert CLIENTS[client](url) == "/here"
    if given.strip(" *"):
        assert "internal.example" in os.environ["no_proxy"].split(",")
        with pytest.raises(OSError, match=r"refused|proxy"):
            urllib.request.build_opener().open("http://other.example/", timeout=20)
