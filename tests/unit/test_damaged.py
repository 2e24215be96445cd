"""Files of this program in any shape: one line that says how to repair them, or a warning where they are written again."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from order_worlds import World

from trainorder import lineage, plan, results
from trainorder.cli import app
from trainorder.config import MeasureConfig
from trainorder.measure import measure
from trainorder.plan.design import from_plan
from trainorder.reading import ParamsError
from trainorder.results import to_json
from trainorder.verify import verify

ROOT = Path(__file__).parents[2]
TORN: list[str | bytes] = ["", "[]", "- a", "{", "3", "null", b"\xff\xfe\x00", "[" * 5000, "a: [b"]
PLANS = [*TORN, "resolved: [math]", "resolved: {recommended: 3}", "resolved: {recommended: [1]}"]
LOCKS = [*TORN, "schema: '2.0'", "stages: []", "stages: {a: []}", "stages: {a: {outs: [{path: 3}]}}"]  # fmt: skip
BWTS = [*TORN, "{}", '{"version": 2}', '{"version": 2, "recommended": [1], "variants": {}}', '{"version": {}}']  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "configs/smoke.yaml", "params.yaml")
    return tmp_path


def write(name: str, content: str | bytes) -> None:
    Path(name).parent.mkdir(exist_ok=True, parents=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """What a command that exits with 2 says: one line."""
    with pytest.raises(SystemExit) as stop:
        app(list(command))
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    return said


def test_locks_of_a_killed_dvc_do_not_wait_for_a_program_that_has_its_number_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from dvc.lock import LockError
    from dvc.rwlock import rwlock
    from dvc_objects.fs.local import localfs

    temporary = tmp_path / ".dvc" / "tmp"
    temporary.mkdir(parents=True)

    def take(path: str) -> None:
        with rwlock(str(temporary), localfs, "dvc status", [], [path], False):
            pass

    command = ["sleep", "60"]
    with (
        subprocess.Popen(command, cwd="/") as other,
        subprocess.Popen(command, cwd=tmp_path) as living,
    ):
        dvc = "/x/dvc/__main__.py --wait-for-lock repro -s s0--math"
        write = {"a": {"pid": other.pid, "cmd": dvc}, "b": {"pid": living.pid, "cmd": dvc}}
        read = {"c": [{"pid": other.pid, "cmd": dvc}, {"pid": living.pid, "cmd": dvc}]}
        (temporary / "rwlock").write_text(json.dumps({"read": read, "write": write}))
        with pytest.raises(LockError, match=f"PID {other.pid}"):
            take("a")
        plan.repair()
        assert "held locks of a killed dvc" in capsys.readouterr().err
        take("a")
        for path in ("b", "c"):  # a process that works in this folder may be the dvc that is noted
            with pytest.raises(LockError, match=f"PID {living.pid}"):
                take(path)
        plan.repair()
        assert capsys.readouterr().err == ""
        other.kill()
        living.kill()


@pytest.mark.parametrize("content", PLANS)
def test_a_damaged_plan_is_compiled_again_and_says_so(
    content: str | bytes, capsys: pytest.CaptureFixture[str]
):
    write("plan.yaml", content)
    assert plan.load().nodes
    assert "warning: plan.yaml" in capsys.readouterr().err
    assert "`trainorder plan` writes it" in refused(capsys, "compare", "base", "joint")
    assert plan.write(plan.load())
    assert not capsys.readouterr().err.count("\n") > 1
    assert plan.stored()["evaluations"]


@pytest.mark.parametrize("content", LOCKS)
def test_a_damaged_dvc_lock_is_refused_with_the_way_to_repair_it(
    content: str | bytes, capsys: pytest.CaptureFixture[str]
):
    write("plan/dvc.lock", content)
    said = refused(capsys, "verify")
    assert "plan/dvc.lock" in said
    assert "`trainorder run` sets a damaged one aside and restores" in said


@pytest.mark.parametrize("content", BWTS)
@pytest.mark.parametrize("command", [["recommend"], ["table"], ["report"], ["plan", "--resolve"]])
def test_a_damaged_measurement_is_refused_with_the_way_to_repair_it(
    content: str | bytes, command: list[str], capsys: pytest.CaptureFixture[str]
):
    write("reports/bwt.json", content)
    said = refused(capsys, *command)
    assert "reports/bwt.json" in said
    assert "run`" in said or "dvc repro plan/dvc.yaml:measure_bwt" in said


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and index inside, as the path to it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inside:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from paths_of(item, (*path, key))


def test_a_measurement_in_which_any_key_is_missing_or_changed_is_refused():
    world = World(tasks=("a", "b"), phases={"a": ("a",), "b": ("b",)}, orders={"x": ("a", "b")}, problems=8)  # fmt: skip
    text = to_json(measure(world.table(), from_plan(world.plan()), MeasureConfig(bootstrap=100)))
    write("reports/bwt.json", text)
    whole = {"hash": json.loads(text)["hash"], **results.load()}
    assert whole == json.loads(text)

    def is_refused() -> None:
        write("reports/bwt.json", json.dumps(whole))
        with pytest.raises(
            ParamsError, match=r"^reports/bwt.json is .*dvc repro plan/dvc.yaml:measure_bwt`$"
        ):
            results.load()

    # every name once
    places = {path[-1]: path for path in paths_of(whole)}
    assert len(places) > 100
    for *parents, key in places.values():
        inside: Any = whole
        for parent in parents:
            inside = inside[parent]
        kept, inside[key] = inside[key], [inside[key]]
        is_refused()
        del inside[key]
        is_refused()
        if isinstance(inside, list):
            inside.insert(key, kept)
        else:
            inside[key] = kept
    write("reports/bwt.json", json.dumps(whole))
    assert results.load() == {k: v for k, v in whole.items() if k != "hash"}


def hashed(**content: Any) -> str:
    return json.dumps({**content, "hash": hashlib.sha256(json.dumps(content).encode()).hexdigest()})


@pytest.mark.parametrize("content", [*TORN, "{}", '{"hash": 1}', hashed(a=1), hashed(node="s0", files=[])])  # fmt: skip
def test_a_damaged_manifest_is_named_with_the_way_to_repair_it(content: str | bytes):
    write("plan/dvc.lock", "schema: '2.0'\nstages: {}\n")
    write("runs/s0/manifest.json", content)
    (said,) = [text for text in verify("s0") if "manifest" in text]
    assert said.startswith("s0: runs/s0/manifest.json was changed: ")
    assert "`trainorder run` restores it or makes the node again" in said
    assert lineage.manifests() == {}


def test_a_plan_that_was_changed_by_hand_is_a_difference():
    write("plan/dvc.lock", "schema: '2.0'\nstages: {}\n")
    plan.write(plan.load())
    assert not [text for text in verify() if text.startswith("plan.yaml")]
    Path("plan.yaml").write_text(Path("plan.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert "plan.yaml is not what params.yaml says; `trainorder run` writes it again" in verify()


def test_paths_that_the_system_refuses_are_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "loop").symlink_to("loop")
    for file, reason in (
        ("x" * 300, "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        (".", "is a folder, not a file"),
        ("/dev/null", "is a device or pipe, not a file"),
        ("nowhere", "not found"),
        ("params.yaml/x", "not found"),
    ):
        monkeypatch.delenv("TRAINORDER_PARAMS", raising=False)
        assert reason in refused(capsys, "check", "--params", file)
        monkeypatch.setenv("TRAINORDER_PARAMS", file)
        assert reason in refused(capsys, "plan")


@pytest.mark.parametrize("command", ["check", "plan", "run", "recommend", "table", "report", "verify", "compare"])  # fmt: skip
def test_every_command_that_reads_params_takes_another_file(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        app([command, "--help"])
    assert stop.value.code == 0
    assert "--params" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        app(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("trainorder 0")


@pytest.mark.parametrize("content", [*TORN, '{"a": "b"}', '{"a": null}', '{"a": []}'])
def test_damaged_durations_are_measured_again(content: str | bytes):
    from trainorder.flow import state

    write(str(state.DURATIONS), content)
    assert state.estimates({"report": "report"}, {}) == {"report": state.FIRST_GUESS["report"]}
    state.remember({"report": 3.0})
    assert state.estimates({"report": "report"}, {}) == {"report": 3.0}
