"""All evaluations -> reports/bwt.json: matrices, transfer, the recommended order, and who won, each with its certainty.

Pure and deterministic: equal tables give equal bytes. Keys are sorted, numbers are rounded to 6 digits, null means
undefined. Scores are the metric `score`; a number is of the test split unless its key says dev. An interval I is
`{"value", "low", "high", "seeds": {"0": its own value}}`, with two or more seeds also `"bootstrap"` and `"t"`
(trainorder/metrics/statistics.py::interval). Dictionaries with `task`, `phase`, `arm`, `metric` or `seed` as key:

    hash (of all the rest), version, variant (`default`: the params as written), settings {bootstrap, level, seed, looks: [number of
                   seeds at each look, this one included; empty: one look], level_of_differences}, seeds [int]
    tasks, trained, held_out, judged, recall     [task]; `tasks` are the columns of every R: trained first
    same_judge     [task]; judged tasks whose scores are by the judge that gave the rewards
    phases         {phase: [task]}       phases that the plan uses
    problems       {split: {task: {used, dropped}}}     dropped: some node has no score, so no node's counts
    unscored       {split: {task: share}, worst: {node, split, task, share}}    samples that could not be graded
    intervals      {covers, runs: what the seeds are replicates of, note}
    base           {nodes: {seed: node}, metrics: {metric: {task: mean}}};   singles {phase: the same}
    ranking        [{arm, kind, variant, phases, nodes: {seed: node}, same_as: [arm], mean: I, tasks: {task: I}, greedy,
                     pass_at_k, metrics: {metric: {task: mean}}, differences: {best, joint, reverse, base: I with
                     `parts`}, worst: {task, score}, turnover: {gained, lost, problems, tasks: {task: {gained, lost}}} of
                     problems against the base, or null, cost: {rollouts, updates, ...} under one seed, or null,
                     rollouts_per_point: number or null}]
    differences    {arm: {arm: I}}       first minus second
    winner         {verdict, arm (only where settled), best, candidates: [arm] that cannot be separated from the best,
                     the best first, lead: {over, difference: I, parts} or null}
    power          {sd: {runs (null with one seed), problems, answers} of the difference of two trained arms, of one seed and
                     these problems; arms, num_problems; more: {difference, seeds}: the largest usual difference that is
                     not detected yet and the seeds that would detect it, null where the verdict is not open}, or null
    guards         [{task, kind: held_out or harness (a task of lm-eval), problems, base: I, change: {arm: I, minus the base}}]
    orders         {order: {kind, phases, positions: [[task]], reverse, nodes: {seed: [node]}, R: {split: rows},
                     R_seeds: {seed: {split: rows}}, measures: {split: {name: I}}, forgetting_of_noise: {split: number},
                     along: {metric: {task: [mean]}}, along_seeds: {seed: the same}, levels: {mean: [I], tasks:
                     {task: [I]}}, limits_seeds: {seed: {low, high: {task: [end of its interval]}, mean_low, mean_high:
                     [of the mean over trained tasks]}}, steps: [{task: I of the change}] of every phase}}
                     first row, first node and first mean: the base
    transfer       {from_base: {split: {phase: {task: I}}}, after_training: {split: {phase: {earlier phase:
                     {mean, n, changes: [{node, parent, seed, change, orders}]}}}}, before_training: the same for
                     {phase: {later phase}}}
    recommended    {source, pairs, order, reverse, value, reverse_value, random_value, gain: {j: {k: worth of j before k}},
                     p_optimal, most_probable: {order, p}, regret, before: {i: {j: P(i before j)}}, undecided: [[i, j]]
                     with P(i before j) below the level, gap: I, gap_sd: {problems, seeds, misfit}, p_no_order, rules:
                     {rule: {order, value, regret}}, best_by_predictor: {predictor: {order, predicted} or null},
                     misfit: {sd of the model's own error, spread and bias of the errors as they are, orders, errors:
                     {order: predicted minus measured}}, measured_best: {name, order, mean, recommended_measured,
                     minus_recommended: I}, verdict, reasons: [trainorder/order/confidence.py::Reason], method,
                     optimality_gap, split, next: [{run, why, orders}]}, or null without single phases
    recommended_two_stage    the same from changes after training, or {order: null, missing: [[j, k]], run}, or null
    prediction     {orders: {order: {predicted: I, measured: I, measured_dev, error, by: {predictor: I or null}, tasks:
                     {task: {predicted, measured}}}}, predictors: {predictor: {n, pearson: {value, low, high}, spearman,
                     mean_error, rmse, spread, chosen, rank_of_chosen, regret} or null}, note; n, pearson, spearman, mean_error
                     and every `predicted` and `error` are the additive model's}
    assumptions    {split, transfer: {rows: [{phase, on, n, from_base: I, after: I, difference: I, flips, differs}], n,
                     flips, mean_difference: I, missing, run}, saturation: {rows: [{phase, n, from_base: I, later: I,
                     difference: I, by_place: {place: I}, differs}], ...}, triples: {rows: [{chain, on, pair, triple,
                     difference: I, differs}], n, rms, mean_difference: I, run}, slopes: {own: I, other: I} or null}
    variants       {variant: all of the above under it}
    across_variants     {winner, recommended: {variant: ...}, agreement: [{a, b, n, pearson, spearman}] of the orders'
                     means, differences: [{a, b, variants: {variant: {difference: I, verdict}}, survives, verdict}]} or
                     null

`verdict` is `settled` (holds over problems and training runs), `on these problems only` (one seed) or `open`; only
`settled` identifies something. Intervals of differences between arms hold for all pairs of arms at once, since one looks
at all of them and picks the best; `trainorder compare` shows the same ones.
`parts` split a difference: {verified, judged, hidden_taste: I or null, judged_only}, or null without judged tasks.

A recommended order's intervals and probabilities hold the noise of problems and seeds and the model's own error: how far
the measured orders spread around their predictions, beyond that noise (trainorder/order/misfit.py). They agree with what
those orders were measured to score.
Entropy along an order is `along.entropy_own` and `along.entropy_fixed`; over-optimisation of a judge is `along.score`
(evaluation judge) and `along.gold` falling while `along.reward_judge` rises.

Example: from scores of .4 and .5, phase `a` brings its task to .8 and phase `b` its own to .9 at a cost of .1 to the
first: `gain` is `{"a": {"b": -0.05}, "b": {"a": 0.0}}`, the mean over both tasks, so `order` is `["b", "a"]` with value
0 against -0.05 for its reverse, and the predictions are .85 and .80.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainorder.config import MeasureConfig
from trainorder.measure.across import across
from trainorder.measure.assumptions import assumptions
from trainorder.measure.evidence import Evidence, gather, mean_metrics, settings
from trainorder.measure.guards import guards
from trainorder.measure.power import ability
from trainorder.measure.prediction import prediction
from trainorder.measure.ranking import differences, paired, ranked, ranking, winner
from trainorder.measure.recommendation import recommended, two_stage
from trainorder.measure.retention import orders
from trainorder.measure.scores import SPLITS
from trainorder.measure.transitions import transfer_views
from trainorder.metrics.statistics import FEW_SEEDS, covers
from trainorder.plan.design import Design, from_plan
from trainorder.results import VERSION, to_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["from_plan", "measure", "to_json"]

DIGITS = 6


def measure(
    table: pd.DataFrame,
    designs: Mapping[str, Design],
    config: MeasureConfig,
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The content of reports/bwt.json from the long table of all evaluations and `from_plan`'s designs.

    `prompts` are some of each task, which rules that compare features look at (trainorder/order/rules.py).

    Raises:
        ParamsError: an evaluation is missing or incomplete; names the node and the command that makes it.
    """
    documents = {
        name: _plain(_document(table, gather(table, design, config, prompts), name))
        for name, design in designs.items()
    }
    first, *others = documents
    return {
        "version": VERSION,
        **documents[first],
        "variants": {name: documents[name] for name in others},
        "across_variants": _plain(across(documents)),
    }


def _document(table: pd.DataFrame, evidence: Evidence, variant: str) -> dict[str, Any]:
    design = evidence.design
    arms, finals = ranked(evidence)
    pairs = paired(evidence, arms, finals)
    won = winner(evidence, arms, pairs)
    return {
        "variant": variant,
        **_setting(evidence),
        "base": _node_metrics(evidence, design.bases),
        "singles": {p: _node_metrics(evidence, nodes) for p, nodes in design.singles.items()},
        "ranking": [{**row, "variant": variant} for row in ranking(evidence, arms, finals, pairs)],
        "differences": differences(evidence, finals, pairs),
        "winner": won,
        "power": ability(evidence, arms, finals, won["verdict"]),
        "guards": guards(table, evidence),
        "orders": orders(evidence),
        "transfer": transfer_views(evidence),
        "recommended": recommended(evidence),
        "recommended_two_stage": two_stage(evidence),
        "prediction": prediction(evidence),
        "assumptions": assumptions(evidence),
    }


def _setting(evidence: Evidence) -> dict[str, Any]:
    design, tasks = evidence.design, evidence.tasks
    return {
        "settings": settings(evidence.config, len(design.seeds)),
        "seeds": list(design.seeds),
        "tasks": list(tasks),
        "trained": list(design.trained),
        "held_out": [task for task in tasks if task not in design.trained],
        "judged": [task for task in tasks if task in evidence.judged],
        "recall": [task for task in tasks if task in design.recall],
        "same_judge": [task for task in tasks if task in evidence.same_judge],
        "phases": {phase: list(names) for phase, names in design.phase_tasks.items()},
        "problems": {
            split: {t: {"used": s.used[t], "dropped": s.dropped[t]} for t in tasks}
            for split, s in evidence.scores.items()
        },
        "unscored": _unscored(evidence),
        "intervals": {
            "covers": covers(len(design.seeds)),
            "runs": design.replicates,
            "note": _note(evidence),
        },
    }


def _note(evidence: Evidence) -> str:
    num_seeds, share = len(evidence.design.seeds), f"{100 * evidence.config.level:g}%"
    if num_seeds == 1:
        return (
            f"{share} intervals cover the choice of problems only: with one training seed they say nothing about "
            f"another run"
        )
    text = f"{share} intervals cover problems and {num_seeds} training seeds"
    if evidence.design.one_start:
        text += " of RL from one base (another base may differ)"
    if num_seeds < FEW_SEEDS:
        text += ", widened to a t-interval over the seeds' own values, since seeds are few"
    return text


def _unscored(evidence: Evidence) -> dict[str, Any]:
    shares = [
        (value, node, split, task)
        for split in SPLITS
        for node, metrics in evidence.means[split].items()
        for task, value in metrics.get("unscored", {}).items()
    ]
    result: dict[str, Any] = {
        split: {
            task: float(np.mean([x for x, _, s, t in shares if (s, t) == (split, task)]))
            for task in evidence.tasks
            if any((s, t) == (split, task) for _, _, s, t in shares)
        }
        for split in SPLITS
    }
    worst = max(shares, default=None)
    keys = ("share", "node", "split", "task")
    result["worst"] = dict(zip(keys, worst, strict=True)) if worst and worst[0] > 0 else None
    return result


def _node_metrics(evidence: Evidence, nodes: Mapping[int, str]) -> dict[str, Any]:
    metrics = mean_metrics(evidence.means["test"], nodes.values())
    return {"nodes": {str(seed): node for seed, node in nodes.items()}, "metrics": metrics}


def _plain(value: Any) -> Any:
    """JSON types only, numbers rounded, nan as null, no -0.0."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return round(float(value), DIGITS) + 0.0 if math.isfinite(value) else None
    return value
