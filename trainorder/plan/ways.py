"""What the ways of `evaluation.ways` cost and read, from the source: importing them would import torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

from trainorder.config import EvaluationConfig
from trainorder.registries import listed

WAYS = Path(__file__).parents[1] / "evaluation" / "ways"


@cache
def declared() -> dict[str, dict[str, Any]]:
    """Way -> what its `@way(...)` says: `answers` per problem, and whether it asks the `base`."""
    found = {}
    for file in sorted(WAYS.glob("*.py")):
        for slot, function in listed(ast.parse(file.read_text(encoding="utf-8"))):
            (said,) = [d for d in function.decorator_list if isinstance(d, ast.Call)]
            assert slot == "ways"
            found[function.name] = {str(k.arg): ast.literal_eval(k.value) for k in said.keywords}
    return found


def asks_base(config: EvaluationConfig) -> bool:
    """Whether evaluations also ask the checkpoint that RL began at."""
    return any(declared()[name].get("base", False) for _, name in config.pieces())


def answers(config: EvaluationConfig) -> float:
    """Answers of full length that the ways sample per problem, beside the samples and the greedy one."""
    counts = [declared()[name].get("answers", 0.0) for _, name in sorted(config.pieces())]
    return float(sum(config.samples if count == "samples" else count for count in counts))
