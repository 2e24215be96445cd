"""What item samplers measure of problems is what the model says of them, and the step's own rollouts do not feel it."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_project import PARENT, TINY, build_parent

from trainorder.config import PhaseConfig, RlConfig
from trainorder.policy import Policy
from trainorder.rl.items import ITEMS
from trainorder.rl.learner import Learner
from trainorder.rl.looks import LOOKS, common, concentration, looking
from trainorder.rl.rollouts import StepRollouts
from trainorder.rl.step import rl_step
from trainorder.rl.trainer import make_learner
from trainorder.rl.types import State

TASK = {"train": 6, "dev": 2, "test": 2, "demonstrations": 5, "max_new_tokens": 32}
TEACHER = Path("checkpoints/teacher")


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("looks"))
        build_parent({"math": TASK})
        Policy.build_tiny(TINY, "data/tokenizer", 7).save(TEACHER)
        yield


def learner_of(items: Any = "shuffled", **keys: Any) -> Learner:
    phase = PhaseConfig(kind="structured", tasks={"math": 1.0}, steps=4)
    rl = RlConfig.model_validate({"prompts_per_step": 2, "group_size": 4, "items": items, **keys})
    return make_learner(PARENT, "math", phase, rl, 0, teacher=TEACHER if rl.teacher else None)


def measured(name: str, learner: Learner) -> tuple[list[float], StepRollouts]:
    rollouts = StepRollouts(learner, State(total=4, key=(0, "math")), defaultdict(float))
    with torch.no_grad():
        return looking(learner, rollouts)(name, learner.task_set.problems["math"]), rollouts


def test_the_loss_is_that_of_the_gold_text():
    learner = learner_of()
    found, rollouts = measured("loss", learner)
    policy = learner.policy
    for value, problem in zip(found, learner.task_set.problems["math"], strict=True):
        prompt = policy.encode_prompt(problem.prompt)
        [answer] = policy.encode_completions([problem.gold or ""])
        with torch.no_grad():
            logits = policy.model(torch.tensor([[*prompt, *answer]])).logits[0].float()
        logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        wanted = -logps[range(len(answer)), answer].mean()
        assert value == pytest.approx(float(wanted), abs=1e-4)
    assert rollouts.tokens == 0  # read, not sampled


def test_angles_are_those_of_the_question_and_of_what_stands_before_it_in_all():
    learner = learner_of()
    found, _ = measured("angle", learner)
    policy, problems = learner.policy, learner.task_set.problems["math"]
    prompts = policy.encode_prompts([p.prompt for p in problems])
    first, last = common(prompts), common([ids[::-1] for ids in prompts])
    assert first >= 1  # the token that begins a text
    assert last >= 1
    for value, ids in zip(found, prompts, strict=True):
        with torch.no_grad():
            states = policy.model.model(torch.tensor([ids])).last_hidden_state[0]
        wanted = concentration(states[first : len(ids) - last], states[:first])
        assert value == pytest.approx(wanted, abs=1e-3)


def test_rates_are_shares_and_entropies_are_bits_and_both_count_as_sampled():
    learner = learner_of()
    rates, rollouts = measured("rate", learner)
    assert all(4 * rate == int(4 * rate) for rate in rates)
    assert rollouts.tokens > 0
    bits, _ = measured("prefix_entropy", learner)
    vocabulary = len(learner.policy.tokenizer.get_vocab())
    assert all(0 < value <= math.log2(vocabulary) for value in bits)
    assert set(LOOKS) >= {look for item in ITEMS.values() for look in item.looks}


@pytest.mark.parametrize("items", ["cyclical", "learnability_gap"])
def test_a_step_trains_with_what_it_measures(items: str):
    teacher = {"teacher": {"path": str(TEACHER)}} if items == "learnability_gap" else {}
    learner, state = learner_of(items, **teacher), State(total=4, key=(0, "math"))
    lines = [rl_step(learner, state) for _ in range(2)]
    assert all(line["task/math/drawn"] == 2 for line in lines)
    assert lines[0]["perf/look_seconds"] > 0
    assert "perf/look_seconds" not in lines[1]  # measured once


def test_answers_of_a_step_do_not_depend_on_what_was_measured_in_it():
    asked = {}
    for cold in (False, True):
        learner, state = (
            learner_of({"cures": {"cold_start": cold, "temperature": 1e9}}),
            State(total=4),
        )
        rl_step(learner, state)
        asked[cold] = [row["answer"] for row in state.mem["rollouts"]]
    assert asked[True] == asked[False]
