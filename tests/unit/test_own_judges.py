"""Own rows that a judge grades, own pairs that it learns from, and the base as opponent where a row has no reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from trainorder import paths
from trainorder.config import EvaluationConfig, Params, PolicyConfig, parse_params
from trainorder.data import build
from trainorder.evaluation import _load_judges, evaluate, judged_tasks
from trainorder.judges import annotator, load_judge
from trainorder.judges.annotator import AgreementError, Bench, make_judge
from trainorder.judges.opponents import WithOpponents, write_opponents
from trainorder.judges.pairs import heldout, read_pairs
from trainorder.plan import compile_plan, judging, names
from trainorder.plan.check import check
from trainorder.policy import Policy
from trainorder.preflight import rows
from trainorder.reading import ParamsError
from trainorder.rl.problems import TaskSet
from trainorder.tasks import load_problems, load_task, make_task

SIZES = PolicyConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_size=24, max_positions=1024)
TOPICS = ["sea", "wind", "stone", "tea", "night", "rain", "bread", "snow", "glass", "dust"]
LETTERS = " ".join(["A", "B", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"])


def pairs(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"prompt": f"write about {TOPICS[i % 10]} {i}", "chosen": f"good {TOPICS[i % 7]}", "rejected": f"bad {TOPICS[i % 3]}"}
        for i in range(count)
    ]  # fmt: skip


def jsonl(path: str, rows: list[Any]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A built project of judged rows, every third with a reference, and an untrained base."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": [{"role": "system", "content": f"You write verse {LETTERS} good bad"}, {"role": "user", "content": f"write about {topic} {n}"}]}
        | ({"answer": f"a {topic} of old"} if n == 0 else {})
        for topic in TOPICS for n in range(3)
    ]  # fmt: skip
    jsonl("mine/poems.jsonl", rows)
    jsonl("mine/pairs.jsonl", pairs())
    task = {"data": "mine/poems.jsonl", "grader": "judge", "max_new_tokens": 6, "demonstrations": 0}
    taste = {"kind": "preference", "pairs": "mine/pairs.jsonl", "role": "reward", "epochs": 8}
    referee = {"kind": "model", "path": "mine/lm", "rubric": "Is it vivid?", "role": "evaluation"}  # fmt: skip
    params = parse_params(
        {
            "policy": SIZES.model_dump(exclude_defaults=True),
            "tasks": {"poems": task},
            "judges": {
                "taste": {**taste, "lr": 0.01, "min_agreement": 0.5},
                "referee": referee | {"min_mass": 0.0},
            },
            "phases": {"poems": {"kind": "creative", "tasks": {"poems": 1}, "steps": 1}},
            "orders": {"only": ["poems"]},
        }
    )
    build(params)
    Policy.build_tiny(SIZES, paths.TOKENIZER, seed=0).save("checkpoints/s0")
    Policy.build_tiny(SIZES, paths.TOKENIZER, seed=1).save("mine/lm")
    return params


def bench(params: Params, name: str, **changes: Any) -> Bench:
    judge = compile_plan(params).judges[name]
    config = judge.config.model_copy(update=changes)
    return Bench(name, config, judge.tasks, paths.checkpoint("s0"), params, judge.seed, judge.first)


def test_own_rows_are_judged_against_their_reference_or_the_bases_answer(world: Params):
    report = make_judge(bench(world, "taste"), paths.JUDGE / "taste")
    problems = load_problems("poems", "train")
    missing = [p for p in problems if p.reference is None]
    assert 0 < len(missing) < len(problems)
    assert report["opponents"] == sum(
        p.reference is None for s in ("train", "dev", "test") for p in load_problems("poems", s)
    )
    judge = load_judge(paths.JUDGE / "taste")
    assert isinstance(judge, WithOpponents)
    tasks = TaskSet.load({"poems": 1.0}, judges={"poems": "taste"})
    one = missing[0]
    base = judge.opponents[one.text]
    values = [grade.value for grade in tasks.grade([one, one], ["good sea", base])]
    assert values == judge.judge.win_probability([one.text] * 2, ["good sea", base], [base] * 2)
    assert values[1] == pytest.approx(0.5)
    assert judge.win_probability(["no such prompt"], ["x"], [""]) == [None]
    assert judge.failures == ["no reference, and no answer of the base to compare with"]


def test_an_experiment_of_own_rows_plans_and_scores_without_a_hidden_taste(world: Params):
    check(world)
    plan = compile_plan(world)
    entry = plan.stages()["plan/dvc.yaml:judge-taste"]["deps"]
    own = [f"data/tasks/poems/{split}.jsonl" for split in ("train", "dev", "test")]
    assert entry[2:] == [
        "checkpoints/base",
        "mine/pairs.jsonl",
        *own,
    ]  # files: plan/state.py cannot hash a part of an output folder
    for name in ("taste", "referee"):
        make_judge(bench(world, name), paths.JUDGE / name)
    assert not (paths.JUDGE / "referee/opponents.jsonl").exists()  # a rubric compares with nothing
    roles = {"poems": world.judges_of("poems")}
    config = EvaluationConfig(samples=2)
    tables = [evaluate("s0", paths.checkpoint("s0"), 0, config, roles=roles) for _ in range(2)]
    pd.testing.assert_frame_equal(*tables)  # the second from kept verdicts
    assert sum(kept.is_file() for kept in paths.VERDICTS.iterdir()) == 1
    scores = tables[0].pivot_table(index="problem", columns="metric", values="value")
    assert "gold" not in scores
    assert scores["score"].drop("*").between(0, 1).all()
    for task in (load_task("poems"), make_task("poems", world.tasks["poems"])):
        assert (task.rewarded_by, getattr(task, "sandboxed", None)) == ("judge", False)
    stages = [*plan.judge_stages, *(n.stage for n in plan.nodes.values())]
    stages += [names.evaluation(node) for node in plan.nodes]
    exam = sum(len(load_problems("poems", split)) for split in ("dev", "test"))
    each = exam * (world.evaluation.samples + 1)
    calls = judging.calls(plan, dict.fromkeys(stages, "stale"))
    assert calls == {"referee": len(plan.nodes) * each}  # the rows there are, not 256
    assert [line for line in rows.lines(world) if "graded by judge 30" in line]


def test_judges_share_the_bases_answers_and_differ_by_them(
    world: Params, monkeypatch: pytest.MonkeyPatch
):
    started, make = list[Any](), annotator.make_engine
    monkeypatch.setattr(
        annotator, "make_engine", lambda *given: started.append(given) or make(*given)
    )
    first = bench(world, "taste").opponents()
    assert bench(world, "referee", rubric=None).opponents() == first
    assert len(started) == 1
    shutil.copy("mine/lm/model.safetensors", paths.checkpoint("s0"))
    bench(world, "taste").opponents()
    assert len(started) == 2

    make_judge(bench(world, "referee"), paths.JUDGE / "referee")
    for name, answer in (("one", "a"), ("same", "a"), ("other", "b")):
        shutil.copytree(paths.JUDGE / "referee", paths.JUDGE / name)
        write_opponents(paths.JUDGE / name, {"p": answer})
    roles = {"poems": {"reward": "one", "evaluation": "other"}}
    loaded = _load_judges(["poems"], roles, "cpu")["poems"]
    assert loaded["reward"] is not loaded["evaluation"]
    loaded = _load_judges(["poems"], {"poems": {"reward": "one", "evaluation": "same"}}, "cpu")
    assert loaded["poems"]["reward"] is loaded["poems"]["evaluation"]


def test_compared_answers_are_sampled_at_the_judges_temperatures(world: Params):
    """SmolLM2 writes word salad at 1.4, and a judge of it knows nothing of what RL samples."""
    problems = load_problems("poems", "train")[:3]
    cold, hot, both = (
        bench(world, "taste", temperatures=kept, corrupted=0.0).answers(problems)
        for kept in ([1e-3], [2.0], [1e-3, 2.0])
    )
    assert all(len(set(answers)) == 1 for answers in cold)
    assert all(len(set(answers)) == len(answers) == 4 for answers in hot)
    mixed = [answer for answers in both for answer in answers]
    assert 0 < sum(text == cold[i // 4][0] for i, text in enumerate(mixed)) < len(mixed)


def test_which_tasks_are_judged_is_known_without_their_problems(world: Params):
    assert judged_tasks() == ["poems"]
    for file in paths.TASK_DATA.glob("poems/*.jsonl"):
        file.write_text("{")
    assert judged_tasks() == ["poems"]


def test_the_page_says_how_often_judges_were_asked(world: Params):
    from trainorder.report.records import judge_calls

    rows = [{"step": n, "perf/judge_asked": 600.0, "perf/judge_kept": 5.0} for n in range(2)]
    jsonl("runs/s0--poems/metrics.jsonl", rows)
    text = "Judges were asked 1,200 times in training; 10 verdicts were known."
    assert judge_calls(["s0", "s0--poems"]) == text
    assert judge_calls(["s0"]) == ""


def test_a_step_logs_what_its_judge_was_asked(world: Params):
    make_judge(bench(world, "referee"), paths.JUDGE / "referee")
    problems = load_problems("poems", "train")[:2]
    for asked, kept in ((3, 0), (1, 3)):  # the second process finds what the first one kept
        tasks = TaskSet.load({"poems": 1.0}, judges={"poems": "referee"})
        tasks.grade([problems[0], *problems], ["good sea", "bad sea", "good sea"])
        if asked == 1:
            tasks.grade(problems[:1], ["new"])
        found = tasks.judge_calls()
        assert (found["perf/judge_asked"], found["perf/judge_kept"]) == (asked, kept)
        assert set(tasks.judge_calls().values()) == {0.0}


def test_a_preference_model_learns_own_pairs(world: Params):
    report = make_judge(bench(world, "taste", min_agreement=0.9), paths.JUDGE / "taste")
    assert report["agreement"] > 0.9
    assert (report["prompts"], report["heldout_comparisons"]) == (32, 8)
    jsonl("mine/pairs.jsonl", [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} if i % 2 else p for i, p in enumerate(pairs())])  # fmt: skip
    with pytest.raises(AgreementError, match="the judge taste is too weak"):
        make_judge(bench(world, "taste", min_agreement=0.9), paths.JUDGE / "other")


def test_a_judge_that_is_asked_is_compared_with_own_pairs(world: Params):
    report = make_judge(
        bench(world, "referee", pairs="mine/pairs.jsonl", heldout_prompts=5, min_agreement=0.0),
        paths.JUDGE / "referee",
    )
    assert report["heldout_comparisons"] == 5
    assert 0 <= report["agreement"] <= 1


def test_pairs_are_read_from_texts_and_messages_and_bad_ones_are_named(tmp_path: Path):
    asked = [{"role": "user", "content": "write"}]
    rows = [
        {"prompt": "write", "chosen": "a", "rejected": "b"},
        {"prompt": asked, "chosen": [{"role": "assistant", "content": "a"}], "rejected": "c"},
        {"chosen": [*asked, {"role": "assistant", "content": "d"}], "rejected": [*asked, {"role": "assistant", "content": "a"}]},
    ]  # fmt: skip
    [found] = read_pairs("judges.x.pairs", jsonl(str(tmp_path / "x.jsonl"), rows))
    assert found.prompt == "write"
    wins = {(found.answers[w], found.answers[o]) for w, o in found.wins}
    assert wins == {("a", "b"), ("a", "c"), ("d", "a")}
    bad = [*rows, {"prompt": "p", "chosen": "same", "rejected": "same"}, {"prompt": "p", "chosen": "x"}]  # fmt: skip
    with pytest.raises(ParamsError) as caught:
        read_pairs("judges.x.pairs", jsonl(str(tmp_path / "y.jsonl"), bad))
    assert "judges.x.pairs: 2 of 5 rows are no pairs" in str(caught.value)
    assert "line 5: no 'rejected'; it has prompt, chosen" in str(caught.value)
    assert [heldout(n, 150) for n in (1, 40, 5000)] == [1, 8, 150]


def test_a_preference_model_without_pairs_or_taste_is_refused_before_anything_is_built(
    world: Params,
):
    given = world.model_dump(exclude_defaults=True)
    given["judges"]["taste"] |= {"pairs": None, "prompts": 5, "heldout_prompts": 2}
    with pytest.raises(ParamsError, match=r"judges\.taste: nothing says which answers to 'poems'"):
        check(parse_params(given))
    given["tasks"]["poems"]["options"] = {"taste": "verse"}
    check(parse_params(given))


def test_a_taste_needs_a_judge_and_grades_verse(world: Params):
    task = {"kind": "rows", "data": "mine/poems.jsonl", "options": {"taste": "verse"}}
    with pytest.raises(ParamsError, match="only rows that a judge grades have one"):
        check(parse_params({**world.model_dump(exclude_defaults=True), "tasks": {"poems": task}}))
