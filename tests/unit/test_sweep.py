"""`trainorder run --set`: what is changed in params.yaml, and what is refused before anything is."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainorder.config import parse_params
from trainorder.editing.seeds import wanted
from trainorder.editing.sweep import _save, _trained, run, versions
from trainorder.editing.text import with_value
from trainorder.paths import FLOW_LOCK
from trainorder.plan import compile_plan, names
from trainorder.process import Busy, StageError, exclusive, held
from trainorder.reading import ParamsError, parse_yaml

TEXT = (Path(__file__).parents[2] / "params.yaml").read_text()
ORDER = "orders.structured_first=[math, code, creative, qa]"


def changed(new: str) -> list[str]:
    lines = difflib.unified_diff(TEXT.splitlines(), new.splitlines(), lineterm="", n=0)
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def test_a_setting_changes_its_line_and_a_key_given_twice_is_swept():
    found = versions(TEXT, [ORDER, "rl.lr=1e-3", "rl.lr=2e-3"])
    assert [label for label, _ in found] == [f"{ORDER}, rl.lr=1e-3", f"{ORDER}, rl.lr=2e-3"]
    assert changed(found[1][1]) == [
        "-  lr: 3.0e-4",
        "+  lr: 2e-3",
        "-  structured_first: [math, code, qa, creative]",
        "+  structured_first: [math, code, creative, qa]",
    ]


def test_a_key_left_at_its_default_may_be_set_and_an_entry_added():
    assert changed(versions(TEXT, ["rl.temperature=0.9"])[0][1]) == ["+  temperature: 0.9"]
    (added,) = versions(TEXT, ["+orders.mine=[math, qa, code, creative]"])
    assert changed(added[1]) == ["+  mine: [math, qa, code, creative]"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("orders.structured_frist=[math]", "orders has no 'structured_frist' (did you mean 'structured_first'?)"),
        ("order.x=3", "params.yaml has no section 'order' (did you mean 'orders'?)"),
        ("rl.lrr=1", "rl.lrr: unknown key"),
        ("rl.lrr=1", "(did you mean 'lr'?)"),
        ("orders.structured_first=[maths]", "no phase 'maths'"),
        ("rl.lr", "write KEY=VALUE"),
        ("rl.lr.y=3", "rl.lr holds no keys"),
        ("orders.structured_first=[math", "--set orders.structured_first: [math is not valid YAML: "),
        ("rl.lr=2026-99-99", "rl.lr"),
        ("rl.lr=!!python/name:os.system", "rl.lr"),
    ],
)  # fmt: skip
def test_a_setting_that_names_nothing_is_refused(setting: str, said: str):
    with pytest.raises(ParamsError) as refused:
        versions(TEXT, [setting])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("given", "asked", "left"),
    [
        ("seeds: [0]   # one\n", "+2", "seeds: [0, 1, 2]   # one\n"),
        ("seeds: [0, 4]\n", "+1", "seeds: [0, 4, 5]\n"),
        ("seeds: [0]\n", "3, 1", "seeds: [3, 1]\n"),
        ("seeds:\n  - 0 # mine\n  - 1\n", "+1", "seeds:\n  - 0 # mine\n  - 1\n  - 2\n"),
        ("", "+1", "seeds: [0, 1]\n"),
    ],
)
def test_seeds_are_added_to_every_way_of_writing_them_and_nothing_else_changes(given, asked, left):
    rest = TEXT.replace("seeds: [0]\n", "").replace("seeds: [0, 1, 2]\n", "")
    assert rest != TEXT
    text = rest + given
    ((label, new),) = versions(text, [f"seeds={wanted(text, asked)}"])
    assert sorted(new.splitlines()) == sorted((rest + left).splitlines())
    assert label == f"seeds={wanted(text, asked)}"


@pytest.mark.parametrize("asked", ["+0", "+101", "+", "two", "0,,1", "-1", "+1.5", ""])
def test_seeds_that_are_none_are_refused(asked: str):
    with pytest.raises(ParamsError, match="--seeds"):
        wanted(TEXT, asked)


def test_a_seed_twice_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TEXT)
    with pytest.raises(ParamsError, match="seeds"):
        run([], None, "0,0")
    assert Path("params.yaml").read_text() == TEXT


def test_params_are_as_they_were_where_a_run_fails_before_it_trains(tmp_path, monkeypatch, capfd):
    # the flow itself: it looks for the model's folder, which there is not
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = re.sub(r"policy:.*", "policy: {path: nowhere/model}", TEXT)
    text = re.sub(r"  gate:.*\n", "", text)
    Path("params.yaml").write_text(text)
    assert run([], None, "+1") == 2
    assert Path("params.yaml").read_text() == text
    assert "nothing was trained: params.yaml is as it was" in capfd.readouterr().err


def test_a_record_of_training_shows_that_it_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = _trained()
    Path("runs/s0--math").mkdir(parents=True)
    assert _trained() != before


def test_a_sweep_without_names_and_an_experiment_without_a_commit_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    Path("params.yaml").write_text(TEXT)
    with pytest.raises(ParamsError, match="--set asks for 2 runs: name them with --exp NAME"):
        run(["rl.lr=1e-3", "rl.lr=2e-3"], None)
    with pytest.raises(ParamsError, match="--exp needs a commit to compare with"):
        run(["rl.lr=1e-3"], "slow")
    assert Path("params.yaml").read_text() == TEXT


def test_nothing_is_changed_while_another_flow_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TEXT)
    with exclusive(FLOW_LOCK, "runs"), pytest.raises(Busy, match="runs a flow in this folder"):
        run(["rl.lr=1e-3"], None)
    assert Path("params.yaml").read_text() == TEXT


def test_a_run_that_dvc_cannot_save_is_no_fault_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StageError,
        match=r"dvc exp save: .*; the run is finished, only not saved as experiment slow",
    ):
        _save("slow")


def test_a_child_that_is_given_the_lock_need_not_wait_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    script = """
from pathlib import Path
from trainorder.process import exclusive
with exclusive(Path("lock"), "runs"):
    print("holds", flush=True)
    input()
"""
    with held(Path("lock"), "runs") as lock, exclusive(Path("lock"), "runs"):
        child = subprocess.Popen(
            [sys.executable, "-c", script],
            pass_fds=(lock,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "holds\n"
    with pytest.raises(Busy), exclusive(Path("lock"), "runs"):
        pass
    child.communicate("done\n")
    with exclusive(Path("lock"), "runs"):
        pass


def test_a_seed_more_and_a_look_change_no_stage_that_trains_or_evaluates():
    def stages(text: str) -> dict:
        return compile_plan(parse_params(parse_yaml(text, "it"), source="it")).stages()

    before = stages(TEXT)
    after = stages(with_value(TEXT, "seeds", str(wanted(TEXT, "+1"))))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {*map(names.address, ("measure_bwt", "metrics", "report"))}
    new = set(after) - set(before)
    assert new
    assert all("/s3--" in name for name in new)
    assert stages(with_value(TEXT, "measure.looks", "[3, 4]")) == before
