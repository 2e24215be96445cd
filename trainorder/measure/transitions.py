"""What one phase does to another's tasks, from the base and along the orders; the order this recommends; its prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder import order as ordering
from trainorder.measure.evidence import Evidence
from trainorder.measure.scores import SPLITS
from trainorder.metrics import statistics
from trainorder.streams import numpy_stream


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


def recommended(evidence: Evidence) -> dict[str, Any] | None:
    """The order that the dev transfer from the base recommends, and whether it is identified; None without singles."""
    design, scores = evidence.design, evidence.scores["dev"]
    if not design.singles:
        return None
    phases = list(design.singles)
    base = scores.of(design.bases)
    after = np.stack([scores.of(design.singles[phase]) for phase in phases], axis=-2)
    per_seed = ordering.gains(base, after, [evidence.columns(phase) for phase in phases])
    gain = statistics.over_seeds(per_seed, evidence.seed_draws)
    rng = numpy_stream("measure", evidence.config.seed, "order")
    found = ordering.recommend(gain, level=evidence.config.level, rng=rng)
    return _recommendation(evidence, phases, gain, per_seed, found)


def _recommendation(
    evidence: Evidence,
    phases: list[str],
    gain: Float[np.ndarray, "draw phase phase"],
    per_seed: Float[np.ndarray, "seed draw phase phase"],
    found: ordering.Recommendation,
) -> dict[str, Any]:
    def names(order: Sequence[int]) -> list[str]:
        return [phases[i] for i in order]

    def table(value: Callable[[int, int], float]) -> dict[str, dict[str, float]]:
        pairs = [(i, j) for i in range(len(phases)) for j in range(len(phases)) if i != j]
        result: dict[str, dict[str, float]] = {phase: {} for phase in phases}
        for i, j in pairs:
            result[phases[i]][phases[j]] = float(value(i, j))
        return result

    backwards = ordering.order_value(per_seed, found.order[::-1])
    gap = np.asarray(ordering.order_value(per_seed, found.order) - backwards)
    return {
        "order": names(found.order),
        "reverse": names(found.order[::-1]),
        "value": found.value,
        "reverse_value": found.reverse_value,
        "random_value": found.random_value,
        "borda": {"order": names(found.borda), "value": found.borda_value},
        "gain": table(lambda j, k: gain[0, j, k]),
        "p_optimal": found.p_optimal,
        "most_probable": {"order": names(found.most_probable), "p": found.p_most_probable},
        "regret": found.regret,
        "before": table(lambda i, j: found.before[i, j]),
        "undecided": [
            [phases[i], phases[j]]
            for i, j in combinations(found.order, 2)
            if found.before[i, j] < evidence.config.level
        ],
        "gap": evidence.interval(gap),
        "p_no_order": found.p_no_order,
        "verdict": "identified" if found.identified else "not identified",
        "reasons": list(found.reasons),
        "method": "exact" if len(phases) <= ordering.EXACT else "heuristic",
        "split": "dev",
    }


def prediction(evidence: Evidence) -> dict[str, Any]:
    """Final test means that the additive model predicts from dev transfer, beside the measured ones."""
    design = evidence.design
    predictable = {
        name: phases
        for name, phases in design.order_phases.items()
        if all(phase in design.singles for phase in phases)
    }
    rows = {name: _predicted(evidence, name, phases) for name, phases in predictable.items()}
    distinct = {design.order_phases[name]: row for name, row in rows.items()}.values()
    pairs = [(row["predicted"]["value"], row["measured"]["value"]) for row in distinct]
    enough = len(pairs) >= 3
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    return {
        "orders": rows,
        "n": len(pairs),
        "pearson": statistics.pearson(x, y) if enough else None,
        "spearman": statistics.spearman(x, y) if enough else None,
        "mean_error": float((x - y).mean()) if pairs else None,
        "note": "predicted from dev transfer, assuming that effects of phases add up and that training a task brings "
        "it back to its own best; correlations need 3 or more different orders",
    }


def _predicted(evidence: Evidence, name: str, phases: Sequence[str]) -> dict[str, Any]:
    design, dev = evidence.design, evidence.scores["dev"]
    after = {phase: dev.of(design.singles[phase]) for phase in phases}
    columns = {phase: evidence.columns(phase) for phase in phases}
    final = design.position(name, len(phases))
    predicted = ordering.predict(dev.of(design.bases), after, phases, columns)
    mean = evidence.interval(predicted[..., evidence.trained].mean(-1))
    measured = evidence.interval(evidence.mean_score("test", final))
    assert mean is not None
    assert measured is not None
    at_end = evidence.scores["test"].of(final)[:, 0].mean(0)
    return {
        "predicted": mean,
        "measured": measured,
        "measured_dev": float(evidence.mean_score("dev", final)[:, 0].mean()),
        "error": mean["value"] - measured["value"],
        "tasks": {
            task: {"predicted": float(predicted[:, 0, i].mean()), "measured": float(at_end[i])}
            for i, task in enumerate(evidence.tasks)
        },
    }
