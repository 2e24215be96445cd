"""vLLM for real, on the CPU: one engine for all tests here, as it takes about 20 s to start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import rl_project
import torch

from trainorder.config import EvaluationConfig, RolloutConfig
from trainorder.evaluation import built_exams, evaluate
from trainorder.evaluation.answering import answer
from trainorder.reading import ParamsError
from trainorder.rl.learner import Learner
from trainorder.rl.records import mismatch
from trainorder.rl.step import rl_step
from trainorder.rl.types import State
from trainorder.rollout import Request, vllm_engine
from trainorder.rollout.vllm_engine import VllmEngine

pytestmark = pytest.mark.long("a vLLM engine takes about 20 s to start")
VLLM = RolloutConfig(backend="vllm", max_model_len=160)
STEPS = 20


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rl_project.make_parent()
    return folder


@pytest.fixture(scope="module")
def started(project: Path) -> Learner:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        return rl_project.learner_of(rollout=VLLM)


@pytest.fixture
def learner(project: Path, started: Learner, monkeypatch: pytest.MonkeyPatch) -> Learner:
    """Weights of the parent and a fresh optimiser, around the one engine."""
    monkeypatch.chdir(project)
    fresh = rl_project.learner_of()
    started.policy.model.load_state_dict(fresh.policy.model.state_dict())
    backend = type(fresh.backend)(started.policy.model, started.config, started.backend.training)
    learner = replace(started, backend=backend, models=fresh.models)
    learner.engine.push(backend.weights())
    return learner


def test_the_process_keeps_its_threads_for_what_follows(started):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def sample(learner: Learner, seed: int = 0, **changes):
    engine = learner.engine
    assert isinstance(engine, VllmEngine)
    ask = {"samples": 3, "temperature": 0.7, **changes}
    prompts = ask.pop("prompts", [[5, 6, 7], [8, 9]])
    rooms = ask.pop("max_new_tokens", [5, 9])
    return engine.generate(
        [
            Request(prompt_ids=prompt, max_new_tokens=room, seed=seed + 10 * i, **ask)
            for i, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
        ]
    )


def true_logps(model, prompts, done, temperature: float) -> torch.Tensor:
    """What the model itself gives each sampled token, one row at a time."""
    found = torch.zeros_like(done.logps)
    per = len(done.texts) // len(prompts)
    for i in range(len(done.texts)):
        n, prompt = int(done.loss_mask[i].sum()), prompts[i // per]
        ids = torch.tensor([[*prompt, *done.response_ids[i, :n].tolist()]])
        with torch.no_grad():
            logps = (model(ids).logits[0] / temperature).log_softmax(-1)
        found[i, :n] = logps[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]
    return found


def test_rows_end_at_a_stop_token_or_where_their_room_ends(learner: Learner):
    done = sample(learner, max_new_tokens=[30, 3], samples=12)
    lengths = done.loss_mask.sum(1).long()
    last = done.response_ids[torch.arange(24), lengths - 1]
    stops = torch.tensor(sorted(learner.policy.stop_ids))
    assert (lengths[12:] <= 3).all()
    assert done.loss_mask.shape[1] == int(lengths.max())
    assert torch.equal(torch.isin(last, stops), done.finished)
    assert (done.finished | (lengths == torch.tensor([30] * 12 + [3] * 12))).all()
    assert done.finished.any()
    assert not done.finished.all()
    assert (done.response_ids[done.loss_mask == 0] == learner.policy.pad_id).all()
    assert done.texts == learner.policy.decode_batch(done.response_ids.tolist())
    assert done.entropies is None


def test_samples_repeat_with_their_generator_only(learner: Learner):
    one, same, other = sample(learner), sample(learner), sample(learner, seed=1)
    assert torch.equal(one.response_ids, same.response_ids)
    assert not (
        one.response_ids.shape == other.response_ids.shape
        and torch.equal(one.response_ids, other.response_ids)
    )
    assert len({tuple(row) for row in one.response_ids.tolist()}) > 2  # rows of a prompt differ


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_of_the_distribution_sampled_from(learner: Learner, temperature):
    prompts = [[5, 6, 7], [8, 9]]
    done = sample(learner, temperature=temperature)
    torch.testing.assert_close(
        done.logps, true_logps(learner.policy.model, prompts, done, temperature), atol=1e-4, rtol=0
    )


def test_pushed_weights_are_used_and_cached_prompts_forgotten(learner: Learner):
    # a prompt longer than a cache block (128 tokens on a CPU), asked before and after: stale keys would show in the log p
    prompts = [list(range(5, 30)) * 6]
    sample(learner, prompts=prompts, max_new_tokens=[5])
    with torch.no_grad():
        for weight in learner.policy.model.parameters():
            weight.mul_(1.5)
    learner.engine.push(learner.backend.weights())
    done = sample(learner, prompts=prompts, max_new_tokens=[5])
    expected = true_logps(learner.policy.model, prompts, done, 0.7)
    torch.testing.assert_close(done.logps, expected, atol=1e-4, rtol=0)


def test_twenty_steps_learn_as_with_the_torch_engine(learner: Learner):
    curves = {}
    for name, one in {"vllm": learner, "torch": rl_project.learner_of()}.items():
        state = State(total=STEPS)
        lines = [rl_step(one, state) for _ in range(STEPS)]
        curves[name] = [line["rollout/reward"] for line in lines]
        assert all(line["rollout/mismatch_mean"] < 1e-4 for line in lines)
        assert all(line["rollout/mismatch_max"] < 1e-3 for line in lines)
        assert all(abs(line["rollout/mismatch_kl"]) < 1e-6 for line in lines)
        assert all(line["rollout/entropy"] > 0 for line in lines)
    start, end = ({n: sum(c[i : i + 5]) / 5 for n, c in curves.items()} for i in (0, STEPS - 5))
    assert all(end[name] > 5 * start[name] for name in curves)
    assert end["vllm"] == pytest.approx(end["torch"], rel=0.15)


def test_importance_weights_meet_a_sampler_that_is_off(learner: Learner):
    # the engine keeps the weights of before: what is trained is another policy than what sampled
    with torch.no_grad():
        for weight in learner.policy.model.parameters():
            weight.mul_(1.1)
    method = type(learner.method).from_config(
        rl_project.settings().method.model_copy(
            update={
                "weight": ["truncated_importance", {"sequence_mask": {"low": 0.5, "high": 2.0}}]
            }
        )
    )
    engine = learner.engine

    class Stale:
        """The engine, to which nothing is pushed."""

        generate = engine.generate

        def push(self, weights: object) -> None: ...

    line = rl_step(replace(learner, engine=Stale(), method=method), State(total=1))
    assert line["rollout/mismatch_mean"] > 1e-3
    assert line["rollout/mismatch_kl"] > 1e-6


def test_a_machine_without_vllm_is_told_what_to_install(learner: Learner, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name)
    )
    with pytest.raises(ParamsError, match=r"vllm is not installed: `pip install vllm`.*--no-deps"):
        VllmEngine(learner.policy, VLLM)


def test_an_exact_sampler_measures_no_mismatch_twice():
    from rl_small import make_roll

    roll = make_roll([1, 0])
    assert (
        mismatch(replace(roll, token_facts={**roll.token_facts, "sampler_logps": roll.old_logps}))
        == {}
    )
    assert mismatch(roll)["rollout/mismatch_mean"] == 0


def test_an_evaluation_asks_the_same_engine_and_says_which(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
):
    # the one engine of this module in place of a second start; what asks it and what it answers are real
    engine = learner.engine
    monkeypatch.setattr(vllm_engine, "VllmEngine", lambda policy, **_: engine)
    config, exams = EvaluationConfig(samples=2), built_exams()
    ours, theirs = (
        answer(learner.policy, exams, config, rollout=rollout)
        for rollout in (RolloutConfig(), VLLM)
    )
    for exam, one, other in zip(exams, ours, theirs, strict=True):
        assert list(other.greedy) == list(one.greedy)
        assert other.entropy_fixed == one.entropy_fixed
        assert other.sampled.texts != one.sampled.texts  # other random numbers
        prompts = [learner.policy.encode_prompt(p.prompt) for p in exam.problems]
        expected = true_logps(learner.policy.model, prompts, other.sampled, 1.0)
        torch.testing.assert_close(other.sampled.logps, expected, atol=1e-4, rtol=0)
        entropies = true_entropies(learner.policy.model, prompts, other.sampled)
        torch.testing.assert_close(other.sampled.entropies, entropies, atol=1e-4, rtol=0)
    again = answer(learner.policy, exams[1:], config, rollout=VLLM)
    assert [a.sampled.texts for a in again] == [a.sampled.texts for a in theirs[1:]]  # alone
    tables = [
        evaluate("s0", rl_project.PARENT, 0, config, rollout=rollout)
        for rollout in (RolloutConfig(), VLLM)
    ]
    assert tables[0].attrs.keys() == {"answers"}
    assert tables[1].attrs == {"rollout": VLLM.results(), "answers": tables[1].attrs["answers"]}
    greedy = [table.loc[table["metric"] == "greedy", "value"].tolist() for table in tables]
    assert greedy[0] == greedy[1]


def true_entropies(model, prompts, done) -> torch.Tensor:
    """Entropy of each sampled token's distribution, one row at a time."""
    found, per = torch.zeros_like(done.logps), len(done.texts) // len(prompts)
    for i in range(len(done.texts)):
        n, prompt = int(done.loss_mask[i].sum()), prompts[i // per]
        ids = torch.tensor([[*prompt, *done.response_ids[i, :n].tolist()]])
        with torch.no_grad():
            logps = model(ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        found[i, :n] = -(logps.exp() * logps).sum(-1)
    return found
