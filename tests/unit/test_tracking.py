"""metrics.jsonl is the truth; MLflow is a copy that may fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainorder import paths, tracking
from trainorder.process import exclusive
from trainorder.resume import Work
from trainorder.tracking import OrderRecord, Tracker

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
WRITER = """
import sys, warnings
warnings.simplefilter("error")
from trainorder.tracking import Tracker
with Tracker(sys.argv[1], 0, {"rl": {"lr": 0.1}}, {"phase": "math"}) as tracker:
    for step in range(3):
        tracker.log(step, {"reward/mean": step / 2})
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def lines(node: str) -> list[dict]:
    return [json.loads(x) for x in Path(f"runs/{node}/metrics.jsonl").read_text().splitlines()]


def runs(experiment: str) -> list:
    client, key = tracking.connect(experiment)
    return client.search_runs([key])


def test_four_processes_on_a_fresh_store_each_leave_one_complete_run(folder: Path):
    nodes = ["s0--math", "s0--code", "s0--qa", "s0--creative"]
    command = [sys.executable, "-c", WRITER]
    started = [subprocess.Popen([*command, node], cwd=folder, env=ENV) for node in nodes]
    assert [process.wait() for process in started] == [0, 0, 0, 0]
    found = {run.data.tags["node"]: run for run in runs("nodes")}
    assert sorted(found) == sorted(nodes)
    for node, run in found.items():
        assert run.info.status == "FINISHED"
        assert run.data.metrics == {"reward/mean": 1.0}
        assert run.data.params == {"rl.lr": "0.1"}
        assert tracking.read_run_id(node) == run.info.run_id


def test_a_child_names_its_parents_run():
    with Tracker("s0", 0, {}, {"phase": "sft"}) as parent:
        pass
    with Tracker("s0--math", 0, {}, {"phase": "math", "parent": "s0", "task": "math"}):
        pass
    tags = next(r.data.tags for r in runs("nodes") if r.data.tags["node"] == "s0--math")
    assert tags["parent_run_id"] == parent.run_id
    assert (tags["parent_node"], tags["phase"], tags["seed"], tags["task"]) == (
        "s0",
        "math",
        "0",
        "math",
    )


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


def test_metrics_wait_for_their_batch():
    with Tracker("s0", 0, {}, {}, batch_seconds=1000) as tracker:
        tracker.log(0, {"sft/loss": 1.0})
        (run,) = runs("nodes")
        assert run.data.metrics == {}
    (run,) = runs("nodes")
    assert run.data.metrics == {"sft/loss": 1.0}


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


def test_evaluations_join_the_run_that_made_the_node_once():
    with Tracker("s0", 0, {}, {}) as tracker:
        pass
    wanted = {tracker.run_id: {"test/score/math": 0.25}, "unknown": {"test/score/math": 1.0}}
    assert tracking.log_final(wanted) == 1
    assert tracking.log_final(wanted) == 0
    assert runs("nodes")[0].data.metrics == {"test/score/math": 0.25}


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
