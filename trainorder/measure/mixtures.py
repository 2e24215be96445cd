"""Which mixture of tasks to train jointly, from the mixtures that were measured: `trainorder mixture`."""

from __future__ import annotations

from typing import Any

from trainorder import results
from trainorder.config import Params
from trainorder.order.mixture import fit
from trainorder.reading import ParamsError


def mixture(params: Params, variant: str = "default") -> dict[str, Any]:
    """The quadratic surrogate of this experiment's joint phases (MoDoMoDo, arXiv:2505.24871).

    Measured mixtures are the orders of one phase of two or more tasks, or of one of these tasks alone; a score is the mean
    over their tasks on the dev split, so that what is chosen here is not chosen on the test split.

    Returns:
        `rows` of {order, mixture, score, predicted}, `explained` (R^2 of left-out mixtures), `best` {mixture, predicted}.

    Raises:
        ParamsError: nothing was measured, or too few mixtures.
    """
    document = results.of_variant(variant)
    phases = params.variant(variant).phases
    found: dict[str, dict[str, float]] = {}
    for name, order in document["orders"].items():
        phase = phases.get(order["phases"][0]) if len(order["phases"]) == 1 else None
        if phase is not None and phase.tasks:
            total = sum(phase.tasks.values())
            found[name] = {task: weight / total for task, weight in phase.tasks.items()}
    tasks = sorted({task for mix in found.values() if len(mix) > 1 for task in mix})
    kept = {name: mix for name, mix in found.items() if set(mix) <= set(tasks)}
    columns = [document["tasks"].index(task) for task in tasks]
    scores = {
        name: sum(document["orders"][name]["R"]["dev"][-1][c] for c in columns) / len(columns)
        for name in kept
    }
    try:
        surrogate = fit(list(kept.values()), list(scores.values()))
    except ValueError as error:
        raise ParamsError(
            f"mixture: {error}; write phases of several tasks with other weights, each with an order of its own "
            "(`orders: {even: [even], more_math: [more_math]}`), and run them"
        ) from None
    best = surrogate.best()
    rows = [
        {"order": name, "mixture": mix, "score": scores[name], "predicted": surrogate.predict(mix)}
        for name, mix in kept.items()
    ]
    return {
        "rows": sorted(rows, key=lambda row: -row["score"]),
        "explained": surrogate.explained,
        "best": {"mixture": best, "predicted": surrogate.predict(best)},
    }


def table(found: dict[str, Any]) -> list[str]:
    """What was measured, what the surrogate says, and the line to try next."""
    lines = ["| order | tasks | dev score | surrogate |", "|---|---|---|---|"]
    lines += [
        f"| {row['order']} | {_shares(row['mixture'])} | {row['score']:.3f} | {row['predicted']:.3f} |"
        for row in found["rows"]
    ]
    best = found["best"]
    doubt = (
        " (the mean says as much: do not trust the surrogate)" if found["explained"] <= 0 else ""
    )
    return [
        *lines,
        "",
        f"R^2 of left-out mixtures: {found['explained']:.2f}{doubt}",
        f"Best by the surrogate, {best['predicted']:.3f}: tasks: {{{_shares(best['mixture'])}}}",
    ]


def _shares(mixture: dict[str, float]) -> str:
    return ", ".join(f"{task}: {share:.2g}" for task, share in mixture.items() if share > 0)
