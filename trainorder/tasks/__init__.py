"""The tasks. A new one is a file here plus a line in TASKS; tests/contracts/test_tasks.py then checks it."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from trainorder import paths
from trainorder.reading import ParamsError, did_you_mean
from trainorder.tasks.base import SPLITS, Problem, Split, Task

if TYPE_CHECKING:  # the process that grades starts without it in a third of the time
    from trainorder.config import TaskConfig

TASKS: dict[str, str] = {
    "math": "trainorder.tasks.math:Math",
    "code": "trainorder.tasks.code:Code",
    "qa": "trainorder.tasks.qa:Qa",
    "constraints": "trainorder.tasks.constraints:Constraints",
    "creative": "trainorder.tasks.creative:Creative",
    "jsonl": "trainorder.tasks.jsonl:Jsonl",
    "rows": "trainorder.tasks.rows:Rows",
    "reasoning_gym": "trainorder.tasks.reasoning_gym:ReasoningGym",
    "verifiers": "trainorder.tasks.verifiers:Verifiers",
    "transformed": "trainorder.tasks.transformed:Transformed",
    "roles": "trainorder.tasks.roles:Roles",
}
"""Kind -> class. By name, so that one task's code is no dependency of another task's phases."""


_PROBLEM = TypeAdapter(Problem)


def make_task(name: str, config: TaskConfig) -> Task:
    """The task `name` of params.yaml with its options.

    Raises:
        ParamsError: unknown kind, unknown option, or a bad option value.
    """
    kind = kind_of(name, config)
    given = [*config.own_rows()]
    if given and kind != "rows":
        raise ParamsError(
            f"tasks.{name}.{given[0]}: only own rows have it, and kind is {kind!r}: add `data:` and take `kind:` out"
        )
    if kind == "rows" and config.data is None:
        raise ParamsError(
            f"tasks.{name}.data: name the file, folder or data set that holds the rows"
        )
    options = options_of(config)
    if kind == "rows":
        taken = {split: getattr(config, split) for split in SPLITS}
        options |= {"taken": taken, "name": name}
    return _make(name, kind, options)


def kind_of(name: str, config: TaskConfig) -> str:
    """The kind of a task: the one it names, rows where it names `data`, else its own name."""
    return config.kind or ("rows" if config.data is not None else name)


def options_of(config: TaskConfig) -> dict[str, Any]:
    """The options of a task's kind, the keys of own rows among them."""
    return {**config.options, **config.own_rows()}


def load_task(task: str) -> Task:
    """The task as data/tasks was built with; needs no params.

    Raises:
        ParamsError: not built, or built by another version of the task.
    """
    path = paths.TASK_DATA / task / "task.json"
    if not path.is_file():
        raise ParamsError(
            f"{path} not found: task {task!r} is not built; run `dvc repro build_data`"
        )
    card = json.loads(path.read_text(encoding="utf-8"))
    made = _make(task, card["kind"], card["options"])
    if made.version != card["version"]:
        raise ParamsError(
            f"{path} was built by version {card['version']} of {card['kind']!r}, the code is version "
            f"{made.version}: run `dvc repro build_data`"
        )
    return made


def built_tasks() -> list[str]:
    """Names of the tasks under data/tasks, sorted."""
    return sorted(card.parent.name for card in paths.TASK_DATA.glob("*/task.json"))


def judged(tasks: Iterable[str]) -> list[str]:
    """Those of these built tasks whose answers judges score.

    Raises:
        ParamsError: one is not built.
    """
    return [task for task in tasks if load_task(task).rewarded_by == "judge"]


def load_problems(task: str, split: Split) -> list[Problem]:
    """The problems of one split, in the order they were built.

    Raises:
        ParamsError: the file is missing, or a line is no problem; names file, line and what came.
    """
    path = paths.TASK_DATA / task / f"{split}.jsonl"
    if not path.is_file():
        raise ParamsError(
            f"{path} not found: task {task!r} is not built; run `dvc repro build_data`"
        )
    lines = path.read_text(encoding="utf-8").split("\n")
    return [_read_problem(path, number, line) for number, line in enumerate(lines, start=1) if line]


def _make(name: str, kind: str, options: dict[str, Any]) -> Task:
    where = f"tasks.{name}"
    if kind not in TASKS:
        kinds = sorted(TASKS)
        raise ParamsError(
            f"{where}: no task kind {kind!r}; there are {', '.join(kinds)}{did_you_mean(kind, kinds)}"
        )
    module, _, attribute = TASKS[kind].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    allowed = sorted(f.name for f in dataclasses.fields(cls) if f.init)
    hints = get_type_hints(cls)
    for option, value in options.items():
        if option not in allowed:
            hint = did_you_mean(option, allowed)
            raise ParamsError(
                f"{where}.options: {kind} has no option {option!r}; it takes {', '.join(allowed) or 'none'}{hint}"
            )
        _check_type(f"{where}.options.{option}", hints[option], value)
    try:
        return cls(**options)
    except ValueError as error:
        raise ParamsError(f"{where}.options: {error}") from None


def _check_type(where: str, hint: Any, value: Any) -> None:
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ParamsError(f"{where}: {message[0].lower()}{message[1:]}, got {value!r}") from None


def _read_problem(path: Path, number: int, line: str) -> Problem:
    try:
        return _PROBLEM.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{key}: {first['msg']}" if key else first["msg"]
        raise ParamsError(
            f"{path}, line {number}: not a problem ({reason}), got {line[:80]!r}"
        ) from None
