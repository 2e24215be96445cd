"""`trainorder power`: what it promises is what simulated experiments of that size reach, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trainorder.cli import app
from trainorder.config import MeasureConfig
from trainorder.measure.evidence import settings
from trainorder.measure.power import noise_of
from trainorder.metrics.power import DIFFERENCES, Noise, Sizing, noise, reached
from trainorder.metrics.statistics import draw_problems, draw_seeds, intervals, simultaneous
from trainorder.report import words
from trainorder.results import VERSION, to_json

RUN, PROBLEM, ANSWER = 0.015, 0.25, 0.25


def scores(worlds: int, arms: int, seeds: int, problems: int, rng: np.random.Generator, draws=150):
    """Equal arms on real problems with real resamples: [world arm seed draw]."""
    size = (worlds, arms)
    values = RUN * rng.normal(size=(*size, seeds, 1))
    values = values + PROBLEM * rng.normal(size=(*size, 1, problems))
    values = values + ANSWER * rng.normal(size=(*size, seeds, problems))
    return values @ draw_problems(problems, draws, rng).T


def truth(arms: int, seeds: int, problems: int) -> Noise:
    of_problems = 2 * PROBLEM**2 / problems
    return Noise(2 * RUN**2, of_problems, 2 * ANSWER**2 / problems, arms, seeds, problems)


def test_the_variances_are_found_from_what_was_measured():
    rng = np.random.default_rng(0)
    found = [noise(one, 400) for one in scores(40, 4, 3, 400, rng)]
    wanted = truth(4, 3, 400)
    for part in ("runs", "problems", "answers"):
        mean = np.mean([getattr(one, part) for one in found])
        assert mean == pytest.approx(getattr(wanted, part), rel=0.15), part
    (one,) = [noise(x, 400) for x in scores(1, 4, 1, 400, rng)]
    assert (one.runs, one.answers) == (None, 0.0)


@pytest.mark.parametrize(("arms", "seeds", "problems"), [(4, 1, 400), (4, 3, 400), (4, 6, 800)])
def test_the_promised_power_is_the_power_that_experiments_reach(arms, seeds, problems):
    # two arms differ by d, seen by the product's intervals; 240 pairs a side have a standard error of .03 at most
    rng = np.random.default_rng(seeds)
    differences = (0.03, 0.06, 0.09)
    promised = reached(truth(arms, 3, 400), seeds, problems, differences)
    found = scores(120, arms, seeds, problems, rng)
    half = simultaneous(found, num_problems=problems, rng=rng)[:, [0, 2], [1, 3]].ravel()
    pairs = (found[:, [0, 2]] - found[:, [1, 3]]).reshape(240, seeds, -1)
    ends = intervals(pairs, draw_seeds(seeds, 150, rng))
    wide = [one.widened(float(h)) for one, h in zip(ends, half, strict=True)]
    for d, share in zip(differences, promised, strict=True):
        told = np.mean([(one.low + d > 0, one.high - d < 0) for one in wide])
        assert told == pytest.approx(share, abs=0.09), d


def test_the_seeds_and_problems_that_are_named_reach_the_power_and_one_less_does_not():
    plan = Sizing(truth(4, 3, 400), power=0.8, differences=(0.07, 0.09))
    for i in range(2):
        seeds = plan.seeds(i)
        assert seeds is not None
        assert plan.at(seeds, 400)[i] >= 0.8 > plan.at(seeds - 1, 400)[i]
        problems = plan.problems(i)
        assert problems is None or plan.at(3, problems)[i] >= 0.8
    # more problems do not help against what runs differ in
    assert Sizing(truth(4, 3, 400), differences=(0.01,)).problems(0) is None
    # with one seed only the problems are known
    one = Sizing(Noise(None, 1e-4, 0.0, 4, 1, 400), differences=(0.02,))
    assert one.seeds(0) is None
    more = one.problems(0)
    assert more is not None
    assert more > 400
    assert one.noise.error(1, more) < 0.02 / 2.8


def written(
    folder: Path, seeds: list[int], runs: float | None, more: dict | None, looks=()
) -> dict:
    """A reports/bwt.json with what `power` reads."""
    found = {
        "version": VERSION,
        "variant": "default",
        "variants": {},
        "settings": settings(MeasureConfig(bootstrap=100, looks=list(looks)), len(seeds)),
        "seeds": seeds,
        "winner": {"verdict": "open"},
        "power": {
            "sd": {"runs": runs, "problems": 0.01, "answers": 0.005},
            "arms": 4,
            "num_problems": 400,
            "more": more,
        },
    }
    (folder / "reports").mkdir()
    (folder / "reports" / "bwt.json").write_text(to_json(found))
    return found


def ask(*arguments: str):
    return CliRunner().invoke(app, ["power", *arguments])


def test_the_command_prints_a_row_for_each_difference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, [0, 1, 2], 0.02, None)
    found = json.loads(ask("--json", "--difference", "0.05").stdout)
    (row,) = found["rows"]
    assert (found["seeds"], found["num_problems"], found["arms"]) == (3, 400, 4)
    assert (row["difference"], row["power"] < 0.8, row["seeds"] > 3) == (0.05, True, True)
    shown = ask("--difference", "0.05").stdout
    assert "varies by 0.020 between runs" in shown
    assert str(row["seeds"]) in shown


def test_one_seed_is_told_that_the_variance_between_seeds_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, [0], None, None)
    shown = " ".join(ask().stdout.split())
    assert "Variance between seeds is not measured with one seed" in shown
    assert "lower bounds" in shown
    assert "seeds needed" not in shown
    assert [row["difference"] for row in json.loads(ask("--json").stdout)["rows"]] == [*DIFFERENCES]


def test_before_any_run_and_with_absurd_numbers_it_refuses_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ask().stderr == (
        "error: reports/bwt.json not found: nothing is measured yet; run `trainorder run`\n"
    )
    written(tmp_path, [0, 1], 0.01, None)
    for arguments, said in (
        (["--difference", "2"], "--difference 2: a difference of mean scores, from .001 to 1"),
        (["--level", "95"], "--level 95: a share from .5 to .999, such as .95"),
        (["--power", "nan"], "--power nan: a share"),
        (["--variant", "hal"], "no variant 'hal' was measured; there are default"),
    ):
        refused = ask(*arguments)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert said in refused.stderr


def test_after_several_looks_the_level_is_that_of_the_verdict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, [0, 1, 2, 3], 0.01, None, looks=[3, 4])
    assert json.loads(ask("--json", "--difference", "0.2").stdout)["level"] > 0.98


def test_an_open_verdict_says_what_would_tell_more(tmp_path):
    found = written(tmp_path, [0, 1, 2], 0.01, {"difference": 0.03, "seeds": 5})
    assert words.enough(found).endswith("`trainorder run --seeds +2`.")
    assert math.isclose(noise_of(found).error(3, 400) ** 2, 1e-4 / 3 + 1e-4 + 2.5e-5 / 3)
    found["power"]["more"] = {"difference": 0.01, "seeds": None}
    assert "More than 30 seeds" in words.enough(found)
    found["winner"]["verdict"] = "settled"
    assert words.enough(found) == ""
