"""Every probe that is listed: neutral on equal checkpoints, finite, deterministic, one long table, documented."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
from probes_small import build_folder, right_and_wrong, write_evaluation

from trainorder.probes import run
from trainorder.probes.base import AFTER, BEFORE, CHANGE, Checkpoint, Pair, Probe, Row
from trainorder.registries import PROBES, load

pytestmark = pytest.mark.parametrize("name", PROBES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_folder()
        for node, flip, more in (("base", 0, 0), ("one", 1, 0), ("two", 0, 4)):
            write_evaluation(node, right_and_wrong(flip, more))
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)


def of(name: str, node: str, other: str) -> list[Row]:
    return load(PROBES, name, "probes")(Pair(Checkpoint(node), Checkpoint(other)))


def test_two_equal_checkpoints_have_the_neutral_value(name: str):
    probe: Probe = load(PROBES, name, "probes")
    rows = of(name, "one", "one")
    assert rows or name == "queries"
    sides: dict[tuple[str, str, str], dict[str, float]] = {}
    for task, part, measure, value in rows:
        end = next((e for e in (BEFORE, AFTER, CHANGE) if measure.endswith(e)), "")
        if end:
            assert measure not in probe.neutral
            sides.setdefault((task, part, measure.removesuffix(end)), {})[end] = value
        else:
            assert value == pytest.approx(probe.neutral[measure], abs=1e-9), (task, part, measure)
    assert all(s[BEFORE] == s[AFTER] and s[CHANGE] == 0 for s in sides.values())


def test_what_it_finds_of_two_different_checkpoints_is_finite_and_the_same_each_time(name: str):
    rows = of(name, "two", "one")
    assert all(math.isfinite(row.value) for row in rows)
    assert rows == of(name, "two", "one")
    keys = [row[:3] for row in rows]
    assert len(set(keys)) == len(keys)
    if name != "queries":  # no answer here calls a tool
        assert rows != of(name, "one", "one")


def test_it_is_kept_by_content_and_gives_the_same_table(name: str):
    found = [run.run([("two", "one")], [name]) for _ in range(2)]
    assert found[1][0].known
    first, again = map(run.table, found)
    assert list(first.columns) == list(run.COLUMNS)
    assert first.equals(again)


def test_it_is_documented_and_reads_what_there_is(name: str):
    probe: Probe = load(PROBES, name, "probes")
    assert probe.name == name
    assert probe.reads
    assert len((inspect.getdoc(probe) or "").split("\n\n")) >= 2
