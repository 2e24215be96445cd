"""`kind: distill`: each task is compared with its own teacher, which is a node of the plan."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import rl_project
import torch

from trainorder.config import (
    LoraConfig,
    Params,
    PhaseConfig,
    RolloutConfig,
    TrainingConfig,
    parse_params,
)
from trainorder.footprint.experiment import frozen_models
from trainorder.plan import Plan, compile_plan
from trainorder.plan.check import budget, check
from trainorder.plan.design import from_plan
from trainorder.plan.orders import single_phases
from trainorder.policy import Policy
from trainorder.reading import ParamsError, read_yaml
from trainorder.rl.forward import ByTask, forward
from trainorder.rl.learner import Learner
from trainorder.rl.rollouts import StepRollouts
from trainorder.rl.trainer import make_learner, train_phase
from trainorder.rl.types import Roll, State

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
TASKS = {"math": 1.0, "qa": 1.0, "creative": 1.0}
NEED = "reverse_kl:teacher"


def params(**changes: Any) -> Params:
    """The smoke params with an arm of one phase `distil`; a change of None takes a key out of it."""
    data = read_yaml(SMOKE)
    phase = {"kind": "distill", "tasks": TASKS, "steps": 6, **changes}
    data["phases"]["distil"] = {key: value for key, value in phase.items() if value is not None}
    data["orders"]["distil"] = ["distil"]
    return parse_params(data)


def planned(**changes: Any) -> Plan:
    found = params(**changes)
    check(found)
    return compile_plan(found)


def refusal(**changes: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        planned(**changes)
    return str(caught.value)


def test_the_single_phase_checkpoints_teach_where_no_other_is_named():
    plan = planned(teachers={"qa": ["math", "qa"]})
    student = plan.nodes["s0--distil"]
    assert student.parents == ("s0",)
    assert dict(student.teachers) == {
        "math": "s0--math",
        "qa": "s0--math--qa",
        "creative": "s0--creative",
    }
    stage = plan.stages()["plan/s0--distil/dvc.yaml:train"]
    assert stage["cmd"].startswith("python -m stages.distill --node s0--distil --parent s0 ")
    assert stage["cmd"].endswith("--teachers math=s0--math,qa=s0--math--qa,creative=s0--creative")
    assert {f"checkpoints/{node}" for node in student.learns_from} < set(stage["deps"])
    names = list(plan.nodes)
    assert all(names.index(node) < names.index("s0--distil") for node in student.learns_from)
    assert plan.code()["phase_distil"].module == "stages.distill"
    assert plan.data()["distilled"]["s0--distil"]["teachers"] == dict(student.teachers)


def test_a_teacher_that_no_order_trains_is_trained_for_the_student_alone():
    plan = planned(teachers={"math": ["qa", "math"]})
    assert plan.nodes["s0--qa--math"].parents == ("s0--qa",)
    assert "s0--qa--math" not in [n for run in plan.orders.values() for n in run[0]]


def test_seeds_and_variants_have_teachers_of_their_own():
    found = params().model_copy(update={"seeds": [0, 3]})
    assert dict(compile_plan(found).nodes["s3--distil"].teachers)["qa"] == "s3--qa"
    data = read_yaml(SMOKE) | {"variants": {"slow": {"rl": {"lr": 1e-4}}}}
    data["phases"]["distil"] = {"kind": "distill", "tasks": TASKS, "steps": 6}
    data["orders"]["distil"] = ["distil"]
    student = compile_plan(parse_params(data)).nodes["s0--slow--distil"]
    assert dict(student.teachers)["qa"] == "s0--slow--qa"


def test_distillation_may_end_an_order_and_is_no_phase_to_reorder():
    data = read_yaml(SMOKE)
    data["phases"]["distil"] = {"kind": "distill", "tasks": TASKS, "steps": 6}
    data["orders"] = {"x": ["math", "qa", "creative", "distil"]}
    found = parse_params(data)
    check(found)
    assert single_phases(found) == ["math", "qa", "creative"]
    assert compile_plan(found).nodes["s0--math--qa--creative--distil"].kind == "distill"


def test_the_arm_has_a_kind_of_its_own_and_the_budget_of_joint_training():
    plan = planned()
    kinds = {arm.name: arm.kind for arm in from_plan(plan.data())["default"].arms()}
    assert (kinds["distil"], kinds["joint"], kinds["structured_first"]) == (
        "distill",
        "joint",
        "order",
    )
    assert budget(plan.params, ["distil"]) == budget(plan.params, ["joint"])
    assert "differ in budget: updates 6 and 9" in refusal(steps=9)


def test_the_method_is_reverse_kl_on_the_policys_own_answers_unless_another_is_given():
    plain = params().phase_rl("distil")
    assert plain.method.terms == [{"distillation": {"reverse": 1.0}}]
    assert plain.prompts_per_step == 6  # the rest is that of `rl`
    other = params(rl={"lr": 1e-4, "method": {"preset": "tip"}}).phase_rl("distil")
    assert (other.lr, other.method.weight) == (1e-4, ["teacher_importance"])
    assert "teachers" not in params().phases["math"].results()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"teachers": {"math": ["maths"]}},
            "teachers.math: no phase 'maths'; .*did you mean 'math'",
        ),
        ({"teachers": {"code": ["math"]}}, "teachers: no task of this phase 'code'"),
        ({"teachers": {"math": ["distil"]}}, "'distil' is distilled itself"),
        ({"kind": "mixed", "teachers": {"math": ["math"]}}, "these are of `kind: distill`"),
        ({"rl": {"teacher": "s0--math"}}, "a teacher for each task, under teachers"),
        ({"rl": {"method": {"preset": "gspo"}}}, "needs a piece that compares with the teacher"),
        ({"rl": {"method": {"preset": "soft_sft"}}}, "ask_teacher has one teacher answer"),
    ],
)
def test_what_cannot_be_distilled_is_refused(change: dict[str, Any], told: str):
    with pytest.raises(ParamsError, match=told):
        planned(**change)


def test_a_task_without_a_teacher_is_refused():
    data = read_yaml(SMOKE) | {"orders": {"one": ["distil"]}, "merges": {}}
    data["phases"]["distil"] = {"kind": "distill", "tasks": {"math": 1}, "steps": 6}
    with pytest.raises(ParamsError, match=r"'math' has no teacher: .* `teachers: \{math: "):
        compile_plan(parse_params(data))


TEACHERS = {"math": Path("checkpoints/one"), "qa": Path("checkpoints/two")}
PHASE = PhaseConfig(kind="distill", tasks={"math": 1.0, "qa": 1.0}, steps=4)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small = {**rl_project.TASK, "max_new_tokens": 40}
        rl_project.build_parent({"math": small, "qa": small})
        for seed, place in enumerate(TEACHERS.values(), 1):
            Policy.build_tiny(rl_project.TINY, "data/tokenizer", seed).save(place)
    return folder


@pytest.fixture
def inside(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)


def learner_of(teachers: Any = TEACHERS, **settings: Any) -> Learner:
    method = {"terms": [{"distillation": {"reverse": 1.0}}]}
    rl = rl_project.settings(method=method, prompts_per_step=4)
    return make_learner(rl_project.PARENT, "distil", PHASE, rl, 0, teacher=teachers, **settings)


def sampled(learner: Learner) -> Roll:
    with torch.no_grad():
        rollouts = StepRollouts(learner, State(total=4), defaultdict(float))
        return rollouts.sample(rollouts.requests({"qa": 2, "math": 2}))


@pytest.mark.usefixtures("inside")
def test_each_row_is_compared_with_the_teacher_of_its_task():
    learner = learner_of()
    roll = sampled(learner)
    order = torch.randperm(len(roll), generator=torch.Generator().manual_seed(0)).tolist()
    roll = roll.rows(order)  # tasks in any sequence
    model = learner.policy.model
    with torch.no_grad():
        live = forward(model, roll, {NEED, "entropy"}, learner.models)
        plain = forward(model, roll, {"entropy"})
        for task, place in TEACHERS.items():
            alone = forward(model, roll, {NEED}, {"teacher": Policy.load(place).model})
            rows = [i for i, problem in enumerate(roll.problem) if problem.task == task]
            assert rows
            torch.testing.assert_close(
                live.facts[NEED][rows], alone.facts[NEED][rows], atol=1e-5, rtol=1e-4
            )
            others = [i for i in range(len(roll)) if i not in rows]
            assert not torch.allclose(
                live.facts[NEED][others], alone.facts[NEED][others], atol=1e-3
            )
    torch.testing.assert_close(live.logps, plain.logps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(live.entropy, plain.entropy, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("inside")
def test_the_student_comes_closer_to_both_teachers_and_the_teachers_stay():
    learner = learner_of()
    assert isinstance(learner.models["teacher"], ByTask)
    before = {t: m.lm_head.weight.clone() for t, m in learner.models["teacher"].models.items()}

    def distance() -> dict[str, float]:
        roll = sampled(learner)
        with torch.no_grad():
            kl = forward(learner.policy.model, roll, {NEED}, learner.models).facts[NEED]
        tasks = [problem.task for problem in roll.problem]
        return {
            t: float(kl[[i for i, x in enumerate(tasks) if x == t]].sum(1).mean()) for t in TEACHERS
        }

    first = distance()
    lines = rl_project.steps(learner, State(total=8), 6)
    last = distance()
    # no answer earns anything here, and all teach: the alarm of training that learns nothing is not for them
    assert [line["rollout/reward"] for line in lines] == [0.0] * 6
    assert [line["rl/credited"] for line in lines] == [1.0] * 6
    assert all(last[task] < 0.8 * first[task] for task in TEACHERS), (first, last)
    for task, model in learner.models["teacher"].models.items():
        assert torch.equal(model.lm_head.weight, before[task])


@pytest.mark.usefixtures("inside")
def test_one_checkpoint_may_teach_several_tasks_and_is_loaded_once():
    models = learner_of(dict.fromkeys(TEACHERS, TEACHERS["qa"])).models["teacher"].models
    assert models["math"] is models["qa"]


@pytest.mark.usefixtures("inside")
def test_teachers_that_are_adapters_share_the_students_base(tmp_path: Path):
    lora = TrainingConfig(lora=LoraConfig(rank=2, alpha=4.0))
    one = tmp_path / "adapter"
    task = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=1)
    rl = rl_project.settings(lr=0.02)
    train_phase(rl_project.PARENT, one, "math", task, rl, 0, _Silent(), training=lora)
    learner = learner_of(
        {"math": one, "qa": TEACHERS["qa"]}, training=lora, rollout=RolloutConfig()
    )
    found: Any = learner.models["teacher"].models
    policy: Any = learner.policy.model
    embedding = policy.get_input_embeddings().weight
    assert found["math"].get_input_embeddings().weight is embedding
    assert found["qa"].get_input_embeddings().weight is not embedding
    ids = torch.tensor([[1, 7, 9, 4]])
    with torch.no_grad():
        ours, alone = found["math"](input_ids=ids).logits, Policy.load(one).model(input_ids=ids)
    torch.testing.assert_close(ours, alone.logits, atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in found["math"].parameters())


class _Silent:
    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def test_the_memory_of_all_teachers_is_counted():
    from trainorder.footprint import Shapes, model_config

    shapes = Shapes.of(model_config(params().policy), TrainingConfig())
    rl = params().phase_rl("distil")
    (part,) = frozen_models(shapes, rl, TrainingConfig(), 3)
    (alone,) = frozen_models(shapes, rl, TrainingConfig())
    assert part.size == 3 * alone.size
