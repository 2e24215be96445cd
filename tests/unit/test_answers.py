"""`trainorder compare`, `recommend` and `table`: what they say, refuse and add to params.yaml, and how soon."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from order_worlds import SINGLE, World, every_order

from trainorder.config import MeasureConfig
from trainorder.editing.orders import add_order
from trainorder.measure import measure
from trainorder.measure.compare import compare
from trainorder.plan.design import Design, from_plan
from trainorder.reading import read_yaml
from trainorder.report import console
from trainorder.report.markdown import orders_page
from trainorder.results import to_json

pytestmark = pytest.mark.long(
    "64 trained nodes x 3 seeds are measured, and the commands start in processes of their own"
)
ROOT = Path(__file__).resolve().parents[2]
BEST, WORST = "creative_qa_math_code", "code_math_qa_creative"
CONFIG = MeasureConfig(bootstrap=300)
PARAMS = f"""\
# which order?
tasks: {{math: {{}}, code: {{}}, qa: {{}}, creative: {{}}, constraints: {{}}}}
phases:
{"".join(f"  {t}: {{kind: structured, tasks: {{{t}: 1}}, steps: 10}}  # one task" + chr(10) for t in SINGLE)}
orders:
  # the first idea
  first:    [code,   qa, creative, math]   # keep the spaces
measure: {{bootstrap: 300}}   # fewer
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """64 trained nodes x 3 seeds with their bases, joint training and merges, as the pipeline leaves them."""
    root = tmp_path_factory.mktemp("orders")
    world = every_order(seeds=(0, 1, 2), problems=128, drift=0.005)
    world.write(root)
    (root / "params.yaml").write_text(PARAMS)
    (root / "reports").mkdir()
    text = to_json(measure(world.table(), from_plan(world.plan()), CONFIG))
    (root / "reports" / "bwt.json").write_text(text)
    return root


@pytest.fixture(scope="module")
def designs(folder) -> dict[str, Design]:
    return from_plan(read_yaml(folder / "plan.yaml"))


def cli(folder: Path, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainorder.cli", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    assert not ok or done.returncode == 0, done.stderr
    return done


def test_two_orders_are_told_apart_by_the_planted_effects(folder, designs, monkeypatch):
    monkeypatch.chdir(folder)
    found = compare(designs, BEST, WORST, CONFIG)["variants"]["default"]
    # last in WORST, creative costs math .12, code .08, qa .08; qa costs code .06, math .04; math helps qa .06
    assert found["verdict"] == "settled"
    assert not found["parts"]["judged_only"]
    assert found["mean"]["difference"]["value"] == pytest.approx(0.08, abs=0.04)
    assert found["tasks"]["math"]["difference"]["value"] == pytest.approx(0.16, abs=0.05)
    assert not found["tasks"]["creative"]["differs"]
    assert [row["position"] for row in found["positions"]] == [0, 1, 2, 3, 4]
    first = found["positions"][1]
    assert (first["a_phase"], first["b_phase"]) == ("creative", "code")
    assert first["tasks"]["creative"] == pytest.approx(0.3, abs=0.05)
    last = found["positions"][4]["difference"]["value"]
    assert last == pytest.approx(found["mean"]["difference"]["value"], abs=1e-6)


def test_the_difference_is_the_one_in_bwt_json_and_turns_its_sign_with_the_arms(
    folder, designs, monkeypatch
):
    monkeypatch.chdir(folder)
    one, other = (compare(designs, *pair, CONFIG) for pair in ((BEST, WORST), (WORST, BEST)))
    x, y = (f["variants"]["default"]["mean"]["difference"] for f in (one, other))
    assert x["value"] == pytest.approx(-y["value"])
    assert x["low"] == pytest.approx(-y["high"])
    bwt = json.loads((folder / "reports" / "bwt.json").read_text())
    assert bwt["differences"][BEST][WORST] == x
    turned, back = (f["variants"]["default"]["turnover"] for f in (one, other))
    assert (turned["gained"], turned["lost"]) == (back["lost"], back["gained"])
    assert turned["gained"] > turned["lost"]
    said = "\n".join(str(part) for part in console.comparison(one))
    assert f"{BEST} solves {round(turned['gained'], 1):g} that {WORST} does not" in said
    entropy = compare(designs, BEST, WORST, CONFIG, metric="entropy_own")["variants"]["default"]
    assert entropy["turnover"] is None


def test_merges_phases_and_the_base_can_be_compared_and_have_no_common_positions(
    folder, designs, monkeypatch
):
    monkeypatch.chdir(folder)
    found = compare(designs, "ties", "base", CONFIG)["variants"]["default"]
    assert found["mean"]["difference"]["value"] == pytest.approx(0.15, abs=0.04)
    assert found["positions"] == []
    single = compare(designs, "math", "base", CONFIG)["variants"]["default"]
    assert single["tasks"]["math"]["difference"]["value"] == pytest.approx(0.3, abs=0.04)


def test_any_metric_can_be_compared_where_it_was_measured(folder, designs, monkeypatch):
    monkeypatch.chdir(folder)
    entropy = compare(designs, BEST, WORST, CONFIG, metric="entropy_own")["variants"]["default"]
    assert entropy["tasks"]["math"]["difference"]["value"] == pytest.approx(-0.16, abs=0.03)
    vendi = compare(designs, BEST, WORST, CONFIG, metric="vendi")["variants"]["default"]
    assert list(vendi["tasks"]) == ["creative"]
    assert vendi["tasks"]["creative"]["difference"]["seeds"].keys() == {"0", "1", "2"}


def test_one_seed_never_tells_two_orders_apart_and_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = every_order(problems=64)
    world.write(tmp_path)
    found = compare(from_plan(world.plan()), BEST, WORST, CONFIG)
    mean = found["variants"]["default"]["mean"]
    assert mean["difference"]["low"] > 0  # these checkpoints do differ
    assert mean["differs"]
    assert found["verdict"] == found["variants"]["default"]["verdict"] == "on these problems only"
    assert "another run may differ by more: add seeds" in found["variants"]["default"]["note"]
    pooled = compare(from_plan(world.plan()), BEST, WORST, CONFIG, metric="vendi")["variants"][
        "default"
    ]
    assert pooled["mean"]["difference"]["low"] is None
    assert not pooled["mean"]["differs"]


def test_an_effect_that_a_variant_lacks_does_not_survive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = every_order({"same": 1.0, "none": 0.0, "opposite": -1.0}, seeds=(0, 1, 2), problems=64)
    kept = {name: world.default.orders[name] for name in (BEST, WORST)}
    fields = {f: getattr(world.default, f) for f in World.__dataclass_fields__}
    small = World(**{**fields, "orders": kept, "merges": ()})
    for variants, survives, verdict in (
        (("same",), "in every variant", "settled"),
        (("none",), "in some variants", "open"),
        (("opposite",), "with opposite signs", "open"),
    ):
        others = {
            v: World(
                **{**{f: getattr(world.others[v], f) for f in fields}, "orders": kept, "merges": ()}
            )
            for v in variants
        }
        both = type(world)(small, others)
        both.write(tmp_path)
        found = compare(from_plan(both.plan()), BEST, WORST, CONFIG)
        assert list(found["variants"]) == ["default", *variants]
        assert (found["survives"], found["verdict"]) == (survives, verdict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("compare", BEST, "creative_qa_math_cod"),
            "no arm 'creative_qa_math_cod' in plan.yaml; there are",
        ),
        (("compare", BEST, BEST), f"{BEST} is compared with itself: name two arms"),
        (("compare", BEST, WORST, "--metric", "scor"), "did you mean 'score'?"),
        (("compare", BEST, WORST, "--split", "tst"), "no task has the metric 'score' on tst"),
        (("recommend", "--variant", "half"), "no variant 'half' was measured; there are default"),
        (("recommend", "--rule", "exakt"), "(did you mean 'exact'?)"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, arguments, message):
    refused = cli(folder, *arguments, ok=False)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert message in refused.stderr


def test_without_a_measurement_the_command_that_makes_one_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    refused = cli(tmp_path, "recommend", ok=False)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: reports/bwt.json not found: nothing is measured yet; run `trainorder run`\n",
    )


def test_both_commands_answer_within_3_seconds_on_64_nodes_and_3_seeds(folder):
    trained = [n for n in (folder / "evaluations").glob("s0--*.parquet") if n.stem.count("--")]
    assert len(trained) >= 64
    for command in (("compare", BEST, WORST), ("recommend",), ("recommend", "--two-stage")):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        cli(folder, *command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # CPU seconds of one thread: the wall time on a machine that does nothing else
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3, command


@pytest.mark.parametrize("command", ["compare", "recommend"])
def test_an_answer_imports_no_training_library(folder, command):
    arguments = [command, BEST, WORST, "--json"] if command == "compare" else [command, "--json"]
    code = (
        f"import sys; sys.argv = ['trainorder', *{arguments!r}]\n"
        "from trainorder.cli import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'prefect', 'dvc', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stderr == "[]\n"
    assert json.loads(done.stdout)


def test_recommend_shows_the_order_its_certainty_and_what_to_run(folder):
    shown = cli(folder, "recommend").stdout
    assert "creative > qa > " in shown.splitlines()[0]
    assert "P(this order is the best)" in shown
    assert "predictions of the 24 measured orders are off by" in shown
    assert "omni_greedy" in shown
    assert "Spearman (test)" in shown
    found = json.loads(cli(folder, "recommend", "--json").stdout)["recommended"]
    assert found["order"][:2] == ["creative", "qa"]
    assert set(found["misfit"]["errors"]) == {
        n for n in found["misfit"]["errors"] if n.count("_") == 3
    }
    assert len(found["misfit"]["errors"]) == 24
    assert found["measured_best"]["recommended_measured"]


def test_apply_adds_one_line_and_a_second_time_none(folder):
    params = folder / "params.yaml"
    try:
        said = cli(folder, "recommend", "--rule", "omni_greedy", "--apply").stdout
        assert "params.yaml: order omni_greedy added" in said
        new = params.read_text().splitlines()
        added = [line for line in new if line not in PARAMS.splitlines()]
        found = json.loads(cli(folder, "recommend", "--json").stdout)["recommended"]
        order = found["rules"]["omni_greedy"]["order"]
        assert added == [f"  omni_greedy: [{', '.join(order)}]"]
        assert [line for line in new if line not in added] == PARAMS.splitlines()
        again = cli(folder, "recommend", "--rule", "omni_greedy", "--apply").stdout
        assert "params.yaml has this order already: omni_greedy" in again
        assert params.read_text().splitlines() == new
    finally:
        params.write_text(PARAMS)


def test_apply_refuses_phases_that_the_params_no_longer_have(folder):
    params = folder / "params.yaml"
    try:
        params.write_text(
            PARAMS.replace("  qa: {kind", "  quiz: {kind").replace(
                "qa, creative, math]", "creative, math]"
            )
        )
        before = params.read_text()
        refused = cli(folder, "recommend", "--apply", ok=False)
        assert refused.returncode == 2
        assert (
            "params.yaml has no phase qa: the transfer was measured with other params"
            in refused.stderr
        )
        assert params.read_text() == before
    finally:
        params.write_text(PARAMS)


@pytest.mark.parametrize(
    "text",
    [
        "orders:\n  a: [x, y]\n",
        "orders:\n  a: [x, y]",
        "orders:\n    a: recommended # fill in\n    b:\n      - x\n      - y\nseeds: [0] # one\n",
        "orders: {a: [x, y]} # short\nseeds: [0]\n",
        "orders:\n  a: [x,\n      z]  # two lines\nseeds: [0]\n",
    ],
)
def test_an_order_is_added_to_every_way_of_writing_orders_and_comments_stay(text):
    from ruamel.yaml import YAML

    new, name = add_order(text, "best", ["y", "x"])
    before, after = (YAML(typ="safe", pure=True).load(t) for t in (text, new))
    assert name == "best"
    assert after["orders"] == {**before["orders"], "best": ["y", "x"]}
    assert {k: v for k, v in after.items() if k != "orders"} == {
        k: v for k, v in before.items() if k != "orders"
    }
    assert [
        part
        for part in ("# fill in", "# one", "# short", "# two lines")
        if (part in text) != (part in new)
    ] == []


def test_a_taken_name_gets_a_number():
    new, name = add_order("orders:\n  best: [x, y]\n  best_2: [y, z]\n", "best", ["y", "x"])
    assert name == "best_3"
    assert new.endswith("  best_3: [y, x]\n")


def test_the_page_of_orders_has_a_row_for_each_order_and_predictor(folder):
    bwt = json.loads((folder / "reports" / "bwt.json").read_text())
    page = orders_page(bwt)
    rows = [
        line
        for line in page.splitlines()
        if line.startswith("| ") and " > " in line and line[2].isdigit()
    ]
    assert len(rows) == 24
    best = max(bwt["prediction"]["orders"].values(), key=lambda row: row["measured"]["value"])
    assert f"| {best['measured']['value']:.3f} |" in rows[0]
    for name in ("additive", "multiplicative", "two_stage", "stage_delta"):
        spearman = bwt["prediction"]["predictors"][name]["spearman"]["value"]
        assert f"| {name} | {spearman:+.2f} (" in page
    assert cli(folder, "table").stdout == page
