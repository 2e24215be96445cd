"""Whole steps of whatever may be named: its file in configs/methods/ trains, goes on to the same bytes, and does not depend on ranks."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_in_process import Meeting, RankBackend
from rl_project import PARENT, TINY, build_parent
from rl_small import exact
from torch import Tensor

from trainorder.config import RlConfig, parse_params
from trainorder.config.presets import presets
from trainorder.plan import compile_plan
from trainorder.policy import Policy
from trainorder.reading import read_yaml
from trainorder.rl import catalog, rollouts, step
from trainorder.rl.learner import Learner
from trainorder.rl.step import rl_step
from trainorder.rl.trainer import SAMPLING, make_learner
from trainorder.rl.types import State
from trainorder.rollout import make_engine

pytestmark = pytest.mark.long("whole training steps of every method: three quarters of a minute")
ROOT = Path(__file__).parents[2]
TEACHER = Path("checkpoints/teacher")
TASK = {"train": 6, "dev": 2, "test": 2, "demonstrations": 5, "max_new_tokens": 32}
NAMES = [one.name for one in catalog.shown()]
ALIKE = ("rl/loss", "rl/grad_norm", "rollout/reward", "rollout/length", "rollout/tokens")
"""What is logged of equal updates, whichever rows go through the model for nothing."""
SAME_GRADIENT = {"cispo"}
"""Their loss is log p times the weight, whose gradient is that of the ratio."""
NEUTRAL = {
    name: (dict(chosen.neutral), dict(chosen.reduces_to))
    for name, chosen in presets().items()
    if chosen.neutral
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_parent({"math": TASK, "qa": TASK})
        Policy.build_tiny(TINY, "data/tokenizer", 7).save(TEACHER)
    return folder


@pytest.fixture(autouse=True)
def inside(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)


def learner_of(name: str, rl: Mapping[str, Any] | None = None) -> Learner:
    """Of the phase of a file, or the same with other settings; with rewards that a random policy gets, and few rollouts."""
    raw = read_yaml(ROOT / catalog.CONFIGS / f"{name}.yaml")
    settings = raw["phases"][name]["rl"]
    if rl is not None:
        teacher = {key: value for key, value in settings.items() if key == "teacher"}
        raw["phases"][name]["rl"] = {**teacher, **rl}
    params = parse_params(raw)
    assert set(compile_plan(params).nodes) == {"base", "s0--grpo", f"s0--{name}"}
    config = params.phase_rl(name)
    paid = ["mostly_even" if piece == "graded" else piece for piece in config.method.reward]
    paid = paid if "mostly_even" in paid else [*paid, "mostly_even"]
    method = config.method.model_copy(update={"reward": paid})
    config = config.model_copy(update={"prompts_per_step": 4, "method": method})
    teacher = TEACHER if config.teacher else None
    return make_learner(PARENT, name, params.phases[name], config, 0, teacher=teacher)


def logged(log: Mapping[str, float]) -> dict[str, float]:
    """What does not tell how fast the machine is."""
    return {k: v for k, v in log.items() if not k.startswith("perf/")}


@pytest.mark.parametrize("name", NAMES)
def test_its_file_trains_and_resumes_to_the_same_bytes(name: str):
    one, state = learner_of(name), State(total=4, key=(0, name))
    before = {k: v.clone() for k, v in one.tensors().items()}
    rl_step(one, state)
    kept = {k: v.clone() for k, v in one.tensors().items()}
    found, tensors = state.state_dict(), {k: v.clone() for k, v in state.tensors.items()}
    last = rl_step(one, state)
    assert all(torch.tensor(value).isfinite() for value in last.values())
    assert any(not torch.equal(before[k], v) for k, v in kept.items() if k.startswith("model/"))

    other = learner_of(name)
    other.restore(kept)
    resumed = State.from_state_dict(json.loads(json.dumps(found)), tensors)
    again = rl_step(other, resumed)
    assert resumed.state_dict() == state.state_dict()
    assert again["rl/loss"] == last["rl/loss"]
    for key, value in one.tensors().items():
        assert torch.equal(other.tensors()[key], value)


FORWARDS = {
    "rloo": 0,
    "forking_tokens": 0,
    "kl_cov": 0,
    "grpo": 1,
    "clip_v": 1,
    "siren": 1,
    "tip": 1,
}
"""Scorings of the step's rows beside the training forward: none but for what a piece needs and sampling has not measured."""


@pytest.mark.parametrize("name", FORWARDS)
def test_a_step_scores_its_rows_for_what_a_piece_needs_only(name: str, monkeypatch):
    scored, score = list[str](), rollouts.score

    def counted(model: Any, *given: Any) -> dict[str, Tensor]:
        scored.append(name)
        return score(model, *given)

    for module in (rollouts, step):
        monkeypatch.setattr(module, "score", counted)
    rl_step(learner_of(name), State(total=4, key=(0, name)))
    assert len(scored) == FORWARDS[name]


def exactly(learner: Learner) -> Learner:
    """The learner in float64: its frozen models too."""
    for model in (learner.policy.model, *learner.models.values()):
        exact(model)
    teacher = learner.teacher and make_engine(
        SAMPLING, Policy(learner.models["teacher"], learner.policy.tokenizer)
    )
    return replace(learner, teacher=teacher)


def rank_of(learner: Learner, meeting: Meeting, rank: int) -> Learner:
    """A rank's own copy of what steps change."""
    policy = Policy(copy.deepcopy(learner.policy.model), learner.policy.tokenizer)
    changed = {"ema": copy.deepcopy(learner.models["ema"])} if "ema" in learner.models else {}
    return replace(
        learner,
        policy=policy,
        engine=make_engine(SAMPLING, policy),
        task_set=copy.deepcopy(learner.task_set),
        backend=RankBackend(policy.model, meeting, rank, learner.config),
        models={**learner.models, **changed},
    )


Found = tuple[dict[str, float], list[Tensor], dict[str, Any]]


def stepped(learner: Learner, world: int) -> list[Found]:
    """What each rank logs of a step, its gradient and its state afterwards."""
    meeting = Meeting(world)

    def work(rank: int) -> Found:
        own, state = rank_of(learner, meeting, rank), State(total=4, key=(0, "ranks"))
        log = logged(rl_step(own, state))
        gradient = [p.grad for p in own.policy.model.parameters()]
        return log, gradient, state.state_dict()

    return meeting.run(work)


def assert_same(found: Found, expected: Found) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-9, abs=1e-10)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


CHOOSING = [
    one.name
    for one in catalog.shown()
    for rl in (RlConfig.model_validate(dict(one.rl)),)
    if rl.method.plan or rl.method.edit or {"sampler", "items", "curriculum"} & rl.model_fields_set
]
"""What asks, draws or adds rows; the pieces of the others, see test_ranks.py."""


@pytest.mark.parametrize("name", CHOOSING)
def test_a_step_of_two_ranks_is_that_of_one(name: str):
    learner = exactly(learner_of(name))
    (alone,) = stepped(learner, 1)
    assert any(part.abs().max() > 1e-6 for part in alone[1])
    for found in stepped(learner, 2):
        assert_same(found, alone)
        assert found[2] == alone[2]


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_step_with_the_neutral_setting_is_the_one_that_it_says(name: str):
    one, other = (
        stepped(exactly(learner_of(name, catalog.rl_of(presets()[name], keys))), 1)[0]
        for keys in NEUTRAL[name]
    )
    keys = [key for key in ALIKE if key != "rl/loss" or name not in SAME_GRADIENT]
    found = [({key: log[key] for key in keys}, gradient, {}) for log, gradient, _ in (one, other)]
    assert_same(*found)
