"""The order that the transfer recommends in worlds with a known truth, its verdict, and what to run next."""

from functools import partial

import pytest
from order_worlds import SINGLE, World, default_world, every_order, measured

from trainorder.config import MeasureConfig
from trainorder.measure import measure
from trainorder.plan.design import from_plan

CONFIG = MeasureConfig(bootstrap=300)
run = partial(measured, config=CONFIG)


def test_a_planted_order_is_recovered_and_identified():
    # c harms a and b, b harms a, a harms none: c, b, a; strong effects and many problems
    effects = {"c": {"a": -0.15, "b": -0.15}, "b": {"a": -0.15}}
    phases = {"a": ("a",), "b": ("b",), "c": ("c",)}
    world = World(
        tasks=("a", "b", "c"),
        phases=phases,
        orders={
            "forward": ("a", "b", "c"),
            "backward": ("c", "b", "a"),
            "third": ("a", "c", "b"),
            "fourth": ("b", "c", "a"),
        },
        effects=effects,
        problems=400,
    )
    found = run(world)
    recommended = found["recommended"]
    assert recommended["order"] == ["c", "b", "a"]
    # one seed: it stands out on these problems, and identifies nothing
    assert recommended["verdict"] == "on these problems only"
    assert recommended["reasons"] == []
    assert recommended["undecided"] == []
    # three pairs of -.15 on one of three tasks each
    assert recommended["gap"]["value"] == pytest.approx(0.15, abs=0.03)
    winner = found["winner"]
    assert (winner["verdict"], winner["arm"]) == ("on these problems only", None)
    assert (winner["best"], winner["candidates"]) == ("backward", ["backward"])
    assert winner["lead"]["difference"]["low"] > 0
    assert winner["lead"]["parts"] is None  # no task is judged


def test_two_measured_orders_are_too_few_to_trust_the_matrix():
    world = World(
        tasks=("a", "b"),
        phases={"a": ("a",), "b": ("b",)},
        orders={"x": ("a", "b"), "y": ("b", "a")},
        effects={"b": {"a": -0.25}},
    )
    found = run(world)["recommended"]
    assert found["order"] == ["b", "a"]
    assert (found["verdict"], found["reasons"]) == ("open", ["few_orders"])


def test_tasks_that_do_not_touch_each_other_give_no_order_and_no_winner_among_orders():
    found = run(default_world(effects={}, merges=()))
    assert found["recommended"]["verdict"] == "open"
    assert found["recommended"]["reasons"]
    assert (found["winner"]["verdict"], found["winner"]["arm"]) == ("open", None)
    # all five are equal, so none may be missing; the base is clearly worse
    names = {"structured_first", "creative_first", "recommended", "reverse", "joint"}
    assert set(found["winner"]["candidates"]) == names


def test_phases_of_several_and_of_shared_tasks_are_ordered_too():
    world = World(
        tasks=("a", "b", "c"),
        phases={"ab": ("a", "b"), "bc": ("b", "c"), "c": ("c",)},
        orders={"one": ("ab", "bc", "c"), "two": ("c", "bc", "ab")},
        effects={"bc": {"a": -0.1}},
        problems=64,
    )
    found = run(world)
    assert found["recommended"]["order"].index("bc") < found["recommended"]["order"].index("ab")
    assert set(found["prediction"]["orders"]) == {"one", "two"}


def test_only_a_joint_order_leaves_nothing_to_recommend():
    world = default_world(orders={"joint": ("joint",)}, merges=())
    plan = {**world.plan(), "singles": {"0": {}}}
    found = measure(world.table(), from_plan(plan), CONFIG)
    assert found["recommended"] is None
    assert found["prediction"]["n"] == 0
    assert (found["winner"]["best"], found["winner"]["verdict"]) == (
        "joint",
        "on these problems only",
    )


class Saturating(World):
    """Creative costs a task that was trained before it 0.2, and one that was not nothing."""

    def truth(self, chain):
        level = dict.fromkeys(self.tasks, self.base)
        for i, phase in enumerate(chain):
            for task in self.tasks:
                if task in self.phases[phase]:
                    level[task] = self.learned
                elif phase == "creative" and task in chain[:i]:
                    level[task] -= 0.2
        return level


@pytest.mark.long("measures several whole experiments")
def test_transfer_that_appears_only_after_training_is_seen_and_only_two_stage_predicts_it():
    base = every_order(problems=128).default
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
    found = run(Saturating(**{**fields, "effects": {}}), config=MeasureConfig(bootstrap=200))
    rows = {(r["phase"], r["on"]): r for r in found["assumptions"]["transfer"]["rows"]}
    assert rows["creative", "math"]["differs"]
    assert rows["creative", "math"]["difference"]["value"] == pytest.approx(-0.2, abs=0.06)
    assert not rows["math", "code"]["differs"]
    predictors = found["prediction"]["predictors"]
    assert predictors["two_stage"]["spearman"]["value"] > 0.7
    assert predictors["additive"]["spearman"]["value"] < 0.5
    assert predictors["two_stage"]["rmse"] < 0.5 * predictors["additive"]["rmse"]
    two_stage = found["recommended_two_stage"]
    assert two_stage["order"][0] == "creative"
    assert (two_stage["source"], two_stage["pairs"]) == ("after_training", "direct")


def test_pairs_that_no_order_has_are_named_with_what_to_run():
    found = run(default_world(orders={"one": SINGLE}, merges=()))
    assert found["recommended_two_stage"]["order"] is None
    assert ["code", "math"] in found["recommended_two_stage"]["missing"]
    assert "add [code, math]" in found["recommended_two_stage"]["run"]
    assert found["assumptions"]["transfer"]["run"].startswith("no order trains these")
    assert found["assumptions"]["triples"]["run"].startswith("needs two orders such as")
    assert found["prediction"]["predictors"]["two_stage"] is None


class Surprise(World):
    """Where math stands third, everything ends 0.15 higher: an interaction that no pair of phases shows."""

    def truth(self, chain):
        level = super().truth(chain)
        lucky = len(chain) == 4 and chain[2] == "math"
        return {task: x + 0.15 * lucky for task, x in level.items()}


def test_an_order_that_was_measured_better_speaks_against_the_recommended_one():
    base = every_order(problems=128).default
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
    # the others harm math after it: the matrix puts math last
    effects = {"code": {"math": -0.1}, "qa": {"math": -0.1}, "creative": {"math": -0.1}}
    found = run(Surprise(**{**fields, "effects": effects}), config=MeasureConfig(bootstrap=200))
    recommended = found["recommended"]
    assert recommended["order"][-1] == "math"
    assert recommended["measured_best"]["order"][2] == "math"
    assert recommended["verdict"] == "open"
    assert "measured_better" in recommended["reasons"]


def test_what_to_run_next_are_the_orders_that_are_missing():
    found = run(default_world(orders={"one": SINGLE}, merges=()))["recommended"]
    first = found["next"][0]
    assert first["run"] == "train these orders"
    assert found["order"] in first["orders"]
    assert found["reverse"] in first["orders"]
    steps = {step["run"]: step["why"] for step in found["next"]}
    assert (
        "in 93% with 8 measured orders and 3 seeds"
        in steps["measure 8 different orders with 3 seeds"]
    )
    assert "add seeds (3 or more)" in steps
