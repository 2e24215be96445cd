"""What every preset of the RL step must hold to; a new one is checked as soon as it is listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rl_small import gradient, model64, off_policy_roll, pad_more, tiny_llama, with_facts

from benchmarks import methods_page
from trainorder.config import MethodConfig
from trainorder.config.presets import presets
from trainorder.rl import catalog, choosers, facts
from trainorder.rl.method import MODELS, Method
from trainorder.rl.registry import SLOTS
from trainorder.rl.rollouts import add_rewards
from trainorder.rl.types import State

ROOT = Path(__file__).parents[2]
PRESETS = presets()
NEUTRAL = [name for name, chosen in PRESETS.items() if chosen.neutral is not None]


def method_of(name: str, keys: Any = None) -> MethodConfig:
    return catalog.config_of(PRESETS[name], keys).method


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
    method, grades = Method.from_config(config), [1, 0, 1, 0, 1, 1, 1, 1, None, 0]
    roll = with_facts(off_policy_roll(model), method.needs)
    roll = add_rewards(roll, grades, method, State(total=1))
    return gradient(model, roll, config, models=models, **changes)


def assert_equal(one: Any, other: Any) -> None:
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PRESETS)
def test_micro_batches_padding_and_the_order_of_rows_change_no_gradient(name, model, models):
    config = method_of(name)
    roll = with_facts(off_policy_roll(model), Method.from_config(config).needs)
    whole = gradient(model, roll, config, models=models)
    mixed = pad_more(roll.rows([7, 3, 9, 0, 5, 1, 8, 2, 6, 4]), 2, junk=0.0)
    cut = gradient(model, mixed, config, budget=20, models=models)
    assert max(float(g.abs().max()) for g in whole[1]) > 1e-5
    assert_equal(whole, cut)


def test_every_entry_has_a_neutral_setting_or_says_why_it_has_none():
    rows = [*catalog.listing(), *catalog.rest()]
    unsaid = {row["name"] for row in rows if (row["neutral"] is None) != bool(row["no_neutral"])}
    assert not unsaid
    entries = [entry for listed in SLOTS.values() for entry in listed.values()]
    own = {e.name for e in entries if e.function.__module__.startswith("trainorder.")}
    assert not own & {row["name"] for row in rows if row["no_neutral"] == choosers.NOT_SAID}


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_neutral_setting_is_the_update_that_it_says(name, model, models):
    chosen = PRESETS[name]
    neutral = update_of(model, models, name, chosen.neutral)
    other = update_of(model, models, name, chosen.reduces_to)
    assert_equal(neutral, other)
    if name != "cispo":  # log p times the weight: the gradient of the ratio, but another number
        assert neutral[0]["loss"] == pytest.approx(other[0]["loss"], abs=1e-10)


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
