"""Problems at levels: prefixes of a demonstration, chains, masks, distractors; when the next level comes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from rl_small import make_roll

from trainorder.config import TaskConfig
from trainorder.data import draw_problems
from trainorder.reading import ParamsError
from trainorder.rl.method import bind
from trainorder.rl.types import State
from trainorder.rollout import Request
from trainorder.tasks import TASKS, make_task
from trainorder.tasks.base import Problem
from trainorder.tasks.transforms import HIDDEN, TRANSFORMS, chain, distractors, masks

STEPS = Problem("a/1", "a", "q", "<think> a ; b ; </think> <answer> c </answer>", None)
SUM = Problem("math/1", "math", "3 + 4 = ?", "", "", {"chain": [3, 4], "answer": "7"})
OTHER = Problem("math/2", "math", "9 - 5 = ?", "", "", {"chain": [9, -5], "answer": "4"})


def asked(piece: Any, requests: list[Request], state: State) -> list[Request]:
    return bind("plan", piece)(requests, state)


def test_r3_mixes_all_prefixes_but_never_gives_the_answer():
    state, found = State(total=9), Counter[Any]()
    for request in asked("reverse_curriculum", [Request(STEPS)] * 3000, state):
        found[request.problem.prompt] += 1
        assert (request.problem.gold, request.problem.id) == (STEPS.gold, STEPS.id)
    assert set(found) == {"q", "q a ;", "q a ; b ;"}
    assert all(900 < count < 1100 for count in found.values())


def test_staged_reverse_curriculum_moves_the_start_back_to_the_bare_problem():
    levels = []
    for step in range(6):
        state = State(total=6, step=step)
        piece = {"reverse_curriculum": {"mixed": False, "stages": 3}}
        [request] = asked(piece, [Request(STEPS)], state)
        levels.append(request.facts["level"])
    assert levels == [2, 2, 1, 1, 0, 0]


def test_a_chain_carries_the_answer_on_and_its_gold_scores_one():
    task = make_task("math", TaskConfig())
    for scale, wanted in ((1, "2"), (2, "9")):
        made = chain(SUM, 2, random.Random(0), [OTHER], scale=scale)
        assert made.meta["answer"] == wanted  # 3 + 4 = 7, times scale, - 5
        assert task.grade([made.gold or ""], [made])[0].value == 1.0
    assert chain(SUM, 1, random.Random(0), [OTHER]) == SUM


def test_numbers_without_a_chain_are_added_up_and_texts_are_refused():
    one = Problem("a/1", "a", "How many legs has a cat?", None, None, {"answer": "4"})
    made = chain(one, 2, random.Random(0), [replace(one, id="a/2", meta={"answer": "2.5"})])
    assert made.meta["answer"] == "6.5"
    assert "2) How many legs has a cat? Add up" in made.question
    with pytest.raises(ParamsError, match="needs problems whose meta `answer` is a number"):
        chain(replace(one, meta={"answer": "four"}), 2, random.Random(0))


def test_masks_never_begin_a_text_and_are_at_most_its_entities():
    text = "Paris lies on the Seine, near Reims and Rouen; 1990 was warm in Lyon."
    problem = Problem("a/1", "a", "q", None, text)
    made = masks(problem, 4, random.Random(0))
    assert len(made.meta[HIDDEN]) == 4
    assert "Paris" in made.question
    assert made.question.count("[mask]") == 5  # four, and the question
    few = masks(replace(problem, reference="He saw Rome and Pisa."), 4, random.Random(0))
    assert few.meta[HIDDEN] == ["Rome", "Pisa"]
    reward = bind("reward", "restored_masks")
    roll = replace(
        make_roll([0.0]), problem=[few], text=["<think> x </think> <answer> rome; x </answer>"]
    )
    assert reward(roll, State(total=1)).tolist() == [0.5]


def test_masks_grow_from_one_to_four_in_equal_parts_of_the_phase():
    text = "Paris lies on the Seine, near Reims and Rouen; 1990 was warm in Lyon."
    request = Request(Problem("a/1", "a", "q", None, text))
    plan = bind("plan", "mask_entities")
    for step, count in enumerate([1, 1, 2, 2, 3, 3, 4, 4]):
        (made,) = plan([request], State(total=8, step=step))
        assert made.problem is not None
        assert len(made.problem.meta[HIDDEN]) == made.facts["level"] == count


def test_distractors_keep_the_helpful_passage_until_the_last_level():
    problem = Problem("a/1", "a", "q", "g", None, {"passages": ["gold", "x", "y"]})
    draw = random.Random(0)
    assert distractors(problem, 0, draw).prompt == "gold\nq"
    both = [distractors(problem, 2, draw).prompt for _ in range(20)]
    assert all("gold" in text and text.count("\n") == 2 for text in both)
    last = [distractors(problem, 9, draw).prompt for _ in range(40)]
    assert any("gold" not in text for text in last)
    assert (
        distractors(replace(problem, meta={}), 1, draw, [problem, OTHER]).prompt
        == "( 9 - 5 = ? ) q"
    )


def seen(state: State, reward: float, rollouts: int = 8) -> None:
    state.mem["seen"] = {
        "a": {"rollouts": rollouts, "absadv": 0.0, "reward": reward, "entropy": 1.0}
    }


def test_levels_rise_by_steps_by_plateau_and_by_rate_once_per_step():
    def levels(options: dict[str, Any], rewards: list[float]) -> list[float]:
        state, found = State(total=len(rewards)), []
        for reward in rewards:
            for _ in range(2):  # a batch that is drawn again in the same step
                [request] = asked({"composed": options}, [Request(SUM)], state)
            found.append(request.facts["level"])
            seen(state, reward)
            state.step += 1
        return found

    assert levels({"every": 2, "last": 3}, [0.0] * 7) == [1, 1, 2, 2, 3, 3, 3]
    rising = [0.1, 0.2, 0.3, 0.3, 0.3, 0.3]
    assert levels({"promote": "plateau", "window": 3}, rising) == [1, 1, 1, 1, 1, 2]
    assert levels({"promote": "rate", "window": 16, "last": 2}, [0.5, 0.7, 0.9, 0.9]) == [
        1,
        1,
        2,
        2,
    ]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_probe_asks_the_same_problems_as_a_task(name: str):
    config = TaskConfig(
        kind="transformed", options={"transform": name, "level": 3}, train=20, dev=5, test=5
    )
    task = make_task("probe", config)
    problems = draw_problems("probe", task, config, 0)["test"]
    grades = task.grade([p.gold or "" for p in problems], problems)
    assert [grade.value for grade in grades] == [1.0] * 5
    assert [grade.value for grade in task.grade([""] * 5, problems)] == [0.0] * 5


def test_a_transformed_task_depends_on_the_code_of_the_task_that_it_transforms():
    task: Any = make_task(
        "p", TaskConfig(kind="transformed", options={"of": "code", "transform": "prefix"})
    )
    assert task.loads("p", build=False) == {TASKS["code"]}
    assert task.sandboxed is True


def test_what_a_transformed_task_is_not():
    for options, message in {
        ("transform", "chian"): r"no transform 'chian'.*did you mean 'chain'",
        ("level", 200): "level is from 0 to 100, got 200",
        ("of", "creative"): "needs a verifier",
    }.items():
        with pytest.raises(ParamsError, match=message):
            make_task("p", TaskConfig(kind="transformed", options=dict([options])))
