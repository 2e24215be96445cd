"""Whether the user's own rows can be read and are as many as params.yaml asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainorder.config import Params
from trainorder.data import reserved_tokens, taken_rows
from trainorder.reading import ParamsError
from trainorder.rewards import grading
from trainorder.tasks import make_task
from trainorder.tasks.base import OwnRows
from trainorder.tasks.rows import Rows


def check(params: Params) -> None:
    """Read the rows of every task that has its own and compare their numbers with `train`, `dev` and `test`.

    Raises:
        ParamsError: too many rows cannot be used, or a file holds fewer than asked for.
    """
    for name, config in params.tasks.items():
        task = make_task(name, config)
        if isinstance(task, Rows):
            found = task.survey(name, reserved_tokens(params.policy))
            taken_rows(name, config, found["counts"])
            if task.reward:
                _check_reward(params, name, task)
        elif isinstance(task, OwnRows):
            read, _ = task.read(name, reserved_tokens(params.policy))
            taken_rows(name, config, {split: len(own) for split, own in read.items()})


def _check_reward(params: Params, name: str, task: Rows) -> None:
    """The user's function grades two answers to the first problem: the row's own, as text, and an empty one."""
    grading.configure(params.grading)
    problem = task.few(name, {})[0]
    label = problem.meta["label"]
    made: Any = task
    grades = grading.grade(made, ["" if label is None else str(label), ""], [problem] * 2)
    reasons = grading.shared().unscored.reasons.get(name)
    grading.configure(params.grading)
    if reasons and all(grade.value is None for grade in grades):
        raise ParamsError(
            f"tasks.{name}.reward: {task.reward} grades no answer to {problem.text[:80]!r}: {next(iter(reasons))}"
        )


def lines(params: Params) -> Iterator[str]:
    """What was recognised in the rows, a line or two for each task: format, tasks, graders, rows refused."""
    for name, config in params.tasks.items():
        task = make_task(name, config)
        if not isinstance(task, Rows):
            continue
        found = task.survey(name, reserved_tokens(params.policy))
        taken = taken_rows(name, config, found["counts"])
        graders = ", ".join(f"{key} {count}" for key, count in _most(found["graders"]))
        counts = ", ".join(f"{split} {taken[split]} of {found['counts'][split]}" for split in taken)
        called = [f"{key!r}" for key, _ in _most(found["named"])]
        yield f"tasks.{name}: {found['rows']} rows of {found['format']}; {counts}; graded by {graders}"
        origin = [f"the rows name {', '.join(called)}"] if called else []
        origin += (
            [f"{found['guessed']} rows name none: their answers decide"] if found["guessed"] else []
        )
        tasks = [f"{key} {count}" for key, count in _most(found["tasks"]) if key != name]
        origin += [f"tasks in the rows: {', '.join(tasks)}"] if tasks else []
        if origin:
            yield f"  {'; '.join(origin)}"
        if found["dropped"]:
            yield f"  {found['dropped']} rows refused: {'; '.join(found['reasons'][:2])}"


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    """The commonest six."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:6]
