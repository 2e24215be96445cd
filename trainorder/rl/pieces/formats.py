"""Rewards of the form of an answer: tags, and JSON of a given schema."""

from __future__ import annotations

import json
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from trainorder.rewards import format
from trainorder.rl.registry import reward
from trainorder.rl.types import Roll, State

JsonType = Literal["string", "number", "boolean", "array", "object"]
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@reward
def keeps_format(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """1 where the text is exactly `<think> ... </think> <answer> ... </answer>`, else 0 (format reward of DeepSeek-R1, arXiv:2501.12948)."""
    kept = [float(format.parse(text) is not None) for text in roll.text]
    return roll.rewards.new_tensor(kept)


@reward
def json_structure(
    roll: Roll,
    state: State,
    *,
    keys: dict[str, JsonType] | None = None,
    parse: float = 0.25,
    schema: float = 0.25,
    types: float = 0.2,
    content: float = 0.25,
    length: float = 0.05,
    max_length: int = 512,
) -> Float[Tensor, " row"]:
    """Levels of a JSON answer, summed: it parses, has the keys, of the right types, is right, is short (arXiv:2512.00319).

    RL-Struct's hierarchy of structure, format, validity, correctness and length. `keys` maps each key that the object must
    have to its type; `types` counts in proportion. `content` counts times the grade, `length` where the answer has at
    most `max_length` tokens. What does not parse gets 0, all keys missing leave only `parse` and `length`. The object is
    the answer (in tags or a box) or else the whole text. Only the paper's abstract was read, and a third party says that
    its authors withdrew it: the order of the levels is its, all weights and exact checks are ours.
    """
    found = []
    wanted = keys or {}
    rows = zip(roll.text, roll.row_facts["graded"].tolist(), roll.lengths().tolist(), strict=True)
    for text, grade, tokens in rows:
        known = _object(format.answer(text) or text)
        if known is None:
            found.append(0.0)
            continue
        there = all(key in known for key in wanted)
        right = [_is(known[key], kind) for key, kind in wanted.items() if key in known]
        typed = sum(right) / len(wanted) if wanted else 1.0
        found.append(
            parse
            + schema * there
            + types * typed
            + content * grade * there
            + length * (tokens <= max_length)
        )
    return roll.rewards.new_tensor(found)


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; None where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is(value: Any, kind: str) -> bool:
    """Whether a JSON value is of the type; true and false are no numbers."""
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
