"""lm-eval's tasks on a checkpoint: its own numbers, in the long table, apart from the trained tasks."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from foreign_model import write_model
from order_worlds import World

from trainorder import report
from trainorder.config import EvaluationConfig, MeasureConfig, Params, parse_params
from trainorder.data import build
from trainorder.evaluation import evaluate, harness, tabulate
from trainorder.measure import measure
from trainorder.plan import compile_plan
from trainorder.plan.check import check
from trainorder.plan.design import from_plan
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.tasks.harness import files

needs_extra = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'trainorder[eval]'"
)
SAYS = """
task: says
dataset_path: json
dataset_kwargs: {data_files: {train: mine/shots.jsonl, test: mine/says.jsonl}}
training_split: train
test_split: test
num_fewshot: 2
output_type: generate_until
doc_to_text: "Say {{word}}:"
doc_to_target: "{{word}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
PARITY = """
task: parity
dataset_path: json
dataset_kwargs: {data_files: {test: mine/parity.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Is {{n}} even or odd?"
doc_to_choice: [even, odd]
doc_to_target: "{{n % 2}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
PARAMS = {
    "tasks": {"math": {}},
    "phases": {"math": {"kind": "structured", "tasks": {"math": 1}, "steps": 1}},
    "orders": {"only": ["math"]},
}
ENTRIES = ["mine/says.yaml", "mine/parity.yaml"]


def jsonl(path: str, rows: list[Any]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two task files and their data."""
    root = tmp_path_factory.mktemp("harness")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        Path("mine").mkdir()
        Path("mine/says.yaml").write_text(SAYS)
        Path("mine/parity.yaml").write_text(PARITY)
        jsonl("mine/shots.jsonl", [{"word": w} for w in ("one", "two", "six")])
        jsonl("mine/says.jsonl", [{"word": w} for w in ("sea", "tea", "oak")])
        jsonl("mine/parity.jsonl", [{"n": n} for n in range(6)])
    return root


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.long("imports lm-eval and its data sets' reader")
@needs_extra
def test_the_numbers_are_those_of_lm_eval_on_the_saved_folder(capfd: pytest.CaptureFixture[str]):
    import warnings

    policy = Policy.load(write_model(Path("model"), seed=4))
    state = torch.random.get_rng_state()
    found = {entry: harness.examine(policy, entry, EvaluationConfig()) for entry in ENTRIES}
    assert torch.equal(torch.random.get_rng_state(), state)  # no other draw is disturbed
    assert capfd.readouterr() == ("", "")  # no bars where stderr is no terminal
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        theirs: Any = simple_evaluate(
            "hf",
            {"pretrained": "model", "dtype": "float32", "device": "cpu", "batch_size": 3},
            tasks=list(ENTRIES),
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            apply_chat_template=True,
        )["results"]
    means = {
        task: pd.DataFrame(found[entry], columns=["problem", "metric", "value"])
        .groupby("metric")["value"]
        .mean()
        for task, entry in zip(("says", "parity"), ENTRIES, strict=True)
    }
    assert means["parity"]["acc,none"] == theirs["parity"]["acc,none"] == means["parity"]["score"]
    assert means["parity"]["acc_norm,none"] == theirs["parity"]["acc_norm,none"]
    assert means["says"]["exact_match,none"] == theirs["says"]["exact_match,none"]
    assert 0 < means["parity"]["score"] < 1
    limited = harness.examine(policy, ENTRIES[1], EvaluationConfig(harness_limit=2))
    assert {problem for problem, _, _ in limited} == {"0", "1"}

    build(parse_params({**PARAMS, "tasks": {"math": {"train": 4, "dev": 1, "test": 1}}}))
    config = EvaluationConfig(samples=1, harness=ENTRIES[1:])
    table = evaluate("base", Path("model"), 0, config)
    rows = table[table["split"] == "harness"]
    kept = zip(rows["problem"], rows["metric"], rows["value"], strict=True)
    assert list(kept) == found[ENTRIES[1]]
    assert (set(rows["task"]), set(table["split"])) == ({"parity"}, {"dev", "test", "harness"})
    assert table.attrs["harness"].keys() == {"lm_eval"}


@pytest.mark.long("imports lm-eval and reads the list of its tasks")
@needs_extra
def test_what_cannot_be_loaded_is_one_line_before_anything_trains():
    config = EvaluationConfig(harness=["mine/says.yaml"])
    harness.check(config)
    assert "no task 'ifevall' (did you mean 'ifeval'?)" in refusal(harness.load, "ifevall")
    lost = SAYS.replace("dataset_path: json", "dataset_path: mine/nowhere").replace("says", "lost")
    Path("mine/lost.yaml").write_text(lost)
    text = refusal(harness.load, "mine/lost.yaml")
    assert text.startswith("evaluation.harness: mine/lost.yaml cannot be loaded (")
    assert "run `trainorder check` once with a network" in text
    Path("mine/whole.yaml").write_text(
        PARITY.replace("mean", "f1").replace("parity\nd", "whole\nd")
    )
    assert "whole has no metric that is a mean" in refusal(harness.load, "mine/whole.yaml")
    Path("mine/nameless.yaml").write_text(PARITY.replace("metric: acc,", "metric: exactly,"))
    assert "has the metric 'exactly', which neither" in refusal(harness.load, "mine/nameless.yaml")
    Path("mine/runs.yaml").write_text(
        PARITY.replace("task: parity", "task: runs\nunsafe_code: true")
    )
    assert "runs programs outside of the sandbox" in refusal(harness.load, "mine/runs.yaml")


def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert refusal(harness.load, "ifeval") == (
        "evaluation.harness needs lm-eval: pip install 'trainorder[eval]'"
    )


def params(**evaluation: Any) -> Params:
    return parse_params({**PARAMS, "evaluation": evaluation})


def test_own_task_files_are_named_read_and_part_of_what_an_evaluation_depends_on():
    assert files(["ifeval", *ENTRIES]) == [
        Path("mine") / name
        for name in ("parity.jsonl", "parity.yaml", "says.jsonl", "says.yaml", "shots.jsonl")
    ]
    Path("mine/more.yaml").write_text("include: parity.yaml\ntask: more\nprocess_docs: !function utils.f\n")  # fmt: skip
    assert "names 'mine/utils.py', and there is no such file" in refusal(files, ["mine/more.yaml"])
    Path("mine/utils.py").write_text("def f(docs): return docs\n")
    assert Path("mine/parity.jsonl") in files(["mine/more.yaml"])
    assert "no file 'mine/none.yaml'" in refusal(check, params(harness=["mine/none.yaml"]))
    Path("mine/text.yaml").write_text("- a list\n")
    assert "it is no mapping" in refusal(check, params(harness=["mine/text.yaml"]))
    twice = params(harness=["parity", "mine/parity.yaml"])
    assert "parity stands there twice" in refusal(check, twice)

    plain, named = params(), params(harness=ENTRIES)
    check(named)
    assert plain.evaluation.results() == params(harness=[]).evaluation.results()
    assert "harness" not in plain.evaluation.results()
    before = compile_plan(named).fingerprints()
    jsonl("mine/parity.jsonl", [{"n": n} for n in range(7)])
    after = compile_plan(named).fingerprints()
    assert {name for name in before if before[name] != after[name]} == {"evaluate"}


TWO = World(
    tasks=("a", "b", "c"),
    phases={"a": ("a",), "b": ("b",)},
    orders={"x": ("a", "b"), "y": ("b", "a")},
    effects={"b": {"c": -0.25}},
    seeds=(0, 1),
    problems=40,
)
"""`c` is held out."""


def measured(table: pd.DataFrame) -> dict[str, Any]:
    return measure(table, from_plan(TWO.plan()), MeasureConfig(bootstrap=100))


def with_harness(lost: str = "") -> pd.DataFrame:
    """The world's table, and a task of 20 documents on another scale: 30 at the bases, 20 after any phase."""
    tables = [TWO.table()]
    for node in TWO.nodes():
        value = 20.0 if "--" in node else 30.0
        rows = [(str(i), metric, value) for i in range(20) for metric in ("score", "bleu,none")]
        if node != lost:
            tables.append(tabulate(node, int(node[1]), [], [("verse", rows)]))
    return pd.concat(tables, ignore_index=True)


def test_guards_are_what_arms_changed_of_untrained_tasks_and_count_in_nothing_else():
    plain, found = measured(TWO.table()), measured(with_harness())
    held, verse = found["guards"]
    assert {**found, "guards": plain["guards"]} == plain
    assert (held["task"], held["kind"], held["problems"]) == ("c", "held_out", 40)
    scores = {row["arm"]: row["tasks"]["c"]["value"] for row in found["ranking"]}
    for arm, change in held["change"].items():
        assert change["value"] == pytest.approx(scores[arm] - scores["base"], abs=2e-6)
    assert held["change"]["x"]["high"] < 0
    assert (verse["task"], verse["kind"], verse["problems"]) == ("verse", "harness", 20)
    assert verse["base"]["value"] == 30.0
    assert (verse["change"]["x"]["value"], verse["change"]["base"]["value"]) == (-10.0, 0.0)
    lost = next(node for node in TWO.nodes() if node.count("--") == 2)
    text = refusal(measured, with_harness(lost))
    assert text.startswith(f"evaluations/{lost}.parquet has no scores of lm-eval's verse")


def test_the_page_shows_base_retention_apart():
    page = report.render(measured(with_harness()))
    assert "<h3>Base retention</h3>" in page
    assert "<th>lm-eval verse</th>" in page
    assert "-10.000" in page
    bare = World(tasks=("a", "b"), phases=TWO.phases, orders=TWO.orders, problems=20)
    found = measure(bare.table(), from_plan(bare.plan()), MeasureConfig(bootstrap=100))
    assert "Base retention" not in report.render(found)
