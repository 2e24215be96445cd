"""Numbers of probes that can be checked by hand, and what `trainorder probe` refuses."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from probes_small import PARAMS, build_folder, checkpoint, right_and_wrong, write_evaluation
from safetensors.torch import save_file
from typer.testing import CliRunner

from stages import probes as stage
from trainorder import paths, plan
from trainorder.cli import app
from trainorder.cli.probing import Progress
from trainorder.config import LoraConfig, parse_params
from trainorder.files import write_json
from trainorder.lineage import write_manifest
from trainorder.metrics.correlation import spearman
from trainorder.plan import compile_plan
from trainorder.plan.check import check
from trainorder.plan.names import address
from trainorder.probes import answers, behaviour, diversity, predict, representation, run, updates
from trainorder.probes.base import Checkpoint, Pair, Probe
from trainorder.probes.headlines import HEADLINES, by_pair
from trainorder.reading import ParamsError
from trainorder.report import probes

Found = dict[tuple[str, str, str], float]


def found(probe: Probe, node: str = "b", other: str = "a") -> Found:
    return {row[:3]: row.value for row in probe(Pair(Checkpoint(node), Checkpoint(other)))}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(node: str, parent: str | None = None, **tensors: Any) -> None:
    """A checkpoint that holds these tensors and nothing else."""
    folder = paths.checkpoint(node)
    folder.mkdir(parents=True)
    named = {name.replace("_", "."): torch.tensor(value) for name, value in tensors.items()}
    save_file(named, folder / "model.safetensors")
    write_manifest(node, seed=0, params={}, code="none", parents=[parent] if parent else [])


def test_sparsity_counts_what_an_update_leaves_alone():
    weights("a", model_layers_0_w=[1.0, 2.0, 3.0, 4.0])
    weights("b", model_layers_0_w=[1.0, 2.1, 3.0, 4.000001])
    rows = found(updates.sparsity)
    assert rows["*", "*", "unchanged"] == rows["*", "w", "unchanged"] == 0.75
    assert rows["*", "*", "unchanged_bf16"] == 0.75
    assert rows["*", "*", "relative_norm"] == pytest.approx(0.1 / 30**0.5, rel=1e-5)


def test_bfloat16_sees_fewer_changes():
    weights("a", w=[1.0, 1.0])
    weights("b", w=[1.001, 1.01])  # bfloat16 near 1 counts in steps of 1/128
    rows = found(updates.sparsity)
    assert (rows["*", "*", "unchanged"], rows["*", "*", "unchanged_bf16"]) == (0.0, 0.5)


def test_the_rank_of_an_update_is_over_the_smaller_side():
    weights("a", w=torch.zeros(3, 5).tolist())
    weights("b", w=[[2.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0, 0, 0, 0, 0]])
    rows = found(updates.rank)
    assert rows["*", "*", "numerical_rank"] == pytest.approx(2 / 3)
    assert rows["*", "*", "stable_rank"] == pytest.approx((5 / 4) / 3)
    # p = 2/3, 1/3: exp(.6365) = 1.8899
    assert rows["*", "*", "effective_rank"] == pytest.approx(1.8899 / 3, abs=1e-4)


def test_overlap_and_cosine_are_of_the_own_updates_of_both():
    # changed: {0, 1, 2} and {1, 2, 3} of 8
    weights("base", w=[0.0] * 8)
    weights("a", "base", w=[1.0, 1, 1, 0, 0, 0, 0, 0])
    weights("b", "base", w=[0.0, 1, -1, 1, 0, 0, 0, 0])
    rows = found(updates.overlap)
    assert rows["*", "*", "overlap_of_node"] == rows["*", "*", "overlap_of_other"] == 2 / 3
    assert (rows["*", "*", "jaccard"], rows["*", "*", "density.after"]) == (0.5, 0.375)
    rows = found(updates.cosine)
    assert rows["*", "*", "cosine"] == 0.0  # 1 - 1
    assert rows["*", "*", "same_sign"] == 0.5
    assert found(updates.cosine, "base") == {}  # a base has no update of its own


def test_of_lora_nodes_the_updates_are_those_of_the_adapted_weights():
    weights("base", w_weight=torch.zeros(2, 2).tolist(), v_weight=[0.5])
    for node, parent, up in (("a", "base", [[1.0], [0.0]]), ("b", "a", [[1.0], [3.0]])):
        folder = paths.checkpoint(node)
        folder.mkdir(parents=True)
        tensors = {"w.lora_A.default.weight": torch.tensor([[0.5, 0.0]])}
        adapter(folder, tensors | {"w.lora_B.default.weight": torch.tensor(up)})
        write_manifest(node, seed=0, params={}, code="none", parents=[parent])
    # alpha / rank = 2: base -> a adds 1 at (0, 0), a -> b adds 3 at (1, 0)
    assert found(updates.cosine)["*", "*", "cosine"] == 0.0
    rows = found(updates.sparsity, "b", "base")
    assert rows["*", "w", "unchanged"] == 0.5
    assert rows["*", "v", "unchanged"] == 1.0
    assert found(updates.rank, "b", "base")["*", "w", "numerical_rank"] == 0.5


def adapter(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    from trainorder.adapters import save_adapter

    config = LoraConfig(rank=1, alpha=2.0)
    save_adapter(folder, paths.checkpoint("base"), tensors, {"r": config.rank, "lora_alpha": 2.0})


TAGS = "<think> x </think> <answer> 7 </answer>"
PROMPT = {"math": ["1", "2"]}


def test_shares_of_forms_and_the_alarm_for_a_wrong_one():
    # 5 of 10 in tags and all right; then 9 of 10 plain and wrong, 1 in tags and right
    before = [*[(TAGS, 1.0)] * 5, *[("7", 0.0)] * 5]
    after = [*[(TAGS, 1.0)] * 4, *[("7", 0.0)] * 16]
    write_evaluation("a", {"math": [(TAGS, 1.0, before)]}, {"math": ["?"]})
    write_evaluation("b", {"math": [(TAGS, 1.0, after)]}, {"math": ["?"]})
    rows = found(answers.formats)
    assert rows["math", "tags", "share.before"] == 0.5
    assert rows["math", "tags", "share.after"] == 0.2
    assert rows["math", "*", "distance"] == pytest.approx(0.3)
    assert rows["math", "*", "entropy.before"] == pytest.approx(0.6931, abs=1e-4)
    assert rows["math", "*", "alarm_wrong_form"] == 1.0
    assert rows["math", "*", "alarm_one_form"] == 0.0
    assert (
        found(answers.formats, "a", "b")["math", "*", "alarm_wrong_form"] == 0.0
    )  # the right one gained


def test_one_form_alone_sounds_an_alarm():
    write_evaluation("a", {"math": [(TAGS, 1.0, [(TAGS, 1.0), ("7", 1.0)])]}, {"math": ["?"]})
    write_evaluation("b", {"math": [(TAGS, 1.0, [(TAGS, 1.0), (TAGS, 1.0)])]}, {"math": ["?"]})
    assert found(answers.formats)["math", "*", "alarm_one_form"] == 1.0


def test_a_stable_mean_can_hide_a_turnover():
    row = lambda score: ("7", score, [("7", score)])  # noqa: E731
    write_evaluation("a", {"math": [row(1.0), row(0.0)]}, PROMPT)
    write_evaluation("b", {"math": [row(0.0), row(1.0)]}, PROMPT)
    rows = found(answers.turnover)
    assert [rows["math", "*", m] for m in ("gained", "lost", "net", "turnover")] == [
        0.5,
        0.5,
        0.0,
        1.0,
    ]


def test_the_gain_by_form_alone_is_told_from_the_gain_in_content():
    # half readable, of which 1 of 2 right: .25; then all readable, 3 of 4 right: .75
    bad = ("seven", 0.0)
    write_evaluation(
        "a", {"math": [(TAGS, 1.0, [(TAGS, 1.0), (TAGS, 0.0), bad, bad])]}, {"math": ["?"]}
    )
    write_evaluation(
        "b", {"math": [(TAGS, 1.0, [*[(TAGS, 1.0)] * 3, (TAGS, 0.0)])]}, {"math": ["?"]}
    )
    rows = found(answers.format_only)
    assert [rows["math", "*", m] for m in ("gain", "gain_form", "gain_content")] == [
        0.5,
        0.25,
        0.25,
    ]


def test_length_and_score_are_compared_at_the_same_lengths():
    def of(length: int, score: float) -> tuple[str, float, list[tuple[str, float]]]:
        text = " ".join("a" * length)
        return (text, score, [(text, score)])

    write_evaluation("a", {"math": [of(1, 1.0), of(5, 0.0)]}, PROMPT)
    write_evaluation("b", {"math": [of(3, 0.0), of(6, 1.0)]}, PROMPT)
    rows = found(answers.length_accuracy)  # thirds of 1, 3, 5, 6: up to 3, up to 5, above
    assert (rows["math", "*", "length.before"], rows["math", "*", "length.after"]) == (3.0, 4.5)
    assert (rows["math", "short", "score.before"], rows["math", "short", "score.after"]) == (
        1.0,
        0.0,
    )
    assert rows["math", "long", "score.after"] == 1.0
    assert ("math", "long", "score.before") not in rows


def test_a_guess_in_the_right_form_is_right_where_another_problem_has_the_same_answer(here: Path):
    build_folder()
    write_evaluation("one", right_and_wrong())
    rows = found(answers.random_valid, "one", "one")
    for task in ("math", "qa"):
        own, guess = rows[task, "*", "above.after"], rows[task, "*", "guess.after"]
        assert own + guess == pytest.approx(0.5)  # two of four are right
        assert 0 <= guess < 0.5


def test_diversity_within_a_problem_and_across_problems():
    same, other = [("a b", 1.0), ("a b", 1.0)], [("a b", 1.0), ("c d", 0.0)]
    write_evaluation("a", {"math": [("a b", 1.0, same), ("a b", 1.0, same)]}, PROMPT)
    write_evaluation("b", {"math": [("a b", 1.0, other), ("c d", 0.0, other[::-1])]}, PROMPT)
    rows = found(diversity.diversity)
    assert rows["math", "within", "semantic_vendi.before"] == pytest.approx(1.0)
    assert rows["math", "within", "semantic_vendi.after"] == pytest.approx(2.0)
    assert rows["math", "within", "semantic_spread.change"] == pytest.approx(1.0)
    assert rows["math", "across", "lexical_distinct_2.after"] == 1.0
    assert rows["math", "across_right", "semantic_vendi.after"] == pytest.approx(
        1.0
    )  # only `a b` is right


def test_queries_of_agents_and_their_sequences_of_tools():
    call = "<search> {} </search>".format
    one = [(call("q1") + call("q1") + call("q2"), 1.0), (call("q1"), 1.0)]
    write_evaluation("a", {"math": [("", 0.0, one)]}, {"math": ["?"]})
    rows = found(diversity.queries, "a", "a")
    assert rows["math", "queries", "distinct.after"] == 0.5  # q1 q1 q2 q1
    assert rows["math", "calls", "per_answer.after"] == 2.0
    assert rows["math", "calls", "distance.after"] == 2.0


@pytest.fixture
def folder(here: Path) -> Path:
    build_folder()
    for node in ("base", "one"):
        write_evaluation(node, right_and_wrong())
    return here


def test_divergence_is_zero_only_between_equal_models_and_grows_with_the_update(folder: Path):
    checkpoint("far", 1, parent="base", scale=0.2)
    write_evaluation("far", right_and_wrong())
    near, far = (found(behaviour.kl, node, "base")["*", "*", "forward"] for node in ("one", "far"))
    assert 0 < near < far
    swapped = found(behaviour.kl, "base", "one")["*", "*", "reverse"]
    assert swapped == pytest.approx(near)


def test_the_sweep_comes_back_to_the_other_checkpoint_and_leaves_the_weights(folder: Path):
    pair = Pair(Checkpoint("one"), Checkpoint("base"))
    before = {n: p.clone() for n, p in pair.node.policy.model.named_parameters()}
    rows = {row[:3]: row.value for row in representation.perturbation(pair)}
    assert all(torch.equal(p, before[n]) for n, p in pair.node.policy.model.named_parameters())
    texts = {"math": representation._right(pair.node, "math")}
    levels = [representation._levels(one, texts)["math"] for one in pair.both]
    assert rows["math", "update", "change_at_-1"] == pytest.approx(levels[0] - levels[1], abs=1e-5)


def test_the_gradient_of_a_task_is_that_of_its_own_scores(folder: Path):
    rows = found(behaviour.gradient_cosine, "one", "one")
    assert rows["math", "*", "norm.after"] > 0
    assert -1 <= rows["math+qa", "*", "cosine.after"] <= 1
    flat = {
        task: [(g, s, [(t, 1.0) for t, _ in own]) for g, s, own in problems]
        for task, problems in right_and_wrong().items()
    }
    write_evaluation("one", flat)
    assert found(behaviour.gradient_cosine, "one", "one") == {}  # all score alike: no gradient


def test_what_is_kept_is_forgotten_when_an_evaluation_changes(folder: Path):
    first = run.run([("one", "base")], ["turnover", "sparsity"])
    write_evaluation("one", right_and_wrong(1))
    again = run.run([("one", "base")], ["turnover", "sparsity"])
    assert [one.known for one in first] == [False, False]
    assert [one.known for one in again] == [False, True]
    assert first[0].rows != again[0].rows


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["base", "oen"], "no node 'oen' in the plan"),
        (["base", "s0--math", "--only", "sparcity"], "did you mean 'sparsity'?"),
        (
            ["base", "s0--math", "--only", "sparsity"],
            "run `dvc repro plan/s0--math/dvc.yaml`",
        ),
        (["base"], "two nodes of the plan, or --predict"),
        (["--predict"], "needs 8 evaluated phases"),
        (["base", "base", "--only", "turnover"], "run `dvc repro plan/base/dvc.yaml:evaluate`"),
    ],
)
def test_what_is_missing_or_misspelt_is_said_in_one_line(folder: Path, given: list[str], says: str):
    write_json(Path("params.yaml"), PARAMS)
    paths.evaluation("base").unlink()
    done = CliRunner().invoke(app, ["probe", *given])
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_prints_what_it_found_and_what_it_cost(folder: Path):
    write_json(Path("params.yaml"), PARAMS)
    shutil.copytree(paths.checkpoint("one"), paths.checkpoint("s0--math"))
    write_manifest("s0--math", seed=0, params={}, code="none", parents=["base"])
    write_evaluation("s0--math", right_and_wrong(1))
    done = CliRunner().invoke(app, ["probe", "base", "s0--math", "--only", "turnover", "--json"])
    document = json.loads(done.stdout)
    assert document["probes"][0]["rows"][0] == {
        "task": "math",
        "part": "*",
        "measure": "gained",
        "value": 0.5,
    }
    done = CliRunner().invoke(app, ["probe", "base", "s0--math", "--only", "turnover"])
    assert "turnover" in done.stdout
    assert "kept from before" in done.stdout


ASKED = {**PARAMS, "probes": ["sparsity", "turnover", "formats"]}


def test_the_stage_is_compiled_where_params_ask_for_it_and_only_there():
    assert address("probes") not in compile_plan(parse_params(PARAMS)).stages()
    stages = compile_plan(parse_params(ASKED)).stages()
    assert stages[address("probes")]["outs"] == ["reports/probes.parquet"]
    assert "reports/probes.parquet" in stages[address("report")]["deps"]
    with pytest.raises(ParamsError, match="did you mean 'formats'"):
        check(parse_params({**PARAMS, "probes": ["format"]}))


def test_its_fingerprint_covers_the_families_that_it_runs():
    plan = compile_plan(parse_params({**PARAMS, "probes": ["sparsity"]}))
    lines = plan.fingerprints()["probes"].splitlines()
    families = {line.split()[0] for line in lines if line.startswith("trainorder/probes/")}
    assert "trainorder/probes/updates.py" in families
    assert "trainorder/probes/behaviour.py" not in families


def test_the_stage_writes_one_table_which_the_page_shows(folder: Path):
    write_json(Path("params.yaml"), ASKED)
    current = compile_plan(parse_params(ASKED))
    plan.write(current)
    for number, node in enumerate(n for n in current.nodes if n != "base"):
        checkpoint(node, number, parent="base")
        write_evaluation(node, right_and_wrong(1))
    stage.main(argparse.Namespace())
    table = pd.read_parquet(paths.PROBES)
    assert list(table.columns) == list(run.COLUMNS)
    assert set(table["probe"]) == {"sparsity", "turnover", "formats"}
    assert set(zip(table["node"], table["other"], strict=True)) == {("s0--math", "base")}
    bwt: Any = {
        "base": {"nodes": {"0": "base"}},
        "ranking": [{"arm": "one", "nodes": {"0": "s0--math"}}],
    }
    shown = probes.section(bwt)
    assert shown is not None
    ((name, values),) = shown.arms
    found = dict(zip(shown.columns, values, strict=True))
    assert (name, found["gained"], found["lost"]) == ("one", "0.500", "0.500")
    write_json(Path("params.yaml"), PARAMS)
    plan.write(compile_plan(parse_params(PARAMS)))
    assert probes.section(bwt) is None  # the file of before lies there still


def test_a_probe_that_goes_with_forgetting_is_told_from_one_that_does_not():
    # forgetting rises with the KL on the new task, within both phases; rank does not go with it, and phase b forgets more
    steps, rows, lost = [], [], []
    for i in range(24):
        phase = "ab"[i % 2]
        new, other = ("math", "qa") if phase == "a" else ("qa", "math")
        steps.append(predict.Step(f"n{i}", "base", phase, frozenset({new}), frozenset(), i // 12))
        lost.append({new: -1.0, other: i / 24 + (phase == "b")})
        at = (f"n{i}", "base")
        rows += [
            ("kl", *at, t, "*", "forward", float(i) if t == new else 0.0) for t in (new, other)
        ]
        rows.append(("rank", *at, "*", "*", "effective_rank", float(i * 7 % 24) / 24))
    table = pd.DataFrame(rows, columns=list(run.COLUMNS))
    every = predict.predict(table, steps, lost, count=200)
    found = {(r["probe"], r["role"]): r for r in every if r["outcome"] == "others"}
    assert found["kl", "new"]["within"]["spearman"] == 1.0
    assert found["kl", "new"]["all"]["spearman"] < 0.9
    assert found["kl", "new"]["place"]["spearman"] == 1.0
    assert [found["kl", r]["place"]["strongest"] for r in ("new", "all")] == [
        0.5,
        0.5,
    ]  # both are i
    assert found["rank", "all"]["place"]["strongest"] == 0.0
    assert found["rank", "all"]["within"]["low"] < 0 < found["rank", "all"]["within"]["high"]
    assert ("rank", "new") not in found  # it looks at no task


def test_intervals_over_branches_are_wider_where_steps_of_a_branch_are_alike():
    # two seeds of five first phases, six steps each: what a branch shares is drawn once, so a step says little that its branch does not
    rng = np.random.default_rng(0)
    steps, rows, lost = [], [], []
    for branch in range(10):
        seed, shared, loss = branch % 2, *rng.normal(size=2)
        for i in range(6):
            node = f"s{seed}--{branch}--{i}"
            step = predict.Step(node, "p", "a", frozenset({"math"}), frozenset({"qa"}), 1, seed)
            steps.append(replace(step, branch=f"s{seed}--{branch}"))
            near, own = rng.normal(size=2) / 5
            rows.append(("rank", node, "p", "*", "*", "effective_rank", shared + near))
            lost.append({"math": 0.0, "qa": loss + own})
    table = pd.DataFrame(rows, columns=list(run.COLUMNS))
    alone = [replace(step, branch="") for step in steps]
    found = [predict.predict(table, known, lost)[0]["all"] for known in (steps, alone)]
    assert found[0]["spearman"] == found[1]["spearman"]
    wide, narrow = (one["high"] - one["low"] for one in found)
    assert wide > 1.5 * narrow
    halves = [
        [(r[-1], x["qa"]) for r, x, s in zip(rows, lost, steps, strict=True) if s.seed == seed]
        for seed in (0, 1)
    ]
    for seed, half in enumerate(halves):
        expected = spearman(*np.array(half).T)
        assert found[0]["seeds"][str(seed)] == pytest.approx(expected)


def test_gradients_are_asked_between_the_trained_tasks_and_those_whose_loss_it_is():
    of = {"math+qa": 0.5, "code+math": -0.5, "code+qa": 0.9}
    step = predict.Step("n", "p", "a", frozenset({"math"}), frozenset({"qa"}), 1)
    rows = [("gradient_cosine", "n", "p", t, "*", "cosine.before", v) for t, v in of.items()]
    measures = by_pair(pd.DataFrame(rows, columns=list(run.COLUMNS)))["n", "p"]
    signal = next(h for h in HEADLINES if h.probe == "gradient_cosine")
    value = partial(predict._value, signal, "same", measures, step)
    assert value(frozenset({"qa", "code"})) == 0.0
    assert value(frozenset({"qa"})) == 0.5
    assert value(frozenset({"creative"})) is None
    assert predict._value(signal, "new", measures, step, frozenset({"qa"})) is None


def test_steps_know_their_branch_and_what_their_phase_did_to_the_base(folder: Path):
    orders = {"one": ["math", "qa"], "two": ["qa", "math"]}
    phases = {t: {"kind": "structured", "tasks": {t: 1}, "steps": 1} for t in ("math", "qa")}
    params = {**PARAMS, "orders": orders, "phases": phases, "seeds": [0, 1]}
    write_json(Path("params.yaml"), params)
    current = compile_plan(parse_params(params))
    scores = {"base": 0, "s0--math": 1, "s0--qa": 2, "s0--math--qa": 4, "s1--qa": 3}
    for node, more in scores.items():
        paths.checkpoint(node).mkdir(parents=True, exist_ok=True)
        write_evaluation(node, right_and_wrong(0, more), dev={"math": more / 4, "qa": 0.5})
    known, missing = predict.steps(current)
    assert [s.node for s in known] == ["s0--math", "s0--qa", "s1--qa", "s0--math--qa"]
    assert missing == 4
    assert [s.branch for s in known] == ["s0--math", "s0--qa", "s1--qa", "s0--math"]
    last = known[-1]
    assert last.single == ("base", "s0--qa")
    assert (last.place, last.earlier) == (1, frozenset({"math"}))
    # of four problems: before, 0 and 2 are (1 + 1 + 0) / 3 and the others 1 / 3; then all four; the test split alone
    (lost,) = predict.losses([last])
    assert lost == pytest.approx({"math": -1 / 6, "qa": -1 / 6})
    (math, qa) = predict.transfer(known).itertuples(index=False)
    assert math == ("transfer", "s0--math--qa", "s0--math", "math", "*", "from_base", 0.5)
    assert (qa.task, qa.value) == ("qa", 0.0)


def test_forgetting_is_what_a_phase_cost_the_tasks_that_it_does_not_train(folder: Path):
    write_evaluation(
        "one", right_and_wrong(0, 4)
    )  # (1 + 1 + 0) / 3 of every problem; before, of every second one 1/3
    step = predict.Step("one", "base", "math", frozenset({"math"}), frozenset({"qa"}))
    (lost,) = predict.losses([step])
    assert predict.forgetting(step, lost) == pytest.approx({"others": -1 / 6, "earlier": -1 / 6})
    step = predict.Step("one", "base", "both", frozenset({"math", "qa"}), frozenset())
    assert predict.forgetting(step, lost) == {}


def test_models_of_another_architecture_are_refused(folder: Path):
    weights("other", w=[1.0])
    with pytest.raises(ParamsError, match="not of one architecture"):
        found(updates.sparsity, "other", "one")


def test_a_long_look_at_every_phase_says_how_long_it_still_takes(capsys):
    progress = Progress(3, 2)
    for node, seconds, known in (("a", 3.0, False), ("b", 9.0, True), ("c", 5.0, False)):
        for probe in ("weights", "kl"):
            progress(run.Found(probe, node, "base", [], seconds, known))
    assert capsys.readouterr().err.splitlines() == [
        "1/3 a 6 s, about 12 s left",
        "2/3 b 0 s, about 6 s left",
        "3/3 c 10 s",
    ]
