"""Every way to use a checkpoint in an evaluation: one value per problem, whatever was answered; and its numbers by hand."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from trainorder import fingerprint, registries
from trainorder.config import EvaluationConfig, parse_params
from trainorder.evaluation import used, ways
from trainorder.evaluation.answering import Exam
from trainorder.evaluation.sitting import WAYS, Sitting
from trainorder.plan.check import check, pieces
from trainorder.plan.check.ways import OF_SAMPLES
from trainorder.plan.times import sampled_by_ways
from trainorder.reading import ParamsError
from trainorder.rewards.format import render
from trainorder.rollout import Completions, Request
from trainorder.streams import stream
from trainorder.tasks.base import Problem
from trainorder.tasks.math import Math

assert ways  # fills the registry
OPTIONS: dict[str, dict[str, Any]] = {"majority": {"k": 2}, "evidence": {"keep": 1}}
SCORES = re.compile(r"majority_at_\d+|pass_at_\d+|decompose_[bt]{2}|program(_direct)?|evidence(_direct)?|tiers(_easy|_hard)?|\w+_failed")  # fmt: skip


def tokens(texts: Sequence[str]) -> list[list[int]]:
    return [[*range(len(text.split())), 0] for text in texts]


class Reckoner:
    """Works a sum out step by step; `slips` makes it wrong by one where the number of the problem is odd."""

    def __init__(self, slips: bool = False) -> None:
        self.slips, self.asked = slips, list[tuple[str, Request]]()

    def __call__(self, requests: Sequence[Request], who: str) -> Completions:
        texts = []
        for request in requests:
            self.asked.append((who, request))
            assert request.problem is not None
            prompt = request.prompt or request.problem.prompt
            assert isinstance(prompt, str)
            numbers = list(map(int, re.findall(r"-?\d+", prompt.split("=")[0].replace("- ", "-"))))
            wrong = self.slips and who == "base"
            text = render(prompt.removesuffix(" ?"), str(sum(numbers) + wrong))
            if request.prefix_ids:  # continues another model's thought
                text = f"<think> as planned </think> <answer> {sum(numbers) + wrong} </answer>"
            words = text.split()[: request.max_new_tokens]
            texts += [" ".join(words)] * request.samples
        mask = torch.ones(len(texts), 1)
        done = torch.ones(len(texts), dtype=torch.bool)
        return Completions(mask.long(), mask, -mask, mask, texts, done)


def problems(count: int = 6) -> list[Problem]:
    task, found = Math(stories=0.0), list[Problem]()
    while len(found) < count:
        new = task.draw(stream("ways", len(found)))
        found.append(replace(new, id=f"math/{len(found)}"))
    told = "the sky is blue\nsam has 3 figs\nana has 2 figs\n1 + 2 + 4 = ?"
    return [*found, replace(found[0], id="math/lines", prompt=told, meta={"answer": "7"})]


def sitting(
    ask: Any, own: Sequence[Problem], texts: Sequence[Sequence[str]] | None = None, samples: int = 4
) -> Sitting:
    exam = Exam("math", "dev", Math(), own, max_new_tokens=24)
    drawn = texts or [
        [render("x", str(int(p.meta["answer"]) + (i % 3 == 2))) for i in range(samples)]
        for p in own
    ]
    greedy = ["<answer> 0 </answer>" for _ in own]

    def score(said: Sequence[str], of: Sequence[Problem]) -> list[float | None]:
        return [grade.value for grade in Math().grade(said, of)]

    values = [score(said, [p] * len(said)) for said, p in zip(drawn, own, strict=True)]
    return Sitting(
        exam, EvaluationConfig(samples=samples), drawn, values, greedy, [v or 0.0 for v in score(greedy, own)],
        score, ask, tokens,
    )  # fmt: skip


def same(one: Any, other: Any) -> bool:
    return all(
        one[m][i] == other[m][i] or (math.isnan(one[m][i]) and math.isnan(other[m][i]))
        for m in {*one, *other}
        for i in range(len(one[m]))
    )


@pytest.mark.parametrize("name", WAYS)
def test_one_value_per_problem_and_the_same_in_any_order_of_them(name: str):
    own, piece = problems(), {name: OPTIONS.get(name, {})}
    found = used(piece, sitting(Reckoner(), own))
    assert {len(values) for values in found.values()} == {len(own)}
    assert same(found, used(piece, sitting(Reckoner(), own)))
    backward = used(piece, sitting(Reckoner(), own[::-1]))
    assert same(found, {m: values[::-1] for m, values in backward.items()})
    for metric, values in found.items():
        if SCORES.fullmatch(metric):
            assert all(math.isnan(v) or 0 <= v <= 1 for v in values), metric


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("text", ["", "<answer>", "</think>", "7 " * 500, "\u200b"])
def test_any_text_is_an_answer(name: str, text: str):
    class Says(Reckoner):
        def __call__(self, requests: Sequence[Request], who: str) -> Completions:
            done = super().__call__(requests, who)
            return replace(done, texts=[text] * len(done.texts))

    own = problems(2)
    found = used({name: OPTIONS.get(name, {})}, sitting(Says(), own, [[text] * 4] * len(own)))
    assert all(len(values) == len(own) for values in found.values())


@pytest.mark.parametrize("name", WAYS)
def test_no_more_is_sampled_than_the_plan_prices(name: str):
    # of a whole answer's tokens each; the judgements of passages are two tokens
    config = EvaluationConfig(samples=4, ways=[{name: OPTIONS.get(name, {})}])
    reckoner, own = Reckoner(), problems()
    used({name: OPTIONS.get(name, {})}, sitting(reckoner, own))
    taken = sum(r.samples * r.max_new_tokens / 24 for _, r in reckoner.asked)
    assert taken <= sampled_by_ways(config) * len(own)
    assert (sampled_by_ways(config) == 0) == (not reckoner.asked)


def test_what_is_declared_is_what_is_listed():
    assert set(registries.ways()) == set(WAYS) == set(pieces()["ways"])
    for name, k in OF_SAMPLES.items():
        assert inspect.signature(WAYS[name].function).parameters["k"].default == k
    for name, options in pieces()["ways"].items():
        for option, kind in options.items():
            default = inspect.signature(WAYS[name].function).parameters[option].default
            TypeAdapter(kind).validate_python(default, strict=True)


def test_a_majority_of_the_samples_decides():
    own = problems(1)[:1]
    right, wrong = own[0].meta["answer"], str(int(own[0].meta["answer"]) + 1)
    said = [[f"<answer> {n} </answer>" for n in (right, wrong, right, wrong, wrong, wrong)]]
    done = sitting(Reckoner(), own, said, samples=6)
    assert used({"majority": {"k": 3}}, done) == {"majority_at_3": [0.5]}  # right, then wrong
    assert used({"majority": {"k": 6}}, done) == {"majority_at_6": [0.0]}
    assert used({"majority": {"k": 2}}, done)["majority_at_2"] == pytest.approx([1 / 3])  # 2 ties
    # of 15 pairs of 6 samples those within the 4 wrong ones are 6
    assert used({"pass_at": {"k": 2}}, done)["pass_at_2"] == pytest.approx([0.6])


def test_decomposer_and_solver_are_told_apart():
    own = problems(4)[:4]
    found = used("decompose", sitting(Reckoner(slips=True), own))
    assert found["decompose_tt"] == found["decompose_bt"] == [1.0] * 4  # who solves decides here
    assert found["decompose_bb"] == found["decompose_tb"] == [0.0] * 4
    assert found["decompose_solving"] == [1.0] * 4
    assert found["decompose_planning"] == found["decompose_interaction"] == [0.0] * 4
    base = replace(sitting(Reckoner(slips=True), own), is_base=True)
    assert used("decompose", base)["decompose_bb"] == [1.0] * 4


def test_sub_questions_reach_the_solver():
    reckoner, own = Reckoner(), problems(2)[:2]
    used(
        {"decompose": {"by": "questions", "solve": "{steps} THEN {prompt}"}}, sitting(reckoner, own)
    )
    assert reckoner.asked[-1][1].prompt == f"{reckoner_says(own[1])} THEN {own[1].prompt}"


def reckoner_says(problem: Problem) -> str:
    text = f"{problem.prompt}\nSplit this into at most three sub-questions"
    return str(Reckoner()([Request(problem, prompt=text + " that help to answer it, one per line, or write: No decomposition. Do not answer them.", max_new_tokens=24)], "trained").texts[0])  # fmt: skip


def test_a_program_asks_one_step_at_a_time_within_the_tokens_of_the_direct_answer():
    reckoner = Reckoner()
    own = [Problem("math/a", "math", "9 - 5 + 2 = ?", None, None, {"answer": "6"})]
    found = used("program", sitting(reckoner, own))
    assert [request.prompt for _, request in reckoner.asked] == ["9 - 5 = ?", "4 + 2 = ?"]
    assert found["program"] == [1.0]
    assert found["program_direct"] == [0.0]
    assert found["program_gain"] == [1.0]
    assert found["program_failed"] == [0.0]
    first, second = (request.max_new_tokens for _, request in reckoner.asked)
    assert first == 12
    # "<think> 9 - 5 = </think> <answer> 4 </answer>" are 9 tokens with the end, which leaves 15
    assert second == 24 - 10
    assert found["program_tokens"][0] <= 24


def test_evidence_keeps_the_passages_that_the_model_chose():
    class Reader(Reckoner):
        def __call__(self, requests: Sequence[Request], who: str) -> Completions:
            done = super().__call__(requests, who)
            said = [
                ("yes" if "figs" in str(r.prompt) else "no") if "yes or no" in str(r.prompt) else t
                for r, t in zip([r for r in requests for _ in range(r.samples)], done.texts, strict=True)
            ]  # fmt: skip
            return replace(done, texts=said)

    reader, own = Reader(), problems(1)[-1:]
    found = used("evidence", sitting(reader, own))
    asked = reader.asked[-1][1]
    assert asked.prompt == "sam has 3 figs\nana has 2 figs\n1 + 2 + 4 = ?"
    # three passages, judged twice in two tokens each
    assert asked.max_new_tokens == 24 - 12
    assert found["evidence_failed"] == [0.0]


def test_an_easy_problem_gets_a_short_answer_at_a_low_temperature():
    reckoner, own = Reckoner(), problems(1)[:1]
    said = [[f"<answer> {own[0].meta['answer']} </answer>"] * 4]
    found = used("tiers", sitting(reckoner, own, said))
    ((_, request),) = reckoner.asked
    assert (request.temperature, request.max_new_tokens, request.samples) == (0.5, 10, 4)
    assert found["tiers_easy"] == [1.0]


def test_what_cannot_be_used_is_refused_in_a_line():
    def params(*ways: Any) -> Any:
        return parse_params(
            {
                "tasks": {"math": {"train": 8, "dev": 4, "test": 4}},
                "phases": {"math": {"kind": "structured", "tasks": {"math": 1}, "steps": 1}},
                "orders": {"only": ["math"]},
                "evaluation": {"ways": list(ways)},
            }
        )

    check(params({"majority": {"k": 4}}, {"majority": {"k": 2}}, "tiers"))
    for bad, message in [
        ("majorit", "did you mean 'majority'"),
        ({"tiers": {"easy": [1.0]}}, "at least 2 items"),
        ({"pass_at": {"k": 5}}, r"at most evaluation.samples \(4\)"),
        ({"decompose": {"solve": "no"}}, "no {prompt} and no {steps}"),
    ]:
        with pytest.raises(ParamsError, match=message):
            check(params(bad))
    with pytest.raises(ParamsError, match="decompose stands there twice"):
        check(params("decompose", {"decompose": {"by": "questions"}}))


def test_evaluations_depend_on_the_ways_that_are_named_and_on_no_others():
    def files(*named: str) -> set[str]:
        pieces = EvaluationConfig(ways=list(named)).pieces()
        text = fingerprint.compute({"evaluate": fingerprint.Code("stages.evaluate", pieces=pieces)})
        return {line.split(" ")[0] for line in text["evaluate"].splitlines()}

    plain, tiers = files(), files("tiers")
    assert not any("evaluation/ways" in file or "plan/" in file for file in plain)
    assert {file for file in tiers - plain if file.endswith("s.py")} >= {
        "trainorder/evaluation/ways/tiers.py",
        "trainorder/evaluation/ways/votes.py",
    }
    assert "trainorder/evaluation/ways/decompose.py" not in tiers
