"""What each order kept: its reward matrix, the continual-learning measures of it, and all metrics along it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder.measure.evidence import Evidence, mean_metrics
from trainorder.measure.ranking import joint_arm
from trainorder.measure.scores import SPLITS
from trainorder.metrics import transfer

Rows = list[list[float]]


def orders(evidence: Evidence) -> dict[str, Any]:
    """Everything about every order."""
    return {name: _order(evidence, name) for name in evidence.design.orders}


def _order(evidence: Evidence, name: str) -> dict[str, Any]:
    design = evidence.design
    phases = design.order_phases[name]
    kinds = {arm.name: arm.kind for arm in design.arms()}
    by_seed = {seed: reward_matrix(evidence, name, seed) for seed in design.seeds}
    return {
        "kind": kinds[name],
        "phases": list(phases),
        "positions": [list(design.phase_tasks[phase]) for phase in phases],
        "reverse": design.reverse_of(name),
        "nodes": {str(seed): list(design.chain(name, seed)) for seed in design.seeds},
        "R": {
            split: np.mean([matrices[split] for matrices in by_seed.values()], axis=0).tolist()
            for split in SPLITS
        },
        "R_seeds": {str(seed): matrices for seed, matrices in by_seed.items()},
        "measures": {split: measures(evidence, name, split) for split in SPLITS},
        "forgetting_of_noise": {
            split: forgetting_of_noise(evidence, name, split) for split in SPLITS
        },
        "along": along(evidence, name, design.seeds),
        "along_seeds": {str(seed): along(evidence, name, [seed]) for seed in design.seeds},
        "levels": levels(evidence, name),
        "limits_seeds": {str(seed): limits(evidence, name, seed) for seed in design.seeds},
        "steps": steps(evidence, name),
    }


def limits(evidence: Evidence, order: str, seed: int) -> dict[str, Any]:
    """Ends of the intervals of one seed's test scores at the base and after each phase: over the choice of problems."""
    tail = (1 - evidence.config.level) / 2
    values = evidence.scores["test"].values
    draws = np.stack([values[node][1:] for node in evidence.design.chain(order, seed)])
    result: dict[str, Any] = {}
    for name, share in (("low", tail), ("high", 1 - tail)):
        ends = np.quantile(draws, share, axis=1)
        means = np.quantile(draws[..., evidence.trained].mean(-1), share, axis=1)
        result[name] = dict(zip(evidence.tasks, ends.T.tolist(), strict=True))
        result[f"mean_{name}"] = means.tolist()
    return result


def levels(evidence: Evidence, order: str) -> dict[str, Any]:
    """Test scores at the base and after each phase, means over seeds with their intervals: by task, and `mean` over the trained ones."""
    rows, _ = _rows(evidence, order, "test")
    stages = np.moveaxis(rows, -2, 0)
    return {
        "mean": evidence.intervals(stages[..., evidence.trained].mean(-1)),
        "tasks": {
            task: evidence.intervals(stages[..., column])
            for column, task in enumerate(evidence.tasks)
        },
    }


def steps(evidence: Evidence, order: str) -> list[dict[str, Any]]:
    """Task -> what every phase changed of its test score, with its interval; one entry a phase."""
    rows, _ = _rows(evidence, order, "test")
    return [evidence.by_task(change) for change in np.moveaxis(np.diff(rows, axis=-2), -2, 0)]


def reward_matrix(evidence: Evidence, order: str, seed: int) -> dict[str, Rows]:
    """R by split: row 0 the base, row i after phase i; columns are the tasks."""
    chain = evidence.design.chain(order, seed)
    return {
        split: [evidence.scores[split].values[node][0].tolist() for node in chain]
        for split in SPLITS
    }


def measures(evidence: Evidence, order: str, split: str) -> dict[str, Any]:
    """Measures of the matrix whose columns are the order's phases (mean over a phase's tasks), with intervals."""
    design = evidence.design
    rows, stages = _rows(evidence, order, split)
    base, after = stages[..., 0, :], stages[..., 1:, :]
    held_out = list(range(len(design.trained), len(evidence.tasks)))
    values = {
        "ACC": transfer.accuracy(after),
        "BWT": transfer.backward_transfer(after),
        "FWT": transfer.forward_transfer(after, base),
        "forgetting": transfer.forgetting(after),
        "forgetting_from_base": transfer.forgetting(after, base),
        "A": transfer.average_accuracy(after),
        "BWT_D": transfer.backward_transfer_all(after),
        "REM": transfer.remembering(after),
        "BWT_plus": transfer.positive_backward_transfer(after),
        "FWT_D": transfer.forward_transfer_all(after),
        "FWT_D_minus_base": transfer.forward_transfer_all(after, base),
        "retention": transfer.retention(rows[..., -1, held_out], rows[..., 0, held_out]),
    }
    for name, reference in _references(evidence, order, split).items():
        values[name] = transfer.intransigence(after, reference).mean(-1)
    names = (*values, "intransigence_joint", "intransigence_single")
    found = evidence.intervals(np.stack([np.asarray(value) for value in values.values()]))
    return {**dict.fromkeys(names), **dict(zip(values, found, strict=True))}


def forgetting_of_noise(evidence: Evidence, order: str, split: str) -> float | None:
    """What F would be if every stage scored alike: a maximum of noisy scores is above their mean.

    The mean of F over resamples from which the data are subtracted; None for one phase.
    """
    stages = _rows(evidence, order, split)[1][..., 1:, :].mean(0)
    found = transfer.forgetting(stages[1:] - stages[:1])
    return None if np.isnan(found).any() else float(np.mean(found))


def _rows(
    evidence: Evidence, order: str, split: str
) -> tuple[Float[np.ndarray, "seed draw stage task"], Float[np.ndarray, "seed draw stage phase"]]:
    """Scores at the base and after each phase, by task and by the order's phases."""
    design, scores = evidence.design, evidence.scores[split]
    positions = range(len(design.order_phases[order]) + 1)
    rows = np.stack([scores.of(design.position(order, i)) for i in positions], axis=-2)
    return rows, _by_phase(evidence, rows, design.order_phases[order])


def _references(
    evidence: Evidence, order: str, split: str
) -> dict[str, Float[np.ndarray, "seed draw phase"]]:
    """What intransigence compares with: the joint order's and the single phases' scores, where they were run."""
    design, phases = evidence.design, evidence.design.order_phases[order]
    scores, result = evidence.scores[split], {}
    joint = joint_arm(design)
    if joint is not None and joint != order:
        final = scores.of(design.position(joint, 1))
        result["intransigence_joint"] = _by_phase(evidence, final, phases)
    if all(phase in design.singles for phase in phases):
        own = [
            scores.of(design.singles[phase])[..., evidence.columns(phase)].mean(-1)
            for phase in phases
        ]
        result["intransigence_single"] = np.stack(own, axis=-1)
    return result


def _by_phase(
    evidence: Evidence, values: Float[np.ndarray, "*batch task"], phases: Iterable[str]
) -> Float[np.ndarray, "*batch phase"]:
    return np.stack([values[..., evidence.columns(phase)].mean(-1) for phase in phases], axis=-1)


def along(evidence: Evidence, order: str, seeds: Iterable[int]) -> dict[str, dict[str, Any]]:
    """Metric -> task -> test values at the base and after each phase, mean over the seeds; None where not measured."""
    design, means = evidence.design, evidence.means["test"]
    chains = [design.chain(order, seed) for seed in seeds]
    points = [mean_metrics(means, nodes) for nodes in zip(*chains, strict=True)]
    result: dict[str, dict[str, Any]] = {}
    for metric in sorted({metric for point in points for metric in point}):
        for task in evidence.tasks:
            values = [point.get(metric, {}).get(task) for point in points]
            if any(value is not None for value in values):
                result.setdefault(metric, {})[task] = values
    return result
