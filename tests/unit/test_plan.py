"""Orders -> tree -> plan.yaml, and what is refused before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timing import cost

from trainorder.config import Params, parse_params
from trainorder.files import write_text
from trainorder.paths import PLAN
from trainorder.plan import Plan, compile_plan, names, pending, show, stale_files, write
from trainorder.plan.check import MAX_NAME, budget, check, pieces
from trainorder.plan.orders import held_out, single_phases
from trainorder.reading import ParamsError, read_yaml
from trainorder.tasks import TASKS

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
Change = dict[str, Any]


def params(**changes: Any) -> Params:
    """The smoke params; `orders={...}` replaces a section, `sft__gate=...` a key of one."""
    data = read_yaml(SMOKE)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            data.setdefault(section, {})[key] = value
        else:
            data[section] = value
    return parse_params(data)


def refusal(**changes: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        check(params(**changes))
    return str(caught.value)


def test_the_graph_has_a_box_for_every_checkpoint_and_an_arrow_from_what_it_starts_at():
    plan = compile_plan(params(orders={"x": ["math", "qa"]}, variants=HALF))
    first, *lines = show.graph(plan)
    boxes = [line for line in lines if '["' in line]
    arrows = {tuple(line.split(" --> ")) for line in lines if " --> " in line}
    assert first == "graph LR"
    assert len(boxes) == len(plan.nodes)
    assert len(arrows) == sum(len(node.parents) for node in plan.nodes.values())
    numbers = dict(zip(plan.nodes, (line.split("[")[0] for line in boxes), strict=True))
    assert (numbers["s0--math"], numbers["s0--math--qa"].strip()) in arrows
    assert max(map(len, lines)) < 80


def test_a_task_that_only_a_variant_trains_is_not_held_out():
    phases = {"math": {"kind": "structured", "tasks": {"math": 1}, "steps": 2}}
    changes = {"phases": phases, "orders": {"one": ["math"]}, "merges": {}}
    both = {"both": {"phases": {"math": {"tasks": {"math": 1, "qa": 1}}}}}
    assert held_out(params(**changes)) == ["creative", "qa"]
    assert held_out(params(**changes, variants=both)) == ["creative"]


AB = {"orders": {"one": ["math", "qa"], "two": ["qa", "math"]}, "merges": {}}


def test_two_orders_share_their_beginning_and_every_phase_is_trained_from_the_base():
    plan = compile_plan(
        params(orders={"x": ["math", "qa", "creative"], "y": ["math", "creative", "qa"]}, merges={})
    )
    assert set(plan.nodes) == {
        "s0", "s0--math", "s0--math--qa", "s0--math--qa--creative", "s0--math--creative",
        "s0--math--creative--qa", "s0--qa", "s0--creative",
    }  # fmt: skip
    assert plan.singles == {0: {"math": "s0--math", "qa": "s0--qa", "creative": "s0--creative"}}
    assert plan.orders["y"][0] == ("s0--math", "s0--math--creative", "s0--math--creative--qa")


def test_seeds_share_no_node():
    plan = compile_plan(params(**AB, seeds=[0, 3]))
    assert {n.id for n in plan.nodes.values() if n.seed == 3} == {
        "s3", "s3--math", "s3--math--qa", "s3--qa", "s3--qa--math",
    }  # fmt: skip
    assert len(plan.nodes) == 10


def test_a_merge_has_the_base_and_the_singles_of_its_seed_as_parents():
    plan = compile_plan(params())
    ties = plan.nodes["s0--ties"]
    assert ties.parents == ("s0", "s0--math", "s0--qa", "s0--creative")
    assert ties.stage == "plan/s0--ties/dvc.yaml:train"
    assert plan.data()["merges"]["s0--ties"]["parents"] == ["s0--math", "s0--qa", "s0--creative"]


def test_a_node_has_a_pipeline_file_of_its_own():
    plan = compile_plan(params())
    assert plan.nodes["s0--joint"].stage == "plan/s0--joint/dvc.yaml:train"
    assert {n.stage for n in plan.nodes.values()} < plan.stages().keys()
    assert len(plan.stages()) == 2 * len(plan.nodes) + len(plan.judges) + 3
    data = plan.data()
    assert list(data["joint"]) == ["s0--joint"]
    assert list(data["creative"]) == ["s0--math--qa--creative", "s0--creative"]


def test_joint_training_as_part_of_an_order_is_no_candidate_for_reordering():
    orders = {"x": ["math", "qa", "creative"], "last": ["structured", "creative"]}
    phases = read_yaml(SMOKE)["phases"]
    phases["structured"] = {"kind": "structured", "tasks": {"math": 1, "qa": 1}, "steps": 4}
    assert single_phases(params(orders=orders, phases=phases)) == ["math", "qa", "creative"]


HALF = {"half_lr": {"rl": {"lr": 1.5e-4}}}


def test_a_variant_grows_its_own_branch_on_the_shared_base():
    plan = compile_plan(params(orders={"x": ["math", "qa"]}, variants=HALF))
    branch = {"s0--half_lr--math", "s0--half_lr--math--qa", "s0--half_lr--qa"}
    assert {n.id for n in plan.nodes.values() if n.variant == "half_lr" and n.phase} == branch
    assert plan.nodes["s0--half_lr--math"].parents == ("s0",)
    assert plan.nodes["s0--half_lr--ties"].parents == ("s0", "s0--half_lr--math", "s0--half_lr--qa")
    assert [n.id for n in plan.bases()] == ["s0"]
    orders, singles = plan.variants["half_lr"]
    assert orders["x"][0] == ("s0--half_lr--math", "s0--half_lr--math--qa")
    assert singles == {0: {"math": "s0--half_lr--math", "qa": "s0--half_lr--qa"}}


def test_plan_yaml_describes_the_arms_of_a_variant_as_it_does_the_default_ones():
    data = compile_plan(params(orders={"x": ["math", "qa"]}, variants=HALF)).data()
    alone = compile_plan(params(orders={"x": ["math", "qa"]})).data()
    assert {key: data[key] for key in ("phases", "orders", "singles", "merges")} == {
        key: alone[key] for key in ("phases", "orders", "singles", "merges")
    }
    laid_over = data["variants"]["half_lr"]
    assert laid_over["orders"] == {"x": {"0": ["s0--half_lr--math", "s0--half_lr--math--qa"]}}
    assert laid_over["merges"]["s0--half_lr--ties"]["variant"] == "half_lr"
    assert data["structured"]["s0--half_lr--qa"]["variant"] == "half_lr"
    assert "variant" not in data["structured"]["s0--qa"]
    assert "evaluations/s0--half_lr--ties.parquet" in data["evaluations"]


def test_the_settings_of_a_node_are_those_of_its_variant():
    variants = {**HALF, "long": {"phases": {"math": {"steps": 9}}}}
    plan = compile_plan(params(variants=variants, merges={}))
    settings = plan.settings()
    assert settings["variants"]["half_lr"]["math"]["rl"]["lr"] == 1.5e-4
    assert settings["variants"]["long"]["math"]["steps"] == 9
    assert settings["variants"]["long"]["qa"] == settings["phases"]["qa"]
    prints = [f".fingerprints/phase_math.long{end}" for end in ("", ".json")]
    assert plan.stages()["plan/s0--long--math/dvc.yaml:train"]["deps"][:2] == prints
    assert plan.stages()["plan/s0--math/dvc.yaml:train"]["deps"][:2] == [
        p.replace(".long", "") for p in prints
    ]
    files = plan.fingerprints()
    assert json.loads(files["phase_math.long.json"]) == {
        "phases": settings["variants"]["long"]["math"]
    }


def test_a_variant_may_change_what_a_phase_trains_and_then_reads_that():
    variants = {"no_qa": {"phases": {"joint": {"tasks": {"math": 1, "creative": 1}}}}}
    plan = compile_plan(params(variants=variants, merges={}))
    assert reads(plan, "s0--no_qa--joint") == {
        "checkpoints/s0",
        "checkpoints/judge/reward",
    } | {f"data/tasks/{task}/train.jsonl" for task in ("math", "creative")}
    kinds = plan.code()["phase_joint.no_qa"].targets & set(TASKS.values())
    assert kinds == {TASKS["creative"], TASKS["math"]}


def test_budgets_are_compared_within_a_variant():
    long = {"phases": {"math": {"steps": 4}}}
    text = refusal(variants={"long": long})
    assert text.startswith("variants.long: orders: structured_first and joint differ in budget: ")
    check(params(variants={"long": {"phases": {**long["phases"]}}}, orders=AB["orders"], merges={}))


def test_a_variant_named_like_a_phase_and_one_that_cannot_work_are_refused():
    assert "variants.math: an entry of phases has this name too" in refusal(variants={"math": {}})
    text = refusal(variants={"none": {"phases": {"joint": {"tasks": {"mth": 1}}}}})
    assert text.startswith("variants.none: phases.joint.tasks: no task 'mth'")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"orders": {"base": ["math", "qa"]}}, "orders.base: every ranking calls"),
        ({"merges": {"base": {"method": "average"}}}, "merges.base: every ranking calls"),
        ({"orders": {"ties": ["math", "qa"]}}, "orders.ties: a merge has this name too"),
        (
            {"orders": {"every": {"all": ["math", "qa"]}}, "merges": {"math_qa": {"method": "average"}}},
            "orders.math_qa: a merge has this name too",
        ),
    ],
)  # fmt: skip
def test_two_arms_of_one_name_are_refused(changes: Change, reason: str):
    """The order named base was ranked with the base's score."""
    assert reason in refusal(**changes)


def test_all_permutations_are_orders_of_their_own_and_a_listed_one_keeps_its_name():
    every = {"every": {"all": ["math", "qa", "creative"]}, "mine": ["qa", "math", "creative"]}
    plan = compile_plan(params(orders=every, merges={}))
    assert len(plan.orders) == 6
    assert plan.orders["creative_qa_math"][0][-1] == "s0--creative--qa--math"
    assert plan.orders["mine"][0][-1] == "s0--qa--math--creative"
    assert "qa_math_creative" not in plan.orders
    assert len(plan.nodes) == 1 + 3 + 6 + 6
    assert "each phase once and at most 5" in refusal(orders={"x": {"all": ["math", "math"]}})
    assert "orders.math_qa: orders.x gives one of its orders this name" in refusal(
        orders={"x": {"all": ["math", "qa"]}, "math_qa": ["qa", "qa"]}
    )


def test_recommended_waits_until_it_is_resolved_and_its_reverse_follows():
    orders = {
        "x": ["math", "qa", "creative"],
        "best": "recommended",
        "worst": "recommended_reverse",
    }
    waiting = compile_plan(params(orders=orders, merges={}))
    assert list(waiting.orders) == ["x"]
    assert pending(params(orders=orders)) == ["best", "worst"]
    found = compile_plan(
        params(orders=orders, merges={}), {"recommended": ["qa", "creative", "math"]}
    )
    assert found.orders["best"][0][-1] == "s0--qa--creative--math"
    assert found.orders["worst"][0][-1] == "s0--math--creative--qa"
    assert found.resolved == {"recommended": ("qa", "creative", "math")}


def test_a_rule_orders_the_phases_by_what_they_are():
    orders = {"x": ["qa", "creative", "math"], "first": "cascade", "last": "creative_last"}
    plan = compile_plan(params(orders=orders, merges={}))
    assert plan.orders["first"][0][-1] == "s0--creative--math--qa"
    assert plan.orders["last"][0][-1] == "s0--math--qa--creative"
    assert pending(params(orders=orders)) == []
    assert not compile_plan(params(orders=orders), {"recommended": ["qa", "creative", "math"]}).resolved  # fmt: skip
    check(params(orders=orders, merges={}))
    assert "orders.y: 'cascade' is chosen among" in refusal(
        orders={"x": ["joint"], "y": "cascade"}, merges={}
    )
    assert "'cascade' or 'creative_last'" in refusal(orders={"x": "cascades"})


AGAIN = {"math_again": {"like": "math", "steps": 1}, "qa_again": {"like": "qa", "steps": 1}}
REFRESH = {
    "plain": ["math", "qa", "creative"],
    "refreshed": ["math", "qa", "creative", "math_again"],
    "control": ["math", "qa", "creative", "qa_again"],
}


def with_returns(**changes: Any) -> dict[str, Any]:
    return read_yaml(SMOKE)["phases"] | AGAIN | changes


def test_a_return_takes_all_but_its_steps_from_its_phase_and_is_no_single():
    own = with_returns(
        math={"kind": "structured", "tasks": {"math": 1}, "steps": 2, "rl": {"lr": 1e-4}}
    )
    found = params(phases=own, orders=REFRESH)
    again = found.phases["math_again"]
    assert (again.kind, again.tasks, again.steps, again.rl) == ("structured", {"math": 1.0}, 1, {"lr": 1e-4})  # fmt: skip
    assert again.results() == found.phases["math"].results() | {"steps": 1}
    assert single_phases(found) == ["math", "qa", "creative"]
    plan = compile_plan(found)
    assert plan.nodes["s0--math--qa--creative--math_again"].parents == ("s0--math--qa--creative",)
    assert "s0--math_again" not in plan.nodes


def test_a_return_to_nothing_or_with_tasks_of_its_own_is_refused():
    for again, told in {
        "maths": "phases.again.like: no phase 'maths' that stands for itself; there are math, qa, creative, joint (did you mean 'math'?)",
        "math_again": "no phase 'math_again' that stands for itself",
    }.items():
        assert told in refusal(phases=with_returns(again={"like": again}))
    assert "phases.again.tasks: a phase that is like 'qa' has its kind and tasks" in refusal(
        phases=with_returns(again={"like": "qa", "tasks": {"qa": 1}})
    )


def test_a_refresh_needs_a_control_that_spends_as_much_elsewhere():
    phases, both = with_returns(), REFRESH | {"joint": ["joint"]}
    check(params(phases=phases, orders=both, merges={}))
    alone = {name: order for name, order in both.items() if name != "control"}
    told = "refreshed goes on for 1 steps of math_again after math, qa, creative, and no other order spends as much"
    assert told in refusal(phases=phases, orders=alone, merges={})
    assert told in refusal(  # after other phases, it is no control
        phases=phases, orders=both | {"control": ["qa", "math", "creative", "qa_again"]}, merges={}
    )
    phases["qa_again"] = {"like": "qa", "steps": 2}
    assert told in refusal(phases=phases, orders=both, merges={})
    check(params(phases=phases, orders=alone, merges={}, allow_unequal_budgets=True))
    early = {"plain": ["math", "qa", "math"], "cut": ["math_again", "qa", "math"]}
    assert "plain and cut differ in budget: updates 6 and 5" in refusal(
        phases=phases, orders=early, merges={}
    )


def test_a_recommendation_for_other_phases_is_forgotten():
    assert compile_plan(params(), {"recommended": ["math", "qa"]}).resolved == {}
    assert compile_plan(params(**AB), {"recommended": ["qa", "math"]}).resolved == {}  # nobody asks


def test_singles_do_not_depend_on_how_orders_are_written():
    one = params(orders={"x": ["creative", "math", "qa"]})
    other = params(orders={"x": ["qa", "creative", "math"]})
    assert single_phases(one) == single_phases(other) == ["math", "qa", "creative"]


def test_a_mixed_phase_may_stand_among_others_and_a_phase_may_come_twice():
    plan = compile_plan(params(orders={"x": ["math", "joint", "math"]}, merges={}))
    assert plan.orders["x"][0][-1] == "s0--math--joint--math"
    assert plan.nodes["s0--math--joint"].kind == "mixed"


def test_plan_yaml_reads_back_and_compiles_to_the_same_text(tmp_path: Path):
    plan = compile_plan(params(), {"recommended": ["qa", "creative", "math"]})
    file = tmp_path / "plan.yaml"
    file.write_text(plan.texts()[PLAN])
    assert read_yaml(file) == plan.data()
    assert compile_plan(params(), read_yaml(file)["resolved"]).texts()[PLAN] == plan.texts()[PLAN]


def reads(plan: Plan, node: str, stage: Callable[[str], str] = names.training) -> set[str]:
    """What a stage of a node reads beside its two fingerprints."""
    return set(plan.stages()[stage(node)]["deps"][2:])


def test_a_phase_reads_its_own_tasks_problems_and_a_creative_one_the_judge():
    plan = compile_plan(params())
    assert reads(plan, "s0--math") == {"checkpoints/s0", "data/tasks/math/train.jsonl"}
    judge = "checkpoints/judge/reward"
    assert reads(plan, "s0--creative") == {
        "checkpoints/s0", judge, "data/tasks/creative/train.jsonl"
    }  # fmt: skip
    tasks = {f"data/tasks/{task}/train.jsonl" for task in ("math", "qa", "creative")}
    assert reads(plan, "s0--joint") == {"checkpoints/s0", judge, *tasks}


def test_a_stage_lists_each_file_once_however_many_it_reads():
    many = [f"p{i}" for i in range(13)]
    phases = {name: {"kind": "structured", "tasks": {"math": 1}, "steps": 1} for name in many}
    plan = compile_plan(params(phases=phases, orders={"x": many}))
    assert reads(plan, "s0--ties") == {"checkpoints/s0", *(f"checkpoints/s0--{p}" for p in many)}
    for stage in plan.stages().values():
        assert len(stage["deps"]) == len(set(stage["deps"]))
    tasks = {f"math{i}": {"kind": "math", "train": 9} for i in range(5)} | {"creative": {}}
    mixed = {"kind": "structured", "tasks": {f"math{i}": 1 for i in range(5)}, "steps": 1}
    plan = compile_plan(
        params(tasks=tasks, phases={"many": mixed}, orders={"x": ["many"]}, merges={}, sft__gate={})
    )
    files = {f"data/tasks/math{i}/train.jsonl" for i in range(5)}
    assert reads(plan, "s0--many") == {"checkpoints/s0", *files}


def test_settings_hold_defaults_and_each_phase_its_own_rl():
    written = params(rl={"prompts_per_step": 6, "group_size": 4, "warmup_steps": 1, "lr": 3e-4})
    assert (
        compile_plan(written).settings() == compile_plan(params()).settings()
    )  # 3e-4 is the default
    phases = read_yaml(SMOKE)["phases"]
    phases["math"]["rl"] = {"lr": 1e-5}
    settings = compile_plan(params(phases=phases)).settings()["phases"]
    assert (settings["math"]["rl"]["lr"], settings["qa"]["rl"]["lr"]) == (1e-5, 3e-4)
    assert settings["qa"]["of"]["qa"] == {"kind": "qa", "options": {}, "max_new_tokens": 48}


def test_stages_that_sample_depend_on_another_engine_than_torch():
    merges = {"plain": {"method": "ties"}, "tuned": {"method": "ties", "scale": [0.5, 1.0]}}
    plans = [
        compile_plan(params(merges=merges, rollout=rollout))
        for rollout in ({"backend": "torch"}, {"backend": "vllm", "max_model_len": 160})
    ]
    before, after = (plan.settings() for plan in plans)
    assert "rollout" not in {
        **before["evaluation"],
        **before["judges"]["reward"],
        **before["merges"]["tuned"],
    }
    engine = {"backend": "vllm", "dtype": "auto", "max_model_len": 160}
    for section in (after["evaluation"], after["judges"]["reward"], after["merges"]["tuned"]):
        assert section["rollout"] == engine
    assert after["merges"]["plain"] == before["merges"]["plain"]
    assert after["sft"] == before["sft"]
    targets = [{name: code.targets for name, code in plan.code().items()} for plan in plans]
    changed = {name for name in targets[0] if targets[0][name] != targets[1][name]}
    assert {"evaluate", "judge_reward", "judge_evaluation", "merge"} <= changed
    assert "sft_warmup" not in changed


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["math", "qa", "creative", "joint"]), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_every_plan_is_a_tree_of_distinct_prefixes_with_parents_first(orders: list[list[str]]):
    plan = compile_plan(
        params(orders={f"o{i}": order for i, order in enumerate(orders)}, merges={})
    )
    prefixes = {tuple(order[:end]) for order in orders for end in range(1, len(order) + 1)}
    prefixes |= {(p,) for order in orders if len(order) > 1 for p in order if p != "joint"}
    assert len(plan.nodes) == 1 + len(prefixes)
    seen: set[str] = set()
    for node in plan.nodes.values():
        assert set(node.parents) <= seen
        seen.add(node.id)


def test_the_shipped_params_can_work():
    check(params())


def test_an_unknown_phase_in_an_order_is_refused_with_the_nearest_name():
    text = refusal(orders={"x": ["maths", "qa"]}, merges={})
    assert (
        text
        == "orders.x: no phase 'maths'; there are creative, joint, math, qa (did you mean 'math'?)"
    )


def test_an_unknown_task_in_a_phase_is_refused_with_the_nearest_name():
    text = refusal(phases={"math": {"kind": "structured", "tasks": {"mth": 1}, "steps": 1}})
    assert (
        text
        == "phases.math.tasks: no task 'mth'; there are creative, math, qa (did you mean 'math'?)"
    )


def test_an_unknown_kind_and_an_unknown_option_of_a_task_are_refused():
    assert "no task kind 'mth'" in refusal(tasks={"math": {"kind": "mth"}})
    assert "has no option 'distractor'; it takes" in refusal(
        tasks={"qa": {"options": {"distractor": 3}}, "math": {}, "creative": {}}
    )


def test_a_phase_of_the_wrong_kind_is_refused():
    text = refusal(phases={"math": {"kind": "creative", "tasks": {"math": 1}, "steps": 1}})
    assert (
        "phases.math: a creative phase takes tasks rewarded by a judge, and 'math' is rewarded by a verifier"
        in text
    )


def test_a_gate_on_an_unknown_task_and_on_one_without_demonstrations_is_refused():
    assert "sft.gate: no task 'maths'" in refusal(sft__gate={"maths": 0.5})
    tasks = read_yaml(SMOKE)["tasks"] | {"math": {"demonstrations": 0}}
    assert "sft.gate: task 'math' has no demonstrations" in refusal(tasks=tasks)


def test_a_judge_of_a_verified_or_unknown_task_is_refused():
    assert "judge.task: 'math' is graded by its verifier; judged tasks: creative" in refusal(
        judge__task="math"
    )
    assert "judge.task: no task 'poems'" in refusal(judge__task="poems")


def test_two_orders_of_the_same_phases_are_refused():
    text = refusal(orders={"x": ["math", "qa"], "y": ["math", "qa"]}, merges={})
    assert text == "orders.y: the same phases as orders.x; remove one"


def test_recommended_needs_an_order_to_choose_from():
    text = refusal(orders={"x": ["joint"], "best": "recommended"}, merges={})
    assert (
        "orders.best: 'recommended' is chosen among the phases of the orders that list two or more"
        in text
    )


def test_a_merge_named_like_a_phase_and_a_merge_of_nothing_are_refused():
    assert "merges.math: a phase has this name too" in refusal(
        merges={"math": {"method": "average"}}
    )
    assert "merges: nothing to merge" in refusal(orders={"x": ["joint"]})
    assert "merges.x.unique_scale is of `method: ram`, and this is sce" in refusal(
        merges={"x": {"method": "sce", "unique_scale": 1.2}}
    )


def test_seeds_are_distinct_and_not_negative():
    assert "seeds: each seed once" in refusal(seeds=[0, 0])
    assert "seeds.0: input should be greater than or equal to 0, got -1" in refusal(seeds=[-1])


def test_a_budget_counts_updates_rollouts_and_prompts_by_weight():
    # 6 steps of 6 prompts over three tasks of weight 1: 36 / 3 = 12 prompts each, 36 * 4 rollouts
    assert budget(params(), ["joint"]) == {
        "updates": 6, "rollouts": 144, "prompts of math": 12, "prompts of qa": 12, "prompts of creative": 12,
    }  # fmt: skip
    assert budget(params(), ["joint"]) == budget(params(), ["creative", "math", "qa"])


def test_orders_of_unequal_budget_are_refused_unless_allowed():
    orders = {"long": ["math", "qa", "math"], "short": ["math", "qa"]}
    text = refusal(orders=orders, merges={})
    assert (
        "orders: long and short differ in budget: updates 6 and 4, rollouts 144 and 96, prompts of math 24 and 12"
        in text
    )
    assert "allow_unequal_budgets: true" in text
    check(params(orders=orders, merges={}, allow_unequal_budgets=True))


def test_equal_totals_over_other_tasks_are_unequal_budgets():
    text = refusal(orders={"x": ["math", "math"], "y": ["qa", "qa"]}, merges={})
    assert "prompts of math 24 and 0, prompts of qa 0 and 24" in text


@given(weights=st.lists(st.integers(1, 9), min_size=2, max_size=4), steps=st.integers(1, 50))
def test_prompts_of_a_phase_add_up(weights: list[int], steps: int):
    tasks = dict(zip(("math", "qa", "creative", "more"), map(float, weights), strict=False))
    phases = {"p": {"kind": "mixed", "tasks": tasks, "steps": steps}}
    spent = budget(params(phases=phases), ["p"])
    share = Fraction(weights[0], sum(weights)) * steps * 6
    assert spent["prompts of math"] == pytest.approx(float(share), abs=1e-6)
    assert sum(v for k, v in spent.items() if k.startswith("prompts")) == pytest.approx(
        steps * 6, abs=1e-5
    )


FOUR = {"math": 1.0, "qa": 1.0, "creative": 1.0}


def mixed(**rl: Any) -> Change:
    phases = read_yaml(SMOKE)["phases"]
    return {"phases": {**phases, "joint": {**phases["joint"], "rl": rl}}}


def test_an_online_schedule_is_held_to_the_same_updates_and_prompts_in_all():
    check(params(**mixed(sampler="dump")))
    check(params(**mixed(curriculum={"in_turn": {"cycles": 2}})))
    phases = mixed(sampler="dump")["phases"]
    phases["joint"]["steps"] = 7
    assert "updates 6 and 7, rollouts 144 and 168, prompts 36 and 42" in refusal(phases=phases)


def test_serial_updates_count_one_per_task():
    # 2 steps of 18 prompts and 3 updates each are 6 steps of 6
    phases = mixed(serial_tasks=True, prompts_per_step=18)["phases"]
    phases["joint"]["steps"] = 2
    check(params(phases=phases))
    assert budget(params(phases=phases), ["joint"])["updates"] == 6
    assert "one update per task, got updates_per_batch 2" in refusal(
        **mixed(serial_tasks=True, updates_per_batch=2)
    )


def test_an_unknown_sampler_option_and_an_order_of_other_tasks_are_refused():
    text = refusal(**mixed(sampler="dmp"))
    assert text.startswith("phases.joint.rl.sampler: no piece 'dmp'; there are alp, dump,")
    assert "no option 'windo'; it takes temperature, window" in refusal(
        **mixed(sampler={"dump": {"windo": 3}})
    )
    assert "rl.items: no piece 'cure'" in refusal(**mixed(items="cure"))
    assert "no option 'tau'; it takes cold_start, temperature" in refusal(
        **mixed(items={"cures": {"tau": 1.0}})
    )
    assert "`items: shuffled` asks nothing" in refusal(**mixed(inherit_items=True))
    assert "'learnability_gap' needs a teacher" in refusal(**mixed(items="learnability_gap"))
    assert "order must name each task of the phase once" in refusal(
        **mixed(curriculum={"unlock": {"order": ["math", "qa"]}})
    )


def test_a_merge_whose_scale_is_tuned_reads_the_dev_problems_and_the_judges():
    tuned = {"best": {"method": "ties", "scale": [0.5, 1.0]}, "fixed": {"method": "ties"}}
    plan = compile_plan(params(merges=tuned))
    extra = {f"data/tasks/{t}/dev.jsonl" for t in FOUR} | {
        f"checkpoints/judge/{judge}" for judge in ("reward", "evaluation")
    }
    assert reads(plan, "s0--best") - reads(plan, "s0--fixed") == extra
    assert "--tasks math,qa,creative " in plan.stages()["plan/s0--best/dvc.yaml:train"]["cmd"]


def method(**changes: Any) -> Change:
    return {"rl__method": changes}


def test_an_unknown_piece_is_refused_with_the_nearest_name():
    text = refusal(**method(advantage=["gropo"]))
    names = ", ".join(sorted(pieces()["advantage"]))
    assert {"dr_grpo", "grpo", "rloo"} <= set(names.split(", "))
    assert text.startswith(f"rl.method.advantage: no piece 'gropo'; there are {names}")
    assert text.endswith("(did you mean 'grpo'?)")


def test_an_unknown_option_of_a_piece_is_refused_with_the_nearest_name():
    text = refusal(**method(terms=[{"clipped_surrogate": {"clip_hihg": 0.3}}]))
    assert text.startswith(
        "rl.method.terms.clipped_surrogate: no option 'clip_hihg'; it takes clip_high, clip_low, coef"
    )
    assert text.endswith("(did you mean 'clip_high'?)")


def test_an_option_of_the_wrong_type_is_refused():
    text = refusal(**method(terms=[{"clipped_surrogate": {"clip_high": "wide"}}]))
    assert text.startswith(
        "rl.method.terms.clipped_surrogate.clip_high: input should be a valid number, got 'wide'"
    )
    assert "kl.kind" in refusal(**method(terms=[{"kl": {"kind": "k9"}}]))


def test_pieces_of_a_phases_own_method_are_checked_too():
    phases = read_yaml(SMOKE)["phases"]
    phases["qa"]["rl"] = {"method": {"weight": ["finished_onyl"]}}
    assert "phases.qa.rl.method.weight: no piece 'finished_onyl'" in refusal(phases=phases)


def test_pieces_read_from_the_source_are_those_that_the_engine_lists():
    from trainorder.rl.method import bind
    from trainorder.rl.registry import SLOTS as LISTED

    found = pieces()
    bind("reward", "graded")  # fills the registry
    own = {  # tests register pieces of their own
        slot: {n for n, e in listed.items() if e.function.__module__.startswith("trainorder.rl.")}
        for slot, listed in LISTED.items()
    }
    assert {slot: set(found[slot]) for slot in own} == own
    assert found["terms"]["clipped_surrogate"]["clip_low"] is float


def test_more_updates_than_prompts_and_fewer_prompts_than_tasks_are_refused():
    assert "7 updates per batch of 6 prompts" in refusal(rl__updates_per_batch=7)
    assert "phases.joint: 2 prompts per step cannot serve 3 tasks" in refusal(
        rl={"prompts_per_step": 2}
    )


def test_a_model_whose_heads_do_not_divide_its_width_is_refused():
    assert "policy: hidden_size 32 over num_heads 3" in refusal(
        policy={"hidden_size": 32, "num_heads": 3}
    )


# What no machine can do

LONG = {name * 16: {"kind": "structured", "tasks": {"math": 1}, "steps": 2} for name in ("abcd", "efgh", "ijkl", "mnop")}  # fmt: skip
FIVE = ("math", "qa", "a", "b", "c")
IMPOSSIBLE: dict[str, tuple[Change, str]] = {
    "beta of 2": ({"rl__betas": [2.0, 0.98]}, "rl.betas.0: input should be less than 1, got 2.0"),
    "beta of 1": ({"sft__betas": [0.9, 1.0]}, "sft.betas.1: input should be less than 1"),
    "negative beta": ({"sft__betas": [-0.5, 0.9]}, "sft.betas.0: input should be greater than or equal to 0"),
    "width": ({"policy__hidden_size": 10**12}, "policy.hidden_size: input should be less than or equal to 65536"),
    "layers": ({"policy__num_layers": 10**9}, "policy.num_layers"),
    "a model of all sizes": ({"policy": {"hidden_size": 65536, "num_layers": 1000, "num_heads": 64}}, "make a model of 1.7e+13 parameters"),
    "bootstrap": ({"measure__bootstrap": 10**12}, "measure.bootstrap"),
    "samples": ({"evaluation__samples": 10**12}, "evaluation.samples"),
    "group": ({"rl__group_size": 10**12}, "rl.group_size"),
    "rollouts": ({"rl__group_size": 4096, "rl__prompts_per_step": 65536}, "268435456 rollouts a step, at most 262144"),
    "problems": ({"tasks__math": {"train": 10**12}}, "tasks.math.train"),
    "demonstrations": ({"tasks__math": {"demonstrations": 10**12}}, "tasks.math.demonstrations"),
    "threads": ({"sft__threads": 10**9}, "sft.threads"),
    "threads of a phase": ({"rl__threads": 10**9}, "rl.threads"),
    "workers": ({"flow__workers": 10**9}, "flow.workers"),
    "ranks": ({"training": {"backend": "deepspeed", "ranks": 10**9}}, "training.ranks"),
    "operand": ({"tasks__math": {"options": {"max_operand": 10**10, "max_value": 10**10}}}, "max_operand <= max_value <= 10,000"),
    "operations": ({"tasks__math": {"options": {"max_operations": 10**9}}}, "max_operations <= 100"),
    "an answer beyond the context": ({"tasks__math": {"max_new_tokens": 500}}, "tasks.math.max_new_tokens: 500 leaves no room for a prompt within policy.max_positions 192"),
    "no room for a prompt": ({"tasks__math": {"max_new_tokens": 190}}, "leaves no room"),
    "cold": ({"rl__temperature": 1e-300}, "rl.temperature"),
    "hot": ({"rl__temperature": 1e300}, "rl.temperature"),
    "rate": ({"rl__lr": 1e300}, "rl.lr: input should be less than or equal to 10"),
    "no rate": ({"sft__muon_lr": 1e-300}, "sft.muon_lr"),
    "weight": ({"phases__math": {"kind": "structured", "tasks": {"math": 1e-300}, "steps": 1}}, "phases.math.tasks.math"),
    "a phase's own": ({"phases__math": {"kind": "structured", "tasks": {"math": 1}, "steps": 1, "rl": {"lr": 1e9}}}, "phases.math.rl: lr"),
    "a variant's own": ({"variants": {"v": {"rl": {"temperature": 1e-9}}}}, "variants.v.rl: temperature"),
    "a piece's option": ({"rl__method": {"terms": [{"clipped_surrogate": {"clip_high": 1e300}}]}}, "clip_high: at most 1e+09"),
    "a gold text without its place": ({"rl__informed_prompt": "{prompt} {god}"}, "rl.informed_prompt: the text has no {gold}"),
    "a prompt without its place": ({"rl__method": {"plan": [{"prompt_templates": {"templates": ["x"]}}]}}, "prompt_templates.templates: the text has no {prompt}"),
    "a pattern": ({"rl__method": {"plan": [{"expert_steps": {"separator": "("}}]}}, "expert_steps.separator: it is no regular expression"),
    "a seed numpy refuses": ({"seeds": [2**32]}, "seeds.0: input should be less than 4294967296"),
    "a file": ({"policy": {"path": "/etc/passwd"}}, "policy.path: '/etc/passwd' is a file: name the folder"),
    "a device": ({"policy": {"path": "/dev/null"}}, "is a file: name the folder"),
    "a folder of no model": ({"policy": {"path": "/etc"}}, "holds no config.json"),
    "a missing folder": ({"policy": {"path": "/nowhere/model"}}, "'/nowhere/model' does not exist: it is no folder"),
    "a home": ({"policy": {"path": "~/model"}}, "`~` is not expanded here"),
    "no path": ({"policy": {"path": ""}}, "policy.path: '' does not exist"),
    "a long path": ({"policy": {"path": "x" * 300}}, "File name too long"),
    "long names": ({"phases": LONG, "orders": {"one": list(LONG)}, "merges": {}}, "would have a name of 266 characters, and files can have 200"),
    "sixty phases": ({"orders": {"one": ["math"] * 60}, "merges": {}}, "the checkpoint after 60 phases"),
    "a long variant": ({"orders": {"one": ["math"] * 24}, "merges": {}, "variants": {"v" * 64: {}}}, "shorten the phases' names and the variants"),
    "seeds": ({"seeds": list(range(3000)), **AB}, "at most 2000 can be planned"),
    "a sweep": ({
        "phases": {n: {"kind": "structured", "tasks": {"math": 1}, "steps": 2} for n in FIVE}, "orders": {"all": {"all": list(FIVE)}},
        "merges": {}, "seeds": list(range(40)), "variants": {f"v{n}": {} for n in range(10)},
    }, "143040 checkpoints (3575 of"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_work_is_refused_at_once(name: str):
    changes, reason = IMPOSSIBLE[name]
    assert reason in refusal(**changes)
    assert cost(lambda: refusal(**changes), turns=2) < 100 * cost(lambda: check(params()))


def test_a_folder_with_a_gguf_file_alone_is_refused_with_what_to_do(tmp_path: Path):
    (tmp_path / "small.Q4_1.gguf").touch()
    said = refusal(policy={"path": str(tmp_path)})
    assert f"holds no config.json; name the file {tmp_path}/small.Q4_1.gguf" in said


def test_the_longest_allowed_name_fits_every_file_made_of_it(tmp_path: Path):
    phases = {("a" * 63)[:n]: {"kind": "structured", "tasks": {"math": 1}, "steps": 2} for n in (59, 60, 61)}  # fmt: skip
    fits = params(phases=phases, orders={"one": list(phases)}, merges={})
    check(fits)
    longest = max(compile_plan(fits).nodes, key=len)
    assert 185 < len(longest) <= MAX_NAME
    for name in (longest, f".{longest}.parquet.tmp", f"evaluate--{longest}", f".{longest}.tmp"):
        write_text(tmp_path / name, "")


ENDPOINTS = {
    "http://[::1/v1": "an address like",
    "http://\u2100.example/v1": "an address like",
    "http://host:99999/v1": "an address like",
    "http://a b/v1": "an address like",
    "ftp://host/v1": "an address like",
    "http://" + "a" * 300: "an address like",
    "http://h/v1#x": "an address like",
    "https:///v1": "an address like",
    "http://judge.example/v1": "http to judge.example would send the key of KEY unencrypted",
    "http://10.0.0.7:8000/v1": "would send the key of KEY unencrypted",
    "http://127.evil.example/v1": "would send the key of KEY unencrypted",
}


@pytest.mark.parametrize("url", ENDPOINTS)
def test_an_address_that_cannot_be_asked_is_refused(url: str):
    endpoint = {"base_url": url, "model": "m", "api_key_env": "KEY"}
    judge = {"task": "creative", "prompts": 80, "backend": "endpoint", "endpoint": endpoint}
    assert ENDPOINTS[url] in refusal(judge=judge)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://[::1]:1/v1", "http://localhost/v1", "https://h.example/v1?api-version=1"])  # fmt: skip
def test_loopback_and_encrypted_addresses_may_have_a_key(url: str):
    endpoint = {"base_url": url, "model": "m", "api_key_env": "KEY", "same_in_both_roles": True}
    check(params(judge={"task": "creative", "prompts": 80, "backend": "endpoint", "endpoint": endpoint}))  # fmt: skip


@pytest.mark.parametrize("said", [{}, {"same_in_both_roles": False}, {"temperature": 0.7}])
def test_one_model_that_gives_rewards_and_evaluates_has_to_be_accepted(said: dict[str, object]):
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m", **said}
    judge = {"task": "creative", "prompts": 80, "heldout_prompts": 20, "backend": "endpoint"}
    judge |= {"endpoint": endpoint}
    text = refusal(judge=judge)
    assert "'m' would be the judge that gives rewards and the one that evaluates" in text
    assert "judge.endpoint.same_in_both_roles: true" in text
    check(params(judge=judge | {"endpoint": endpoint | {"same_in_both_roles": True}}))
    check(params(judge=judge | {"backend": "local"}))  # the endpoint is not used


def test_files_of_rows_that_cannot_be_looked_at_are_one_line(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dev").write_text("")
    (tmp_path / "test").write_text("")
    for train, reason in (
        ("loop", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        (".", "no file"),
        ("dev/x", "no file"),
    ):
        options = {"train": train, "dev": "dev", "test": "test"}
        options = {split: str(tmp_path / file) for split, file in options.items()}
        assert reason in refusal(tasks__math={"kind": "jsonl", "options": options})


def test_commands_that_train_nothing_import_no_torch():
    modules = "trainorder.plan.show, trainorder.storage, trainorder.verify, trainorder.flow.run"
    heavy = ("torch", "transformers", "mlflow", "prefect", "numpy", "scipy", "pandas")
    script = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


VERIFIED: Change = {
    "tasks": {"math": {}, "qa": {}},
    "phases": {
        "math": {"kind": "structured", "tasks": {"math": 1}, "steps": 2},
        "qa": {"kind": "structured", "tasks": {"qa": 1}, "steps": 2},
    },
    "orders": {"one": ["math", "qa"]},
    "merges": {"tuned": {"method": "average", "scale": [0.5, 1.0]}},
}


def test_where_every_task_is_verified_no_judge_is_trained_and_nothing_depends_on_one():
    data = read_yaml(SMOKE) | VERIFIED
    del data["judge"]
    verified = parse_params(data)
    check(verified)
    plan = compile_plan(verified)
    assert (plan.judged, plan.judge_stages) == ({}, [])
    assert reads(plan, "s0", names.evaluation) == {"checkpoints/s0", "data/tasks"}
    assert "checkpoints/judge" not in "".join(plan.texts().values())
    assert plan.settings()["judges"] == {}
    assert not [name for name in plan.code() if name.startswith("judge")]
    judged = compile_plan(params())
    assert judged.judge_stages == ["plan/dvc.yaml:judge-reward", "plan/dvc.yaml:judge-evaluation"]
    assert "checkpoints/judge/evaluation" in reads(judged, "s0", names.evaluation)


def test_settings_of_a_judge_that_has_nothing_to_judge_are_refused():
    assert "every task here is graded by its verifier (math, qa)" in refusal(**VERIFIED)


def test_the_plan_names_the_tasks_whose_test_asks_what_training_taught():
    assert compile_plan(params()).data()["recall"] == ["qa"]


def test_a_node_that_leaves_the_plan_takes_its_pipeline_file_along_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write(compile_plan(params()))
    left = Path("plan/s0--creative")
    (left / "dvc.lock").write_text("schema: '2.0'\n")
    notes, own = Path("plan/s0--math--qa/notes"), Path("plan/mine/dvc.yaml")
    for file in (notes, own):
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    orders = {"one": ["math"], "joint": ["joint"]}
    wanted = compile_plan(params(orders=orders, merges={}))
    assert stale_files(wanted)[left / "dvc.yaml"] is None
    assert write(wanted)
    assert [file.name for file in left.iterdir()] == ["dvc.lock"]
    assert [file.read_text() for file in (notes, own)] == ["mine", "mine"]
    assert not (notes.parent / "dvc.yaml").exists()
    assert not write(wanted)
