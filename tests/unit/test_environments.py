"""Problems of reasoning-gym and verifiers: one seed, splits by content, full marks only, and a contract before anything is built."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from trainorder.config import TaskConfig
from trainorder.data import draw_problems
from trainorder.reading import ParamsError
from trainorder.tasks import make_task
from trainorder.tasks.base import SPLITS, Task, split_of
from trainorder.tasks.verifiers import problem_of, share

GYM = importlib.util.find_spec("reasoning_gym") is not None
needs_gym = pytest.mark.skipif(not GYM, reason="the extra `gym` is not installed")
EASY = {
    "family": "chain_sum",
    "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
}


def gym(**options: Any) -> Task:
    return make_task("mine", TaskConfig(kind="reasoning_gym", options=options))


def refused(**options: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        gym(**options).draw(random.Random(0))
    return str(caught.value)


@needs_gym
def test_gold_scores_one_and_only_full_marks_count() -> None:
    task = gym(family={"chain_sum": 2, "spell_backward": 1, "letter_counting": 1})
    rng = random.Random(0)
    problems = [task.draw(rng) for _ in range(30)]
    assert {p.meta["family"] for p in problems} == {
        "chain_sum",
        "spell_backward",
        "letter_counting",
    }
    golds = [p.gold or "" for p in problems]
    assert {r.value for r in task.grade(golds, problems)} == {1.0}
    assert {r.value for r in task.grade([""] * 30, problems)} == {0.0}
    assert {r.value for r in task.grade(["xyzzy"] * 30, problems)} == {0.0}
    answer = next(p for p in problems if p.meta["family"] == "chain_sum")
    number = (answer.gold or "").split()[1]
    [inside] = task.grade([f"well {number} or so"], [answer])
    assert inside.value == 0.0
    assert 0 < inside.parts["raw"] < 1
    whole = gym(family="chain_sum", binary=False)
    assert whole.grade([f"well {number} or so"], [answer])[0].value == inside.parts["raw"]


@needs_gym
def test_equal_questions_of_different_indices_are_one_problem_in_one_split() -> None:
    splits = draw_problems("mine", gym(**EASY), TaskConfig(train=20, dev=8, test=8), seed=0)
    questions = {split: {p.text for p in splits[split]} for split in SPLITS}
    assert [len(questions[split]) for split in SPLITS] == [20, 8, 8]
    assert not questions["train"] & (questions["dev"] | questions["test"])
    assert all(split_of(p.id) == split for split in SPLITS for p in splits[split])
    again = draw_problems("mine", gym(**EASY), TaskConfig(train=20, dev=8, test=8), seed=0)
    assert again == splits


@needs_gym
def test_levels_make_problems_harder() -> None:
    rng = random.Random(0)
    short, long = (
        max(len(gym(family="chain_sum", level=n, ask="").draw(rng).text) for _ in range(9))
        for n in (0, 5)
    )
    assert short < long
    assert "level of chain_sum is 0 to 10, got 99" in refused(
        family="chain_sum", level={"num_terms": 99}
    )
    assert "no attribute 'num_term' (did you mean 'num_terms'?)" in refused(
        family="chain_sum", level={"num_term": 1}
    )


@needs_gym
def test_families_that_break_the_contract_are_refused_by_name() -> None:
    text = refused(family="game_of_life_halting")
    assert (
        "the family 'game_of_life_halting' cannot be trained on: it gives full marks to 'xyzzy'"
        in text
    )
    assert (
        "the family 'prime_factorization' cannot be trained on: its grader fails on 'xyzzy'"
        in refused(family="prime_factorization")
    )
    assert "it gives points for an empty answer" in refused(family="countdown", binary=False)
    assert "no family 'chain_sums' (did you mean 'chain_sum'?)" in refused(family="chain_sums")
    assert "chain_sum has no setting 'min_term' (did you mean 'min_terms'?)" in refused(
        family="chain_sum", config={"min_term": 2}
    )
    with pytest.raises(ParamsError, match="name a family"):
        gym()


@needs_gym
def test_a_problem_of_another_release_is_not_graded() -> None:
    task = gym(**EASY)
    problem = task.draw(random.Random(0))
    card = task.card([problem])  # type: ignore[attr-defined]
    assert card["package"][0].isdigit()
    with pytest.raises(ParamsError, match=r"the data were built with 0\.0\.1"):
        gym(**EASY, package="0.0.1").grade(["1"], [problem])
    moved = problem.__class__(**{**vars(problem), "prompt": "another question"})
    with pytest.raises(ValueError, match="is another one than was built"):
        task.grade(["1"], [moved])


@dataclass
class Part:
    score: float
    weight: float


def test_weighted_rewards_are_a_share_of_the_positive_weights() -> None:
    both = {"right": Part(1.0, 2.0), "short": Part(0.5, 0.5), "long": Part(1.0, -0.25)}
    assert share(both, binary=False).value == pytest.approx((2 + 0.25 - 0.25) / 2.5)
    assert share(both, binary=True).value == 0.0
    assert share({"right": Part(1.0, 2.0)}, binary=True).value == 1.0
    assert share({"right": None}, binary=False).value is None
    assert share({}, binary=False).value is None


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    if importlib.util.find_spec("verifiers") is not None:
        pytest.skip("verifiers is installed")
    task = make_task("mine", TaskConfig(kind="verifiers", options={"taskset": "reverse_text"}))
    with pytest.raises(ParamsError, match=r"pip install 'trainorder\[verifiers\]'"):
        task.draw(random.Random(0))
    with pytest.raises(ParamsError, match="name an installed taskset"):
        make_task("mine", TaskConfig(kind="verifiers"))


TASKSET = """
import verifiers.v1 as vf
class Data(vf.TaskData):
    answer: str
class Words(vf.Task[Data]):
    @vf.reward(weight=2.0)
    async def right(self, task, trace{runtime}) -> float:
        return float(trace.last_reply.strip() == task.answer)
    @vf.reward(weight=0.5)
    async def short(self, trace) -> float:
        return float({short})
class Taskset(vf.Taskset[Words, vf.TasksetConfig]):
    def load(self):
        words = ["lamp", "dog", "cat", "tree", "moon", "star", "door", "seat"] * 2
        return [
            Words(Data(idx=i, prompt={prompt}, system_prompt="Be brief.", answer=w[::-1]), self.config.task)
            for i, w in enumerate(words)
        ]
__all__ = ["Taskset"]
"""


def taskset(folder: Path, name: str, **parts: str) -> Task:
    known = {"runtime": "", "short": "len(trace.last_reply) < 10", "prompt": "f'Reverse: {w}'"}
    text = TASKSET
    for key, value in {**known, **parts}.items():
        text = text.replace(f"{{{key}}}", value)
    (folder / f"{name}.py").write_text(text)
    return make_task("mine", TaskConfig(kind="verifiers", options={"taskset": name}))


class Data(BaseModel):
    idx: int
    prompt: str
    answer: str
    system_prompt: str | None = None


def test_tasks_of_one_question_are_of_one_split_and_distinct() -> None:
    made = [
        problem_of("mine", Data(idx=i, prompt=f"How many {word}?{end}", answer=str(i)), i)
        for word in ("seas", "lakes", "rivers", "ponds")
        for i, end in enumerate(["", " ", "\n"])
    ]
    assert len({problem.id for problem in made}) == len(made)
    by_question = [{split_of(problem.id) for problem in made[i : i + 3]} for i in range(0, 12, 3)]
    assert [len(splits) for splits in by_question] == [1] * 4
    again = problem_of("mine", Data(idx=7, prompt="How many seas?", answer="0"), 7)
    assert again.id == made[0].id  # its place in the taskset is no content


def test_single_turn_tasksets_are_read_once_each_and_scored_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("verifiers.v1")
    monkeypatch.syspath_prepend(tmp_path)
    task: Any = taskset(tmp_path, "tiny_words_good")
    found, _ = task.read("mine")
    problems = [problem for own in found.values() for problem in own]
    assert len(problems) == 8
    problem = next(p for p in problems if p.text.endswith("Reverse: lamp"))
    assert problem.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Reverse: lamp"},
    ]
    grades = task.grade(["pmal", "lamp", "not at all lamp", ""], [problem] * 4)
    assert [grade.value for grade in grades] == [1.0, 0.2, 0.0, 0.0]
    assert grades[1].parts == {"right": 0.0, "short": 1.0}


def test_tasksets_that_cannot_be_scored_offline_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("verifiers.v1")
    monkeypatch.syspath_prepend(tmp_path)
    refusals = {
        "tiny_words_runtime": ({"runtime": ", runtime"}, "rewards that need a runtime (right)"),
        "tiny_words_prompt": ({"prompt": "None"}, "task 0 has no prompt"),
        "tiny_words_paid": ({"short": "5.0"}, "gives full marks to 'xyzzy'"),
    }
    for name, (parts, reason) in refusals.items():
        task: Any = taskset(tmp_path, name, **parts)
        with pytest.raises(ParamsError) as caught:
            task.read("mine")
        assert reason in str(caught.value)
        assert name in str(caught.value)
    missing: Any = make_task("mine", TaskConfig(kind="verifiers", options={"taskset": "no_words"}))
    with pytest.raises(ParamsError, match="taskset 'no_words' cannot be loaded"):
        missing.read("mine")
