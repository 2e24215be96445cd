"""metrics.jsonl is the truth; MLflow is a copy that may fail."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from order_worlds import World

from trainorder import owner, paths, tracking
from trainorder.config import MeasureConfig
from trainorder.files import write_json
from trainorder.measure import from_plan, measure, to_json
from trainorder.preflight import machine
from trainorder.process import StageError, exclusive
from trainorder.reading import ParamsError
from trainorder.resume import Work
from trainorder.tracking import OrderRecord, Tracker
from trainorder.tracking.usage import resident

pytestmark = pytest.mark.long("every test opens an MLflow store, some start servers and processes")

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
WRITER = """
import sys, warnings
warnings.simplefilter("error")
from trainorder.tracking import Tracker
with Tracker(sys.argv[1], 0, {"rl": {"lr": 0.1}}, {"phase": "math"}) as tracker:
    for step in range(3):
        tracker.log(step, {"rollout/reward": step / 2})
"""


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nobody has used. MLflow takes a second to make one."""
    database = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a copy of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(tables, tmp_path)
    return tmp_path


def lines(node: str) -> list[dict]:
    return [json.loads(x) for x in Path(f"runs/{node}/metrics.jsonl").read_text().splitlines()]


def runs(experiment: str) -> list:
    """Runs, without what the process used: a slow machine takes readings in a short test."""
    client, key = tracking.connect(experiment)
    found = client.search_runs([key])
    for run in found:
        for name in [name for name in run.data.metrics if name.startswith("system/")]:
            del run.data.metrics[name]
    return found


def test_four_processes_on_a_fresh_store_each_leave_one_complete_run(folder: Path):
    (folder / "mlflow.db").unlink()
    nodes = ["s0--math", "s0--code", "s0--qa", "s0--creative"]
    command = [sys.executable, "-c", WRITER]
    started = [subprocess.Popen([*command, node], cwd=folder, env=ENV) for node in nodes]
    assert [process.wait() for process in started] == [0, 0, 0, 0]
    found = {run.data.tags["node"]: run for run in runs("nodes")}
    assert sorted(found) == sorted(nodes)
    for node, run in found.items():
        assert run.info.status == "FINISHED"
        assert run.data.metrics == {"rollout/reward": 1.0}
        assert run.data.params == {"rl.lr": "0.1"}
        assert tracking.read_run_id(node) == run.info.run_id


def test_a_child_names_its_parents_run():
    with Tracker("s0", 0, {}, {"phase": "sft"}) as parent:
        pass
    with Tracker("s0--math", 0, {}, {"phase": "math", "parent": "s0", "task": "math"}):
        pass
    tags = next(r.data.tags for r in runs("nodes") if r.data.tags["node"] == "s0--math")
    assert tags["parent_run_id"] == tags["mlflow.parentRunId"] == parent.run_id
    assert tags["mlflow.note.content"].startswith(
        "**math**, seed 0. Checkpoint `checkpoints/s0--math`"
    )
    assert (tags["parent_node"], tags["phase"], tags["seed"], tags["task"]) == (
        "s0",
        "math",
        "0",
        "math",
    )


def test_the_order_of_problems_lies_in_the_records_and_with_the_run():
    steps = [{"step": 0, "problems": ["math/1", "qa/2"], "answers": 8}]
    with Tracker("s0--math", 0, {}, {}) as tracker:
        tracker.keep_order(steps)
    file = Path("runs/s0--math/drawn.jsonl")
    assert [json.loads(line) for line in file.read_text().splitlines()] == steps
    (run,) = runs("nodes")
    stored = Path("mlartifacts") / run.info.artifact_uri.partition(":/")[2] / file.name
    assert stored.read_bytes() == file.read_bytes()


def test_a_failed_node_is_failed_in_mlflow_and_keeps_its_lines():
    def diverge() -> None:
        with Tracker("s0", 0, {}, {}) as tracker:
            tracker.log(0, {"sft/loss": 2.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        diverge()
    assert lines("s0") == [{"step": 0, "sft/loss": 2.0}]
    (run,) = runs("nodes")
    assert (run.info.status, run.data.metrics) == ("FAILED", {"sft/loss": 2.0})


def log_four_steps(database: Path | None = None) -> None:
    with Tracker("s0", 0, {}, {}, batch_seconds=0) as tracker:
        for step in range(4):
            tracker.log(step, {"sft/loss": 1.0})
            if database is not None:
                database.write_bytes(b"not a database" * 1000)


def test_a_store_that_cannot_be_reached_warns_once_and_loses_no_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.warns(RuntimeWarning, match="stays complete") as caught:
        log_four_steps()
    assert len(caught) == 1
    assert [line["step"] for line in lines("s0")] == [0, 1, 2, 3]
    assert tracking.read_run_id("s0") is None


def test_a_store_that_breaks_in_the_middle_warns_once_and_loses_no_line(folder: Path):
    with pytest.warns(RuntimeWarning, match="stays complete") as caught:
        log_four_steps(folder / "mlflow.db")
    assert len(caught) == 1
    assert [line["step"] for line in lines("s0")] == [0, 1, 2, 3]


def test_a_measurement_that_mlflow_could_not_take_is_a_failed_stage_to_try_again(monkeypatch):
    from stages import mirror

    world = World(("a", "b"), {"a": ("a",), "b": ("b",)}, {"x": ("a", "b")}, problems=8)
    found = measure(world.table(), from_plan(world.plan()), MeasureConfig(bootstrap=100))
    paths.BWT.parent.mkdir()
    paths.BWT.write_text(to_json(found))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(
        StageError, match=r"^MLflow was not updated .*`dvc repro mirror`, tries again"
    ):
        mirror.main(argparse.Namespace())


def test_an_alarm_has_no_chart_in_mlflow_before_it_sounds(tmp_path: Path):
    work = Work(tmp_path / "work", 0)
    for step, values in enumerate(
        ((0.0, 0.0), (1.0, 0.0), (0.0, 0.0))
    ):  # each in a process of its own
        with Tracker("s0", 0, {}, {}, work=work) as tracker:
            tracker.log(step, dict(zip(("alarm/kl", "alarm/length"), values, strict=True)))
    client, _ = tracking.connect("nodes")
    (run,) = runs("nodes")
    assert run.data.metrics == {"alarm/kl": 0.0}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "alarm/kl")] == [
        (1, 1.0),
        (2, 0.0),
    ]
    assert lines("s0") == [{"step": 2, "alarm/kl": 0.0, "alarm/length": 0.0}]


def test_metrics_wait_for_their_batch():
    with Tracker("s0", 0, {}, {}, batch_seconds=1000) as tracker:
        tracker.log(0, {"sft/loss": 1.0})
        (run,) = runs("nodes")
        assert run.data.metrics == {}
    (run,) = runs("nodes")
    assert run.data.metrics == {"sft/loss": 1.0}


def test_what_the_process_uses_is_read_in_seconds_not_steps_and_leaves_the_file_as_it_is():
    with Tracker("s0", 0, {}, {}) as tracker:
        tracker._mirror.usage.seconds = 0.2
        for step in range(40):
            end = time.process_time() + 0.01
            while time.process_time() < end:
                pass
            tracker.log(step, {"sft/loss": 1.0})
    assert {name for line in lines("s0") for name in line} == {"step", "sft/loss"}
    client, _ = tracking.connect("nodes")
    busy, memory = (
        client.get_metric_history(tracker.run_id, f"system/process_{name}")
        for name in ("cpu_percentage", "memory_megabytes")
    )
    assert 1 <= len(busy) == len(memory) < 40
    assert all(5 < m.value < 1000 for m in busy)
    assert all(m.value == pytest.approx(resident() / 1e6, rel=0.5) for m in memory)


def test_numbers_that_are_not_finite_leave_valid_json():
    with Tracker("s0", 0, {}, {}) as tracker:
        tracker.log(0, {"rl/loss": float("nan"), "rl/lr": 0.5})
    assert lines("s0") == [{"step": 0, "rl/loss": None, "rl/lr": 0.5}]


def test_order_records_are_added_once_and_replaced_ones_are_no_longer_current():
    first = OrderRecord("a", {"pos1": "math"}, [("score/math", 0.2, 0), ("score/math", 0.5, 1)], {})
    other = OrderRecord("b", {"pos1": "code"}, [("score/math", 0.2, 0), ("score/math", 0.3, 1)], {})
    assert tracking.log_orders([first, other]) == 2
    assert tracking.log_orders([first, other]) == 0
    changed = OrderRecord("a", first.params, [("score/math", 0.2, 0), ("score/math", 0.6, 1)], {})
    assert tracking.log_orders([changed, other]) == 1
    client, experiment = tracking.connect("orders")
    current = client.search_runs([experiment], "tags.current = 'true'")
    assert {r.info.run_name: r.data.metrics["score/math"] for r in current} == {"a": 0.6, "b": 0.3}
    assert len(client.search_runs([experiment])) == 3
    steps = client.get_metric_history(current[0].info.run_id, "score/math")
    assert sorted(m.step for m in steps) == [0, 1]


def test_a_seed_stands_below_its_arm_also_when_the_arm_has_changed():
    def arm(mean: float) -> OrderRecord:
        return OrderRecord("a", {}, [("mean", mean, 0)], tracking.ARM)

    seeds = [
        OrderRecord(f"a s{i}", {}, [("mean", value, 0)], {"row": "seed"}, above="a")
        for i, value in enumerate((0.5, 0.7, 0.9))
    ]
    assert tracking.log_orders([arm(0.6), *seeds[:2]]) == 3
    assert tracking.log_orders([arm(0.7), *seeds]) == 2  # a seed more
    client, experiment = tracking.connect("orders")
    current = client.search_runs([experiment], "tags.current = 'true'")
    found = {run.info.run_name: run for run in current}
    assert sorted(found) == ["a", "a s0", "a s1", "a s2"]
    assert "mlflow.parentRunId" not in found["a"].data.tags
    above = {found[f"a s{i}"].data.tags["mlflow.parentRunId"] for i in range(3)}
    assert above == {found["a"].info.run_id}
    assert found["a"].data.metrics == {"mean": 0.7}


def make_node(node: str, parents: list[str], **facts: object) -> None:
    """A node as its files tell: trained inside a Tracker, or merged."""
    if len(parents) < 2:
        with Tracker(
            node, 0, {"rl": {"lr": 0.1}}, {"parent": next(iter(parents), None)}
        ) as tracker:
            tracker.log(0, {"rollout/reward": 0.5})
    manifest = {"seed": 0, "weights": f"{node}-weights", "parents": dict.fromkeys(parents, "w")}
    manifest |= {
        "params": {"merge": {"scale": 0.5}},
        "steps": 1,
        "data": {},
        "seconds": 2.0,
    } | facts
    write_json(paths.run(node) / "manifest.json", manifest)


def test_a_nodes_run_gets_its_checkpoint_as_a_model_what_it_read_and_what_it_scored_once():
    make_node("s0", [])
    rollout = {"step": 0, "task": "math", "problem": "math/1", "prompt": "1 + 1?", "answer": "2"}
    rollout |= {"reward": 1.0, "advantage": 0.5, "tokens": 2}
    read = {"data/tasks/math/train.jsonl": "0f0f5d0788c0ffff"}
    make_node("s0--math", ["s0"], data=read, rollouts=[rollout])
    make_node("s0--ties", ["s0", "s0--math", "s0--qa"])
    far = {"phase": "math", "code": {"phase_math.half": "0f"}}
    make_node("s0--half--qa--math", ["s0--half--qa"], **far)
    (paths.run("s0--half--qa--math") / "run.json").unlink()  # made elsewhere
    scores = {"s0": {}, "s0--math": {"test/score/math": 0.25}, "s0--ties": {"test/score/math": 0.5}}
    scores["s0--half--qa--math"] = {}
    records = [tracking.read_node(node, values) for node, values in scores.items()]
    assert tracking.log_nodes(records) == 4
    assert tracking.log_nodes(records) == 0
    found = {run.info.run_name: run for run in runs("nodes")}
    assert sorted(found) == sorted(scores)
    base, math, ties, far = (found[node] for node in scores)
    assert math.data.tags["mlflow.parentRunId"] == ties.data.tags["mlflow.parentRunId"]
    assert math.data.tags["mlflow.parentRunId"] == base.info.run_id
    assert "mlflow.parentRunId" not in base.data.tags
    assert math.data.metrics == {"rollout/reward": 0.5, "test/score/math": 0.25}
    assert ties.data.params == {"merge.scale": "0.5"}
    note = "**math**, after qa, seed 0, variant half. Checkpoint `checkpoints/s0--half--qa--math`"
    assert far.data.tags["mlflow.note.content"].startswith(note)
    assert ties.data.tags["mlflow.note.content"].startswith("**ties**, seed 0. ")
    today = {"mlflow.user", "mlflow.source.git.commit", "mlflow.source.name", "host"}
    for filled in (ties, far):  # the records do not say who made them
        assert today & filled.data.tags.keys() == set()
    assert {"mlflow.user", "host"} <= math.data.tags.keys()
    (data,) = math.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("math/train", "0f0f5d0788c0")
    client, _ = tracking.connect("nodes")
    model = client.get_logged_model(math.data.tags["model_id"])
    assert (model.name, model.tags["weights"]) == ("s0--math", "s0--math-weights")
    assert [(m.key, m.value) for m in model.metrics] == [("test/score/math", 0.25)]
    (trace,) = client.search_traces(locations=[math.info.experiment_id], run_id=math.info.run_id)
    (span,) = trace.data.spans
    assert span.inputs == {"messages": [{"role": "user", "content": "1 + 1?"}]}
    assert span.outputs == "2"
    assert span.attributes["reward"] == 1.0
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_best_node_is_a_registered_model_whose_alias_moves():
    for node, parents in (("s0", []), ("s0--math", ["s0"])):
        make_node(node, parents)
    tracking.log_nodes([tracking.read_node(node) for node in ("s0", "s0--math")])
    client, _ = tracking.connect("nodes")
    versions = [
        tracking.register(node, f"{node} is best") for node in ("s0", "s0--math", "s0--math")
    ]
    assert versions == ["1", "2", "2"]
    (model,) = client.search_registered_models()
    best = client.get_model_version_by_alias(model.name, "best")
    assert (best.tags["node"], best.description) == ("s0--math", "s0--math is best")
    assert tracking.register("s0--qa", "was never made") is None


def test_files_of_an_order_lie_where_the_projects_server_looks_for_them(folder: Path):
    record = OrderRecord("verdict", {}, [], {"kind": "verdict"}, "joint is best", {"a.csv": b"x"})
    view = {"selectedColumns": ["metrics.`mean`"], "searchFilter": "tags.current = 'true'"}
    assert [tracking.log_orders([record], view) for _ in range(2)] == [1, 0]
    (run,) = runs("orders")
    assert run.data.tags["mlflow.note.content"] == "joint is best"
    stored = run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    assert (folder / "mlartifacts" / stored / "a.csv").read_bytes() == b"x"
    client, key = tracking.connect("orders")
    assert json.loads(client.get_experiment(key).tags["mlflow.sharedViewState.trainorder"]) == view
    changed = OrderRecord("verdict", {}, [], {"kind": "verdict"}, "", {"a.csv": b"y"})
    assert tracking.log_orders([changed]) == 1


def test_sweep_ends_runs_of_killed_processes(folder: Path):
    source = "import os\nfrom trainorder.tracking import Tracker\nTracker('s0', 0, {}, {}).__enter__()\nos._exit(9)"
    assert subprocess.run([sys.executable, "-c", source], cwd=folder, env=ENV).returncode == 9
    assert [run.info.status for run in runs("nodes")] == ["RUNNING"]
    assert tracking.sweep() == 1
    assert [run.info.status for run in runs("nodes")] == ["KILLED"]


def test_sweep_leaves_a_node_that_is_being_made_alone(folder: Path):
    with Tracker("s0", 0, {}, {}), exclusive(paths.RESUME / "s0.lock", "makes s0"):
        script = "from trainorder import tracking; print(tracking.sweep())"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=ENV, capture_output=True, text=True
        )
        assert done.stdout == "0\n", done.stderr
        assert [run.info.status for run in runs("nodes")] == ["RUNNING"]


def test_a_run_that_goes_on_gets_what_it_lacks_and_nothing_twice(tmp_path: Path):
    work = Work(tmp_path / "work", 0)
    killed = Tracker("s0", 0, {}, {}, batch_seconds=1000, work=work)
    killed.__enter__()
    for step in range(3):
        killed.log(step, {"sft/loss": float(step)})
    killed._mirror._send()  # three steps reached MLflow,
    killed.log(3, {"sft/loss": 3.0})  # the fourth did not,
    killed._mirror.pending = []
    state = killed.state()
    killed.log(4, {"sft/loss": 4.0})
    killed._mirror._send()  # the fifth did, after the checkpoint
    assert killed._file is not None
    killed._file.close()
    with Tracker("s0", 0, {}, {}, work=Work(tmp_path / "work", 0)) as tracker:
        tracker.restore(state)
        for step in (4, 5):
            tracker.log(step, {"sft/loss": float(step)})
    assert [line["step"] for line in lines("s0")] == list(range(6))
    (run,) = runs("nodes")
    assert (run.info.run_id, run.info.status) == (killed.run_id, "FINISHED")
    client, _ = tracking.connect("nodes")
    history = client.get_metric_history(run.info.run_id, "sft/loss")
    assert sorted((m.step, m.value) for m in history) == [(i, float(i)) for i in range(6)]


def test_a_run_that_the_store_lost_is_begun_anew(tmp_path: Path):
    work = Work(tmp_path / "work", 0)
    work.save("mlflow", {}, {"run_id": "0" * 32})
    with Tracker("s0", 0, {}, {}, work=work) as tracker:
        tracker.log(0, {"sft/loss": 1.0})
    assert [run.info.run_id for run in runs("nodes")] == [tracker.run_id]
    known = work.latest("mlflow")
    assert known is not None
    assert known.state == {"run_id": tracker.run_id}


# Whose runs they are

SERVER = """
import sys
from trainorder.ui import mlflow_server
with mlflow_server(int(sys.argv[1])) as server:
    print(server.wait_until_ready(), flush=True)
    sys.stdin.read()
"""
PROJECT = """
import json, os, sys
from trainorder import tracking
from trainorder.tracking import NodeRecord, OrderRecord, Tracker

for line in sys.stdin:
    what = json.loads(line)
    if what == "start":
        Tracker("s0", 0, {}, {}).__enter__()
        print(json.dumps(tracking.read_run_id("s0")), flush=True)
    elif what == "sweep":
        print(json.dumps(tracking.sweep()), flush=True)
    elif isinstance(what, dict):
        records = [NodeRecord("s0", run, {}, scores) for run, scores in what.items()]
        print(json.dumps(tracking.log_nodes(records)), flush=True)
    else:
        records = [OrderRecord(name, {}, [("score/math", score, 0)], {}) for name, score in what]
        print(json.dumps(tracking.log_orders(records)), flush=True)
"""


class OtherProcess:
    """A Python process in a folder that answers JSON lines with JSON lines."""

    def __init__(self, folder: Path, source: str, *arguments: str, **env: str) -> None:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", source, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=folder, env=ENV | env, **pipes)

    def __enter__(self) -> OtherProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def ask(self, what: object) -> object:
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def mlflow_address(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("server")
    with OtherProcess(folder, SERVER, "0") as server:
        yield server.process.stdout.readline().strip()


def test_two_projects_on_one_server_leave_each_others_runs_alone(
    mlflow_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    env = {"MLFLOW_TRACKING_URI": mlflow_address, "MLFLOW_EXPERIMENT_NAME": "shared"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with (
        OtherProcess(tmp_path / "ours", PROJECT, **env) as ours,
        OtherProcess(tmp_path / "theirs", PROJECT, **env) as theirs,
    ):
        live = theirs.ask("start")
        killed = ours.ask("start")
        assert theirs.ask([["a", 0.5], ["b", 0.25]]) == 2
        assert ours.ask([["a", 0.5]]) == 1  # the same numbers, another project
        assert ours.ask([["a", 0.75]]) == 1
        assert ours.ask("sweep") == 1
        assert ours.ask({live: {"test/score/math": 1.0}, killed: {"test/score/math": 0.5}}) == 1
    found = {run.info.run_id: run for run in runs("nodes")}
    assert (found[live].info.status, found[killed].info.status) == ("RUNNING", "KILLED")
    assert found[live].data.metrics == {}
    current = sorted(
        (Path(run.data.tags["folder"]).name, run.info.run_name, run.data.metrics["score/math"])
        for run in runs("orders")
        if run.data.tags["current"] == "true"
    )
    assert current == [("ours", "a", 0.75), ("theirs", "a", 0.5), ("theirs", "b", 0.25)]


def test_experiments_begin_with_the_projects_name_and_own_runs_of_other_experiments_join(
    mlflow_address: str, monkeypatch: pytest.MonkeyPatch, folder: Path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "before")
    make_node("s0", [])
    with Tracker("s0--math", 0, {}, {}) as other:
        pass
    client, _ = tracking.connect("nodes")
    client.set_tag(other.run_id, "project", "somebody else's")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    records = [tracking.read_node(node, {"test/score/math": 0.5}) for node in ("s0", "s0--math")]
    assert [tracking.log_nodes(records) for _ in range(2)] == [1, 0]
    (run,) = runs("nodes")
    assert (run.info.run_name, run.data.metrics["rollout/reward"]) == ("s0", 0.5)
    assert client.get_experiment(run.info.experiment_id).name == f"{folder.name}/nodes"


def test_an_own_store_of_before_keeps_its_runs_under_the_projects_name(folder: Path):
    with Tracker("s0", 0, {}, {}) as tracker:
        pass
    client, experiment = tracking.connect("nodes")
    client.rename_experiment(experiment, "nodes")
    known = json.loads(Path("mlartifacts/project.json").read_text())
    assert known.pop("name") == folder.name
    write_json(Path("mlartifacts/project.json"), known)
    assert [run.info.run_id for run in runs("nodes")] == [tracker.run_id]
    assert client.get_experiment(experiment).name == f"{folder.name}/nodes"
    assert owner.project() == {"id": known["id"], "name": folder.name}


def test_stages_of_a_worker_belong_to_the_project_that_asked(monkeypatch: pytest.MonkeyPatch):
    asking = {"id": "0f" * 16, "name": "asking"}
    monkeypatch.setenv("TRAINORDER_PROJECT", json.dumps(asking))
    with Tracker("s0", 0, {}, {}):
        pass
    (run,) = runs("nodes")
    assert run.data.tags["project"] == asking["id"]
    client, experiment = tracking.connect("nodes")
    assert client.get_experiment(experiment).name == "asking/nodes"


def test_a_sweep_leaves_runs_of_another_machine_alone(mlflow_address: str, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    client, experiment = tracking.connect("nodes")
    mine = owner.identity()
    there = client.create_run(experiment, tags={**mine, "host": "elsewhere", "node": "s0"})
    here = client.create_run(experiment, tags={**mine, "node": "s0"})
    assert tracking.sweep() == 1
    states = [client.get_run(run.info.run_id).info.status for run in (there, here)]
    assert states == ["RUNNING", "KILLED"]


def test_a_copy_of_a_folder_is_another_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = owner.identity()["project"]
    assert owner.identity()["project"] == first
    shutil.copytree("mlartifacts", tmp_path / "copy" / "mlartifacts")
    monkeypatch.chdir(tmp_path / "copy")
    assert owner.identity()["project"] != first


def test_the_experiments_carry_the_name_that_the_user_gave(mlflow_address: str, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team/orders of skills")
    with Tracker("s0", 0, {}, {}):
        pass
    client, _ = tracking.connect("orders")
    names = {experiment.name for experiment in client.search_experiments()}
    assert {"team/orders of skills/nodes", "team/orders of skills/orders"} <= names


def test_a_store_is_opened_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pro ject#?%41'ä").mkdir()
    monkeypatch.chdir(tmp_path / "pro ject#?%41'ä")
    with Tracker("s0", 0, {}, {}):
        pass
    assert [run.info.status for run in runs("nodes")] == ["FINISHED"]
    assert Path("mlflow.db").is_file()


def test_a_store_that_no_address_can_name_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    main = tmp_path / "a?b"
    main.mkdir()
    (main / "dvc.yaml").touch()
    git = ["git", "-C", str(main), "-c", "user.name=t", "-c", "user.email=t@x"]
    for command in ("init -q", "add -A", "commit -qm all", "worktree add -q ../second"):
        subprocess.run([*git, *command.split()], check=True)
    monkeypatch.chdir(main)
    machine._check_path()
    monkeypatch.chdir(tmp_path / "second")
    with pytest.raises(ParamsError, match=r"/mlflow.db cannot be named by SQLAlchemy"):
        machine._check_path()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    machine._check_path()


@pytest.mark.long("dvc starts five times, and both of its experiments import MLflow")
def test_dvc_experiments_log_to_the_projects_store(tmp_path: Path):
    commands = [
        "git init -q",
        "dvc init -q",
        "git add -A",
        "git commit -qm all",
        "dvc exp run --temp -q",
        "dvc exp run --queue --force -q",
        "dvc exp run --run-all -q",
    ]
    (tmp_path / "writer.py").write_text(WRITER)
    text = "stages: {one: {cmd: python writer.py s0, outs: [runs/s0/metrics.jsonl]}}\n"
    (tmp_path / "dvc.yaml").write_text(text)
    (tmp_path / ".gitignore").write_text("mlartifacts\nmlflow.db\nruns\n")
    names = {
        f"GIT_{who}_{what}": "t@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        subprocess.run(command.split(), env=ENV | names | {"PATH": path}, check=True)
    assert [run.data.tags["node"] for run in runs("nodes")] == ["s0", "s0"]
    assert not Path("runs/s0").exists()  # it ran elsewhere


@pytest.mark.parametrize("below", [".", "project"])
def test_a_git_work_tree_logs_to_the_main_projects_store(tmp_path: Path, monkeypatch, below: str):
    project = tmp_path / "main" / below
    project.mkdir(parents=True)
    (project / "dvc.yaml").touch()
    git = ["git", "-C", str(tmp_path / "main"), "-c", "user.name=t", "-c", "user.email=t@x"]
    for command in ("init -q", "add -A", "commit -qm all", "worktree add -q ../second"):
        subprocess.run([*git, *command.split()], check=True)
    monkeypatch.chdir(tmp_path / "second" / below)
    with Tracker("s0", 0, {}, {}):
        pass
    monkeypatch.chdir(project)
    (run,) = runs("nodes")
    assert Path(run.data.tags["folder"]) == tmp_path / "second" / below


def test_a_submodule_is_a_project_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@x", "-c", "protocol.file.allow=always"]
    for name in ("inner", "outer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dvc.yaml").touch()
        for command in ("init -q", "add -A", "commit -qm all"):
            subprocess.run([*git, "-C", str(tmp_path / name), *command.split()], check=True)
    add = ["submodule", "--quiet", "add", str(tmp_path / "inner"), "sub"]
    subprocess.run([*git, "-C", str(tmp_path / "outer"), *add], check=True)
    monkeypatch.chdir(tmp_path / "outer" / "sub")
    assert owner.home() == tmp_path / "outer" / "sub"
