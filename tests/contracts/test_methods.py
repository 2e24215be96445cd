"""What every preset of the RL step must hold to; a new one is checked as soon as it is listed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_project import PARENT, TINY, build_parent
from rl_small import gradient, model64, off_policy_roll, pad_more, tiny_llama

from benchmarks import methods_page
from trainorder.config import MethodConfig, RlConfig, parse_params
from trainorder.config.presets import presets
from trainorder.plan import compile_plan
from trainorder.policy import Policy
from trainorder.reading import read_yaml
from trainorder.rl import catalog, facts
from trainorder.rl.learner import Learner
from trainorder.rl.method import MODELS, Method
from trainorder.rl.step import rl_step
from trainorder.rl.trainer import make_learner
from trainorder.rl.types import Roll, State

ROOT = Path(__file__).parents[2]
TEACHER = Path("checkpoints/teacher")
PRESETS = presets()
NEUTRAL = [name for name, chosen in PRESETS.items() if chosen.neutral is not None]
TASK = {"train": 6, "dev": 2, "test": 2, "demonstrations": 5, "max_new_tokens": 32}


def method_of(name: str, keys: Any = None) -> MethodConfig:
    return catalog.config_of(PRESETS[name], keys).method


def with_needs(roll: Roll, config: MethodConfig) -> Roll:
    """The roll with random values of whatever the pieces need."""
    noise = torch.Generator().manual_seed(3)
    rows, width = roll.loss_mask.shape
    found: dict[str, torch.Tensor] = {
        "sampler_logps": roll.old_logps,
        "hidden": torch.randn(rows, width, 3, generator=noise, dtype=torch.float64),
        "char_start": torch.zeros_like(roll.response_ids),
        "char_end": torch.zeros_like(roll.response_ids),
    }
    for need in sorted(Method.from_config(config).needs - {"spans", "ref_logps", "hidden"}):
        shape = (rows, width, *([int(need.partition(":")[2])] if "top_logps" in need else []))
        found[need] = torch.rand(shape, generator=noise, dtype=torch.float64) * 2
    known = {**found, **roll.token_facts, **{"entropy": roll.entropy}}
    roll = replace(roll, text=[str(row % 3) for row in range(rows)])  # some answers differ
    return replace(roll, token_facts=known, informed_ids=[[*ids, 5] for ids in roll.prompt_ids])


@pytest.fixture(scope="module")
def model() -> Any:
    return model64()


@pytest.fixture(scope="module")
def models(model: Any) -> dict[str, Any]:
    """Stand-ins for every frozen model."""
    other = tiny_llama(seed=1).double()
    return dict.fromkeys(MODELS, other)


def update_of(model: Any, models: Any, name: str, keys: Any = None, **changes: Any) -> Any:
    config = method_of(name, keys)
    roll = with_needs(off_policy_roll(model), config)
    return gradient(model, roll, config, models=models, **changes)


def assert_equal(one: Any, other: Any) -> None:
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PRESETS)
def test_micro_batches_padding_and_the_order_of_rows_change_no_gradient(name, model, models):
    config = method_of(name)
    roll = with_needs(off_policy_roll(model), config)
    whole = gradient(model, roll, config, models=models)
    mixed = pad_more(roll.rows([7, 3, 9, 0, 5, 1, 8, 2, 6, 4]), 2, junk=0.0)
    cut = gradient(model, mixed, config, budget=20, models=models)
    assert max(float(g.abs().max()) for g in whole[1]) > 1e-5
    assert_equal(whole, cut)


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_neutral_setting_is_the_update_that_it_says(name, model, models):
    chosen = PRESETS[name]
    neutral = update_of(model, models, name, chosen.neutral)
    assert_equal(neutral, update_of(model, models, name, chosen.reduces_to))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_what_they_need_and_the_engine_has_it(name):
    row = catalog.facts(PRESETS[name])
    method = Method.from_config(method_of(name))
    facts.check(method.needs | method.live_needs, MODELS)
    assert {need for need in row["needs"] if not need.startswith("live ")} == method.needs
    assert row["summary"]
    assert row["slots"] or name == "grpo" or row["family"]


def test_the_page_and_the_configs_are_what_the_registry_says():
    wanted = methods_page.files()
    found = {f"{catalog.CONFIGS}/{f.name}" for f in (ROOT / catalog.CONFIGS).glob("*.yaml")}
    again = f"run `{catalog.COMMAND}` and commit what it writes"
    assert found == {name for name in wanted if name.startswith(catalog.CONFIGS)}, again
    for name, text in wanted.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name} differs: {again}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_parent({"math": TASK, "qa": TASK})
        Policy.build_tiny(TINY, "data/tokenizer", 7).save(TEACHER)
    return folder


def tried(name: str) -> tuple[Any, RlConfig]:
    """The phase of a method's config, with rewards that a random policy gets, and fewer rollouts."""
    params = parse_params(read_yaml(ROOT / catalog.CONFIGS / f"{name}.yaml"))
    assert set(compile_plan(params).nodes) == {"base", "s0--grpo", f"s0--{name}"}
    rl = params.phase_rl(name)
    paid = ["even_tokens" if piece == "graded" else piece for piece in rl.method.reward]
    paid = paid if "even_tokens" in paid else [*paid, "even_tokens"]
    method = rl.method.model_copy(update={"reward": paid})
    return params.phases[name], rl.model_copy(update={"prompts_per_step": 4, "method": method})


def learner_of(name: str) -> Learner:
    phase, rl = tried(name)
    return make_learner(PARENT, name, phase, rl, 0, teacher=TEACHER if rl.teacher else None)


@pytest.mark.parametrize("name", PRESETS)
def test_its_config_trains_and_resumes_to_the_same_bytes(name, built, monkeypatch):
    monkeypatch.chdir(built)
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
    resumed = State.from_state_dict(found, tensors)
    again = rl_step(other, resumed)
    assert resumed.state_dict() == state.state_dict()
    assert again["rl/loss"] == last["rl/loss"]
    for key, value in one.tensors().items():
        assert torch.equal(other.tensors()[key], value)
