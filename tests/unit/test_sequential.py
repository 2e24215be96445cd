"""Looking again and again while seeds are added: errors stay below the level, and rounds end as they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from order_worlds import World
from scipy import special
from typer.testing import CliRunner

from benchmarks.planted_looks import World as Planted
from benchmarks.planted_looks import run
from trainorder.cli import app
from trainorder.config import MeasureConfig, parse_params
from trainorder.editing.settle import first, following, seeds_of, until_settled
from trainorder.measure import measure
from trainorder.measure.evidence import settings
from trainorder.metrics.sequential import level_at, shares, spent
from trainorder.plan.design import from_plan
from trainorder.reading import ParamsError, parse_yaml
from trainorder.report import words
from trainorder.results import to_json

TEXT = (Path(__file__).parents[2] / "params.yaml").read_text()


def test_the_levels_of_all_looks_together_spend_what_is_allowed():
    # 200,000 Brownian paths: standard error of a share of .04 is .0004
    looks, alpha = (3, 4, 6, 9), 0.05
    rng = np.random.default_rng(0)
    path, passed, before = np.zeros(200_000), np.zeros(200_000, bool), 0
    for seeds, share in zip(looks, shares(looks, alpha), strict=True):
        path += rng.normal(size=len(path)) * np.sqrt(seeds - before)
        passed |= np.abs(path) > -special.ndtri(alpha * share / 2) * np.sqrt(seeds)
        assert passed.mean() == pytest.approx(alpha * spent(seeds), abs=0.0015), seeds
        before = seeds


def test_a_look_that_was_not_noted_counts_and_seeds_taken_away_win_nothing():
    assert level_at(0.95, [], 5) == 0.95
    assert level_at(0.95, [3, 4], 6) == level_at(0.95, [3, 4, 6], 6)
    assert level_at(0.95, [3, 4, 6], 4) == pytest.approx(level_at(0.95, [3, 4], 4))
    assert level_at(0.95, [3, 4, 6], 5) >= max(level_at(0.95, [3, 4, 6], s) for s in (3, 4, 6))
    assert level_at(0.95, [2], 2) == 1.0


@pytest.mark.parametrize("world", [Planted(arms=2), Planted(run=0.02, problem=0.25)])
def test_ten_looks_claim_something_false_in_at_most_5_percent(world: Planted):
    # 300 worlds at 5 percent: 2 standard errors are .025
    assert run(world, "spending, joint", 300)["false"] <= 0.05 + 0.025


def test_what_differs_is_found_early_and_rightly_and_looking_without_the_rule_is_wrong_often():
    found = run(Planted(gap=0.1), "spending, joint", 100, looks=(3, 4, 5, 6, 8, 10, 12))
    assert found["settled"] >= 0.97
    assert found["right"] == found["settled"]
    assert found["seeds"] < 7
    assert run(Planted(arms=2), "one look's level", 300)["false"] > 0.1


def test_the_answer_says_how_often_it_was_looked_at():
    bwt = {"settings": settings(MeasureConfig(looks=[3, 4]), 5)}
    assert bwt["settings"]["looks"] == [3, 4, 5]
    assert "looked at 3 times (with 3, 4 and 5 seeds)" in words.looks(bwt)
    assert words.looks({"settings": settings(MeasureConfig(), 5)}) == ""


def test_rounds_add_a_quarter_more_seeds_and_note_their_looks():
    text = first(TEXT.replace("seeds: [0, 1, 2]", "seeds: [4]"), 12)
    numbers = [seeds_of(text)]
    while len(numbers[-1]) < 10:
        text = following(text, 10)
        numbers.append(seeds_of(text))
    assert numbers[0] == [4, 5, 6]
    assert [len(seeds) for seeds in numbers] == [3, 4, 5, 6, 7, 8, 10]
    measured = parse_params(parse_yaml(text, "it"), source="it").measure
    assert measured.looks == [3, 4, 5, 6, 7, 8, 10]
    changed = [line for line in text.splitlines() if line not in TEXT.splitlines()]
    assert [line.split(":")[0] for line in changed] == ["seeds", "measure"]
    with pytest.raises(ParamsError, match="--max-seeds 2: at least 3, of which 3 are there"):
        first(TEXT, 2)


@pytest.mark.parametrize(
    ("effect", "most", "minutes", "rounds", "said"),
    [
        (-0.5, 12, None, [3], "settled with 3 seeds"),
        (0.0, 4, None, [3, 4], "open with 4 seeds, the most that --max-seeds allows"),
        (0.0, 12, 0.0, [3], "another round would end after 0 min"),
    ],
)
def test_rounds_end_when_the_best_arm_is_settled_or_the_budget_is_spent(
    effect, most, minutes, rounds, said, tmp_path, monkeypatch, capsys
):
    # each round is a planted experiment of two orders with the seeds of params.yaml, measured as params.yaml asks
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TEXT)
    done = []

    def train(text: str, lock: int) -> int:
        Path("params.yaml").write_text(text)
        params = parse_params(parse_yaml(text, "it"), source="it")
        world = World(
            tasks=("a", "b"),
            phases={"a": ("a",), "b": ("b",)},
            orders={"x": ("a", "b"), "y": ("b", "a")},
            effects={"b": {"a": effect}, "a": {"b": 0.0}},
            seeds=tuple(params.seeds),
            problems=32,
            drift=0.005,
        )
        config = MeasureConfig(bootstrap=100, looks=params.measure.looks)
        found = measure(world.table(), from_plan(world.plan()), config)
        Path("reports").mkdir(exist_ok=True)
        Path("reports/bwt.json").write_text(to_json(found))
        assert found["settings"]["looks"] == params.measure.looks
        done.append(len(params.seeds))
        return 0

    assert until_settled(most, minutes, train) == 0
    assert done == rounds
    assert said in capsys.readouterr().out
    # again: what there is was looked at already, and no look is added
    assert until_settled(most, 0.0, train) == 0
    assert done == [*rounds, rounds[-1]]
    looks = parse_params(parse_yaml(Path("params.yaml").read_text(), "it"), source="it").measure
    assert looks.looks == rounds


def test_a_round_that_fails_ends_it_with_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TEXT)
    assert until_settled(12, None, lambda text, lock: 3) == 3
    with pytest.raises(ParamsError, match="--minutes nan: from 0 to"):
        until_settled(12, float("nan"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-seeds", "5"], "--max-seeds and --minutes are of --until-settled: add it"),
        (["--until-settled", "--seeds", "+1"], "--until-settled adds seeds by itself"),
        (["--until-settled", "--dry-run"], "--dry-run trains nothing"),
        (["--dry-run", "--seeds", "+1"], "--dry-run trains nothing"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(arguments, said):
    refused = CliRunner().invoke(app, ["run", *arguments])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert said in refused.stderr
