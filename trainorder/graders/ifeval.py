"""ifeval: constraints on the form of an answer (arXiv 2311.07911), by the checkers of lm-eval (extra `eval`).

All of a row's constraints must hold. The checkers are loaded without lm-eval itself, which would import torch and ask the
network for nltk's data; where that is not on this machine, rows whose constraints count sentences or words are refused.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import types
from collections.abc import Mapping
from functools import cache
from typing import Any

from trainorder.graders import Answer, BadLabel, Grader
from trainorder.graders.labels import literal
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rewards import format

PACKAGE = ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval")


@cache
def checkers() -> dict[str, Any]:
    """Instruction id -> its checker, lm-eval's own classes.

    Raises:
        ParamsError: lm-eval or what its checkers import is not installed.
    """
    added = []
    try:
        import nltk
        from packaging.version import Version  # noqa: F401  (the checkers import it too)

        spec = importlib.util.find_spec("lm_eval")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("lm_eval")
        [home] = spec.submodule_search_locations
        for name in PACKAGE:
            if name not in sys.modules:
                module = types.ModuleType(name)
                module.__path__ = ["/".join([home, *name.split(".")[1:]])]
                sys.modules[name] = module
                added.append(name)
        download, nltk.download = nltk.download, lambda *_, **__: False
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # says that it downloaded something
                found = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry")
        finally:
            nltk.download = download
    except ImportError as error:
        raise ParamsError(
            f"the grader ifeval needs lm-eval and its checkers' packages ({error}): pip install 'trainorder[eval]'"
        ) from None
    finally:
        for name in added:  # a later import of lm-eval must get the real package
            sys.modules.pop(name, None)
    return dict(found.INSTRUCTION_DICT)


def _read(label: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """{"ids": [...], "kwargs": [...]} of a mapping, a list of one, or a text of either as JSON or as a Python literal."""
    found = literal(label)
    if isinstance(found, list) and len(found) == 1:
        found = literal(found[0])
    if not isinstance(found, Mapping):
        raise BadLabel(f"`instruction_id` and `kwargs` are needed, got {repr(label)[:60]}")
    ids = found.get("instruction_id", found.get("instruction_id_list"))
    ids = [ids] if isinstance(ids, str) else ids
    given = found.get("kwargs") or []
    given = [given] if isinstance(given, Mapping) else list(given)
    if not isinstance(ids, list) or not ids:
        raise BadLabel(f"`instruction_id` is needed, got {repr(label)[:60]}")
    known = sorted(checkers())
    for name in ids:
        if name not in known:
            raise BadLabel(f"no constraint {name!r}{did_you_mean(str(name), known)}")
    given += [None] * (len(ids) - len(given))
    # null-filled by parquet; lm-eval drops what is empty as well
    kwargs = [{key: value for key, value in (one or {}).items() if value} for one in given]
    label = {"ids": ids, "kwargs": kwargs}
    for name, own in zip(ids, kwargs, strict=True):
        needed = checkers()[name](name).get_instruction_args_keys()
        # lm-eval fills what is missing with random values: a grade would be chance
        if missing := [key for key in needed if key not in own]:
            raise BadLabel(f"constraint {name} needs {' and '.join(missing)}, not empty and not 0")
        try:
            kept = follows("One. Two.", "", name, own)
        except Exception as error:  # each checker validates in its own way, keywords are patterns
            raise BadLabel(f"constraint {name}: {type(error).__name__}: {error}") from None
        if kept is None:
            raise BadLabel(
                f"constraint {name} needs nltk's data: python -m nltk.downloader punkt punkt_tab"
            )
    return label


def _counts(own: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as integers: parquet makes floats of a column that has nulls."""
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in own.items()
    }


def follows(text: str, prompt: str, name: str, own: Mapping[str, Any]) -> bool | None:
    """Whether a text keeps one constraint, as lm-eval's strict reading has it; None where nltk's data is missing."""
    checker = checkers()[name](name)
    checker.build_description(**_counts(own))
    arguments = checker.get_instruction_args()
    if arguments and "prompt" in arguments:
        checker.build_description(prompt=prompt)
    try:
        return format.visible(text) and bool(checker.check_following(text))
    except LookupError:
        return None


def _grade(answer: Answer, label: dict[str, Any]) -> float | None:
    kept = [
        follows(answer.text.strip("\n"), answer.prompt, name, own)
        for name, own in zip(label["ids"], label["kwargs"], strict=True)
    ]
    if False in kept:
        return 0.0
    return None if None in kept else 1.0


IFEVAL = Grader(_read, _grade, lambda label: None, costly=True)
