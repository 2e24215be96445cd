"""The page says what was measured, in words that fit, and needs nothing but itself."""

from __future__ import annotations

import copy
import html
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import order_worlds
import pandas as pd
import pytest
import yaml
from browser import browsing
from order_worlds import TWO, default_world, every_order

from trainorder import paths, report
from trainorder.cli.app import json_text
from trainorder.config import MeasureConfig, load_params
from trainorder.judges.endpoint import EndpointJudge
from trainorder.judges.verdicts import Spent
from trainorder.measure import measure
from trainorder.plan.design import from_plan
from trainorder.reading import ParamsError, read_yaml
from trainorder.report import (
    advice,
    console,
    markdown,
    mirror,
    plots,
    reading,
    records,
    study,
    tables,
    words,
)
from trainorder.report.spending import spending


@cache
def measured(world_name: str) -> dict[str, Any]:
    worlds = {
        "default": lambda: default_world(problems=64),
        "three_seeds": lambda: default_world(seeds=(0, 1, 2), problems=32),
        "joint_only": lambda: default_world(orders={"joint": ("joint",)}, merges=(), problems=32),
        "two": lambda: TWO,
        "every_order": lambda: every_order({"half": 0.5}, problems=32),
    }
    return order_worlds.measured(worlds[world_name]())


@cache
def page_of(world_name: str) -> str:
    """The page where no node left records: to be called in an empty folder."""
    return report.render(measured(world_name))


def test_other_ways_are_a_table_of_the_page_where_there_are_any():
    bwt = copy.deepcopy(measured("two"))
    assert study.other_ways(bwt) is None
    for row in bwt["ranking"]:
        row["metrics"] |= {"majority_at_4": {"a": 0.5, "b": 0.25}, "tiers": {"a": None}}
    found = study.other_ways(bwt)
    assert found is not None
    assert found.columns == [row["arm"] for row in bwt["ranking"]]
    assert [(name, {cell.text for cell in cells}) for name, cells in found.rows] == [
        ("majority_at_4", {"0.375"})
    ]
    assert "Other ways to use the checkpoints" in report.render(bwt)
    assert "Other ways to use the checkpoints" not in page_of("two")


class Links(HTMLParser):
    """Everything a browser would fetch, and tags that were not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            inside = (value or "").startswith(("#", "data:"))
            if name in ("src", "href", "xlink:href") and not inside:
                self.fetched.append(f"{tag} {name}={value}")


@pytest.mark.parametrize("world", ["default", "three_seeds", "joint_only", "two", "every_order"])
@pytest.mark.long("plots whole pages of 64 nodes")
def test_the_page_fetches_nothing_and_runs_no_script(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = page_of(world)
    links = Links()
    links.feed(page)
    assert (links.fetched, links.scripts) == ([], 0)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_every_arms_mean_and_interval_is_on_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bwt = measured("default")
    page = report.render(bwt)
    for row in bwt["ranking"]:
        mean = row["mean"]
        assert row["arm"] in page
        assert f"<td>{mean['value']:.3f}</td>" in page
        assert f'<td class="small">{mean["low"]:.3f} to {mean["high"]:.3f}</td>' in page
    for order in bwt["orders"].values():
        assert all(f"{v:.3f}" in page for values in order["R"]["test"] for v in values)


@pytest.mark.long("renders whole pages")
def test_of_many_orders_some_are_drawn_and_all_can_be_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bwt = measured("every_order")
    drawn = words.shown(bwt)
    assert len(drawn) <= words.MANY + 1
    ranked = [row["arm"] for row in bwt["ranking"] if row["arm"] in bwt["orders"]]
    assert {ranked[0], ranked[-1], "joint"} <= set(drawn)
    assert bwt["recommended"]["order"] in [order["phases"] for order in drawn.values()]
    page = page_of("every_order")
    assert len(page) < 3e6
    assert f"The other {25 - len(drawn)} orders" in page
    assert all(page.count(name) >= 2 for name in ranked)
    # a legend entry per first phase instead of one per order
    svg = plots.predicted(bwt)
    assert svg is not None
    assert svg.count(" first</text>") == 4
    assert "math_code_qa_creative" not in svg
    assert "Spearman" in svg


def test_variants_stand_side_by_side_with_what_survives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bwt = measured("every_order")
    heat = study.variants(bwt)
    assert heat is not None
    assert heat.columns == ["default", "half"]
    mean = next(r for r in bwt["variants"]["half"]["ranking"] if r["arm"] == "joint")["mean"][
        "value"
    ]
    row = dict(heat.rows)["joint"]
    assert row[1].text == f"{mean:.3f}"
    page = page_of("every_order")
    assert "Does it survive other settings?" in page
    assert "Does it survive other settings?" not in page_of("two")
    text = markdown.orders_page(bwt)
    assert "## Variant `half`" in text
    assert "Spearman of the orders' measured means between default and half" in text


def test_the_page_says_what_was_found_about_the_assumptions_or_what_to_run():
    many = " ".join(advice.assumptions(measured("every_order")))
    assert "of 12 pairs differ" in many
    assert "of 48 differ" in many
    few = " ".join(advice.assumptions(measured("two")))
    assert "Pairs against triples: needs two orders" in few


def test_plasticity_compares_a_later_learning_curve_with_the_one_from_the_base(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for node, rewards in (("s0--b", (0.4, 0.6, 0.8)), ("s0--a--b", (0.2, 0.4, 0.6))):
        folder = tmp_path / "runs" / node
        folder.mkdir(parents=True)
        lines = [json.dumps({"step": i, "rollout/reward": r}) for i, r in enumerate(rewards)]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    heat = study.plasticity(measured("two"))
    assert heat is not None
    # area .4 over .6
    assert [(name, [c.text for c in cells]) for name, cells in heat.rows] == [("b", ["0.67"])]


def test_the_same_measurement_gives_the_same_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report.render(measured("two")) == report.render(measured("two"))


def test_with_one_seed_nothing_leads_and_with_three_a_clear_arm_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bwt = measured("two")  # b harms a by 0.25: b before a wins by 0.125 on the mean
    assert words.headline(bwt) == "y is highest in this run (one seed)"
    gap = bwt["differences"]["y"]["x"]["value"]
    assert f"On these problems only: y minus x is +{gap:.3f} (" in words.verdict(bwt)
    for text in (words.summary(bwt), page_of("two"), markdown.orders_page(bwt)):
        assert "on these problems only" in text.lower()
        assert "leads" not in text
        assert "it holds over problems, not over training runs (one seed)" in text
    settled = copy.deepcopy(bwt)
    settled["seeds"], settled["winner"]["verdict"] = [0, 1, 2], "settled"
    assert words.headline(settled) == "y leads"
    assert "it holds over problems and training runs" in words.verdict(settled)


def test_a_tie_is_not_called_a_win():
    bwt = copy.deepcopy(measured("two"))
    bwt["winner"] |= {"verdict": "open", "candidates": ["y", "x"]}
    assert words.headline(bwt) == "Open: y and x cannot be separated (one seed)"
    assert "the data cannot decide (one seed)" in words.verdict(bwt)


@pytest.mark.long("renders whole pages")
def test_the_parts_of_a_lead_and_a_judges_lead_are_named_in_the_same_words_everywhere(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    bwt = copy.deepcopy(measured("default"))
    lead = bwt["winner"]["lead"]
    bwt["winner"]["verdict"] = "on these problems only"
    near = {"value": 0.002, "low": -0.01, "high": 0.01}
    judged = {"value": 0.156, "low": 0.14, "high": 0.17}
    lead["parts"] = {
        "verified": near,
        "judged": judged,
        "hidden_taste": near,
        "judged_only": True,
    }
    text = words.verdict(bwt)
    assert "On verified tasks +0.002 (-0.010 to +0.010), tasks scored by a judge +0.156" in text
    assert "the hidden taste does not confirm it" in text
    assert words.headline(bwt).endswith("by tasks scored by a judge only")
    variant = {
        "mean": {"difference": lead["difference"], "differs": True},
        "parts": lead["parts"],
        "seeds": bwt["seeds"],
        "runs": bwt["intervals"]["runs"],
        "verdict": bwt["winner"]["verdict"],
        "mean_over": bwt["trained"],
        "same_judge": [],
    }
    pair = {"a": bwt["winner"]["best"], "b": lead["over"], "metric": "score", "split": "test"}
    compared = console.verdict(
        {**pair, "variants": {"default": variant}, "verdict": variant["verdict"], "survives": None}
    )
    assert compared.split("\n")[0] in text
    assert compared.split("\n")[0] in report.render(bwt)
    variant["same_judge"] = ["creative"]
    shared = console.verdict(
        {**pair, "variants": {"default": variant}, "verdict": "open", "survives": None}
    )
    assert shared.endswith("On creative the judge that gave the rewards also gave these scores.")


def test_bias_spread_and_the_forgetting_of_noise_are_on_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bwt = measured("default")
    page = page_of("default")
    misfit = bwt["recommended"]["misfit"]
    assert f"off by {misfit['bias']:+.3f} on average" in page
    assert f"spread by {misfit['spread']:.3f} around that" in page
    for found in bwt["prediction"]["predictors"].values():
        assert found is None or f"bias {words.signed(found['mean_error'])}" in page
    noise = bwt["orders"]["structured_first"]["forgetting_of_noise"]["test"]
    assert f"forgetting that noise alone shows <b>{noise:+.3f}</b>" in page


def test_the_trained_task_of_every_position_is_outlined():
    heat = next(
        h for h in tables.reward_matrices(measured("default")) if h.title == "creative_first"
    )
    marks = [[cell.mark for cell in cells] for _, cells in heat.rows]
    #          math   code   qa     creative constraints
    assert marks == [
        [False, False, False, False, False],
        [False, False, False, True, False],
        [False, False, True, False, False],
        [False, True, False, False, False],
        [True, False, False, False, False],
    ]


def test_the_page_answers_which_order_what_each_step_cost_and_how_sure_in_this_sequence():
    bwt = measured("default")
    page = html.unescape(page_of("default"))
    places = [page.index(text) for text in ("Which order?", "cost the others?", "How sure?")]
    assert places == sorted(places)
    assert places[-1] < page.index("Every arm against")
    heats = {heat.title: heat for heat in tables.step_changes(bwt)}
    assert "joint" not in heats
    order = bwt["orders"]["structured_first"]
    label, cells = heats["structured_first"].rows[3]
    assert label == "4. creative"
    assert [cell.mark for cell in cells] == [task == "creative" for task in bwt["tasks"]]
    change = order["R"]["test"][4][0] - order["R"]["test"][3][0]
    assert cells[0].text == words.signed(change)
    assert (
        f"costliest step is creative after math > code > qa (structured_first): math {cells[0].text}"
        in page
    )
    best = next(iter(words.orders(bwt)))
    assert places[0] > page.index(f"Cost: in {best}, the best order, ")


def test_with_one_seed_the_page_says_that_nothing_is_known_about_training_runs():
    sure = dict(advice.certainty(measured("default")))
    assert sure["over training runs"] == "no: one seed says nothing about another run"
    assert sure["cannot be separated from the highest"] == "recommended and joint"
    assert dict(advice.certainty(measured("three_seeds")))["over training runs"].endswith(
        "(3 seeds)"
    )


def test_the_scale_is_of_orders_and_joint_and_an_arm_off_it_is_an_arrow():
    arms, axis = tables.ranking(measured("default"))
    base = next(arm for arm in arms if arm.kind == "base")
    assert 'class="open"' in base.whisker
    assert 'class="cross"' not in base.whisker
    assert "base: 0.402" in base.whisker
    assert "0.40" not in axis


def test_the_same_problems_are_answered_side_by_side_first_those_that_the_arms_score_differently(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    bwt = measured("two")
    assert reading.questions(bwt) == []  # evaluations of before there were answers
    nodes = {row["arm"]: row["nodes"]["0"] for row in bwt["ranking"]}
    for arm, node in nodes.items():
        table = pd.DataFrame({"value": [0.5]})
        table.attrs["answers"] = [
            {
                "task": bwt["tasks"][0],
                "problem": f"p{i}",
                "prompt": [{"role": "user", "content": f"<b>{i}?"}],
                "answer": f"{arm} says {i}",
                "score": 1.0 if i == 3 and arm == "base" else 0.0,
            }
            for i in range(4)
        ]
        paths.evaluation(node).parent.mkdir(exist_ok=True)
        table.to_parquet(paths.evaluation(node))
    first, second = reading.questions(bwt)
    assert (first.prompt, second.prompt) == ("user: <b>3?", "user: <b>0?")
    assert ("base", "base says 3", "1.000") in first.answers
    page = report.render(bwt)
    assert "user: &lt;b&gt;3?" in page
    assert "<b>3?" not in page
    check_outline(page)


def test_what_the_model_has_become_is_a_section_where_probes_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bwt = measured("two")
    assert 'id="become"' not in report.render(bwt)
    arm = next(row for row in bwt["ranking"] if row["kind"] == "order")
    pair = (arm["nodes"]["0"], bwt["base"]["nodes"]["0"])
    rows = [
        ("kl", *pair, "*", "*", "forward", 0.125),
        ("formats", *pair, "math", "*", "alarm_one_form", 1.0),
    ]
    paths.PROBES.parent.mkdir()
    pd.DataFrame(
        rows, columns=["probe", "node", "other", "task", "part", "measure", "value"]
    ).to_parquet(paths.PROBES)
    paths.PLAN.write_text(json.dumps({"probes": [pair]}))
    page = report.render(bwt)
    assert page.count(">0.125<") == 2  # of the arm, and of the checkpoint
    assert "on math: one form of answer now crowds out the others" in page
    check_outline(page)


def contrast(one: str, other: str) -> float:
    """WCAG's (L1 + 0.05) / (L2 + 0.05) of two colours: text of our sizes needs 4.5."""

    def luminance(colour: str) -> float:
        if colour.startswith("#"):
            digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
            parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        else:
            parts = [int(x) / 255 for x in re.findall(r"\d+", colour)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_on_a_coloured_cell_can_be_read():
    cells = [tables.score_cell(i / 100) for i in range(101)]
    cells += [tables._change_cell(i / 100, 1.0, "", False) for i in range(-100, 101)]
    for cell in cells:
        back, text = re.findall(r"(?:background|color):([^;]+)", cell.style)
        assert contrast(back, text) > 4.5, cell


def test_ticks_are_round_and_inside():
    assert tables.Scale(0.38, 0.82).ticks() == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8])
    assert tables.Scale(0.701, 0.729).ticks() == pytest.approx([0.71, 0.72])


def test_order_records_hold_every_position_as_a_step():
    found = {r.tags["order"]: r for r in mirror.order_records(measured("default"))}
    record = found["creative_first"]
    phases = [record.params[f"pos{i}"] for i in (1, 2, 3, 4)]
    assert phases == ["creative", "qa", "code", "math"]
    order = measured("default")["orders"]["creative_first"]
    column = measured("default")["tasks"].index("qa")
    logged = {step: v for name, v, step in record.metrics if name == "score/qa"}
    assert logged == pytest.approx(
        {i: row[column] for i, row in enumerate(order["R"]["test"])}, abs=1e-6
    )
    ends = [
        {step: v for name, v, step in record.metrics if name == f"score/qa{end}"}
        for end in ("_low", "", "_high")
    ]
    assert all(len(values) == 5 for values in ends)
    assert all(low < at < high for low, at, high in zip(*(e.values() for e in ends), strict=True))
    assert {step for name, _, step in found["ties"].metrics if name == mirror.MEAN} == {1}
    assert {step for name, _, step in found["base"].metrics if name == mirror.MEAN} == {0}


def test_an_arm_of_several_seeds_is_their_mean_and_its_seeds_stand_below_it():
    bwt = measured("three_seeds")
    found = list(mirror.order_records(bwt))
    arms = [r for r in found if r.tags["row"] == "arm"]
    assert [r.name for r in arms] == [row["arm"] for row in bwt["ranking"]]
    assert [(r.name, r.above) for r in found[:4]] == [
        (arms[0].name, None),
        *((f"{arms[0].name} s{seed}", arms[0].name) for seed in range(3)),
    ]
    for arm, row in zip(arms, bwt["ranking"], strict=True):
        end = max(step for _, _, step in arm.metrics)
        last = {name: value for name, value, step in arm.metrics if step == end}
        for name, interval in {mirror.MEAN: row["mean"], "score/qa": row["tasks"]["qa"]}.items():
            ends = [last[f"{name}{part}"] for part in ("_low", "", "_high")]
            assert ends == pytest.approx([interval[k] for k in ("low", "value", "high")], abs=1e-6)
        below = [r for r in found if r.above == arm.name]
        scores = [value for r in below for n, value, s in r.metrics if (n, s) == (mirror.MEAN, end)]
        assert sum(scores) / 3 == pytest.approx(row["mean"]["value"], abs=1e-5)
        assert "worst" in last
        assert not any(name == "worst" for r in below for name, _, _ in r.metrics)
    assert all(r.tags["row"] == "arm" for r in mirror.order_records(measured("default")))


def test_the_verdict_is_a_record_with_the_tables_and_the_table_of_orders_opens_on_scores():
    bwt = measured("default")
    found = mirror.verdict_record(bwt)
    assert words.headline(bwt) in found.note
    assert found.files["transfer.csv"].decode().splitlines()[0] == "phase,task,change,low,high"
    assert len(found.files["transfer.csv"].splitlines()) == 1 + 4 * len(bwt["tasks"])
    assert found.files["arms.csv"].decode().count("\n") == 1 + len(bwt["ranking"])
    assert found.metrics == []
    columns = mirror.view(bwt)["selectedColumns"]
    assert columns[0] == "metrics.`mean`"
    assert columns[-4:] == [f"params.`pos{i}`" for i in (1, 2, 3, 4)]


def test_what_judges_cost_is_on_the_page_and_in_mlflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    smoke = read_yaml(Path(__file__).parents[2] / "configs/smoke.yaml")
    judge = {"base_url": "http://127.0.0.1:8000/v1", "model": "m", "input_price": 2.0}
    smoke["judge"] = {"backend": "endpoint", "endpoint": judge}
    Path("params.yaml").write_text(yaml.safe_dump(smoke))
    config = load_params().named_judges()["endpoint"]
    asked = {"asked": 4, "input_tokens": 1_000_000, "output_tokens": 4}
    Spent(EndpointJudge(config).identity).add(asked)
    [found] = spending()
    bwt = measured("two")
    assert "1,000,000 tokens asked, 4 replied; 2.00 at its prices." in found.text
    assert found.text in report.render(bwt, [found.text])
    logged = {name: value for name, value, _ in mirror.verdict_record(bwt).metrics}
    assert (logged["judge/endpoint/cost"], logged["judge/endpoint/calls"]) == (2.0, 4.0)


def test_what_the_mean_does_not_show_is_said_alike_on_page_in_markdown_and_in_mlflow(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    world = default_world(problems=64)
    plan = world.plan()
    for phase in plan["phases"].values():
        phase["budget"] = {"updates": 40, "rollouts": 5120 * len(phase["tasks"])}
    bwt = measure(world.table(), from_plan(plan), MeasureConfig(bootstrap=100))
    rows = {row["arm"]: row for row in words.beneath(bwt)}
    joint = next(row for row in bwt["ranking"] if row["arm"] == "joint")
    assert rows["joint"]["rollouts"] == "20,480"
    points = 100 * joint["differences"]["base"]["value"]
    assert joint["rollouts_per_point"] == pytest.approx(20480 / points, rel=1e-4)
    assert rows["base"]["rollouts per point"] == "-"
    page, text = report.render(bwt), markdown.orders_page(bwt)
    for row in rows.values():
        assert f"| {' | '.join(row.values())} |" in text
        assert "".join(row.values()) in re.sub(r"<[^>]*>", "", page)
    head = mirror.verdict_record(bwt).files["arms.csv"].decode().splitlines()[0]
    assert "worst task" in head.split(",")
    record = next(r for r in mirror.order_records(bwt) if r.tags["order"] == "joint")
    logged = {name: (value, step) for name, value, step in record.metrics}
    assert logged["rollouts"] == (20480, 1)
    assert logged["gained"] == (joint["turnover"]["gained"], 1)
    assert logged["worst"] == (joint["worst"]["score"], 1)


def test_a_variants_orders_and_nodes_are_recorded_under_its_name():
    bwt = measured("every_order")
    found = list(mirror.order_records(bwt))
    assert len({r.key for r in found}) == len(found) == 2 * len(bwt["ranking"]) - 1
    half = [r for r in found if r.params.get("variant") == "half"]
    assert {r.name for r in half if r.tags["order"] == "joint"} == {"joint half"}
    assert "s0--half--math--qa" in records.nodes(bwt)


def test_records_of_the_same_measurement_have_the_same_keys_and_all_arms_differ():
    first = [r.key for r in mirror.order_records(measured("three_seeds"))]
    assert first == [r.key for r in mirror.order_records(measured("three_seeds"))]
    assert len(set(first)) == 4 * len(measured("three_seeds")["ranking"])


def test_the_table_of_orders_as_json_has_the_pages_numbers():
    bwt = measured("default")
    rows = markdown.orders_document(bwt)[bwt["variant"]]
    assert [(row["arm"], row["mean"]) for row in rows] == [
        (row["arm"], row["mean"]) for row in bwt["ranking"]
    ]
    predicted = {row["arm"]: row["predicted"] for row in rows if row["predicted"]}
    assert predicted == {name: row["by"] for name, row in bwt["prediction"]["orders"].items()}
    assert json.loads(json_text({"x": float("nan"), **markdown.orders_document(bwt)}))["x"] is None


def test_a_report_before_any_measurement_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match="trainorder run"):
        report.write_report()


@pytest.mark.long("renders whole pages")
def test_a_task_that_tests_recall_is_called_recall_wherever_its_score_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = default_world(problems=32)
    plan = {**world.plan(), "recall": ["qa"]}
    bwt = measure(world.table(), from_plan(plan), MeasureConfig(bootstrap=100))
    assert tables._columns(bwt) == [
        "qa (recall)" if t == "qa" else f"{t} *" if t in bwt["held_out"] else t
        for t in bwt["tasks"]
    ]
    page = report.render(bwt)
    assert "qa (recall)" in page
    assert "Recall: the test asks facts that training taught." in page
    assert "recall)" not in page_of("default")


def test_commands_in_sentences_are_code_and_nothing_else_is_html():
    assert (
        report._code("Run `a --b <c>` & <look>")
        == "Run <code>a --b &lt;c&gt;</code> &amp; &lt;look&gt;"
    )


# For everybody


class Outline(HTMLParser):
    """What a reader who does not see the page goes by: headings, names of regions and drawings, labels, targets."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.labels: list[str] = []
        self.inputs: list[str] = []
        self.regions: list[str] = []
        self.unnamed: list[str] = []
        self.heading: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._end_of_header()
        if "id" in found and tag not in ("g", "path", "clippath", "defs", "use"):
            self.ids.append(found["id"])
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "a" and found.get("href", "").startswith("#"):
            self.targets.append(found["href"][1:])
        if tag == "label":
            self.labels.append(found["for"])
        if tag == "input":
            self.inputs.append(found["id"])
        if found.get("role") == "region":
            self.regions.append(found["aria-label"])
        scrolls = "scroll" in found.get("class", "").split()
        drawn = tag == "svg" and "axis" not in found.get("class", "")
        if (scrolls and "tabindex" not in found) or (
            (scrolls or drawn) and not found.get("aria-label")
        ):
            self.unnamed.append(f"{tag} {found}")
        if tag == "th":
            self.heading = ""

    def handle_data(self, data: str) -> None:
        if self.heading is not None:
            self.heading += data.strip()

    def handle_endtag(self, tag: str) -> None:
        self._end_of_header()

    def _end_of_header(self) -> None:
        if self.heading == "":
            self.unnamed.append("th without text")
        self.heading = None


@pytest.mark.parametrize("world", ["default", "three_seeds", "every_order"])
@pytest.mark.long("renders whole pages")
def test_the_page_can_be_read_without_seeing_it(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_outline(page_of(world))


def check_outline(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    assert all(
        below <= above + 1 for above, below in zip(outline.levels, outline.levels[1:], strict=False)
    )
    assert len(set(outline.ids)) == len(outline.ids)
    assert set(outline.targets) <= set(outline.ids)
    assert outline.labels == outline.inputs
    assert len(outline.regions) > 5
    assert len(set(outline.regions)) == len(outline.regions)
    assert outline.unnamed == []


def test_words_stand_out_from_what_is_behind_them_in_light_dark_and_print():
    text = report.TEMPLATE.read_text(encoding="utf-8")
    schemes = re.findall(r":root \{ (?:color-scheme: light dark; )?(--paper[^}]+) \}", text)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w+);", scheme))
        for words_in, behind in (
            ("ink", "paper"), ("soft", "paper"), ("accent", "paper"), ("paper", "accent"),
            ("ink", "lead"), ("soft", "lead"),
        ):  # fmt: skip
            assert contrast(colours[words_in], colours[behind]) > 4.5, (words_in, behind, scheme)
        assert contrast(colours["mark"], colours["paper"]) > 3  # lines and marks


@pytest.mark.long("starts a browser")
def test_a_browser_finds_no_error_and_axe_no_violation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").write_text(page_of("three_seeds"), encoding="utf-8")
    with browsing(viewport={"width": 390, "height": 900}, color_scheme="dark") as tab:
        tab.open((tmp_path / "report.html").as_uri())
        tab.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        for name in ("Which order?", "What did each step cost the others?", "How sure?"):
            tab.page.get_by_role("heading", name=name).wait_for()
        assert tab.page.evaluate("document.documentElement.scrollWidth") == 390  # of a phone
        assert tab.axe() == []
        assert tab.errors == []
        tab.page.emulate_media(media="print")
        tab.page.set_viewport_size({"width": 690, "height": 900})  # of A4 between its margins
        ranking = tab.page.locator(".scroll").first
        assert ranking.evaluate("e => e.scrollWidth - e.clientWidth") <= 0
