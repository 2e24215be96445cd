"""Final scores that every predictor gives an order, beside the measured ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder import order as ordering
from trainorder.measure.evidence import Evidence
from trainorder.measure.recommendation import Order, own_nodes
from trainorder.metrics.correlation import MIN_ITEMS, Correlation, correlations
from trainorder.streams import numpy_stream

Array = np.ndarray
Finals = dict[str, Float[Array, "seed draw task"] | None]
NOTE = (
    "predicted from dev transfer: additive assumes that effects of phases add up and that training a task brings it back "
    "to its own best, multiplicative that a later phase keeps a share of a score, two_stage takes the change a phase "
    "makes to a task trained before it, stage_delta lets a change depend on the score it starts from; correlations are "
    "over different orders of all phases, 3 or more, and have an interval from 8 on; bias is the mean of predicted minus "
    "measured, and spread how much orders differ in it"
)


def prediction(evidence: Evidence) -> dict[str, Any]:
    """Final test means that each predictor gives, and how well they agree with the measured ones over orders."""
    design = evidence.design
    predictable = {
        name: phases
        for name, phases in design.order_phases.items()
        if phases and all(phase in design.singles for phase in phases)
    }
    finals = {name: _finals(evidence, name, phases) for name, phases in predictable.items()}
    rows = {name: _row(evidence, name, found) for name, found in finals.items()}
    distinct: dict[Order, str] = {}
    for name, phases in predictable.items():
        if sorted(phases) == sorted(design.singles):
            distinct.setdefault(phases, name)
    names = list(distinct.values())
    predictors = {
        predictor: _agreement(evidence, predictor, {n: finals[n][predictor] for n in names})
        for predictor in ordering.PREDICTORS
    }
    additive = predictors["additive"] or {}
    return {
        "orders": rows,
        "predictors": predictors,
        "n": additive.get("n", 0),
        "pearson": (additive.get("pearson") or {}).get("value"),
        "spearman": (additive.get("spearman") or {}).get("value"),
        "mean_error": additive.get("mean_error"),
        "note": NOTE,
    }


def _finals(evidence: Evidence, name: str, phases: Order) -> Finals:
    """Predictor -> predicted dev scores, without having seen the order's own checkpoints."""
    nodes = own_nodes(evidence, name)
    m = evidence.measured("dev", nodes)
    return {p: predict(m, phases, nodes) for p, predict in ordering.PREDICTORS.items()}


def _row(evidence: Evidence, name: str, finals: Finals) -> dict[str, Any]:
    design = evidence.design
    final = design.position(name, len(design.order_phases[name]))
    measured = evidence.interval(evidence.mean_score("test", final))
    assert measured is not None
    means = {
        predictor: None
        if found is None
        else evidence.interval(found[..., evidence.trained].mean(-1))
        for predictor, found in finals.items()
    }
    additive, predicted = means["additive"], finals["additive"]
    assert additive is not None
    assert predicted is not None
    at_end = evidence.scores["test"].of(final)[:, 0].mean(0)
    return {
        "predicted": additive,
        "measured": measured,
        "measured_dev": float(evidence.mean_score("dev", final)[:, 0].mean()),
        "error": additive["value"] - measured["value"],
        "by": means,
        "tasks": {
            task: {"predicted": float(predicted[:, 0, i].mean()), "measured": float(at_end[i])}
            for i, task in enumerate(evidence.tasks)
        },
    }


def _agreement(evidence: Evidence, predictor: str, finals: Finals) -> dict[str, Any] | None:
    """One predictor over all orders that it can predict; None if there is none."""
    known = {name: x for name, x in finals.items() if x is not None}
    if not known:
        return None
    design = evidence.design

    ends = {name: design.position(name, len(design.order_phases[name])) for name in known}
    x = np.array([found[:, 0, evidence.trained].mean() for found in known.values()])
    y = np.array([evidence.mean_score("test", end)[:, 0].mean() for end in ends.values()])
    error = x - y
    enough = len(known) >= MIN_ITEMS
    rng = numpy_stream("measure", evidence.config.seed, "correlation")
    found = {}
    if enough:
        config = evidence.config
        found = correlations(x, y, count=config.bootstrap, level=config.level, rng=rng)
    best, chosen = int(y.argmax()), int(x.argmax())
    names = list(known)
    return {
        "n": len(known),
        "pearson": _as_json(found.get("pearson")),
        "spearman": _as_json(found.get("spearman")),
        "mean_error": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "spread": float(error.std(ddof=1)) if len(error) > 1 else None,
        "chosen": names[chosen],
        "rank_of_chosen": int((y > y[chosen]).sum()) + 1,
        "regret": float(y[best] - y[chosen]),
    }


def _as_json(found: Correlation | None) -> dict[str, float] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}
