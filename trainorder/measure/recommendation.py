"""The order that the transfer recommends, the verdict on it, and what to run next to be surer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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


def recommended(evidence: Evidence) -> dict[str, Any] | None:
    """The order that the dev transfer from the base recommends, with its verdict; None without singles."""
    design = evidence.design
    if not design.singles:
        return None
    phases = list(design.singles)
    m = evidence.measured("dev")
    after = np.stack([m.after[phase] for phase in phases], axis=-2)
    per_seed = ordering.gains(m.base, after, [evidence.columns(phase) for phase in phases])
    return _recommendation(evidence, m, per_seed, "additive", "from_base")


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
    return _recommendation(evidence, m, per_seed, "two_stage", "after_training")


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


def dev_errors(evidence: Evidence, predictor: str) -> dict[str, Float[Array, " draw"]]:
    """Order -> predicted minus measured final dev mean in every draw, of every order that the predictor can predict."""
    errors = {}
    for order, name in measured_orders(evidence).items():
        nodes = own_nodes(evidence, name)
        final = ordering.PREDICTORS[predictor](evidence.measured("dev", nodes), order, nodes)
        if final is not None:
            end = evidence.design.position(name, len(order))
            missed = final[..., evidence.trained].mean(-1) - evidence.mean_score("dev", end)
            errors[name] = statistics.resampled(missed, evidence.seed_draws)
    return errors


def _recommendation(
    evidence: Evidence,
    m: ordering.Measured,
    per_seed: Float[Array, "seed draw phase phase"],
    predictor: str,
    source: str,
) -> dict[str, Any]:
    phases, level = list(evidence.design.singles), evidence.config.level
    gain = statistics.resampled(per_seed, evidence.seed_draws)
    rng = numpy_stream("measure", evidence.config.seed, "order", source)
    errors = dev_errors(evidence, predictor)
    misfit = _misfit(evidence, errors)
    found = ordering.recommend(gain, misfit=misfit, level=level, rng=rng)

    def names(order: Sequence[int]) -> list[str]:
        return [phases[i] for i in order]

    def table(value: Callable[[int, int], float]) -> dict[str, dict[str, float]]:
        pairs = permutations(range(len(phases)), 2)
        result: dict[str, dict[str, float]] = {phase: {} for phase in phases}
        for i, j in pairs:
            result[phases[i]][phases[j]] = float(value(i, j))
        return result

    gap, separated = _gap(evidence, per_seed, found)
    best = _measured_best(evidence, tuple(names(found.order)))
    reasons = set(found.reasons)
    if not separated and ordering.Reason.ONE_PHASE not in reasons:
        reasons.add(ordering.Reason.GAP_INCLUDES_0)
    if best and best["minus_recommended"] and best["minus_recommended"]["low"] > 0:
        reasons.add(ordering.Reason.MEASURED_BETTER)
    gap_sd = {**_sampling(evidence, per_seed, found.order), "misfit": found.gap_sd["misfit"]}
    document = {
        "source": source,
        "pairs": "direct" if evidence.direct_pairs else "along the orders",
        "order": names(found.order),
        "reverse": names(found.order[::-1]),
        "value": found.value,
        "reverse_value": found.reverse_value,
        "random_value": found.random_value,
        "gain": table(lambda j, k: gain[0, j, k]),
        "p_optimal": found.p_optimal,
        "p_if_off": found.p_if_off,
        "most_probable": {"order": names(found.most_probable), "p": found.p_most_probable},
        "regret": found.regret,
        "before": table(lambda i, j: found.before[i, j]),
        "undecided": [
            [phases[i], phases[j]]
            for i, j in combinations(found.order, 2)
            if found.before[i, j] < level
        ],
        "gap": gap,
        "gap_sd": gap_sd,
        "p_no_order": found.p_no_order,
        "rules": {
            rule: {"order": names(order), "value": value, "regret": regret}
            for rule, (order, value, regret) in found.by_rule.items()
        },
        "best_by_predictor": _best_by_predictor(evidence, m),
        "misfit": {
            "sd": misfit.sd,
            "spread": misfit.spread,
            "bias": misfit.bias,
            "orders": len(errors),
            "errors": {name: float(missed[0]) for name, missed in errors.items()},
        },
        "measured_best": best,
        "verdict": statistics.verdict(not reasons, len(evidence.design.seeds)).value,
        "reasons": [reason.value for reason in ordering.Reason if reason in reasons],
        "method": "exact" if len(phases) <= ordering.EXACT else "heuristic",
        "optimality_gap": found.optimality_gap,
        "split": "dev",
    }
    return {**document, "next": _next(evidence, document, gap_sd)}


def _misfit(evidence: Evidence, errors: Mapping[str, Float[Array, " draw"]]) -> ordering.Misfit:
    phases = list(evidence.design.singles)
    orders = tuple(
        tuple(phases.index(p) for p in evidence.design.order_phases[name]) for name in errors
    )
    draws = len(evidence.seed_draws)
    missed = np.stack(list(errors.values()), axis=-1) if errors else np.zeros((draws, 0))
    seeds = len(evidence.design.seeds)
    return ordering.Misfit(orders, missed, freedom=seeds - 1 if seeds > 1 else draws)


def _gap(
    evidence: Evidence,
    per_seed: Float[Array, "seed draw phase phase"],
    found: ordering.Recommendation,
) -> tuple[dict[str, Any], bool]:
    """The gap to the reverse with the wider of both intervals, and whether the one over seeds excludes 0."""
    gap = ordering.order_value(per_seed, found.order) - ordering.order_value(
        per_seed, found.order[::-1]
    )
    seen = evidence.estimate(np.asarray(gap))
    ends = {"low": min(seen.low, found.gap_low), "high": max(seen.high, found.gap_high)}
    return {**as_json(seen, evidence.design.seeds), **ends}, seen.excludes(0.0)


def _sampling(
    evidence: Evidence, per_seed: Float[Array, "seed draw phase phase"], order: tuple[int, ...]
) -> dict[str, float]:
    """Standard deviation of the gap over problems, and over seeds (nan with one)."""
    gap = np.asarray(
        ordering.order_value(per_seed, order) - ordering.order_value(per_seed, order[::-1])
    )
    num_seeds = len(gap)
    seeds = statistics.standard_error(gap[:, 0]) if num_seeds > 1 else math.nan
    return {"problems": float(gap[:, 1:].mean(0).std()), "seeds": seeds}


def _best_by_predictor(evidence: Evidence, m: ordering.Measured) -> dict[str, Any]:
    """Predictor -> the order it would choose, {} beyond ENUMERATED phases."""
    phases = list(evidence.design.singles)
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


def _next(
    evidence: Evidence, found: Mapping[str, Any], gap_sd: Mapping[str, float]
) -> list[dict[str, Any]]:
    """What to run next, most useful first: `run` is what to do, `why` what it tells, `orders` which orders to add."""
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
