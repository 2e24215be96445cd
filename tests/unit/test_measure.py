"""From long tables with a known truth to reports/bwt.json."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from order_worlds import HARMFUL, SINGLE, Varied, World, default_world, every_order, measured

from trainorder import report
from trainorder.config import MeasureConfig
from trainorder.measure import measure
from trainorder.measure.beneath import turnover
from trainorder.measure.compare import compare
from trainorder.plan.design import from_plan
from trainorder.reading import ParamsError
from trainorder.report import console, words
from trainorder.results import to_json

MERGES = ("average", "arithmetic", "ties", "dare")
CONFIG = MeasureConfig(bootstrap=300)
ROOT = Path(__file__).resolve().parents[2]


@cache
def table_of(merges):
    return default_world(merges=merges).table()


run = partial(measured, config=CONFIG)


@pytest.fixture(scope="module")
def document():
    return run(default_world(), table_of(MERGES))


def test_rules_by_the_text_of_prompts_need_prompts_of_every_phase(document):
    assert "near_first_by_text" not in document["recommended"]["rules"]
    world = default_world(merges=MERGES)
    # of four phases math and code share words, qa and creative one, all four none
    prompts = {
        "math": ["add two and three", "add one and four"],
        "code": ["add a loop and run"],
        "qa": ["who wrote it", "where"],
        "creative": ["write where you like"],
    }
    design = from_plan(world.plan())
    found = measure(table_of(MERGES), design, CONFIG, prompts)["recommended"]["rules"]
    near, far = (found[f"{rule}_first_by_text"]["order"] for rule in ("near", "far"))
    assert {frozenset(near[:2]), frozenset(near[2:])} == {frozenset(("math", "code")), frozenset(("qa", "creative"))}  # fmt: skip
    assert {far[0], far[1]} not in ({"math", "code"}, {"qa", "creative"})
    del prompts["qa"]
    less = measure(table_of(MERGES), design, CONFIG, prompts)["recommended"]["rules"]
    assert "near_first_by_text" not in less


def numbers(value):
    if isinstance(value, dict):
        return [x for entry in value.values() for x in numbers(entry)]
    if isinstance(value, list):
        return [x for entry in value for x in numbers(entry)]
    return [value] if isinstance(value, float) else []


def with_budgets(plan):
    """40 steps of 16 prompts and 8 rollouts per task of a phase, as plan.yaml says it."""
    for phase in plan["phases"].values():
        count = len(phase["tasks"])
        phase["budget"] = {"updates": 40 * count, "rollouts": 5120 * count}
    return plan


def test_an_arm_costs_every_phase_behind_it_once():
    plan = with_budgets(default_world().plan())
    plan["phases"]["distil"] = {"kind": "distill", "tasks": dict.fromkeys(SINGLE, 1.0), "budget": {"rollouts": 20480}}  # fmt: skip
    teachers = {task: f"s0--{task}" for task in SINGLE}
    plan["distilled"] = {"s0--distil": {"parent": "s0", "phase": "distil", "teachers": teachers}}
    plan["orders"]["distil"] = {"0": ["s0--distil"]}
    design = from_plan(plan)["default"]
    costs = {arm.name: design.cost(arm.final) for arm in design.arms()}
    assert costs["joint"] == costs["reverse"] == {"updates": 160, "rollouts": 20480}
    assert costs["ties"]["rollouts"] == 20480  # the four checkpoints that it joins
    assert costs["distil"]["rollouts"] == 2 * 20480  # its teachers and its own
    assert costs["base"] == {"rollouts": 0}
    del plan["phases"]["math"]["budget"]
    design = from_plan(plan)["default"]
    assert design.cost(design.position("reverse", 4)) is None


def test_what_the_mean_does_not_show(document):
    # by the world: an arm's most likely answer is right where level + difficulty > .5, with creative judged
    rows = {row["arm"]: row for row in document["ranking"]}
    worst = rows["structured_first"]["worst"]
    scores = rows["structured_first"]["tasks"]
    assert worst["score"] == min(scores[task]["value"] for task in SINGLE)
    assert scores[worst["task"]]["value"] == worst["score"]
    found = rows["joint"]["turnover"]
    assert set(found["tasks"]) == {"math", "code", "qa"}
    assert found["problems"] == 3 * 256
    wide = table_of(MERGES)
    wide = wide[(wide["metric"] == "greedy") & (wide["split"] == "test") & (wide["task"] == "qa")]
    by = wide.pivot_table(index="problem", columns="node", values="value")
    assert found["tasks"]["qa"]["gained"] == ((by["s0--joint"] > 0.5) & (by["s0"] < 0.5)).sum() > 0
    assert found["lost"] == 0  # joint training lifts every task
    assert rows["base"]["turnover"]["gained"] == rows["base"]["turnover"]["lost"] == 0
    assert rows["joint"]["cost"] is rows["joint"]["rollouts_per_point"] is None


def test_a_stable_mean_may_hide_as_many_lost_as_gained_problems():
    right = np.array([True, True, False, False])
    found = {"math": {"s0": right, "s0--a": right[::-1]}, "qa": {"s0": right, "s0--a": right}}
    assert turnover(found, {0: "s0--a"}, {0: "s0"}) == {
        "gained": 2.0,
        "lost": 2.0,
        "problems": 8,
        "tasks": {"math": {"gained": 2.0, "lost": 2.0}, "qa": {"gained": 0.0, "lost": 0.0}},
    }
    assert turnover({}, {0: "s0--a"}, {0: "s0"}) is None


def test_orders_that_end_in_a_return_are_measured_beside_the_others():
    # b costs a; a return brings a back, a further b does not
    phases = {"a": ("a",), "b": ("b",), "a_again": ("a",), "b_again": ("b",)}
    orders = {
        "ab": ("a", "b"),
        "ba": ("b", "a"),
        "refreshed": ("a", "b", "a_again"),
        "control": ("a", "b", "b_again"),
    }
    world = World(tasks=("a", "b"), phases=phases, orders=orders, effects={"b": {"a": -0.2}})
    plan = world.plan()
    for singles in plan["singles"].values():
        del singles["a_again"], singles["b_again"]
    found = measure(world.table(), from_plan(plan), CONFIG)
    means = {row["arm"]: row["mean"]["value"] for row in found["ranking"]}
    assert means["refreshed"] - means["control"] == pytest.approx(0.1, abs=0.03)
    assert found["recommended"]["order"] == ["b", "a"]
    assert set(found["prediction"]["orders"]) == {"ab", "ba"}
    assert "a_again" in report.render(found)


def test_a_lead_that_only_a_judge_sees_is_split_and_warned_about():
    # joint differs from the order by its judged task alone, and the hidden taste is the same in both
    world = default_world(merges=(), effects={"qa": {"creative": -0.2}}, problems=128)
    table = world.table()
    taste = (table["metric"] == "gold") & (table["node"] == "s0--joint")
    same = (table["metric"] == "gold") & (table["node"] == "s0--math--code--qa--creative")
    table.loc[taste, "value"] = table.loc[same, "value"].to_numpy()
    # structured_first ends with creative, creative_first pays for qa after it
    rows = {row["arm"]: row for row in run(world, table)["ranking"]}
    lost = rows["creative_first"]["differences"]["joint"]["parts"]
    assert lost["judged_only"]
    assert lost["judged"]["value"] == pytest.approx(-0.2, abs=0.06)
    assert lost["verified"]["low"] < 0 < lost["verified"]["high"]
    kept = rows["structured_first"]["differences"]["joint"]["parts"]
    assert not kept["judged_only"]
    assert kept["hidden_taste"]["value"] == 0.0


def test_a_lead_against_the_judged_tasks_is_not_carried_by_them():
    # "right" gains .5 on the verified task and loses .3 on the judged one
    orders = {"right": ("a",), "pleasing": ("b",)}
    world = World(tasks=("a", "b"), phases={"a": ("a",), "b": ("b",)}, orders=orders, judged=("b",), effects={"b": {"a": -0.2}})  # fmt: skip
    found = measure(world.table(), from_plan(world.plan()), CONFIG)
    assert found["winner"]["best"] == "right"
    parts = found["winner"]["lead"]["parts"]
    assert parts["verified"]["low"] > 0
    assert parts["judged"]["high"] < 0
    assert not parts["judged_only"]
    assert "by a judge only" not in report.words.headline(found)
    to_json(found)  # all of it is JSON


@pytest.mark.parametrize("metric", ["gold", "reward_judge"])
def test_a_task_is_judged_with_an_endpoint_too_and_without_a_hidden_taste(metric):
    table = table_of(()).copy()
    table = table[table["metric"] != metric]
    found = run(default_world(merges=()), table)
    assert found["judged"] == ["creative"]
    parts = found["winner"]["lead"]["parts"]
    assert (parts["hidden_taste"] is None) == (metric == "gold")
    assert parts["verified"] is not None
    assert parts["judged"] is not None


@pytest.mark.long("measures several whole experiments")
@pytest.mark.parametrize(("key", "strength"), [(1, 0.4), (3, 1.0)])
def test_terminal_page_artifact_and_compare_say_the_same_of_every_two_arms(
    key, strength, tmp_path, monkeypatch
):
    # weak effects separate some pairs alone that all arms at once do not
    effects = {p: {t: strength * x for t, x in row.items()} for p, row in HARMFUL.items()}
    world = default_world(
        merges=(), effects=effects, problems=32, seeds=(0, 1), drift=0.005, key=key
    )
    found = run(world)
    Varied(world, {}).write(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "bwt.json").write_text(to_json(found))
    monkeypatch.chdir(tmp_path)
    designs = from_plan(world.plan())
    winner = found["winner"]
    for row in found["ranking"]:
        if row["arm"] == winner["best"]:
            continue
        compared = compare(designs, winner["best"], row["arm"], CONFIG)
        between = compared["variants"]["default"]
        assert between["mean"]["difference"] == found["differences"][winner["best"]][row["arm"]]
        assert "holds for all 6 arms at once, as in the ranking" in between["note"]
        assert (compared["verdict"] == "open") == (row["arm"] in winner["candidates"])
        if row["arm"] == winner["lead"]["over"] and compared["verdict"] == winner["verdict"]:
            # the page and the artifact hold words.summary (test_report.py)
            assert console.verdict(compared).split("\n")[0] in words.summary(found)
    dev = compare(designs, "structured_first", "reverse", CONFIG, split="dev")
    assert not dev["variants"]["default"]["ranked"]
    assert "of this pair alone" in dev["variants"]["default"]["note"]


def test_compare_takes_no_interval_from_a_ranking_of_other_scores(tmp_path, monkeypatch):
    world = default_world(merges=(), problems=24)
    Varied(world, {}).write(tmp_path)
    (tmp_path / "reports").mkdir()
    bwt = tmp_path / "reports" / "bwt.json"
    monkeypatch.chdir(tmp_path)
    designs = from_plan(world.plan())
    for other, config in ((replace(world, key=1), CONFIG), (world, MeasureConfig(bootstrap=200))):
        bwt.write_text(to_json(run(other, config=config)))
        found = compare(designs, "structured_first", "reverse", CONFIG)["variants"]["default"]
        assert not found["ranked"]
        assert found["mean"]["p"] is not None


@pytest.mark.long("measures several whole experiments")
def test_scores_by_the_judge_that_gave_the_rewards_are_named():
    table = table_of(()).copy()
    assert run(default_world(merges=()), table)["same_judge"] == []
    keys = ["node", "split", "task", "problem"]
    scores = table[table["metric"] == "score"].set_index(keys)["value"]
    paid = table["metric"] == "reward_judge"
    table.loc[paid, "value"] = scores.loc[list(map(tuple, table.loc[paid, keys].to_numpy()))].array
    found = run(default_world(merges=()), table)
    assert found["same_judge"] == ["creative"]
    said = "On creative the judge that gave the rewards also gave these scores."
    assert said in words.summary(found)
    page = report.render(found)
    assert said in page
    assert "creative is scored by the judge that gave the rewards" in page
    assert "a judge that trained nothing" not in page
    assert "held-out judge" not in page


def test_what_is_truly_tied_is_listed_as_undecided(document):
    # creative harms all, qa harms code and math; code and math do nothing to each other
    assert document["recommended"]["order"][:2] == ["creative", "qa"]
    undecided = [sorted(pair) for pair in document["recommended"]["undecided"]]
    assert ["code", "math"] in undecided
    assert not any("creative" in pair for pair in undecided)


def test_the_reward_matrix_holds_mean_scores_with_the_base_first_and_held_out_tasks_last(document):
    table = table_of(MERGES)
    rows = table[(table["metric"] == "score") & (table["split"] == "test")]
    order = document["orders"]["structured_first"]
    assert document["tasks"] == [*SINGLE, "constraints"]
    assert document["held_out"] == ["constraints"]
    assert order["nodes"]["0"][0] == "s0"
    assert len(order["R"]["test"]) == 5
    for node, matrix_row in zip(order["nodes"]["0"], order["R"]["test"], strict=True):
        means = rows[rows["node"] == node].groupby("task")["value"].mean()
        np.testing.assert_allclose(matrix_row, means[document["tasks"]], atol=1e-6)


def test_measures_follow_from_the_printed_matrix(document):
    order = document["orders"]["structured_first"]
    matrix = np.array(order["R"]["test"])
    measures = {k: v["value"] for k, v in order["measures"]["test"].items()}
    after = matrix[1:, :4]
    assert measures["ACC"] == pytest.approx(after[-1].mean(), abs=1e-5)
    assert measures["BWT"] == pytest.approx((after[-1] - np.diag(after))[:3].mean(), abs=1e-5)
    ahead = np.diagonal(after, 1) - matrix[0, 1:4]
    assert measures["FWT"] == pytest.approx(ahead.mean(), abs=1e-5)
    assert measures["retention"] == pytest.approx(matrix[-1, 4] - matrix[0, 4], abs=1e-5)
    joint = np.array(document["orders"]["joint"]["R"]["test"])[1, :4]
    expected = (joint - np.diag(after)).mean()
    assert measures["intransigence_joint"] == pytest.approx(expected, abs=1e-5)


def test_joint_training_has_an_accuracy_but_no_backward_transfer(document):
    joint = document["orders"]["joint"]
    assert joint["kind"] == "joint"
    assert joint["measures"]["test"]["BWT"] is None
    assert joint["measures"]["test"]["ACC"]["value"] > 0.6


def test_transfer_from_the_base_shows_the_planted_effects(document):
    # 256 problems x 4 samples: standard error about .02
    for phase, effects in HARMFUL.items():
        for task, effect in effects.items():
            cell = document["transfer"]["from_base"]["test"][phase][task]
            assert cell["value"] == pytest.approx(effect, abs=0.05)


def test_a_checkpoint_that_two_orders_share_counts_once_in_the_changes_along_orders(document):
    after = document["transfer"]["after_training"]["test"]["qa"]["creative"]
    assert after["n"] == 1
    assert after["changes"][0]["node"] == "s0--creative--qa"
    assert after["changes"][0]["orders"] == ["creative_first", "recommended"]
    assert set(document["transfer"]["after_training"]["test"]["qa"]) == {"creative", "math", "code"}


def test_a_difference_is_the_negative_of_its_opposite_and_zero_between_equal_checkpoints():
    orders = {"one": SINGLE[::-1], "two": SINGLE[::-1], "three": SINGLE}
    found = run(default_world(orders=orders, merges=()))
    same = found["differences"]["one"]["two"]
    assert [same[key] for key in ("value", "low", "high")] == [0.0, 0.0, 0.0]
    a, b = found["differences"]["one"]["three"], found["differences"]["three"]["one"]
    assert (a["value"], a["low"]) == (-b["value"], -b["high"])
    row = next(r for r in found["ranking"] if r["arm"] == "one")
    assert row["same_as"] == ["two"]
    # the twin of the winner is the winner itself, not a rival
    assert found["winner"]["best"] == "one"
    assert found["winner"]["candidates"] == ["one"]


def test_a_paired_difference_is_surer_than_its_two_scores(document):
    rows = {row["arm"]: row["tasks"]["constraints"] for row in document["ranking"]}
    paired = document["orders"]["structured_first"]["measures"]["test"]["retention"]
    width = paired["high"] - paired["low"]
    alone = [rows[arm]["high"] - rows[arm]["low"] for arm in ("structured_first", "base")]
    assert width < math.hypot(*alone)


def test_the_additive_model_predicts_an_additive_world(document):
    prediction = document["prediction"]
    assert set(prediction["orders"]) == {
        "structured_first",
        "creative_first",
        "recommended",
        "reverse",
    }
    assert prediction["n"] == 4
    assert prediction["pearson"] > 0.9
    assert abs(prediction["mean_error"]) < 0.03


def test_entropy_and_other_metrics_follow_an_order_from_its_base(document):
    order = document["orders"]["creative_first"]
    assert len(order["along"]["entropy_own"]["math"]) == 5
    assert order["along"]["entropy_own"]["math"][0] == pytest.approx(
        document["base"]["metrics"]["entropy_own"]["math"]
    )
    assert set(order["along"]["gold"]) == {"creative"}
    assert document["judged"] == ["creative"]
    # planted: vendi = 40 + 20 x level, one value per task
    assert order["along"]["vendi"]["creative"][:2] == pytest.approx([48.0, 54.0])


def test_every_step_of_an_order_has_what_it_changed_of_every_task_with_an_interval(document):
    order = document["orders"]["creative_first"]
    rows = np.array(order["R"]["test"])
    assert [sorted(step) for step in order["steps"]] == [sorted(document["tasks"])] * 4
    for step, before, after in zip(order["steps"], rows, rows[1:], strict=False):
        for task, was, now in zip(document["tasks"], before, after, strict=True):
            assert step[task]["value"] == pytest.approx(now - was, abs=1e-5)
            assert step[task]["low"] <= step[task]["value"] <= step[task]["high"]
    for column, task in enumerate(document["tasks"]):
        levels = order["levels"]["tasks"][task]
        assert [i["value"] for i in levels] == pytest.approx(rows[:, column].tolist(), abs=1e-5)
    arm = next(row for row in document["ranking"] if row["arm"] == "creative_first")
    for end in ("low", "value", "high"):
        assert order["levels"]["mean"][-1][end] == pytest.approx(arm["mean"][end])
    limits = order["limits_seeds"]["0"]
    for column, task in enumerate(document["tasks"]):
        assert (np.array(limits["low"][task]) <= rows[:, column]).all()
        assert (np.array(limits["high"][task]) >= rows[:, column]).all()


def test_equal_tables_give_equal_bytes_whatever_the_order_of_their_rows(document):
    table = table_of(MERGES).sample(frac=1.0, random_state=1)
    assert to_json(run(default_world(), table)) == to_json(document)
    written = json.loads(to_json(document))
    assert written.pop("hash")
    assert written == document


def test_numbers_are_rounded_and_finite(document):
    found = numbers(document)
    assert len(found) > 1000
    assert all(math.isfinite(x) and round(x, 6) == x for x in found)


def test_several_seeds_give_their_own_values_and_a_wider_interval():
    world = default_world(seeds=(0, 1, 2), merges=(), problems=64)
    found = run(world)
    assert found["intervals"]["covers"] == "seeds and problems"
    mean = found["ranking"][0]["mean"]
    assert set(mean["seeds"]) == {"0", "1", "2"}
    assert mean["value"] == pytest.approx(np.mean(list(mean["seeds"].values())), abs=1e-5)
    assert mean["low"] == min(mean["bootstrap"][0], mean["t"][0])
    assert mean["high"] == max(mean["bootstrap"][1], mean["t"][1])
    changes = found["transfer"]["after_training"]["test"]["creative"]["math"]
    assert changes["n"] == 6


def test_a_problem_without_a_score_at_one_node_is_left_out_for_all_and_counted():
    world = default_world(merges=())
    table = table_of(()).copy()
    lost = (table["node"] == "s0--math") & (table["problem"].isin(["qa/test0", "qa/test1"]))
    table.loc[lost & (table["metric"] == "score"), "value"] = np.nan
    table.loc[lost & (table["metric"] == "unscored"), "value"] = 1.0
    found = run(world, table)
    assert found["problems"]["test"]["qa"] == {"used": 254, "dropped": 2}
    assert found["problems"]["test"]["math"] == {"used": 256, "dropped": 0}
    assert found["unscored"]["worst"] == {
        "node": "s0--math",
        "split": "test",
        "task": "qa",
        "share": 0.007812,
    }


def test_adding_arms_moves_no_interval_of_the_others(document):
    few = run(default_world(merges=()), table_of(()))["ranking"]
    before = {row["arm"]: row["mean"] for row in few}
    after = {row["arm"]: row["mean"] for row in document["ranking"]}
    assert before == {arm: mean for arm, mean in after.items() if arm not in MERGES}


def test_a_missing_node_is_named_with_the_command_that_evaluates_it():
    world = default_world(merges=())
    table = table_of(()).copy()
    without = table[table["node"] != "s0--math--code"]
    with pytest.raises(
        ParamsError,
        match=r"s0--math--code.parquet has no scores: run `dvc repro plan/s0--math--code/dvc.yaml:evaluate`",
    ):
        run(world, without)


def test_a_missing_task_is_named_with_its_node():
    world = default_world(merges=())
    table = table_of(()).copy()
    gone = (table["node"] == "s0--qa") & (table["split"] == "dev") & (table["task"] == "code")
    with pytest.raises(ParamsError, match=r"s0--qa.parquet has no dev scores of code: run"):
        run(world, table[~gone])


def test_a_node_evaluated_on_other_problems_is_refused():
    world = default_world(merges=())
    table = table_of(()).copy()
    stale = table["node"] == "s0--qa"
    table.loc[stale, "problem"] = "old-" + table.loc[stale, "problem"]
    with pytest.raises(
        ParamsError, match=r"only 0 of 512 dev problems of math .* s0--qa shares the fewest"
    ):
        run(world, table)


def test_an_order_planned_for_other_seeds_is_refused():
    plan = default_world().plan()
    plan["orders"]["joint"] = {"1": ["s0--joint"]}
    with pytest.raises(
        ParamsError, match=r"joint was planned for seeds \[1\], the bases for \[0\]"
    ):
        from_plan(plan)


PARAMS = {
    "tasks": {"math": {}},
    "phases": {"math": {"kind": "structured", "tasks": {"math": 1}, "steps": 1}},
    "orders": {"only": ["math"]},
    "measure": {"bootstrap": 400},
}


def stage(folder):
    return subprocess.run(
        [sys.executable, "-m", "stages.measure_bwt"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.mark.long("measures several variants of a whole plan")
def test_the_stage_writes_what_the_library_measures_and_names_a_missing_file(tmp_path):
    world = replace(default_world(merges=()), problems=32)
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "plan.yaml").write_text(json.dumps(world.plan()))
    (tmp_path / "params.yaml").write_text(json.dumps(PARAMS))
    for node in world.nodes():
        world.evaluation(node).to_parquet(tmp_path / "evaluations" / f"{node}.parquet")
    done = stage(tmp_path)
    assert done.returncode == 0, done.stderr
    expected = to_json(run(world, config=MeasureConfig(bootstrap=400)))
    assert (tmp_path / "reports" / "bwt.json").read_text() == expected
    (tmp_path / "evaluations" / "s0.parquet").unlink()
    done = stage(tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: evaluations/s0.parquet not found: run `dvc repro plan/s0/dvc.yaml:evaluate`\n"
    )
    assert (tmp_path / "reports" / "bwt.json").read_text() == expected


@pytest.fixture(scope="module")
def varied():
    """All 24 orders under the params as written and with effects of the opposite sign."""
    return run(every_order({"opposite": -1.0}, problems=96), config=MeasureConfig(bootstrap=100))


@pytest.mark.long("measures several variants of a whole plan")
def test_a_variant_is_measured_with_its_own_arms_and_the_shared_bases(varied):
    other = varied["variants"]["opposite"]
    assert varied["variant"] == "default"
    assert {row["variant"] for row in other["ranking"]} == {"opposite"}
    assert other["base"]["nodes"] == varied["base"]["nodes"] == {"0": "s0"}
    assert other["singles"]["math"]["nodes"] == {"0": "s0--opposite--math"}
    assert other["orders"]["math_code_qa_creative"]["nodes"]["0"][1] == "s0--opposite--math"
    # what harms before helps now: the rankings of the orders turn around
    agreement = varied["across_variants"]["agreement"]
    assert [(row["a"], row["b"], row["n"]) for row in agreement] == [("default", "opposite", 24)]
    assert agreement[0]["spearman"] < -0.5


def test_what_turns_around_under_a_variant_does_not_survive(varied):
    rows = {(row["a"], row["b"]): row for row in varied["across_variants"]["differences"]}
    best = varied["winner"]["best"]
    assert rows[best, "base"]["survives"] == "in every variant"
    turned = {row["survives"] for row in rows.values()}
    assert "with opposite signs" in turned
    found = rows["code_math_qa_creative", "creative_qa_math_code"]
    assert found["verdict"] == "open"
    assert rows[best, "base"]["verdict"] == "on these problems only"  # one seed
    signs = [entry["difference"]["value"] > 0 for entry in found["variants"].values()]
    assert signs == [False, True]
    assert found["survives"] == "with opposite signs"


@pytest.mark.long("measures several variants of a whole plan")
def test_a_variant_says_the_same_as_if_it_had_been_measured_alone():
    two = every_order({"half": 0.5}, problems=32)
    config = MeasureConfig(bootstrap=100)
    together = run(two, config=config)["variants"]["half"]
    alone = run(two.others["half"], config=config)
    assert together["differences"] == alone["differences"]
    assert together["recommended"] == alone["recommended"]


def test_every_predictor_is_compared_with_all_24_orders(varied):
    predictors = varied["prediction"]["predictors"]
    assert set(predictors) == {"additive", "multiplicative", "two_stage", "stage_delta"}
    for found in predictors.values():
        assert found["n"] == 24
        # the world is additive: all predictors rank its orders well
        assert found["spearman"]["value"] > 0.7
        assert found["spearman"]["low"] < found["spearman"]["value"] < found["spearman"]["high"]
    assert predictors["additive"]["regret"] < 0.03
    assert varied["prediction"]["spearman"] == predictors["additive"]["spearman"]["value"]


def test_the_assumptions_hold_in_an_additive_world(varied):
    found = varied["assumptions"]
    assert found["transfer"]["n"] == 12
    assert found["transfer"]["missing"] == []
    # Holm over 12, 4 and 48 true hypotheses
    assert sum(row["differs"] for row in found["transfer"]["rows"]) <= 1
    assert sum(row["differs"] for row in found["saturation"]["rows"]) <= 1
    assert found["triples"]["n"] == 48
    assert sum(row["differs"] for row in found["triples"]["rows"]) <= 2
    assert found["slopes"]["own"]["value"] == pytest.approx(-1.0, abs=0.15)
    assert found["slopes"]["other"]["value"] == pytest.approx(0.0, abs=0.1)


def test_more_orders_are_asked_for_only_where_few_were_measured(varied):
    assert varied["recommended"]["verdict"] == "open"
    assert not any("different orders" in step["run"] for step in varied["recommended"]["next"])


def test_forgetting_of_noise_is_what_a_maximum_of_equal_scores_shows(document):
    order = document["orders"]["structured_first"]
    noise = order["forgetting_of_noise"]["test"]
    # three tasks with 3, 2 and 1 later stages; standard error of a difference about .02: a few hundredths, above 0
    assert 0.0 < noise < 0.03
    assert document["orders"]["joint"]["forgetting_of_noise"]["test"] is None
    assert (
        order["measures"]["test"]["forgetting_from_base"]["value"]
        >= order["measures"]["test"]["forgetting"]["value"]
    )


def test_a_score_outside_the_common_scale_is_refused_with_its_node():
    world = default_world(merges=())
    table = table_of(()).copy()
    wrong = (table["node"] == "s0--qa") & (table["metric"] == "score") & (table["task"] == "code")
    table.loc[wrong, "value"] *= 100
    with pytest.raises(
        ParamsError, match=r"s0--qa.parquet scores code \(dev\) with .* outside \[0, 1\]"
    ):
        run(world, table)
