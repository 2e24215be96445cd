"""The order that the transfer recommends, the verdict on it, and what to run next to be surer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder import order as ordering
from trainorder.measure.evidence import Evidence, as_json
from trainorder.metrics import statistics
from trainorder.streams import numpy_stream

Array = np.ndarray
Order = tuple[str, ...]
ENOUGH = (8, 3)
"""Measured orders and seeds that single out a strong order in more than 4 of 5 experiments (docs/findings.md)."""
POWER = (
    "in simulated experiments a strong order was singled out in 93% with 8 measured orders and 3 seeds, in 5% with 4 "
    "orders and 3 seeds, in 29% with 8 orders and 1 seed"
)


def recommended(evidence: Evidence) -> dict[str, Any] | None:
    """The order that the dev transfer from the base recommends, with its verdict; None without singles."""
    if not evidence.design.singles:
        return None
    return _document(evidence, judged(evidence, from_base(evidence), "additive"), "from_base")


def from_base(evidence: Evidence) -> Float[Array, "seed draw phase phase"]:
    """The gains of the dev transfer from the base, by seed."""
    phases, m = list(evidence.design.singles), evidence.measured("dev")
    after = np.stack([m.after[phase] for phase in phases], axis=-2)
    return ordering.gains(m.base, after, [evidence.columns(phase) for phase in phases])


def two_stage(evidence: Evidence) -> dict[str, Any] | None:
    """As `recommended`, from what a phase does to another that was trained before it; None without singles.

    Where a pair was never measured: `{"order": None, "missing": [[j, k]], "run": text}`.
    """
    phases = list(evidence.design.singles)
    if len(phases) < 2:
        return None
    m = evidence.measured("dev")
    wanted = [(j, k) for j in phases for k in phases if j != k]
    missing = [pair for pair in wanted if pair not in m.pairs]
    if missing:
        listed = ", ".join(f"[{j}, {k}]" for j, k in missing)
        run = f"no order trained these phases one after the other: add {listed} to `orders`"
        return {"order": None, "missing": [list(pair) for pair in missing], "run": run}
    num_tasks = len(evidence.design.trained)
    per_seed = np.zeros((*m.base.shape[:-1], len(phases), len(phases)))
    for j, k in wanted:
        own = [t for t in m.phase_tasks[j] if t not in m.phase_tasks[k]]
        change = m.pairs[j, k][..., own].sum(-1) / num_tasks
        per_seed[..., phases.index(j), phases.index(k)] = change
    return _document(evidence, judged(evidence, per_seed, "two_stage"), "after_training")


def measured_orders(evidence: Evidence) -> dict[Order, str]:
    """Every different measured sequence of all single phases -> the first order of that name."""
    phases = sorted(evidence.design.singles)
    found: dict[Order, str] = {}
    for name, order in evidence.design.order_phases.items():
        if sorted(order) == phases:
            found.setdefault(order, name)
    return found


def own_nodes(evidence: Evidence, name: str) -> frozenset[str]:
    """The checkpoints that an order runs through: what a prediction of it must not have seen."""
    return frozenset(node for run in evidence.design.orders[name].values() for node in run)


def sampled(
    evidence: Evidence, per_seed: Float[Array, "seed draw phase phase"], predictor: str
) -> tuple[Float[Array, "draw phase phase"], ordering.Misfit]:
    """The gains, and predicted minus measured final dev mean of every measured order that the predictor can predict.

    Draw 0 is the data; the others show the noise of problems and runs, the same noise in gains and errors. What runs
    differ in is pooled over gains and over orders: few seeds know the covariance of so many numbers badly.
    """
    design = evidence.design
    phases = list(design.singles)
    ends, missed = {}, []
    for order, name in measured_orders(evidence).items():
        nodes = own_nodes(evidence, name)
        final = ordering.PREDICTORS[predictor](evidence.measured("dev", nodes), order, nodes)
        if final is not None:
            rows = tuple(phases.index(phase) for phase in order)
            ends[rows] = evidence.mean_score("dev", design.position(name, len(order)))
            missed.append(final[..., evidence.trained].mean(-1) - ends[rows])
    apart = ~np.eye(len(phases), dtype=bool)
    rng = numpy_stream("measure", evidence.config.seed, "runs", predictor)
    draws = per_seed.shape[1]
    noise = statistics.run_error(per_seed[:, :, apart]) * rng.normal(size=(draws, *apart.shape))
    noise[0] = 0.0
    gain = per_seed.mean(0) + noise * apart
    errors = np.zeros((draws, 0))
    if ends:
        finals = statistics.run_error(np.stack(list(ends.values()), axis=-1))
        moved = finals * rng.normal(size=(draws, len(ends)))
        moved[0] = 0.0
        errors = np.stack(missed, axis=-1).mean(0) - moved
        errors += np.stack([ordering.order_value(noise, order) for order in ends], axis=-1)
    return gain, ordering.Misfit(tuple(ends), errors)


@dataclass(frozen=True)
class Judged:
    """A recommended order and the verdict on it."""

    gain: Float[Array, "phase phase"]
    misfit: ordering.Misfit
    found: ordering.Recommendation
    gap: dict[str, Any]
    """Predicted gap to the reverse order, an interval as JSON."""
    gap_sd: dict[str, float]
    """Standard deviation of the gap over problems, over seeds (nan with one), and by the model's own error."""
    measured_best: dict[str, Any] | None
    reasons: frozenset[ordering.Reason]
    verdict: statistics.Verdict


def judged(
    evidence: Evidence, per_seed: Float[Array, "seed draw phase phase"], predictor: str
) -> Judged:
    """The order that these gains recommend, judged by the errors of their predictor at the measured orders."""
    phases = list(evidence.design.singles)
    gain, misfit = sampled(evidence, per_seed, predictor)
    rng = numpy_stream("measure", evidence.config.seed, "order", predictor)
    found = ordering.recommend(gain, misfit=misfit, level=evidence.level, rng=rng)
    seen = np.asarray(
        ordering.order_value(per_seed, found.order)
        - ordering.order_value(per_seed, found.order[::-1])
    )
    gap, num_seeds = evidence.estimates(seen[None], evidence.level)[0], len(seen)
    ends = {"low": min(gap.low, found.gap_low), "high": max(gap.high, found.gap_high)}
    best = _measured_best(evidence, tuple(phases[i] for i in found.order))
    reasons = set(found.reasons)
    if not gap.excludes(0.0) and ordering.Reason.ONE_PHASE not in reasons:
        reasons.add(ordering.Reason.GAP_INCLUDES_0)
    if best and statistics.side(best["minus_recommended"]) > 0:
        reasons.add(ordering.Reason.MEASURED_BETTER)
    return Judged(
        gain[0],
        misfit,
        found,
        {**as_json(gap, evidence.design.seeds), **ends},
        {
            "problems": float(seen[:, 1:].mean(0).std()),
            "seeds": statistics.standard_error(seen[:, 0]) if num_seeds > 1 else math.nan,
            "misfit": found.gap_sd["misfit"],
        },
        best,
        frozenset(reasons),
        statistics.verdict(not reasons, num_seeds),
    )


def _document(evidence: Evidence, of: Judged, source: str) -> dict[str, Any]:
    phases, found, misfit = list(evidence.design.singles), of.found, of.misfit
    known, level = measured_orders(evidence), evidence.level

    def names(order: Sequence[int]) -> list[str]:
        return [phases[i] for i in order]

    def table(value: Callable[[int, int], float]) -> dict[str, dict[str, float]]:
        result: dict[str, dict[str, float]] = {phase: {} for phase in phases}
        for i, j in permutations(range(len(phases)), 2):
            result[phases[i]][phases[j]] = float(value(i, j))
        return result

    document = {
        "source": source,
        "pairs": "direct" if evidence.direct_pairs else "along the orders",
        "order": names(found.order),
        "reverse": names(found.order[::-1]),
        "value": found.value,
        "reverse_value": found.reverse_value,
        "random_value": found.random_value,
        "gain": table(lambda j, k: of.gain[j, k]),
        "p_optimal": found.p_optimal,
        "most_probable": {"order": names(found.most_probable), "p": found.p_most_probable},
        "regret": found.regret,
        "before": table(lambda i, j: found.before[i, j]),
        "undecided": [
            [phases[i], phases[j]]
            for i, j in combinations(found.order, 2)
            if found.before[i, j] < level
        ],
        "gap": of.gap,
        "gap_sd": of.gap_sd,
        "p_no_order": found.p_no_order,
        "rules": {
            rule: {"order": names(order), "value": value, "regret": regret}
            for rule, (order, value, regret) in found.by_rule(evidence.likeness).items()
        },
        "best_by_predictor": _best_by_predictor(evidence),
        "misfit": {
            "sd": found.misfit_sd,
            "spread": misfit.spread,
            "bias": misfit.bias,
            "orders": len(misfit.orders),
            "errors": {
                known[tuple(names(order))]: float(error)
                for order, error in zip(misfit.orders, misfit.errors[0], strict=True)
            },
        },
        "measured_best": of.measured_best,
        "verdict": of.verdict.value,
        "reasons": [reason.value for reason in ordering.Reason if reason in of.reasons],
        "method": "exact" if len(phases) <= ordering.EXACT else "heuristic",
        "optimality_gap": found.optimality_gap,
        "split": "dev",
    }
    return {**document, "next": _next(evidence, document)}


def _best_by_predictor(evidence: Evidence) -> dict[str, Any]:
    """Predictor -> the order it would choose, {} beyond ENUMERATED phases."""
    phases, m = list(evidence.design.singles), evidence.measured("dev")
    if len(phases) > ordering.ENUMERATED:
        return {}
    first = ordering.Measured(
        m.base[:, :1].mean(0),
        {p: x[:, :1].mean(0) for p, x in m.after.items()},
        m.phase_tasks,
        {key: x[:, :1].mean(0) for key, x in m.pairs.items()},
        [
            ordering.Step(s.phase, s.before[:, :1].mean(0), s.after[:, :1].mean(0), s.node)
            for s in m.steps
        ],
    )
    own, other = ordering.slopes(first)
    candidates = [[phases[i] for i in row] for row in ordering.every_order(len(phases))]
    result: dict[str, Any] = {}
    for name, predictor in ordering.PREDICTORS.items():
        finals = [
            ordering.extrapolate(first, order, own, other)
            if name == "stage_delta"
            else predictor(first, order, frozenset())
            for order in candidates
        ]
        if any(final is None for final in finals):
            result[name] = None
            continue
        means = [float(f[0, evidence.trained].mean()) for f in finals if f is not None]
        best = int(np.argmax(np.round(means, 12)))
        result[name] = {"order": candidates[best], "predicted": means[best]}
    return result


def _measured_best(evidence: Evidence, recommended: Order) -> dict[str, Any] | None:
    """The measured order with the highest dev mean, and by how much it beats the recommended one where that was run."""
    known = measured_orders(evidence)
    if not known:
        return None
    finals = {
        order: evidence.mean_score("dev", evidence.design.position(name, len(order)))
        for order, name in known.items()
    }
    best = max(finals, key=lambda order: (round(float(finals[order][:, 0].mean()), 9), order))
    differs = recommended in finals and recommended != best
    return {
        "name": known[best],
        "order": list(best),
        "mean": float(finals[best][:, 0].mean()),
        "recommended_measured": recommended in finals,
        "minus_recommended": evidence.interval(finals[best] - finals[recommended])
        if differs
        else None,
    }


def _next(evidence: Evidence, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What to run next, most useful first: `run` is what to do, `why` what it tells, `orders` which orders to add."""
    gap_sd: Mapping[str, float] = found["gap_sd"]
    known = measured_orders(evidence)
    order, reverse = tuple(found["order"]), tuple(found["reverse"])
    if len(order) < 2:
        return []
    result: list[dict[str, Any]] = []
    wanted = [o for o in (order, reverse, tuple(found["most_probable"]["order"])) if o not in known]
    swapped = [_swap(order, pair) for pair in found["undecided"]]
    wanted += [o for o in swapped if o is not None and o not in known]
    wanted = list(dict.fromkeys(wanted))
    lacking = ordering.MIN_ORDERS - len(known)
    if lacking > 0 or order not in known or reverse not in known:
        few = wanted[: max(lacking, 2)]
        why = (
            "measures how far the prediction of an order is off"
            if lacking > 0
            else "verifies the recommended order"
        )
        result.append(_step("train these orders", why, few))
    largest = max((k for k, v in gap_sd.items() if not math.isnan(v)), key=lambda k: gap_sd[k])
    total = math.sqrt(sum(v**2 for v in gap_sd.values() if not math.isnan(v)))
    factor = (2 * total / abs(found["gap"]["value"])) ** 2 if found["gap"]["value"] else math.inf
    if statistics.identified(found["verdict"]):
        return result
    num_seeds = len(evidence.design.seeds)
    enough = min(ENOUGH[0], math.factorial(min(len(order), 8)))
    if len(known) < enough:
        result.append(_step(f"measure {enough} different orders with {ENOUGH[1]} seeds", POWER, []))
    if num_seeds == 1:
        result.append(_step("add seeds (3 or more)", "one seed says nothing about another run", []))
    elif largest == "seeds":
        more = "" if math.isinf(factor) else f" (about {math.ceil(num_seeds * factor)} in all)"
        result.append(_step(f"add seeds{more}", "runs of different seeds differ most", []))
    if largest == "problems":
        more = "" if math.isinf(factor) else f" (about {max(factor, 1):.1f} times as many)"
        why = "the choice of dev problems is the largest uncertainty"
        result.append(_step(f"raise `dev` of the tasks{more}", why, []))
    if largest == "misfit":
        pairs = found["source"] == "from_base" and not evidence.direct_pairs
        what = (
            "measure pairs and recommend with --two-stage" if pairs else "measure orders directly"
        )
        few = [o for o in wanted if o not in result[0]["orders"]] if result else wanted
        why = "the model's own error is the largest uncertainty: more problems or seeds would not help"
        result.append(_step(what, why, few[:2]))
    return result


def _step(run: str, why: str, orders: Sequence[Order]) -> dict[str, Any]:
    return {"run": run, "why": why, "orders": [list(order) for order in orders]}


def _swap(order: Order, pair: Sequence[str]) -> Order | None:
    """The order with two neighbours exchanged; None if they are no neighbours."""
    i, j = order.index(pair[0]), order.index(pair[1])
    if j != i + 1:
        return None
    return (*order[:i], order[j], order[i], *order[j + 1 :])
