"""What every entry of TASKS must keep; a new task is checked by being listed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from built_in_tasks import TASKS

from trainorder.config import TaskConfig
from trainorder.data import draw_problems
from trainorder.reading import ParamsError
from trainorder.streams import stream
from trainorder.tasks import make_task
from trainorder.tasks.base import SPLITS, Problem, Reward, Task, split_of

HOSTILE = [
    " ",
    "\n",
    "\x00",
    "<think>",
    "<answer> </answer>",
    "<think> </think> <answer> </answer>",
    "\u00e9 \u6f22\u5b57 \U0001f642 \u202e",
    "lone surrogate \ud800",
    "x" * 200_000,
    "word " * 50_000,
    "[" * 100_000,
    '{"a": ' * 50_000,
    "9" * 20_000,
    "<think> x </think> <answer> return " + "( " * 5_000 + "</answer>",
    "<think> x </think> <answer> return [ 0 ] * 10 ** 12 </answer>",
    "<think> x </think> <answer> \ud800 \x00 </answer>",
    "the the the the the the / the / . / /",
]


@cache
def task_of(name: str) -> Task:
    return make_task(name, TaskConfig())


@cache
def drawn(name: str) -> tuple[Problem, ...]:
    rng = stream("contract", name)
    return tuple(task_of(name).draw(rng) for _ in range(60))


def digest(name: str) -> str:
    """Everything a task can say for one key: problems, demonstrations, drills, grades."""
    task, rng = make_task(name, TaskConfig()), stream("digest", name)
    problems = [task.draw(rng) for _ in range(40)]
    texts = [task.demonstrate(problem, rng) for problem in problems]
    grades = [dataclasses.astuple(reward) for reward in task.grade(texts, problems)]
    rows = [dataclasses.asdict(problem) for problem in problems]
    said = json.dumps([rows, texts, grades, [task.drill(rng) for _ in range(20)]])
    return hashlib.sha256(said.encode()).hexdigest()


def values(rewards: list[Reward]) -> list[float | None]:
    return [reward.value for reward in rewards]


@pytest.mark.parametrize("name", TASKS)
def test_gold_scores_one(name: str) -> None:
    problems = drawn(name)
    assert values(task_of(name).grade([p.gold for p in problems], problems)) == [1.0] * 60


@pytest.mark.parametrize("name", TASKS)
def test_empty_scores_zero(name: str) -> None:
    assert values(task_of(name).grade([""] * 60, drawn(name))) == [0.0] * 60


@pytest.mark.parametrize("name", TASKS)
def test_hostile_completions_get_a_reward_between_zero_and_one_and_no_gold(name: str) -> None:
    for problem in drawn(name)[:5]:
        rewards = task_of(name).grade(HOSTILE, [problem] * len(HOSTILE))
        for text, reward in zip(HOSTILE, rewards, strict=True):
            assert reward.value is not None, text[:40]
            assert 0 <= reward.value < 1, text[:40]


@pytest.mark.parametrize("name", TASKS)
def test_rewards_and_their_parts_are_finite_shares(name: str) -> None:
    rng = stream("shares", name)
    problems = drawn(name)
    rewards = task_of(name).grade([task_of(name).demonstrate(p, rng) for p in problems], problems)
    for reward in rewards:
        assert reward.parts
        assert all(math.isfinite(x) and 0 <= x <= 1 for x in (reward.value, *reward.parts.values()))


@pytest.mark.parametrize("name", TASKS)
def test_demonstrations_are_noisy_but_not_noise(name: str) -> None:
    rng = stream("noise", name)
    problems = drawn(name) * 4
    rewards = task_of(name).grade([task_of(name).demonstrate(p, rng) for p in problems], problems)
    assert 0.35 < sum(reward.value for reward in rewards) / len(rewards) < 0.85


@pytest.mark.parametrize("name", TASKS)
def test_a_grade_depends_neither_on_the_batch_nor_on_its_order(name: str) -> None:
    task, rng = task_of(name), stream("order", name)
    pairs = [(task.demonstrate(p, rng), p) for p in drawn(name)[:20]] + [("", drawn(name)[0])]
    together = task.grade([text for text, _ in pairs], [p for _, p in pairs])
    order = list(range(len(pairs)))
    random.Random(0).shuffle(order)
    shuffled = task.grade([pairs[i][0] for i in order], [pairs[i][1] for i in order])
    assert [together[i] for i in order] == shuffled
    assert [task.grade([text], [p])[0] for text, p in pairs] == together


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_neither_prompts_nor_ids(name: str) -> None:
    splits = draw_problems(name, task_of(name), TaskConfig(train=300, dev=100, test=100), seed=0)
    assert [len(splits[split]) for split in SPLITS] == [300, 100, 100]
    assert len({p.id for split in SPLITS for p in splits[split]}) == 500
    seen = [{p.prompt for p in splits[split]} for split in SPLITS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert all(split_of(p.id) == split for split in SPLITS for p in splits[split])


@cache
def digests_elsewhere(hash_seed: str) -> dict[str, str]:
    code = "import json; from tests.contracts.test_tasks import *; print(json.dumps({n: digest(n) for n in TASKS}))"
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
@pytest.mark.parametrize("name", TASKS)
def test_every_process_makes_the_same_items(name: str, hash_seed: str) -> None:
    assert digests_elsewhere(hash_seed)[name] == digest(name)


@pytest.mark.parametrize("name", TASKS)
def test_a_problem_survives_its_json_line(name: str) -> None:
    for problem in drawn(name):
        assert Problem(**json.loads(json.dumps(dataclasses.asdict(problem)))) == problem


@pytest.mark.parametrize("name", TASKS)
def test_a_problem_says_whose_it_is_and_has_an_opponent(name: str) -> None:
    task = task_of(name)
    for problem in drawn(name):
        assert problem.task == name
        assert problem.id.startswith(f"{name}/")
        assert (problem.reference == problem.gold) == (task.rewarded_by == "verifier")


@pytest.mark.parametrize("name", TASKS)
def test_version_and_payer_are_set_and_no_options(name: str) -> None:
    assert task_of(name).version >= 1
    assert task_of(name).rewarded_by in ("verifier", "judge")
    for fixed in ({"version": 2}, {"rewarded_by": "judge"}):
        with pytest.raises(ParamsError, match="has no option"):
            make_task(name, TaskConfig(options=fixed))


@pytest.mark.parametrize("name", TASKS)
def test_texts_are_words_with_single_spaces_on_one_line(name: str) -> None:
    task, rng = task_of(name), stream("spaces", name)
    drills = [text for _ in range(20) if (text := task.drill(rng)) is not None]
    for problem in drawn(name):
        for text in (
            problem.prompt,
            problem.gold,
            problem.reference,
            task.demonstrate(problem, rng),
            *drills,
        ):
            assert text == " ".join(text.split())
