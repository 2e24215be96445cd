"""What pieces ask for and get: plans, rows that the policy did not sample, streams, tensors, models by name."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rl_project
import torch
from rl_small import make_roll

from trainorder.adapters import weights_hash
from trainorder.config import MethodConfig, PhaseConfig, Schedule, TrainingConfig
from trainorder.reading import ParamsError
from trainorder.resume import Work
from trainorder.rl.forward import forward
from trainorder.rl.guard import under
from trainorder.rl.learner import Learner
from trainorder.rl.method import Bound, Method
from trainorder.rl.records import keep_some
from trainorder.rl.registry import ADVANTAGES, EDITS, PLANS, TERMS, Entry
from trainorder.rl.rollouts import StepRollouts
from trainorder.rl.step import rl_step, term_shares
from trainorder.rl.trainer import make_learner, train_phase
from trainorder.rl.types import Live, Roll, Rollouts, State
from trainorder.rollout import Request


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts")
    task = {**rl_project.TASK, "max_new_tokens": 40}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rl_project.build_parent({"math": task, "qa": task})
    return folder


@pytest.fixture(autouse=True)
def inside(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)


PHASE = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=4)


def learner_of(**method: Any) -> Learner:
    config = {"reward": ["says_seven"], **method}
    rl = rl_project.settings(method=config, prompts_per_step=3)
    return make_learner(rl_project.PARENT, "math", PHASE, rl, 0)


def sample(learner: Learner, requests: list[Request]) -> Roll:
    with torch.no_grad():
        return StepRollouts(learner, State(total=4), defaultdict(float)).sample(requests)


def warm_half(requests: list[Request], state: State) -> list[Request]:
    """Two answers instead of four, warmer, behind the token 5."""
    return [replace(r, samples=2, temperature=1.5, prefix_ids=(5,)) for r in requests]


def test_a_plan_changes_what_is_asked_of_every_new_problem(monkeypatch):
    monkeypatch.setitem(PLANS, "warm_half", Entry("plan", "warm_half", warm_half))
    learner = learner_of(plan=["warm_half"])
    rollouts = StepRollouts(learner, State(total=4), defaultdict(float))
    with torch.no_grad():
        roll = rollouts.sample(rollouts.requests({"math": 3}))
        live = forward(learner.policy.model, roll)
    assert roll.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert (roll.row_facts["temperature"] == 1.5).all()
    assert (roll.response_ids[:, 0] == 5).all()
    assert (roll.loss_mask[:, 0] == 0).all()
    assert rollouts.tokens == float(roll.loss_mask.sum())
    # sampler and trainer agree at the temperature that was asked, behind the prefix that was given
    assert float(((live.logps - roll.sampler_logps) * roll.loss_mask).abs().max()) < 1e-4
    assert rl_step(learner, State(total=4))["rl/grad_norm"] > 0


def test_a_prefix_that_is_trained_on_has_the_policys_own_log_probabilities():
    learner = learner_of()
    problem = learner.task_set.problems["math"][0]
    ask = Request(problem, samples=3, max_new_tokens=12, prefix_ids=(5, 6))
    plain, trained = (sample(learner, [replace(ask, train_prefix=flag)]) for flag in (False, True))
    assert torch.equal(plain.response_ids, trained.response_ids)
    assert (trained.loss_mask[:, :2] == 1).all()
    with torch.no_grad():
        live = forward(learner.policy.model, trained)
    torch.testing.assert_close(trained.old_logps, live.logps, atol=1e-4, rtol=0)
    assert torch.equal(trained.old_logps[:, :2], trained.sampler_logps[:, :2])
    # what was sampled stays as the engine measured it
    assert torch.equal(trained.old_logps[:, 2:], plain.old_logps[:, 2:])


def add_expert(roll: Roll, state: State, rollouts: Rollouts) -> Roll:
    """The problems' own references as rows of their groups."""
    first = {int(g): problem for g, problem in zip(roll.group, roll.problem, strict=True)}
    requests = [Request(problem, group=group) for group, problem in first.items()]
    given = rollouts.given(requests, [r.problem.reference for r in requests if r.problem], "expert")
    return Roll.cat([roll, given])


def nll(live: Live, roll: Roll, state: State) -> torch.Tensor:
    """Supervised loss."""
    return -live.logps


def test_expert_rows_are_graded_scored_and_trained_by_the_term_of_their_source(monkeypatch):
    seen = list[Roll]()

    def look(roll: Roll, state: State) -> torch.Tensor:
        seen.append(roll)
        return roll.rewards

    monkeypatch.setitem(EDITS, "add_expert", Entry("edit", "add_expert", add_expert))
    monkeypatch.setitem(ADVANTAGES, "look", Entry("advantage", "look", look))
    monkeypatch.setitem(TERMS, "nll", Entry("terms", "nll", nll))
    learner = learner_of(
        edit=["add_expert"],
        reward=["graded"],
        advantage=["look"],
        terms=[{"clipped_surrogate": {"source": "policy"}}, {"nll": {"source": "expert"}}],
    )
    line = rl_step(learner, State(total=4))
    (roll,) = seen
    expert = roll.is_from("expert")
    assert expert.tolist() == [False] * 12 + [True] * 3
    assert roll.group[expert].tolist() == [0, 1, 2]
    assert (roll.rewards[expert] == 1).all()  # the verifier accepts its own references
    assert torch.equal(roll.old_logps[expert], roll.sampler_logps[expert])
    own = roll.rows(expert.nonzero().flatten().tolist())
    with torch.no_grad():
        parent = forward(rl_project.learner_of().policy.model, own).logps
    torch.testing.assert_close(own.old_logps, parent, atol=1e-5, rtol=0)
    # the policy solves nothing: all that is learned is the mean log p of the expert's tokens
    mean = float(-(own.old_logps * own.loss_mask).sum() / own.loss_mask.sum())
    assert line["rl/loss"] == pytest.approx(mean, rel=1e-4)
    assert line["rollout/tokens"] == float(roll.loss_mask[~expert].sum())


def test_a_term_shares_out_its_own_rows_by_its_own_reduction_and_weights():
    # tokens 1 and 3 of the policy, 2 and 4 of the expert; the last is cut off
    roll = make_roll([0.0] * 4, group=[0, 0, 1, 1], lengths=[1, 3, 2, 4])
    roll.row_facts["source"] = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)
    method = Method.from_config(MethodConfig())
    term = method.terms[0]

    def rows(**changes: Any) -> list[float]:
        return term_shares(replace(term, **changes), 0, roll, method, {"sums": 8}).sum(1).tolist()

    assert rows() == pytest.approx([0.1, 0.3, 0.2, 0.4])
    assert rows(source="expert") == pytest.approx([0, 0, 1 / 3, 2 / 3])
    assert rows(source="policy", reduction="sequence") == pytest.approx([0.5, 0.5, 0, 0])
    assert rows(source="teacher") == [0, 0, 0, 0]
    roll.token_facts["weights_of_term_0"] = roll.loss_mask * torch.tensor([[1.0], [0], [1], [1]])
    assert rows(source="policy") == pytest.approx([0.25, 0, 0, 0])
    assert rows(source="policy", denominator="weight") == pytest.approx([1, 0, 0, 0])


def test_a_coefficient_moves_over_the_phase_or_its_own_steps():
    method = MethodConfig.model_validate(
        {"terms": [{"kl": {"coef": {"shape": "linear", "start": 1.0, "end": 0.0, "steps": 2}}}]}
    )
    (term,) = Method.from_config(method).terms
    assert isinstance(term, Bound)
    assert [term.coef_at(State(total=9, step=i)) for i in range(4)] == [1.0, 0.5, 0.0, 0.0]
    cosine = Schedule(shape="cosine", start=0.9, end=0.05, steps=200)
    assert cosine.at(100, 400) == pytest.approx(0.475)  # CHORD's mu half-way
    assert cosine.at(300, 400) == pytest.approx(0.05)


def test_joined_rows_take_defaults_for_what_they_lack_and_say_what_has_none():
    whole, bare = make_roll([1.0]), make_roll([0.0], group=[1], lengths=[2])
    whole.row_facts["age"] = torch.tensor([3.0], dtype=torch.float64)
    bare = replace(
        bare,
        row_facts={"graded": bare.rewards},
        token_facts={
            name: bare.token_facts[name] - 1 for name in ("old_logps", "entropy", "ref_logps")
        },
    )
    both = Roll.cat([whole, bare])
    assert both.row_facts["age"].tolist() == [3, 0]
    assert both.row_facts["finished"].tolist() == [1, 1]
    assert both.sampler_logps[1].tolist() == [-1, -1]
    bare.token_facts.pop("entropy")
    with pytest.raises(ValueError, match="no fact 'entropy', which has no default"):
        Roll.cat([whole, bare])


class Lines:
    """A tracker that keeps its lines and can go on behind saved ones."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append(metrics)

    def state(self) -> dict[str, Any]:
        return {"lines": list(self.lines)}

    def restore(self, state: dict[str, Any]) -> None:
        self.lines = list(state["lines"])


def remembering(roll: Roll, state: State) -> torch.Tensor:
    """Credit moved by a stream's noise and by an average that is kept as a tensor, and divergence from an average model."""
    mean = state.tensors.get("mean", torch.zeros(()))
    state.tensors["mean"] = (mean + roll.rewards.mean().cpu()) / 2
    noise = torch.rand(len(roll), generator=state.stream("credit"))
    noise += torch.rand(len(roll), generator=state.stream("credit"))
    divergence = roll.token_facts["reverse_kl:ema"].sum(1)
    return roll.rewards - mean + noise + divergence


class Cut(Exception):
    """The process is killed."""


def test_streams_tensors_and_models_go_on_as_if_nothing_had_happened(monkeypatch, tmp_path: Path):
    entry = Entry("advantage", "remembering", remembering, frozenset({"reverse_kl:ema"}))
    monkeypatch.setitem(ADVANTAGES, "remembering", entry)
    rl = rl_project.settings(
        method={"reward": ["says_seven"], "advantage": ["remembering"]},
        prompts_per_step=2,
        ema_decay=0.5,
    )

    def train(name: str, work: Work, tracker: Lines) -> str:
        out = Path("checkpoints") / name
        train_phase(rl_project.PARENT, out, "math", PHASE, rl, 0, tracker, work)
        return weights_hash(out)

    through = Lines()
    whole = train("through", Work(None), through)

    class Dying(Lines):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            if step == 2:
                raise Cut
            super().log(step, metrics)

    with pytest.raises(Cut):
        train("cut", Work(tmp_path, 0), Dying())
    resumed = Lines()
    assert train("cut", Work(tmp_path, 0), resumed) == whole
    assert len(resumed.lines) == 4
    same = ("rl/loss", "rl/grad_norm", "rollout/reward")
    assert [[line[k] for k in same] for line in resumed.lines] == [
        [line[k] for k in same] for line in through.lines
    ]


def test_a_request_may_ask_another_text_and_tell_its_rows_how_they_were_asked():
    learner = learner_of()
    problem = learner.task_set.problems["math"][0]
    plain = Request(problem, samples=2, max_new_tokens=8)
    told = replace(plain, prompt="1 + 2 = ?", facts={"budget": 7.0})
    roll = sample(learner, [plain, told])
    policy = learner.policy
    assert roll.prompt_ids[0] == policy.encode_prompt(problem.prompt)
    assert roll.prompt_ids[2] == policy.encode_prompt("1 + 2 = ?")
    assert [row.id for row in roll.problem] == [problem.id] * 4
    assert roll.asked("budget").isnan().tolist() == [True, True, False, False]
    assert roll.asked("budget")[2:].tolist() == [7, 7]
    assert roll.asked("template").isnan().all()
    assert (roll.row_facts["limit"] == 8).all()
    assert [roll.prompt(row) for row in (0, 2)] == [problem.prompt, "1 + 2 = ?"]
    state = State(total=1)
    keep_some(roll, state)
    assert [row["prompt"] for row in state.mem["rollouts"]] == [problem.prompt, "1 + 2 = ?"]


def test_a_cut_answer_is_read_and_graded_again_and_trains_what_is_left():
    learner = learner_of(reward=["says_seven"])
    problem = learner.task_set.problems["math"][0]
    roll = sample(learner, [Request(problem, samples=3, max_new_tokens=24)])
    rollouts = StepRollouts(learner, State(total=4), defaultdict(float))
    lengths = torch.tensor([2, 100, 5])
    was = roll.lengths()
    short = rollouts.cut(roll, lengths)
    assert (was > 5).all()
    assert short.lengths().tolist() == [2, int(was[1]), 5]
    assert short.row_facts["finished"].tolist() == [0, float(roll.row_facts["finished"][1]), 0]
    assert short.text == [
        learner.policy.decode(row[:n])
        for row, n in zip(roll.response_ids.tolist(), short.lengths().tolist(), strict=True)
    ]
    assert torch.equal(short.rewards, rl_project.says_seven(short, State(total=4)))
    assert rollouts.cut(roll, was) is roll


METHODS: dict[str, dict[str, Any]] = {
    "hicra": {
        "edit": [{"mine_grams": {"right": 0.0, "shortest": 1}}],
        "advantage": ["dr_grpo", "hicra"],
        "metric": ["planning", "semantic_entropy", "two_phases"],
    },
    "spear": {
        "edit": [{"highest_spread": {"share": 0.9}}, {"self_imitation": {"size": 4}}],
        "advantage": ["dr_grpo", "self_imitation_credit"],
        "metric": ["self_imitation_buffer"],
    },
    "prompts": {
        "plan": [
            "prompt_templates",
            {"prompt_population": {"texts": ["{prompt}", "1 {prompt}"]}},
            {"length_budget": {"start": 8.0}},
        ],
        "reward": ["says_seven", "template_format", "length_triangle"],
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_resumed_after_a_step_repeats_the_bytes_of_an_uninterrupted_run(name, tmp_path):
    whole, halves = learner_of(**METHODS[name]), learner_of(**METHODS[name])
    state = State(total=2, key=(0, "math"))
    lines = rl_project.steps(whole, state, 2)
    cut = State(total=2, key=(0, "math"))
    rl_project.steps(halves, cut, 1)
    work = Work(tmp_path)
    kept = {f"state/{key}": values for key, values in cut.tensors.items()}
    work.save("rl", halves.tensors() | kept, {"state": cut.state_dict()})
    saved = Work(tmp_path).latest("rl")
    assert saved is not None
    resumed = learner_of(**METHODS[name])
    resumed.restore(saved.tensors)
    again = State.from_state_dict(saved.state["state"], under("state/", saved.tensors))
    (line,) = rl_project.steps(resumed, again, 1)
    timeless = {key: value for key, value in lines[1].items() if key.startswith(("rl/", "task/"))}
    assert line["rl/grad_norm"] > 0
    assert {key: line[key] for key in timeless} == timeless
    for key, weight in whole.policy.model.state_dict().items():
        assert torch.equal(weight, resumed.policy.model.state_dict()[key])


def test_factors_per_layer_are_refused_where_gradients_are_split():
    rl = rl_project.settings(method={"terms": [{"clipped_surrogate": {"layers": [0.0, 1.0]}}]})
    training = TrainingConfig(backend="deepspeed")
    with pytest.raises(ParamsError, match="`layers` needs whole gradients"):
        make_learner(rl_project.PARENT, "math", PHASE, rl, 0, training=training)


def test_a_given_answer_that_the_model_has_no_positions_for_is_refused():
    learner = learner_of()
    rollouts = StepRollouts(learner, State(total=4), defaultdict(float))
    problem = learner.task_set.problems["math"][0]
    with pytest.raises(ParamsError, match="the model has 96"):
        rollouts.given([Request(problem)], [" ".join(["7"] * 200)], "expert")


def test_expert_rows_teach_where_the_policy_itself_solves_nothing():
    learner = learner_of(
        reward=["graded"],
        edit=[{"expert_rows": {"share": 0.2}}],
        terms=[{"clipped_surrogate": {"source": "policy"}}, {"nll": {"source": "expert"}}],
    )
    lines = rl_project.steps(learner, State(total=8), 6)
    assert all(line["rollout/reward"] == 0 for line in lines)
    # the policy's rows have no credit: the loss is the mean -log p of the expert's tokens, which falls on fresh problems
    assert lines[-1]["rl/loss"] < lines[0]["rl/loss"] - 0.5
