"""The pieces of the RL step that params.yaml names, found without importing torch, and teachers."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from trainorder.config import (
    ENGINE_OPTIONS,
    MethodConfig,
    ModelFolder,
    Params,
    PhaseConfig,
    Piece,
    RlConfig,
    values,
)
from trainorder.plan.check.common import check_kept, check_known, check_model_path
from trainorder.reading import ParamsError, did_you_mean, shown
from trainorder.registries import SLOT_OF, listed
from trainorder.tasks import make_task
from trainorder.tasks.posing import can_pose

LIBRARY = Path(__file__).parents[2]
RL = LIBRARY / "rl"
SOURCES = [
    *sorted((RL / "pieces").glob("*.py")),
    *(RL / f"{name}.py" for name in ("samplers", "items", "curricula")),
    *sorted((LIBRARY / "evaluation" / "ways").glob("*.py")),
]
"""Files that list pieces."""
MAX_OPTION = 1e9
"""Size of a number among a piece's options; what it means is the piece's."""


def check_teacher(where: str, rl: RlConfig) -> None:
    """Its folder; whether a node of the plan is meant is checked when the plan is compiled."""
    if isinstance(rl.teacher, ModelFolder):
        check_kept(f"{where}.rl.teacher", rl.teacher.path)
        check_model_path(rl.teacher.path, f"{where}.rl.teacher.path")
    for slot, name in rl.pieces() if rl.teacher is None else ():
        if (slot, name) in asking_teachers():
            given = [piece.get(name, {}) for piece in _options(rl.method) if name in piece]
            if any(
                options.get("model", "teacher").startswith("teacher") for options in given or [{}]
            ):
                raise ParamsError(
                    f"{where}.rl: {name!r} needs a teacher, and there is none: set rl.teacher to a node of the plan "
                    "(`s{seed}--math`) or to {path: FOLDER}"
                )


def _options(method: MethodConfig) -> list[dict[str, Any]]:
    """All pieces with options, those of single terms included."""
    found = [
        p for slot in SLOT_OF.values() for p in getattr(method, slot, ()) if isinstance(p, dict)
    ]
    own = [w for term in found for options in term.values() for w in options.get("weight") or ()]
    return found + [piece for piece in own if isinstance(piece, dict)]


@cache
def asking_teachers() -> frozenset[tuple[str, str]]:
    """(slot, piece) of those that need `rl.teacher` unless an option `model` names another model, read from the source."""
    found = set()
    for file in SOURCES:
        for slot, function in listed(ast.parse(file.read_text(encoding="utf-8"))):
            options = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
            defaults = {a.arg: ast.unparse(d) for a, d in options if d is not None}
            declared = " ".join(map(ast.unparse, function.decorator_list))
            answers = "answers:teacher" in declared or "teacher_rate" in declared
            if answers or defaults.get("model") == "'teacher'":
                found.add((slot, function.name))
    return frozenset(found)


def check_self_play(where: str, params: Params, phase: PhaseConfig) -> None:
    """A program verifies what the policy writes for its tasks."""
    for task in phase.tasks:
        if not can_pose(make_task(task, params.tasks[task])):
            raise ParamsError(
                f"{where}.rl.method: self_play writes problems, and no program verifies those of task {task!r}: take a task of "
                "kind math, or one of your own with a method `pose`"
            )


def check_method(where: str, method: MethodConfig) -> None:
    """Refuse unknown pieces and options of a method."""
    for slot in SLOT_OF.values():
        for piece in getattr(method, slot, ()):
            check_piece(f"{where}.{slot}", slot, piece)


def check_piece(where: str, slot: str, piece: Piece) -> None:
    """Refuse an unknown piece, an unknown option, and a value that cannot be one."""
    if isinstance(piece, dict) and len(piece) != 1:
        raise ParamsError(
            f"{where}: a piece is one name with its options, got {sorted(piece)}; make each a list item of its own"
        )
    name, given = (piece, {}) if isinstance(piece, str) else next(iter(piece.items()))
    listed = pieces()[slot]
    check_known(where, "piece", name, listed)
    allowed = sorted(listed[name])
    for option, value in given.items():
        if option not in allowed:
            takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            raise ParamsError(
                f"{where}.{name}: no option {option!r}; {takes}{did_you_mean(option, allowed)}"
            )
        if isinstance(value, int | float) and abs(value) > MAX_OPTION:
            raise ParamsError(
                f"{where}.{name}.{option}: at most {MAX_OPTION:g} is allowed, got {shown(value)}"
            )
        try:
            TypeAdapter(listed[name][option]).validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ParamsError(
                f"{where}.{name}.{option}: {message[0].lower()}{message[1:]}, got {shown(value)}"
            ) from None
        if (slot, option) == ("terms", "weight") and isinstance(value, list):
            for own in value:
                check_piece(f"{where}.{name}.weight", "weight", own)


@cache
def pieces() -> dict[str, dict[str, dict[str, Any]]]:
    """Slot -> piece -> option -> its type, read from the source: importing it would import torch."""
    found: dict[str, dict[str, dict[str, Any]]] = {slot: {} for slot in SLOT_OF.values()}
    for file in SOURCES:
        for slot, function in listed(ast.parse(file.read_text(encoding="utf-8"))):
            options = {a.arg: _type(a.annotation) for a in function.args.kwonlyargs}
            found[slot][function.name] = options | ENGINE_OPTIONS.get(slot, {})
    return found


def _type(annotation: ast.expr | None) -> Any:
    """The type an annotation names, as far as plain values and config/values.py go; anything else is left to the piece."""
    known = {"float": float, "int": int, "bool": bool, "str": str, "list": list, "Literal": Literal}
    known |= vars(values)
    try:
        text = "Any" if annotation is None else ast.unparse(annotation)
        return eval(text, {"__builtins__": {}}, {**known, "Any": Any, "None": None})
    except (NameError, TypeError):
        return Any
