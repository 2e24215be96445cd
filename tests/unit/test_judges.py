"""Judges by name and role: who gives rewards, who evaluates, and what depends on whom."""

from __future__ import annotations

import json
import math
import os
import shutil
import string
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import judge_server

from trainorder.config import (
    EndpointJudgeConfig,
    ModelJudgeConfig,
    Params,
    PolicyConfig,
    parse_params,
)
from trainorder.data import write_tokenizer
from trainorder.judges import load_judge
from trainorder.judges.endpoint import EndpointJudge
from trainorder.judges.model import ModelJudge
from trainorder.judges.questions import Pairwise, Rubric
from trainorder.judges.verdicts import CachedJudge, Verdicts
from trainorder.plan import compile_plan, judging, names
from trainorder.plan.check import check
from trainorder.policy import Policy
from trainorder.reading import ParamsError, read_yaml

SMOKE = read_yaml(Path(__file__).parents[2] / "configs/smoke.yaml")
URL = "http://127.0.0.1:8000/v1"
TASTE = {"kind": "preference", "prompts": 40, "heldout_prompts": 20, "role": "reward"}
REFEREE = {"kind": "endpoint", "base_url": URL, "model": "m", "role": "evaluation"}


def params(judges: dict[str, Any], **tasks: dict[str, Any]) -> Params:
    data = {key: value for key, value in SMOKE.items() if key != "judge"}
    known = {name: {**SMOKE["tasks"].get(name, {}), **tasks.get(name, {})} for name in {**SMOKE["tasks"], **tasks}}  # fmt: skip
    return parse_params({**data, "judges": judges, "tasks": known})


def refusal(judges: dict[str, Any], **tasks: dict[str, Any]) -> str:
    with pytest.raises(ParamsError) as caught:
        check(params(judges, **tasks))
    return str(caught.value)


def test_a_phase_reads_the_judge_that_rewards_and_an_evaluation_both():
    plan = compile_plan(params({"taste": TASTE, "referee": REFEREE}))
    check(plan.params)
    assert plan.judge_stages == ["plan/dvc.yaml:judge-taste", "plan/dvc.yaml:judge-referee"]
    creative = next(n for n in plan.nodes.values() if n.phase == "creative")
    files = plan.stages()[creative.stage]["deps"]
    assert [f for f in files if "judge" in f] == ["checkpoints/judge/taste"]
    exams = ["data/tasks", "checkpoints/judge/taste", "checkpoints/judge/referee"]
    assert plan.stages()["plan/s0/dvc.yaml:evaluate"]["deps"][3:] == exams
    code = {name: entry.targets for name, entry in plan.code().items()}
    endpoint = "trainorder.judges.endpoint:EndpointJudge"
    assert endpoint in code["judge_referee"] & code["evaluate"]
    assert endpoint not in code["judge_taste"] | code["phase_creative"] | code["phase_math"]


def test_the_short_form_is_two_preference_models_named_after_their_roles():
    short = compile_plan(parse_params(SMOKE))
    named = {role: {"kind": "preference", **SMOKE["judge"]} for role in ("reward", "evaluation")}
    long = compile_plan(params(named))
    assert long.data() == short.data()
    assert long.settings() == short.settings()
    commands = [short.stages()[f"plan/dvc.yaml:judge-{role}"]["cmd"] for role in named]
    assert [c.partition("--seed ")[2] for c in commands] == ["0 --first 0", "1 --first 100"]


def test_roles_that_change_hands_are_in_the_settings_of_phases_and_evaluations_only():
    judges = {"a": {**TASTE, "role": None}, "b": {**TASTE, "role": None}}
    one, other = (
        compile_plan(params(judges, creative={"judges": {"reward": x, "evaluation": y}})).settings()
        for x, y in ("ab", "ba")
    )
    assert {key for key in one if one[key] != other[key]} == {"phases", "evaluation"}
    changed = {name for name in one["phases"] if one["phases"][name] != other["phases"][name]}
    assert changed == {"creative", "joint"} & set(one["phases"])
    assert one["judges"] == other["judges"]


REFUSED = {
    "a kind": ({"taste": {**TASTE, "kind": "prefrence"}}, "judges.taste.kind: no kind 'prefrence'; there are preference, model, endpoint (did you mean 'preference'?)"),
    "no kind": ({"taste": {"prompts": 5}}, "judges.taste.kind: this key is required"),
    "a key": ({"taste": {**TASTE, "prompt": 5}}, "judges.taste: prompt: unknown key"),
    "no evaluation": ({"taste": TASTE}, "no judge has the role evaluation of task 'creative': give one judge `role: evaluation`"),
    "two rewards": ({"x": TASTE, "y": TASTE, "z": REFEREE}, "x, y all have the role reward"),
    "one in two roles": ({"reward": REFEREE | {"role": None}, "evaluation": REFEREE | {"role": None}}, "reward and evaluation would be the judge that gives rewards and the one that evaluates"),
    "nothing to judge": ({"taste": TASTE, "referee": REFEREE, "spare": REFEREE | {"role": None}}, "judges.spare: it judges nothing"),
    "few problems": ({"taste": TASTE | {"prompts": 5000}, "referee": REFEREE}, "judges.taste: prompts 5000 + heldout_prompts 20 need 5020 training problems"),
    "a key in clear": ({"taste": TASTE, "referee": REFEREE | {"base_url": "http://far.example/v1", "api_key_env": "KEY"}}, "judges.referee.base_url: http to far.example would send the key of KEY unencrypted"),
    "a scale": ({"taste": TASTE, "referee": REFEREE | {"rubric": "x", "scale": [5, 1]}}, "judges.referee.scale: the lowest score comes first, got [5, 1]"),
    "no digit": ({"taste": TASTE, "referee": REFEREE | {"rubric": "x", "scale": [1, 10]}}, "judges.referee: scale.1: input should be less than or equal to 9"),
    "no model": ({"taste": TASTE, "referee": {"kind": "model", "path": "./nowhere/lm", "role": "evaluation"}}, "judges.referee.path: "),
    "a task": ({"taste": TASTE | {"task": "math"}, "referee": REFEREE}, "judges.taste.task: 'math' is graded by its verifier"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_judges_that_cannot_work_are_one_clear_line(case: str):
    judges, message = REFUSED[case]
    assert message in refusal(judges)
    assert "\n" not in refusal(judges)


def test_a_task_names_judges_that_exist_and_only_if_it_is_judged():
    judges = {"taste": TASTE, "referee": REFEREE}
    text = refusal(judges, creative={"judges": {"reward": "tast"}})
    assert "tasks.creative.judges.reward: no judge 'tast'; there are taste, referee (did you mean 'taste'?)" in text  # fmt: skip
    assert "'math' is graded by its verifier; remove the key" in refusal(
        judges, math={"judges": {"reward": "taste"}}
    )
    both = {"creative": {"judges": {"reward": "referee", "evaluation": "referee"}}}
    assert "referee would be the judge" in refusal({"referee": REFEREE}, **both)
    check(params({"referee": REFEREE | {"same_in_both_roles": True, "role": None}}))


def test_the_plan_counts_the_calls_of_judges_that_are_asked():
    referee = {**REFEREE, "requests_per_minute": 60.0}
    plan = compile_plan(params({"taste": TASTE, "referee": referee}))
    stages = [*plan.judge_stages, *(n.stage for n in plan.nodes.values())]
    stages += [names.evaluation(node) for node in plan.nodes]
    stale = dict.fromkeys(stages, "stale")
    task, samples = plan.params.tasks["creative"], plan.params.evaluation.samples
    evaluated = len(plan.nodes) * (task.dev + task.test) * (samples + 1)
    agreement = 32 * 6
    assert judging.calls(plan, stale) == {"referee": 2 * (evaluated + agreement)}
    [line] = judging.lines(plan, stale)
    assert line.startswith(
        f"judge referee: at most {2 * (evaluated + agreement)} calls, each of about 246 tokens"
    )
    assert "h at 60 a minute" in line
    swapped = {
        "taste": {**TASTE, "role": "evaluation"},
        "referee": {**referee, "role": "reward", "rubric": "x"},
    }
    plan = compile_plan(params(swapped))
    phases = [
        n
        for n in plan.nodes.values()
        if n.phase and "creative" in plan.params.phases[n.phase].tasks
    ]
    rollouts = 0.0
    for node in phases:
        phase, rl = plan.params.phases[node.phase], plan.params.phase_rl(node.phase)
        share = phase.tasks["creative"] / sum(phase.tasks.values())
        rollouts += phase.steps * rl.prompts_per_step * rl.group_size * share
    rewarded = len(plan.nodes) * (task.dev + task.test) * samples
    assert judging.calls(plan, stale) == {"referee": math.ceil(rollouts + rewarded + 2 * agreement)}
    assert judging.calls(plan, dict.fromkeys(stages, "cached")) == {"referee": 0}


def test_the_short_form_beside_the_long_one_is_refused():
    data = {**SMOKE, "judges": {"taste": TASTE}}
    with pytest.raises(ParamsError, match="the short form of `judges`, which is given too"):
        check(parse_params(data))


@dataclass
class Counting:
    """A judge of one opinion per answer, which counts what it is asked and may fail for some answers."""

    identity: str = "0123456789abcdef"
    at_once: int = 2
    question: Pairwise = field(default_factory=Pairwise)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    shift: float = 0.0

    def win_probability(self, prompts, answers, references):
        self.counts["asked"] += len(answers)
        self.failures = ["nonsense" for answer in answers if answer == "?"]
        values = [len(answer) / 7 + self.shift for answer in answers]
        return [None if a == "?" else v for a, v in zip(answers, values, strict=True)]


def ask(judge: Any, *answers: str) -> list[float | None]:
    return judge.win_probability(["p"] * len(answers), answers, ["r"] * len(answers))


def test_a_verdict_is_asked_for_once_over_calls_processes_and_nodes(tmp_path: Path):
    plain, first, second = (
        Counting(),
        CachedJudge(Counting(), tmp_path),
        CachedJudge(Counting(), tmp_path),
    )
    wanted = ask(plain, "a", "bb", "a", "?", "ccc")
    assert ask(first, "a", "bb", "a", "?", "ccc") == wanted
    assert first.counts == {"asked": 4, "kept": 0}
    assert first.failures == ["nonsense"]
    assert ask(second, "ccc", "?", "bb", "dddd") == ask(plain, "ccc", "?", "bb", "dddd")
    assert second.counts == {"asked": 2, "kept": 2}  # what has no verdict is asked again
    assert ask(first, "dddd") == ask(plain, "dddd")  # read from the file
    assert first.counts["asked"] == 4


def test_two_processes_that_ask_at_once_agree_on_the_first_verdict(tmp_path: Path):
    one, other = CachedJudge(Counting(), tmp_path), CachedJudge(Counting(shift=0.1), tmp_path)
    key = one._key(("p", "a", "r"))
    one.verdicts.add({key: 0.25})  # appended while the other one is asking
    other.verdicts.add({key: 0.75})
    assert other.verdicts.get(key) == one.verdicts.get(key) == 0.25
    assert ask(other, "a") == [0.25]


def test_a_torn_line_is_no_verdict_and_spoils_none(tmp_path: Path):
    judge = CachedJudge(Counting(), tmp_path)
    values = ask(judge, "a", "bb")
    whole = judge.verdicts.path.read_bytes()
    for cut in (1, 20, 35, len(whole) - 1):
        judge.verdicts.path.write_bytes(whole[:cut])
        again = CachedJudge(Counting(), tmp_path)
        assert ask(again, "a", "bb") == values
        assert CachedJudge(Counting(), tmp_path).win_probability(["p"], ["bb"], ["r"]) == values[1:]
        assert ask(CachedJudge(Counting(), tmp_path), "a", "bb") == values


def test_verdicts_outlive_a_kill_while_they_are_appended(tmp_path: Path):
    source = """
from pathlib import Path
from trainorder.judges.verdicts import Verdicts
verdicts = Verdicts(Path("x"))
for number in range(100):
    verdicts.add({number.to_bytes(16, "big"): number / 100})
"""
    for passed in (3, 40):
        settings = {**os.environ, "TRAINORDER_FAIL_AT": f"verdicts.added:{passed}"}
        done = subprocess.run(
            [sys.executable, "-c", source], cwd=tmp_path, env=settings, check=False
        )
        assert done.returncode == -9
        verdicts = Verdicts(tmp_path / "x")
        verdicts.refresh()
        found = [verdicts.get(number.to_bytes(16, "big")) for number in range(100)]
        assert found == [*(n / 100 for n in range(passed)), *[None] * (100 - passed)]
        (tmp_path / "x").unlink()


def test_a_file_of_verdicts_stops_growing_at_its_bound(tmp_path: Path):
    verdicts = Verdicts(tmp_path / "x", most=100)
    for number in range(50):
        verdicts.add({number.to_bytes(16, "big"): 0.5})
    assert 100 <= (tmp_path / "x").stat().st_size < 151
    assert verdicts.get((49).to_bytes(16, "big")) == 0.5
    fresh = Verdicts(tmp_path / "x")
    fresh.refresh()
    assert (fresh.get((0).to_bytes(16, "big")), fresh.get((49).to_bytes(16, "big"))) == (0.5, None)


def test_the_reference_is_part_of_a_verdict_only_where_it_is_shown(tmp_path: Path):
    pair = CachedJudge(Counting(), tmp_path)
    assert pair._key(("p", "a", "r")) != pair._key(("p", "a", "s"))
    rubric = CachedJudge(Counting(question=Rubric("vivid?")), tmp_path)
    assert rubric._key(("p", "a", "r")) == rubric._key(("p", "a", "s"))
    assert rubric._key(("p", "a", "r")) != rubric._key(("p", "b", "r"))


SIZES = PolicyConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_size=24, max_positions=2048)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal LM with tokens for the replies."""
    root = tmp_path_factory.mktemp("model")
    letters = {f" {c}" for c in string.ascii_letters + string.digits} | set(
        string.ascii_letters + string.digits
    )
    write_tokenizer(root / "tokenizer", letters | {"sea", " sea", " wind"})
    Policy.build_tiny(SIZES, root / "tokenizer", seed=0).save(root / "lm")
    return root / "lm"


def local(model: Path, **changes: Any) -> ModelJudge:
    return ModelJudge(ModelJudgeConfig(path=str(model), min_mass=0.0, **changes))


def test_a_models_verdict_is_its_share_of_a_and_b_in_both_positions(model: Path):
    judge = local(model)
    [value] = judge.win_probability(["sea"], ["wind"], ["a sea"])
    policy, sides = Policy.load(model), []
    for chat, letter in zip(judge.question.chats("sea", "wind", "a sea"), "AB", strict=True):
        ids = policy.tokenizer(judge._rendered(chat), add_special_tokens=False)["input_ids"]
        shares = policy.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        said = {c: shares[[policy.tokenizer(f, add_special_tokens=False)["input_ids"][0] for f in (c, f" {c}")]].sum() for c in "AB"}  # fmt: skip
        sides.append((said[letter] / (said["A"] + said["B"])).item())
    assert value == pytest.approx(sum(sides) / 2, abs=1e-6)
    assert abs(sides[0] - 0.5) > 1e-4  # the model does prefer something
    assert judge.counts["asked"] == 2


def test_a_models_verdicts_are_mirrored_and_the_same_bits_alone_or_together(model: Path):
    judge = local(model)
    prompts, answers, references = ["sea"] * 3, ["a b", "wind", "sea sea"], ["c", "sea", "a"]
    values = judge.win_probability(prompts, answers, references)
    mirrored = judge.win_probability(prompts, references, answers)
    assert [v + m for v, m in zip(values, mirrored, strict=True)] == pytest.approx([1.0] * 3)
    rows = zip(prompts, answers, references, strict=True)
    assert [local(model).win_probability([p], [a], [r])[0] for p, a, r in rows] == values
    assert judge.win_probability(["sea"], ["a"], ["a"]) == [0.5]


def test_a_rubrics_score_is_the_expected_digit(model: Path):
    judge = local(model, rubric="Is it vivid?", scale=[0, 3])
    [value] = judge.win_probability(["sea"], ["wind"], [""])
    [chat] = judge.question.chats("sea", "wind", "")
    shares = judge._shares(chat)
    assert shares is not None
    assert value == pytest.approx(sum(i * p for i, p in enumerate(shares)) / sum(shares) / 3)
    assert "Is it vivid?" in chat[0]["content"]
    assert "0 (worst) to 3 (best)" in chat[1]["content"]


def test_a_model_that_would_say_something_else_or_cannot_read_it_all_gives_no_verdict(model: Path):
    strict = local(model).config.model_copy(update={"min_mass": 0.9})
    judge = ModelJudge(strict)
    assert judge.win_probability(["sea"], ["a"], ["b"]) == [None]
    assert judge.failures[0].startswith("the judge gives all of A, B the probability 0.0")
    short = local(model)
    assert short.win_probability(["sea"], ["a " * 3000], ["b"]) == [None]
    assert "the judge has 2048 positions, what it is asked has" in short.failures[0]


def test_a_models_identity_follows_all_that_decides_and_is_the_same_before_and_after_its_card(
    model: Path, tmp_path: Path
):
    judge = local(model)
    judge.save(tmp_path / "referee")
    loaded = load_judge(tmp_path / "referee")
    assert isinstance(loaded, CachedJudge)
    assert loaded.judge.identity == judge.identity
    assert json.loads((tmp_path / "referee/judge.json").read_text())["content"] == judge.content
    assert loaded.judge.win_probability(["p"], ["a"], ["b"]) == judge.win_probability(["p"], ["a"], ["b"])  # fmt: skip
    names = {judge.identity, local(model, instructions="Be kind.").identity}
    names |= {local(model, rubric="x").identity, local(model, rubric="x", scale=[1, 3]).identity}
    assert len(names) == 4


def test_a_model_that_changes_under_the_same_path_has_another_identity(model: Path, tmp_path: Path):
    place = shutil.copytree(model, tmp_path / "lm")
    names = {local(place).identity}
    (place / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    names.add(local(place).identity)
    (place / "tokenizer.json").write_text((place / "tokenizer.json").read_text() + " ")
    names.add(local(place).identity)
    (place / "config.json").write_text((place / "config.json").read_text() + " ")
    names.add(local(place).identity)
    Policy.build_tiny(SIZES, model.parent / "tokenizer", seed=1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other/model.safetensors", place)
    names.add(local(place).identity)
    assert len(names) == 5


def test_a_template_without_a_system_turn_is_asked_in_one_turn_and_other_faults_are_seen(
    model: Path,
):
    judge = local(model)
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    judge.policy.tokenizer.chat_template = refusing + "{{ messages[0].content }}"
    assert judge._rendered(chat) == "s\n\nu"
    judge.policy.tokenizer.chat_template = "{% if messages|length == 2 %}{{ 1 + 'x' }}{% endif %}"
    with pytest.raises(TypeError, match="unsupported operand"):
        judge._rendered(chat)


def test_a_tokenizer_without_the_replies_is_refused(tmp_path: Path):
    write_tokenizer(tmp_path / "tokenizer", {" sea"})
    Policy.build_tiny(SIZES, tmp_path / "tokenizer", seed=0).save(tmp_path / "lm")
    with pytest.raises(ParamsError, match="has no token for 'A', so its probability cannot be"):
        local(tmp_path / "lm").win_probability(["sea"], ["sea"], ["sea sea"])


def test_an_endpoint_scores_by_a_rubric_with_one_digit_and_nothing_else():
    with judge_server() as server:
        config = EndpointJudgeConfig(base_url=server.url, model="m", rubric="vivid?", scale=[1, 5])
        said = iter(["4", "9", " 5. ", "A"])
        server.trouble = lambda n, body: next(said)
        judge = EndpointJudge(config)
        values = [judge.win_probability(["p"], [a], [""])[0] for a in "abcd"]
    assert values == [0.75, None, 1.0, None]
    assert len(server.requests) == 4  # one position
    assert judge.failures == ["the judge's reply is not 1, 2, 3, 4 or 5"]
