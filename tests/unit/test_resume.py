"""Step checkpoints and the lock of a node: what was saved comes back, and what is damaged is not used."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest
import torch

from trainorder.process import Busy, exclusive
from trainorder.resume import Saved, Work, working


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path):
    work = Work(tmp_path, 0)
    tensors = {
        "a": torch.tensor([0.1, float("nan")]),
        "step": torch.tensor(3.0),
        "b": torch.arange(3),
    }
    state = {"x": 0.1 + 0.2, "nested": [{"y": None}], "order": {"b": 1, "a": 2}}
    work.save("loop", tensors, state)
    found = Work(tmp_path, 0).latest("loop")
    assert found is not None
    assert found.state == state
    assert list(found.state["order"]) == ["b", "a"]
    for name, value in tensors.items():
        assert found.tensors[name].dtype == value.dtype
        torch.testing.assert_close(found.tensors[name], value, rtol=0, atol=0, equal_nan=True)


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path):
    weight = torch.arange(4.0)
    Work(tmp_path, 0).save("loop", {"one": weight, "tied": weight}, {})
    found = Work(tmp_path, 0).latest("loop")
    assert found is not None
    assert torch.equal(found.tensors["one"], found.tensors["tied"])


@pytest.mark.parametrize("state", [{1: 2}, {"a": (1, 2)}, {"a": {2}}])
def test_a_state_that_json_would_change_is_refused(tmp_path: Path, state):
    with pytest.raises(ValueError, match="does not survive JSON"):
        Work(tmp_path, 0).save("loop", {}, state)
    assert not list(tmp_path.iterdir())


def test_two_checkpoints_are_kept_and_nothing_is_due_too_early(tmp_path: Path):
    work = Work(tmp_path, 0)
    for step in range(5):
        work.save("loop", {}, {"step": step})
    assert sorted(p.name for p in (tmp_path / "loop").iterdir()) == ["000004", "000005"]
    assert work.due("loop")
    assert not Work(tmp_path, 1000).due("loop")
    assert not Work(None, 0).due("loop")


def test_saving_takes_a_fiftieth_of_the_time_at_most(tmp_path: Path):
    # what a checkpoint costs is measured while it is saved: 1 MiB here
    work = Work(tmp_path, 1e-4)
    big = {"w": torch.zeros(1 << 18)}
    start = time.monotonic()
    work.save("loop", big, {})
    cost = time.monotonic() - start
    time.sleep(cost)
    assert not work.due("loop")  # on 1e-4 seconds alone it would be
    assert Work(tmp_path, 0).due("loop")  # 0: after every step, whatever it costs
    time.sleep(52 * cost)
    assert work.due("loop")


def test_all_checkpoints_damaged_means_from_the_beginning(tmp_path: Path):
    Work(tmp_path, 0).save("loop", {}, {"step": 1})
    (tmp_path / "loop/000001/state.json").write_text("{")
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert Work(tmp_path, 0).latest("loop") is None
    assert not list((tmp_path / "loop").iterdir())


def test_parts_are_made_once(tmp_path: Path):
    made = []

    def make() -> Saved:
        made.append(1)
        return Saved({}, {"value": len(made)})

    assert [Work(tmp_path, 0).part("p", make).state["value"] for _ in range(3)] == [1, 1, 1]
    assert Work(None).part("p", make).state["value"] == 2


def test_finished_shards_are_not_made_again_unless_damaged(tmp_path: Path):
    made = []

    def make(path: Path) -> None:
        made.append(path.name)
        path.write_bytes(b"weights")

    for _ in range(2):
        Work(tmp_path, 0).file("shard", make)
    assert made == ["shard"]
    (tmp_path / "files" / "shard").write_bytes(b"weightz")
    Work(tmp_path, 0).file("shard", make)
    assert made == ["shard", "shard"]


def test_a_lock_goes_with_its_holder_and_other_settings_are_swept(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with working("s0", {"lr": 1}, 0) as work:
        work.save("loop", {}, {})
        with pytest.raises(Busy), exclusive(Path(".resume/s0.lock"), "makes s0"):
            pass
    with warnings.catch_warnings(), working("s0", {"lr": 2}, 0) as work:
        assert work.latest("loop") is None
    with working("s0", {"lr": 1}, 0) as work:
        assert work.latest("loop") is None  # swept: two settings of a node never lie side by side
    with working("s0", None, 0) as work:
        assert not work.due("loop")
