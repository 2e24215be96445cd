"""Distillation: numbers worked out by hand, and a teacher that answers, compares and is a node of the plan."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rl_project
import torch
from rl_small import make_roll

from trainorder.config import MethodConfig, PhaseConfig, RolloutConfig, parse_params
from trainorder.data import write_tokenizer
from trainorder.plan import compile_plan
from trainorder.plan.check import check
from trainorder.policy import Policy
from trainorder.reading import ParamsError, read_yaml
from trainorder.rl import facts
from trainorder.rl.forward import forward
from trainorder.rl.learner import Learner
from trainorder.rl.method import Method, bind
from trainorder.rl.pieces.distillation import (
    ask_teacher,
    entropy_gated_length,
    most_important,
    position_weight,
    teacher_importance,
)
from trainorder.rl.rollouts import StepRollouts
from trainorder.rl.trainer import make_learner
from trainorder.rl.types import Live, Roll, State
from trainorder.rollout import Request, make_engine
from trainorder.rollout.base import with_prompts
from trainorder.streams import seed_of
from trainorder.tasks.base import Problem

STATE = State(total=9)
TEACHER = Path("checkpoints/teacher")
SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


def test_the_mixed_divergence_of_two_distributions():
    # policy (.5, .5), teacher (.9, .1)
    live = Live(
        torch.zeros(1, 1),
        {
            "reverse_kl:teacher": torch.tensor([[0.510826]]),
            "forward_kl:teacher": torch.tensor([[0.368064]]),
        },
    )
    term = bind("terms", "distillation")
    assert term(live, make_roll([0.0]), STATE).item() == pytest.approx(0.3966, abs=1e-4)
    assert live.log["teacher_kl"].item() == pytest.approx(0.3966, abs=1e-4)
    for reverse, need in [(0.0, "forward_kl:teacher"), (1.0, "reverse_kl:teacher")]:
        one = bind("terms", {"distillation": {"reverse": reverse}})
        assert one.needs == {need}
        alone = Live(live.logps, {need: live.facts[need]})
        assert torch.equal(one(alone, make_roll([0.0]), STATE), live.facts[need])


def test_each_entry_of_the_vocabulary_adds_at_most_the_cap():
    policy, teacher = (torch.tensor([p]).double().log() for p in ([0.5, 0.5], [0.9, 0.1]))
    capped = facts.of_head("capped_forward_kl:teacher:0.05")(policy, torch.tensor([0]), teacher)
    # .9 ln 1.8 = .529 becomes .05; .1 ln .2 = -.161 stays
    assert capped.item() == pytest.approx(0.05 + 0.1 * math.log(0.2))


def test_later_tokens_weigh_more_by_their_place_in_the_row():
    weights = position_weight(make_roll([0.0, 0.0], lengths=[4, 2]), STATE)
    assert weights[0].tolist() == pytest.approx([0.3610, 0.7594, 0.9720, 0.9976], abs=1e-4)
    # f = 1/4 and 3/4
    assert weights[1, :2].tolist() == pytest.approx(
        [0.25 + 0.75 / (1 + math.e**0.5), 0.9918], abs=1e-4
    )
    assert (position_weight(make_roll([0.0], lengths=[4]), STATE, least=1.0) == 1).all()


def test_tokens_of_entropy_or_disagreement_are_kept():
    roll = make_roll([0.0], lengths=[4])
    # of h (0, 0, 1, .5) and d (0, 1, 0, .5): s = 0, 1, 1, .75; the quantile cuts nothing of two equal largest
    roll.token_facts["entropy"] = torch.tensor([[0.2, 0.2, 1.2, 0.7]]).double()
    roll.token_facts["reverse_kl:teacher"] = torch.tensor([[1.0, 5, 1, 3]]).double()
    roll.token_facts["forward_kl:teacher"] = torch.tensor([[1.0, 5, 1, 3]]).double()
    kept = teacher_importance(roll, STATE, keep=0.75)
    assert kept.tolist() == [[0, 1, 1, 1]]
    assert teacher_importance(roll, STATE, keep=1.0).sum() == 4
    # sure and wrong: d (1 - h) = 0, 1, 0, .25
    assert teacher_importance(roll, STATE, keep=0.25, kind="confident").tolist() == [[0, 1, 0, 0]]
    rows = most_important(
        torch.tensor([[3.0, 1, 2], [1, 9, 9]]), torch.tensor([[1, 1, 1], [1, 0, 0]]) > 0, 0.3
    )
    assert rows.tolist() == [[1, 0, 0], [1, 0, 0]]


def test_answers_grow_longer_only_while_entropy_is_high_enough():
    problem = Problem("sums/1", "sums", "?", "1", "1")
    request = Request(problem, max_new_tokens=1000)

    def lengths(entropy: float, steps: int) -> list[int]:
        state = State(total=steps)
        found = []
        for step in range(steps):
            state.step = step
            (asked,) = entropy_gated_length([request], state, every=2)
            (again,) = entropy_gated_length([request], state, every=2)  # a second draw in a step
            assert asked == again
            found.append(asked.max_new_tokens)
            state.mem["seen"] = {"sums": {"rollouts": 4, "entropy": entropy}}
            state = State.from_state_dict(state.state_dict())
        return found

    assert lengths(0.30, 8) == [128, 128, 256, 256, 512, 512, 1000, 1000]
    assert lengths(0.20, 4) == [128] * 4


def test_the_teacher_is_asked_a_share_of_the_problems():
    problem = Problem("sums/1", "sums", "?", "1", "1")
    asked = ask_teacher([Request(problem)] * 8, State(total=9), share=0.25)
    assert sum(request.teacher for request in asked) == 2
    other = ask_teacher([Request(problem)] * 8, State(total=9, step=1), share=0.25)
    assert [r.teacher for r in asked] != [r.teacher for r in other]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distillation")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rl_project.build_parent({"math": {**rl_project.TASK, "max_new_tokens": 40}})
        Policy.build_tiny(rl_project.TINY, "data/tokenizer", 7).save(TEACHER)
    return folder


@pytest.fixture
def inside(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)


PHASE = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=4)


def learner_of(teacher: Path | None = TEACHER, **method: Any) -> Learner:
    rl = rl_project.settings(method={"reward": ["says_seven"], **method}, prompts_per_step=3)
    return make_learner(rl_project.PARENT, "math", PHASE, rl, 0, teacher=teacher)


def rolled(learner: Learner, requests: list[Request]) -> Roll:
    with torch.no_grad():
        return StepRollouts(learner, State(total=4), defaultdict(float)).sample(requests)


@pytest.mark.usefixtures("inside")
def test_the_teacher_answers_where_it_is_asked_and_the_policy_elsewhere():
    learner = learner_of(plan=["ask_teacher"], terms=[{"nll": {"source": "teacher"}}])
    problem = learner.task_set.problems["math"][0]
    ask = Request(problem, samples=2, max_new_tokens=12)
    roll = rolled(learner, [ask, replace(ask, teacher=True), ask])
    assert roll.is_from("teacher").tolist() == [False, False, True, True, False, False]
    with torch.no_grad():
        ours = forward(learner.policy.model, roll).logps
    torch.testing.assert_close(roll.old_logps, ours, atol=1e-4, rtol=0)
    for place, folder in enumerate([rl_project.PARENT, TEACHER]):
        engine = make_engine(RolloutConfig(), Policy.load(folder))
        alone = engine.generate(
            with_prompts(
                learner.policy, [replace(ask, seed=seed_of("rollout", 0, "math", 0, place))]
            )
        )
        assert roll.text[2 * place : 2 * place + 2] == alone.texts
    again = rolled(learner, [replace(ask, teacher=True)])
    assert again.is_from("teacher").tolist() == [True, True]
    line = rl_project.steps(learner, State(total=4), 1)[0]
    assert line["rl/loss"] > 0
    assert line["rl/grad_norm"] > 0


@pytest.mark.usefixtures("inside")
def test_a_model_that_reads_the_gold_text_has_it_in_its_prompt_alone():
    learner = learner_of(
        teacher=None,
        terms=["capped_distillation"],
        weight=["position_weight"],
        reduction="sequence",
    )
    problem = learner.task_set.problems["math"][0]
    ask = Request(problem, samples=2, max_new_tokens=6)
    roll = rolled(learner, [ask, replace(ask, prompt="1 + 2 = {gold}", samples=1)])
    policy = learner.policy
    told = policy.encode_prompt(f"{problem.prompt}\nReference solution: {problem.gold}")
    other = policy.encode_prompt(f"1 + 2 = {{gold}}\nReference solution: {problem.gold}")
    assert roll.informed_ids == [told, told, other]
    roll = roll.rows([0, 1])
    need = "forward_kl:reference+gold"
    with torch.no_grad():
        found = forward(policy.model, roll, {need}, learner.models).facts[need]
        answer = roll.response_ids[0, : int(roll.lengths()[0])].tolist()

        def logits(prompt: list[int]) -> torch.Tensor:
            model: Any = policy.model
            ids = torch.tensor([[*prompt, *answer]])
            return model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

        ours, theirs = logits(roll.prompt_ids[0]), logits(told)
        kl = (theirs.exp() * (theirs - ours)).sum(-1)
    torch.testing.assert_close(found[0, : len(answer)], kl, atol=1e-4, rtol=1e-3)
    assert float(found.max()) > 0
    line = rl_project.steps(learner, State(total=4), 1)[0]
    assert line["rl/grad_norm"] > 0


@pytest.mark.usefixtures("inside")
def test_on_policy_distillation_brings_the_policy_closer_to_its_teacher():
    learner = learner_of(
        terms=[{"distillation": {"reverse": 1.0, "weight": ["teacher_importance"]}}],
        denominator="weight",
    )
    lines = rl_project.steps(learner, State(total=8), 6)
    assert lines[-1]["rl/teacher_kl"] < 0.8 * lines[0]["rl/teacher_kl"]


@pytest.mark.usefixtures("inside")
def test_a_teacher_that_is_missing_or_speaks_otherwise_is_refused_in_words(tmp_path):
    with pytest.raises(ParamsError, match=r"set rl\.teacher"):
        learner_of(teacher=None, terms=["distillation"])
    write_tokenizer(tmp_path / "tokenizer", {" other", " words"})
    Policy.build_tiny(rl_project.TINY, tmp_path / "tokenizer", 0).save(tmp_path / "other")
    with pytest.raises(ParamsError, match="another vocabulary than the policy"):
        learner_of(teacher=tmp_path / "other", terms=["distillation"])
    with pytest.raises(ParamsError, match="no model 'refrence'"):
        Method.from_config(MethodConfig(terms=[{"distillation": {"model": "refrence"}}]))


def plan_with(teacher: Any, phase: str = "qa"):
    data = read_yaml(SMOKE)
    data["phases"][phase]["rl"] = {"teacher": teacher, "method": {"terms": ["distillation"]}}
    params = parse_params(data)
    check(params)
    return compile_plan(params)


def test_a_teacher_is_a_dependency_of_its_pupils_like_a_parent():
    plan = plan_with("s{seed}--math")
    pupil = plan.nodes["s0--qa"]
    assert pupil.teacher == "s0--math"
    assert "checkpoints/s0--math" in plan.stages()["plan/s0--qa/dvc.yaml:train"]["deps"]
    names = list(plan.nodes)
    assert names.index("s0--math") < names.index("s0--qa")
    assert plan.nodes["s0--math"].teacher is None


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("s{seed}--maths", r"no node 's0--maths' .*did you mean 's0--math'"),
        ("s{seed}--qa", "s0--qa is made from s0--qa, which is to learn from it"),
    ],
)
def test_a_teacher_that_is_no_node_or_comes_from_its_pupil_is_refused(teacher, message):
    with pytest.raises(ParamsError, match=message):
        plan_with(teacher)


def test_a_teachers_folder_must_be_a_model_that_runs_do_not_rewrite(tmp_path):
    with pytest.raises(ParamsError, match="teacher"):
        plan_with({"path": str(tmp_path / "nothing")})
    with pytest.raises(ParamsError, match="a run removes and writes"):
        plan_with({"path": "checkpoints/s0--math"})
    with pytest.raises(ParamsError, match=r"set rl\.teacher"):
        plan_with(None)
