"""How a model of the user's is asked and where its answers end: `policy.system`, `chat_template_kwargs`, ... in every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from foreign_model import CHAT, byte_tokenizer, copy, edit_json, write_model

from trainorder import paths
from trainorder.config import EvaluationConfig, PolicyConfig, parse_params
from trainorder.evaluation.answering import Exam, engine_for, sample
from trainorder.plan.check import check
from trainorder.plan.compile import compile_plan
from trainorder.policy import Policy, template_defaults
from trainorder.preflight import model as preflight
from trainorder.reading import ParamsError
from trainorder.tasks import make_task
from trainorder.tasks.base import Problem

THINKS = CHAT + "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
SYSTEM = 'Answer "briefly":\n{{ not a variable }} {% nor a block %} \u00e9\U0001f600'


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("good") / "model")
    (folder / "chat_template.jinja").unlink()
    byte_tokenizer(THINKS).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(path: Path, **policy: Any) -> Policy:
    return Policy.start(PolicyConfig(path=str(path), **policy))


def params(path: Path, **policy: Any) -> Any:
    return parse_params(
        {
            "policy": {"path": str(path), **policy},
            "tasks": {"math": {"max_new_tokens": 200}},
            "phases": {"math": {"kind": "structured", "tasks": {"math": 1.0}, "steps": 1}},
            "orders": {"one": ["math"]},
        }
    )


def test_a_system_message_stands_before_prompts_that_have_none(good: Path):
    policy = start(good, system=SYSTEM)
    assert policy.render("hi") == f"<s>[system] {SYSTEM}\n[user] hi\n[assistant] "
    own: Any = [{"role": "system", "content": "mine"}, {"role": "user", "content": "hi"}]
    assert policy.render(own) == "<s>[system] mine\n[user] hi\n[assistant] "
    assert policy.decode(policy.encode_prompt("hi")) == policy.render("hi").removeprefix("<s>")


def test_variables_of_the_template_are_set_where_nobody_else_sets_them(good: Path):
    assert start(good).render("hi").endswith("[assistant] ")
    policy = start(good, chat_template_kwargs={"enable_thinking": True})
    assert policy.render("hi").endswith("[assistant] <think>")
    chat = [{"role": "user", "content": "hi"}]
    theirs: Any = policy.tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert theirs.endswith("[assistant] ")
    shown = "{{ a.b[0] is none }} {{ a.b[1] }} {{ c }}"
    Path("own.jinja").write_text(shown + CHAT)
    values = {"a": {"b": [None, True]}, "c": 'it\'s \\ "x"\n%} }}'}
    policy = start(good, chat_template="own.jinja", chat_template_kwargs=values)
    assert policy.render("hi") == f"True True {values['c']}<s>[user] hi\n[assistant] "


@pytest.mark.parametrize("node", ["whole", "model", "adapter"])
def test_every_checkpoint_is_asked_and_ends_as_its_base(good: Path, node: str):
    model = copy(good, Path("mine"))
    edit_json(model / "generation_config.json", eos_token_id=[2, 9])
    policy = start(model, system="be brief", generation_config="ignore")
    assert policy.stop_ids == {2}
    assert start(model).stop_ids == {2, 9}
    base = paths.checkpoint("base")
    if node == "whole":
        policy.save(base)
        found = Policy.load(base)
    else:
        policy.save_as_model_node(base, "mine")
        found = Policy.load(base)
    if node == "adapter":
        from trainorder.config import LoraConfig
        from trainorder.rl.adapters import add_adapters, save_node

        add_adapters(found.model, LoraConfig(rank=2), 0)
        tensors = {n: p for n, p in found.model.named_parameters() if p.requires_grad}
        save_node(paths.checkpoint("s0--a"), base, tensors, LoraConfig(rank=2))
        found = Policy.load(paths.checkpoint("s0--a"))
    assert found.render("hi") == "<s>[system] be brief\n[user] hi\n[assistant] "
    assert found.stop_ids == {2}


def test_an_end_token_may_stand_in_the_generation_config_alone(good: Path):
    model = copy(good, Path("mine"))
    edit_json(model / "tokenizer_config.json", eos_token=None)
    edit_json(model / "generation_config.json", eos_token_id=[2, 9])
    assert start(model).eos_id == 2
    preflight.check(params(model))
    edit_json(model / "generation_config.json", eos_token_id=None)
    edit_json(model / "config.json", eos_token_id=None)
    with pytest.raises(
        ParamsError, match=r"no end token \(eos_token\), and generation_config\.json none"
    ):
        preflight.check(params(model))


def test_a_template_that_is_needed_and_missing_is_refused_in_one_line(good: Path):
    model = copy(good, Path("mine"))
    (model / "chat_template.jinja").unlink()
    preflight.check(params(model))  # prompts of one turn need none
    with pytest.raises(
        ParamsError,
        match=r"no \(default\) chat template for policy\.system .*policy\.chat_template",
    ):
        preflight.check(params(model, system="be brief"))
    Path("own.jinja").write_text(CHAT)
    preflight.check(params(model, system="be brief", chat_template="own.jinja"))
    refused = {
        "no file 'none.jinja'": {"chat_template": "none.jinja"},
        r"'a b' is no name of a template's variable": {"chat_template_kwargs": {"a b": 1}},
    }
    for message, policy in refused.items():
        with pytest.raises(ParamsError, match=message):
            check(params(model, **policy))
    with pytest.raises(ParamsError, match=r"policy\.system is of a model named by policy\.path"):
        check(parse_params({**params(model).model_dump(), "policy": {"system": "be brief"}}))


def test_what_is_not_asked_for_is_in_no_stages_params(good: Path):
    planned = compile_plan(params(good)).settings()
    assert not {"system", "chat_template", "generation_config"} & planned["policy"].keys()
    assert "temperature" not in planned["evaluation"]
    Path("own.jinja").write_text(CHAT)
    first = compile_plan(params(good, chat_template="own.jinja")).settings()["policy"]
    Path("own.jinja").write_text(CHAT + " ")
    assert compile_plan(params(good, chat_template="own.jinja")).settings()["policy"] != first


def test_an_evaluation_samples_at_its_temperature(good: Path):
    policy = start(good)
    policy.model.lm_head.weight.data *= 20  # a random model's logits are all alike
    problems = [
        Problem(f"math/{n}", "math", f"what is {n} + 1 ?", str(n + 1), "") for n in range(3)
    ]
    task = make_task("math", params(good).tasks["math"])
    exam = Exam("math", "test", task, problems, max_new_tokens=6)
    engine = engine_for(policy, [exam])

    def sureness(temperature: float) -> float:
        config = EvaluationConfig(samples=3, temperature=temperature)
        done = sample(engine, exam, config)
        return (done.logps.sum() / done.loss_mask.sum()).item()

    assert sureness(0.01) > -0.5  # log p of what was drawn, nats per token
    assert -5.6 < sureness(1.0) < -3  # 264 words: -5.58 if all are alike
    assert template_defaults(None, {}) == ""
