"""The budgeted search: predictions by hand, and planted worlds in which it must find the best order."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from trainorder import plan
from trainorder.config import load_params, parse_params
from trainorder.flow.experiment import EDITED, Experiment
from trainorder.flow.search import FILE, Search, _path
from trainorder.paths import FLOW_LOCK
from trainorder.process import Busy, exclusive
from trainorder.reading import ParamsError, read_yaml
from trainorder.search import Known, Order

TRAINS = {"x": {"a"}, "y": {"b"}, "z": {"c"}}
BASE = {"a": 0.4, "b": 0.4, "c": 0.4}


def test_a_measured_path_is_taken_as_measured_and_grown_by_the_nearest_steps():
    scores = {
        (): {"a": 0.4, "b": 0.5},
        ("x",): {"a": 0.8, "b": 0.55},
        ("y",): {"a": 0.5, "b": 0.9},
        ("x", "y"): {"a": 0.7, "b": 0.9},
    }
    known = Known(scores, {"x": {"a"}, "y": {"b"}})
    assert known.predict(("x", "y")) == pytest.approx(0.8)
    # y, then x: a was not trained, as when x came first (+.4); b was trained by then: only x from the base tells (+.05)
    assert known.predict(("y", "x")) == pytest.approx((0.9 + 0.95) / 2)


def test_a_step_counts_by_what_was_trained_before_it():
    # y helps a before x (+.1) and harms it after (-.1): the two can be distinguished
    scores = {
        (): BASE,
        ("x",): {**BASE, "a": 0.8},
        ("y",): {**BASE, "a": 0.5, "b": 0.8},
        ("z",): {**BASE, "c": 0.8},
        ("x", "y"): {**BASE, "a": 0.7, "b": 0.8},
    }
    known = Known(scores, TRAINS)
    assert known.change(("z",), "y", "a") == pytest.approx(0.1)
    assert known.change(("z", "x"), "y", "a") == pytest.approx(-0.1)
    assert known.change(("y", "z"), "x", "a") == pytest.approx(0.4)


def test_too_many_phases_and_an_unmeasured_one_are_refused():
    known = Known({(): BASE}, TRAINS)
    with pytest.raises(ParamsError, match=r"8 phases have 40,320 orders; .* at most 7"):
        known.ranked([f"p{i}" for i in range(8)])
    with pytest.raises(ParamsError, match="phase 'x' was measured nowhere"):
        known.predict(("x",))


PHASES = ("math", "qa", "creative")
World = Callable[[Order], dict[str, float]]


def fragile(task: str, enemy: str) -> World:
    """Each phase brings its task to .8; `enemy` costs `task` half of its gain if trained before, nothing otherwise."""

    def scores(order: Order) -> dict[str, float]:
        found = dict.fromkeys(PHASES, 0.4)
        for phase in order:
            found[phase] = 0.8
            if phase == enemy and task in order[: order.index(enemy)]:
                found[task] -= 0.2
        return found

    return scores


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "configs" / "smoke.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params.yaml"


class Planted(Search):
    """The search with a formula in place of training: the plan, its budget and the rounds are the real ones."""

    world: World
    rounds = 0

    def _measure(self, train: object) -> Known:
        self.rounds += 1
        current = plan.compile_plan(self._with(self.orders))
        found = [_path(current, node) for node in current.nodes.values()]
        paths = [path for path in found if path is not None and set(path) <= set(PHASES)]
        return Known({path: self.world(path) for path in paths}, {p: {p} for p in PHASES})

    def _finish(self, known: Known, why: str) -> int:
        self.why, self.known = why, known
        return 0


def search(source: Path, world: World, budget: int = 30, end: float = math.inf) -> Planted:
    made = Planted(source, load_params(source), budget, end)
    made.world = world
    made.run(print)
    return made


@pytest.mark.parametrize(("task", "enemy"), list(itertools.permutations(PHASES, 2)))
def test_a_harm_that_shows_only_after_training_is_found_and_avoided(
    source: Path, task: str, enemy: str
):
    # from the base nothing shows: additive prediction calls all orders equal
    world = fragile(task, enemy)
    done = search(source, world)
    complete = [order for order in done.known.scores if len(order) == 3]
    best = max(complete, key=done.known.mean)
    assert best.index(enemy) < best.index(task)
    assert done.known.mean(best) == pytest.approx(0.8)


def test_the_search_ends_by_itself_when_nothing_better_is_predicted(source: Path):
    done = search(source, fragile("math", "creative"), budget=1000)
    assert done.why.startswith(("no other order is predicted within", "every order is measured"))


def test_the_budget_counts_phases_and_is_never_passed(source: Path):
    whole = search(source, fragile("math", "qa"))
    for budget in range(6, 14):
        done = search(source, fragile("math", "qa"), budget)
        assert done._trained(done.orders) <= budget
        assert set(done.known.scores) <= set(whole.known.scores)
    assert "is spent" in search(source, fragile("math", "qa"), 7).why
    assert search(source, fragile("math", "qa"), end=time.monotonic()).why == "the time is spent"


def test_a_budget_below_the_first_round_is_refused(source: Path):
    with pytest.raises(ParamsError, match="--budget 3: the first round alone trains 6 phases"):
        search(source, fragile("math", "qa"), budget=3)


def test_what_the_search_writes_is_an_ordinary_params_file(source: Path):
    data = read_yaml(source)
    source.write_text(source.read_text() + "variants: {slow: {rl: {lr: 1.0e-5}}}\n")
    made = Search(source, load_params(source), 30, math.inf)
    made.orders = {"start": list(PHASES), "joint": ["joint"]}
    made._write()
    written = load_params("reports/search.yaml")
    assert written == parse_params({**data, "orders": made.orders})


def test_no_params_file_is_written_while_a_flow_that_may_read_it_runs(source: Path):
    with exclusive(FLOW_LOCK, "runs"):
        with pytest.raises(Busy):
            Search(source, load_params(source), 30, math.inf).run(print)
        with pytest.raises(Busy):
            Experiment(source, seeds=[7])
    assert not FILE.exists()
    assert not EDITED.exists()
