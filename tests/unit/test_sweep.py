"""`trainorder run --set`: what is changed in params.yaml, and what is refused before anything is."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from trainorder.reading import ParamsError
from trainorder.sweep import run, versions

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
    ],
)  # fmt: skip
def test_a_setting_that_names_nothing_is_refused(setting: str, said: str):
    with pytest.raises(ParamsError) as refused:
        versions(TEXT, [setting])
    assert said in str(refused.value)


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
