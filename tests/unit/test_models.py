"""Any causal LM of transformers through sampling, the training forward and a step; full weights or adapters, fp32 or bf16."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rl_project
import torch

from trainorder.config import LoraConfig, TrainingConfig
from trainorder.policy import Policy
from trainorder.reading import ParamsError
from trainorder.rl.forward import forward
from trainorder.rl.rollouts import StepRollouts
from trainorder.rl.step import (
    Learner,
    rl_step,
    task_factors,
)
from trainorder.rl.trainer import save
from trainorder.rl.types import Roll, State
from trainorder.rollout import Request

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 160,
    "initializer_range": 0.2,
}
GATED = {"intermediate_size": 48, "num_key_value_heads": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {**GATED, "tie_word_embeddings": True},
    "Qwen2": GATED,
    "Qwen3": {**GATED, "head_dim": 16},
    "GPTNeoX": {"intermediate_size": 64, "hidden_dropout": 0.1, "attention_dropout": 0.1},
}
CHAT = "{% for m in messages %}{{ m['content'] + ' 7' }}{% endfor %}"
STEP = {
    "method": {"reward": ["even_tokens"], "terms": ["clipped_surrogate", {"kl": {"coef": 0.01}}]}
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rl_project.make_parent()
        for family in FAMILIES:
            make(family).save(f"checkpoints/{family}")
    return folder


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def make(family: str) -> Policy:
    """A random model of the family with the project's tokenizer."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained("data/tokenizer")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SIZES,
        **FAMILIES[family],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Policy(getattr(transformers, f"{family}ForCausalLM")(config).eval(), tokenizer)


def learner_of(family: str = "Llama", *, rl: Any = None, **training: Any) -> Learner:
    parent = Path("checkpoints") / family
    return rl_project.learner_of(
        parent, rl or rl_project.settings(**STEP), training=TrainingConfig(**training)
    )


def sampled(learner: Learner, step: int = 0) -> Roll:
    problems = [p for task in ("math", "qa") for p in learner.task_set.problems[task][:2]]
    with torch.no_grad():
        rollouts = StepRollouts(learner, State(total=9, step=step), defaultdict(float))
        limits = learner.task_set.max_new_tokens
        return rollouts.sample(
            [Request(p, samples=4, max_new_tokens=limits[p.task]) for p in problems]
        )


def gap(learner: Learner, roll: Roll) -> float:
    """Largest difference between what the engine reported and the training forward."""
    with torch.no_grad():
        live = forward(learner.policy.model, roll)
    return float(((live.logps - roll.sampler_logps) * roll.loss_mask).abs().max())


def step_and_push(learner: Learner) -> dict[str, float]:
    line = rl_step(learner, State(total=9))
    learner.engine.push(learner.backend.weights())
    return line


@pytest.mark.long("trains every family of models")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [{}, {"lora": LoraConfig(rank=4)}], ids=["full", "lora"])
def test_sampler_and_trainer_agree_before_and_after_a_step(family: str, training: dict[str, Any]):
    learner = learner_of(family, **training)
    before = sampled(learner)
    assert gap(learner, before) < 1e-4
    line = step_and_push(learner)
    assert line["rl/grad_norm"] > 0
    after = sampled(learner)
    assert gap(learner, after) < 1e-4
    assert gap(learner, before) > 1e-3  # the step changed the policy
    save(learner, Path("checkpoints/saved"), Path(f"checkpoints/{family}"))
    loaded = Policy.load(Path("checkpoints/saved"))
    assert type(loaded.model) is type(make(family).model)
    assert gap(replace(learner, policy=loaded), after) < 1e-4


@pytest.mark.long("trains every family of models")
def test_adapters_leave_the_weights_alone_and_are_merged_exactly():
    learner = learner_of("Qwen2", lora=LoraConfig(rank=4, alpha=8.0, target=["q_proj", "v_proj"]))
    parent = Policy.load(Path("checkpoints/Qwen2")).model.state_dict()
    rl_step(learner, State(total=9))
    model = learner.policy.model
    q = model.model.layers[0].self_attn.q_proj
    a, b = q.lora_A["default"].weight, q.lora_B["default"].weight
    merged = dict(learner.backend.weights())
    assert merged.keys() == parent.keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(merged[name], parent[name] + 8.0 / 4 * (b @ a), atol=1e-6, rtol=0)
    assert (merged[name] != parent[name]).any()
    for other in ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"):
        assert torch.equal(merged[other], parent[other])
    save(learner, Path("checkpoints/merged"), Path("checkpoints/Qwen2"))
    for key, weight in Policy.load(Path("checkpoints/merged")).model.state_dict().items():
        assert torch.equal(weight, merged[key]), key


def test_adapters_for_layers_the_model_lacks_are_refused():
    with pytest.raises(ParamsError, match=r"no linear layer query; it has .*q_proj"):
        learner_of("Llama", lora=LoraConfig(target=["query"]))


def test_gradient_checkpointing_changes_nothing_but_memory():
    # dropout that a model brings along is off in both
    lines = [
        rl_step(learner_of("GPTNeoX", gradient_checkpointing=on), State(total=9))
        for on in (False, True)
    ]
    assert lines[0]["rl/grad_norm"] == pytest.approx(lines[1]["rl/grad_norm"], rel=1e-5)
    assert lines[0]["rollout/tokens"] == lines[1]["rollout/tokens"]
    assert lines[1]["rl/kl_old"] < 1e-8


def test_bf16_computes_coarsely_and_keeps_weights_and_moments_in_fp32():
    learner = learner_of("Qwen2", dtype="bf16")
    line = rl_step(learner, State(total=9))
    exact = rl_step(learner_of("Qwen2"), State(total=9))
    assert (
        1e-5 < line["rollout/mismatch_mean"] < 5e-2
    )  # measured on all tokens, corrected by old logps
    assert exact["rollout/mismatch_mean"] < 1e-5
    assert line["rl/grad_norm"] == pytest.approx(exact["rl/grad_norm"], rel=0.2)
    tensors = learner.backend.tensors()
    assert {t.dtype for t in tensors.values()} == {torch.float32}


@pytest.mark.long("trains every family of models")
def test_a_saved_state_goes_on_as_if_nothing_had_happened():
    for optimizer, training in (
        ("adamw", {}),
        ("adamw", {"lora": LoraConfig(rank=2)}),
        ("muon", {}),
    ):
        rl = rl_project.settings(**STEP, optimizer=optimizer)
        through, state = learner_of("Qwen3", rl=rl, **training), State(total=9)
        lines = [rl_step(through, state)["rl/loss"] for _ in range(2)]
        saved = {name: t.clone() for name, t in through.backend.tensors().items()}
        facts = state.state_dict()
        lines += [rl_step(through, state)["rl/loss"] for _ in range(2)]
        resumed = learner_of("Qwen3", rl=rl, **training)
        resumed.backend.restore(saved)
        state = State.from_state_dict(facts)
        assert [rl_step(resumed, state)["rl/loss"] for _ in range(2)] == lines[2:]
        with pytest.raises(ParamsError, match="another model"):
            learner_of("Llama").backend.restore(saved)


def test_a_chat_template_is_what_the_policy_sees():
    policy = make("Qwen2")
    policy.tokenizer.chat_template = CHAT
    policy.save("checkpoints/chat")
    learner = learner_of("chat")
    roll = sampled(learner)
    problem = roll.problem[0]
    expected = learner.policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.prompt}], add_generation_prompt=True, return_dict=False
    )
    assert roll.prompt_ids[0] == list(expected)
    assert roll.prompt_ids[0] != list(learner.policy.tokenizer.encode(problem.prompt))
    assert gap(learner, roll) < 1e-4


def test_each_task_has_its_own_length():
    roll = sampled(learner_of("Llama"))
    lengths = dict.fromkeys(("math", "qa"), 0)
    for problem, n in zip(roll.problem, roll.loss_mask.sum(1).tolist(), strict=True):
        lengths[problem.task] = max(lengths[problem.task], int(n))
    assert lengths == {"math": 32, "qa": 40}


def test_a_tasks_rate_is_a_rate_alone_and_a_weight_in_company():
    rl = rl_project.settings(**STEP, task_lr={"math": 0.5})
    learner = learner_of("Llama", rl=rl)
    roll = sampled(learner)
    of = {t: [i for i, p in enumerate(roll.problem) if p.task == t] for t in ("math", "qa")}
    alone, shares = task_factors(roll.rows(of["math"]), rl)
    assert alone == 0.5
    assert (shares == 1).all()
    alone, shares = task_factors(roll, rl)
    assert alone == 1.0
    assert (shares[of["math"]] == 0.5).all()
    assert (shares[of["qa"]] == 1).all()
    norms = [
        rl_step(
            learner_of("Llama", rl=rl_project.settings(**STEP, task_lr=factors)), State(total=9)
        )["rl/grad_norm"]
        for factors in ({}, {"math": 1e-4, "qa": 1e-4})
    ]
    assert norms[1] == pytest.approx(1e-4 * norms[0], rel=1e-3)
