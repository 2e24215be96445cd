"""A folder with two built tasks, small random checkpoints and evaluations written by hand, for the tests of probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from trainorder import paths
from trainorder.config import PolicyConfig, parse_params
from trainorder.data import build
from trainorder.lineage import write_manifest
from trainorder.policy import Policy
from trainorder.tasks import load_problems

TASK = {"train": 6, "dev": 2, "test": 4, "demonstrations": 5}
SIZES = PolicyConfig(hidden_size=16, num_layers=2, num_heads=2, mlp_size=24, max_positions=160)
PARAMS = {
    "tasks": {"math": TASK, "qa": TASK},
    "phases": {"math": {"kind": "structured", "tasks": {"math": 1}, "steps": 1}},
    "orders": {"one": ["math"]},
}
Kept = Mapping[str, Sequence[tuple[str, float | None, Sequence[tuple[str, float | None]]]]]
"""Task -> of every problem the greedy answer, its score, and the samples with theirs."""


def build_folder() -> None:
    """Both tasks, `base`, and `one` and `two` trained from it, as far as random weights are training."""
    build(parse_params(PARAMS))
    checkpoint("base", 0)
    for number, node in enumerate(("one", "two"), 1):
        checkpoint(node, number, parent="base")


def checkpoint(node: str, seed: int, parent: str | None = None, scale: float = 0.02) -> None:
    """Random weights, or those of the parent with noise, and a manifest."""
    policy = Policy.build_tiny(SIZES, paths.TOKENIZER, seed)
    if parent is not None:
        noise = policy.model.state_dict()
        policy = Policy.load(paths.checkpoint(parent))
        with torch.no_grad():
            for name, weight in policy.model.named_parameters():
                weight.add_(noise[name], alpha=scale)
    policy.save(paths.checkpoint(node))
    write_manifest(node, seed=0, params={}, code="none", parents=[parent] if parent else [])


def right_and_wrong(flip: int = 0, more: int = 0) -> Kept:
    """Three samples a problem; the problems with an even number (after `flip`) and the first `more` are mostly right."""
    kept: dict[str, Any] = {}
    for task in ("math", "qa"):
        rows = []
        for i, problem in enumerate(load_problems(task, "test")):
            gold, wrong = problem.gold or "", f"it is {i} or so"
            good = (i + flip) % 2 == 0 or i < more
            samples = [(gold, 1.0), (gold if good else wrong, float(good)), (wrong, 0.0)]
            rows.append((gold if good else wrong, float(good), samples))
        kept[task] = rows
    return kept


def write_evaluation(
    node: str,
    kept: Kept,
    prompts: Mapping[str, Sequence[Any]] | None = None,
    dev: Mapping[str, float] | None = None,
) -> Path:
    """An evaluation as the stage writes it, of the metrics that probes read; `dev` is task -> score of its one dev problem."""
    rows, answers = [], []
    for task, problems in kept.items():
        score = (dev or {}).get(task, sum(score or 0.0 for _, score, _ in problems) / len(problems))
        for metric, value in (
            ("score", score),
            ("entropy_own", 1 - score),
            ("entropy_fixed", 2 - score),
        ):
            rows.append((node, 0, "dev", task, f"{task}/dev", metric, value))
    for task, problems in kept.items():
        known = [(p.id, p.prompt) for p in load_problems(task, "test")] if prompts is None else []
        known = known or [(f"{task}/{i}", p) for i, p in enumerate((prompts or {})[task])]
        for (name, prompt), (greedy, score, samples) in zip(known, problems, strict=True):
            scores = [s for _, s in samples if s is not None]
            values = {
                "greedy": score,
                "score": sum(scores) / len(scores),
                "length": sum(len(text.split()) for text, _ in samples) / len(samples),
            }
            rows += [(node, 0, "test", task, name, metric, v) for metric, v in values.items()]
            answers.append(
                {
                    "task": task,
                    "problem": name,
                    "prompt": prompt,
                    "answer": greedy,
                    "score": score,
                    "sampled": [text for text, _ in samples],
                    "scores": [s for _, s in samples],
                }
            )
    columns = ["node", "seed", "split", "task", "problem", "metric", "value"]
    table = pd.DataFrame(rows, columns=columns).astype({"value": "float64"})
    table.attrs["answers"] = answers
    file = paths.evaluation(node)
    file.parent.mkdir(exist_ok=True)
    table.to_parquet(file)
    return file
