"""Verifiers in a process of their own: what a bad one costs, what a good one pays, and when the stage stops."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from odd_task import Odd, OddProgram, OddPython

from trainorder.config import GradingConfig, TaskConfig
from trainorder.reading import ParamsError
from trainorder.rewards.grading import Grader, GradingError, Unscored, reached
from trainorder.rewards.sandbox import Isolation, Sandbox
from trainorder.rl.problems import TaskSet
from trainorder.streams import stream
from trainorder.tasks import TASKS as KINDS
from trainorder.tasks import make_task
from trainorder.tasks.base import Problem

OTHERS = {
    "jsonl",
    "rows",
    "reasoning_gym",
    "verifiers",
    "transformed",
}  # of the user, or of another task
TASKS = tuple(kind for kind in KINDS if kind not in OTHERS)
ROOT = Path(__file__).parents[2]
PROBLEM = Problem("odd/1", "odd", "p", "g", "g")


@pytest.fixture(scope="module")
def running() -> Iterator[Grader]:
    made = Grader(GradingConfig(seconds=1.0, max_unscored=1.0))
    yield made
    made.close()


@pytest.fixture
def grader(running: Grader) -> Grader:
    """One grader for all tests: whatever happened to its worker before must not matter."""
    running.unscored = Unscored(1.0)
    return running


def values(grader: Grader, *texts: str) -> list[float | None]:
    return [r.value for r in grader.grade(Odd(), texts, [PROBLEM] * len(texts))]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hang", "the verifier took over 1 s"),
        ("hang in C", "the verifier took over 1 s"),
        ("crash", "the verifier's process died twice"),
        ("exit", "the verifier's process died twice"),
        ("raise", "ValueError: no such unit"),
        ("recurse", "RecursionError"),
        ("memory", "MemoryError"),
        ("nan", "the verifier gave no grade"),
        ("none", "the verifier gave no grade"),
    ],
)
@pytest.mark.long("waits for verifiers that hang, and starts a process after each")
def test_a_bad_grade_costs_one_answer(grader: Grader, text: str, reason: str) -> None:
    assert values(grader, "a", "aa", text, "aaa") == [1.0, 0.0, None, 1.0]
    [(given, times)] = grader.unscored.reasons["odd"].items()
    assert given.startswith(reason)
    assert times == 1


@pytest.mark.long("waits for verifiers that hang, and starts a process after each")
def test_several_bad_grades_in_one_batch(grader: Grader) -> None:
    texts = ["hang", "a", "crash", "raise", "hang", "aa"]
    assert values(grader, *texts) == [None, 1.0, None, None, None, 0.0]


@pytest.mark.long("waits for a verifier that hangs, and starts processes")
def test_a_bad_grade_among_programs_graded_together_costs_one_answer(grader: Grader) -> None:
    texts = ["a", "aa", "raise", "a"] * 12 + ["crash", "a", "hang", "aa"]
    rewards = grader.grade(OddProgram(), texts, [PROBLEM] * len(texts))
    assert [r.value for r in rewards] == [1.0, 0.0, None, 1.0] * 12 + [None, 1.0, None, 0.0]
    assert grader.unscored.reasons["odd"] == {
        "ValueError: no such unit": 12,
        "the verifier's process died twice": 1,
        "the verifier took over 1 s": 1,
    }


def test_what_a_verifier_prints_is_no_grade(grader: Grader) -> None:
    assert values(grader, "aa", "print") == [0.0, 1.0]  # five letters


def test_a_worker_killed_from_outside_costs_nothing(grader: Grader) -> None:
    assert values(grader, "a") == [1.0]
    assert grader._worker is not None
    os.kill(grader._worker.pid, signal.SIGKILL)
    assert values(grader, "a", "aa") == [1.0, 0.0]
    assert not grader.unscored.reasons


def test_a_stopped_worker_costs_one_answer_and_time(grader: Grader) -> None:
    assert values(grader, "a") == [1.0]
    assert grader._worker is not None
    os.kill(grader._worker.pid, signal.SIGSTOP)
    assert values(grader, "a", "aa") == [None, 0.0]


def test_a_verifier_sees_no_key(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    grader.close()  # the next worker starts in an environment with the key
    assert values(grader, "environment") == [0.0]


def test_too_many_unscored_answers_stop_the_stage_with_the_reason() -> None:
    grader = Grader(GradingConfig(max_unscored=0.2))
    assert values(grader, *["a"] * 26, *["raise"] * 6).count(None) == 6  # 19 % of 32
    with pytest.raises(
        GradingError,
        match=r"26% of the last 35 answers of task 'odd'.*allows 20%: 9 x ValueError: no such unit",
    ):
        values(grader, *["raise"] * 3)
    grader.close()


def test_few_answers_stop_nothing() -> None:
    grader = Grader(GradingConfig(max_unscored=0.0))
    assert values(grader, "raise") == [None]
    grader.close()


def test_a_task_that_cannot_be_sent_is_refused(grader: Grader) -> None:
    class Local(Odd):
        pass

    with pytest.raises(ParamsError, match="Local cannot be sent"):
        grader.grade(Local(), ["a"], [PROBLEM])


@pytest.mark.parametrize("name", TASKS)
def test_the_worker_pays_what_the_task_pays(grader: Grader, name: str) -> None:
    task, rng = make_task(name, TaskConfig()), stream("grading", name)
    problems = [task.draw(rng) for _ in range(40)]
    texts = [task.demonstrate(p, rng) for p in problems] + ["", "\ud800 \x00", "x" * 300_000]
    problems += problems[:3]
    assert grader.grade(task, texts, problems) == task.grade(texts, problems)


def test_a_phase_grades_through_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = Grader(GradingConfig(seconds=1.0))
    monkeypatch.setattr("trainorder.rewards.grading._SHARED", grader)
    tasks = TaskSet({"odd": 1.0}, {"odd": Odd()}, {"odd": [PROBLEM]}, {"odd": 4})
    grades = tasks.grade([PROBLEM] * 3, ["a", "crash", "aa"])
    assert [grade.value for grade in grades] == [1.0, None, 0.0]
    grader.close()


def test_programs_below_the_wanted_isolation_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trainorder.rewards.sandbox.LEVELS", ("process", "filtered", "namespaces", "machine")
    )
    with pytest.raises(
        ParamsError,
        match=r"grading\.isolation: .*'machine', this machine reaches '(filtered|namespaces)'",
    ):
        reached("machine")


def test_the_isolation_is_found_out_once_per_level(monkeypatch: pytest.MonkeyPatch) -> None:
    started, check = list[str](), Sandbox.check

    def counted(sandbox: Sandbox) -> Isolation:
        started.append(sandbox.minimum)
        return check(sandbox)

    monkeypatch.setattr(Sandbox, "check", counted)
    grader = Grader(GradingConfig(isolation="process"))
    for task in (OddPython(), OddProgram(), OddPython(), Odd(), OddProgram()):
        assert (grader.isolation_for(task) is None) == (type(task) is Odd)
    assert sorted(started) == ["namespaces", "process"]


def test_an_answer_costs_far_less_than_a_process(grader: Grader) -> None:
    def seconds(answers: list[str]) -> float:
        started = time.perf_counter()
        values(grader, *answers)
        return time.perf_counter() - started

    grader.close()
    start_of_a_process = seconds(["a"])
    assert seconds(["a" * (n % 50) for n in range(2000)]) < 200 * start_of_a_process


def test_no_worker_is_left() -> None:
    grader = Grader(GradingConfig())
    values(grader, "a")
    assert grader._worker is not None
    pid = grader._worker.pid
    grader.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
