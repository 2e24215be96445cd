"""What one phase does to another's tasks: from the base, and along the orders that were run."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainorder.measure.evidence import Evidence
from trainorder.measure.scores import SPLITS


def transfer_views(evidence: Evidence) -> dict[str, Any]:
    """Two different matrices: transfer from the base, and changes along the orders that were run."""
    return {
        "from_base": {split: _from_base(evidence, split) for split in SPLITS},
        "after_training": {split: _along(evidence, split, after=True) for split in SPLITS},
        "before_training": {split: _along(evidence, split, after=False) for split in SPLITS},
    }


def _from_base(evidence: Evidence, split: str) -> dict[str, Any]:
    scores = evidence.scores[split]
    base = scores.of(evidence.design.bases)
    singles = evidence.design.singles
    return {phase: evidence.by_task(scores.of(nodes) - base) for phase, nodes in singles.items()}


def _along(evidence: Evidence, split: str, *, after: bool) -> dict[str, dict[str, Any]]:
    """Phase -> other phase -> the changes it made to the other's tasks, after or before the other was trained.

    A checkpoint that several orders share counts once.
    """
    design, scores = evidence.design, evidence.scores[split]
    changes: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for name, phases in design.order_phases.items():
        for seed in design.seeds:
            chain = design.chain(name, seed)
            for i, phase in enumerate(phases):
                parent, node = chain[i], chain[i + 1]
                moved = scores.values[node][0] - scores.values[parent][0]
                for other in dict.fromkeys(phases[:i] if after else phases[i + 1 :]):
                    found = changes.setdefault((phase, other), {})
                    change = float(moved[evidence.columns(other)].mean())
                    entry = {"node": node, "parent": parent, "seed": seed, "change": change}
                    found.setdefault(node, {**entry, "orders": []})["orders"].append(name)
    result: dict[str, dict[str, Any]] = {}
    for (phase, other), by_node in sorted(changes.items()):
        measured = [by_node[node] for node in sorted(by_node)]
        mean = float(np.mean([entry["change"] for entry in measured]))
        result.setdefault(phase, {})[other] = {
            "mean": mean,
            "n": len(measured),
            "changes": measured,
        }
    return result
