"""function: a Python function of the user, `reward: mine.py:score`, in the signature of TRL or of verl.

    def score(completions, answer, **columns): ...                 # TRL: lists in, a list of values or None out
    def compute_score(data_source, solution_str, ground_truth, extra_info=None): ...   # verl: a value or {"score": value}

It runs in the verifiers' process, which has neither keys nor tokens in its environment, and can be killed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trainorder.graders import Answer
from trainorder.reading import ParamsError, did_you_mean

VERL = ("solution_str", "ground_truth")


@cache
def load(reward: str) -> Callable[..., Any]:
    """The function that `mine.py:score` names; the file's folder is where it imports from.

    Raises:
        ParamsError: no such file or function, or importing the file fails.
    """
    file, _, name = reward.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ParamsError(f"reward: no file {file!r}; write `file.py:function`, got {reward!r}")
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may do anything
        raise ParamsError(f"reward: {file} fails: {type(error).__name__}: {error}") from None
    found = getattr(module, name, None)
    if not callable(found):
        known = [n for n, value in vars(module).items() if inspect.isfunction(value)]
        raise ParamsError(
            f"reward: {file} has no function {name!r}; it has {', '.join(known) or 'none'}{did_you_mean(name, known)}"
        )
    return found


def call(
    reward: str, answer: Answer, prompt: Any, label: Any, columns: Mapping[str, Any]
) -> float | None:
    """What the function gives for one completion; None where it gives None or nan ("does not apply").

    Raises:
        ValueError: what it gives is no share in 0..1.
    """
    function = load(reward)
    names = inspect.signature(function).parameters
    if set(names) & set(VERL):
        given: dict[str, Any] = {
            "data_source": columns.get("data_source") or columns.get("source"),
            "solution_str": answer.completion,
            "ground_truth": label,
            "extra_info": columns.get("extra_info", columns),
        }
        value = function(**_taken(given, names))
        value = asyncio.run(value) if inspect.iscoroutine(value) else value
        value = value.get("score") if isinstance(value, Mapping) else value
    else:
        chat = isinstance(prompt, list)
        said = [{"role": "assistant", "content": answer.completion}] if chat else answer.completion
        more = {key: [item] for key, item in columns.items()}
        label_too = {
            key: [label] for key in ("answer", "solution", "ground_truth") if key not in more
        }
        given = {
            "prompts": [prompt],
            "completions": [said],
            "completion_ids": [[]],
            **more,
            **label_too,
        }
        values = function(**_taken(given, names))
        values = asyncio.run(values) if inspect.iscoroutine(values) else values
        [value] = values
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    value = float(value)
    if not 0 <= value <= 1:
        raise ValueError(f"{reward} must give a value in 0..1 or None, it gave {value}")
    return value


def _taken(given: Mapping[str, Any], names: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """All of it where the function takes any keyword, else what it names."""
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in names.values()):
        return dict(given)
    return {name: given[name] for name in names if name in given}
