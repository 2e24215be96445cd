"""Two arms side by side: paired differences by task, position and variant, and the verdict on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from trainorder import paths, results
from trainorder.config import MeasureConfig
from trainorder.measure.across import combined, survives
from trainorder.measure.beneath import GREEDY, solved, turnover
from trainorder.measure.evidence import as_json, settings
from trainorder.measure.parts import (
    GOLD,
    REWARD_JUDGE,
    Parts,
    gold_scores,
    judged_tasks,
    same_judge,
)
from trainorder.measure.scores import POOLED, SCORE, Scores, repair, scores_of, tasks_of
from trainorder.metrics import statistics
from trainorder.plan.design import Arm, BySeed, Design
from trainorder.reading import ParamsError, did_you_mean
from trainorder.streams import numpy_stream

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray
Differences = Mapping[str, Mapping[str, Any]]
"""Arm -> other arm -> first minus second, an interval as JSON."""
MEAN = "mean"
BY_JUDGE = (SCORE, "greedy", "pass_at_k", REWARD_JUDGE)
"""Metrics that are a judge's on judged tasks."""


def compare(
    designs: Mapping[str, Design],
    a: str,
    b: str,
    config: MeasureConfig,
    *,
    metric: str = SCORE,
    split: str = "test",
) -> dict[str, Any]:
    """Everything about A minus B; reads the evaluations of their checkpoints only.

    An arm is an order, a merge, `base`, or a phase (trained alone from the base). Within a variant, `mean` is the main
    question, the mean over the trained tasks. Of two arms that reports/bwt.json ranks by these scores it has the
    ranking's interval, which holds for all arms at once, so that both say the same; else that of this pair alone.
    Single tasks differ with Holm's correction over them. Positions only describe: they carry intervals and no verdict.

    `variants` maps each variant to {mean, parts, turnover, same_judge, tasks, positions, verdict, ranked, note, seeds}; a row
    is {a, b, difference, p, differs}; `turnover` counts the problems that A solves and B does not as gained; `ranked` is whether the interval is the ranking's, and `p` is null there. `verdict` is
    that of all variants: the weakest, `open` where signs differ.

    Raises:
        ParamsError: no such arm, metric, or evaluation; says which there are.
    """
    if a == b:
        raise ParamsError(f"{a} is compared with itself: name two arms")
    bwt = results.load() if paths.BWT.is_file() and (metric, split) == (SCORE, "test") else None
    found = {
        v: _variant(design, a, b, config, metric, split, _ranking(bwt, v, config))
        for v, design in designs.items()
    }
    verdicts = {
        v: {"value": f[MEAN]["difference"]["value"], "verdict": f["verdict"]}
        for v, f in found.items()
    }
    return {
        "a": a,
        "b": b,
        "metric": metric,
        "split": split,
        "level": config.level,
        "variants": found,
        "survives": survives(verdicts) if len(found) > 1 else None,
        "verdict": combined(verdicts).value,
    }


def arms_of(design: Design) -> dict[str, Arm]:
    """What can be compared, by name; an order hides a phase of the same name."""
    singles = [Arm(phase, "single", nodes, (phase,)) for phase, nodes in design.singles.items()]
    return {arm.name: arm for arm in [*singles, *design.arms()]}


def _ranking(bwt: Mapping[str, Any] | None, variant: str, config: MeasureConfig) -> Differences:
    """The ranking's differences between arms under a variant; empty where it was measured with other settings."""
    if bwt is None or bwt["settings"] != settings(config, len(bwt["seeds"])):
        return {}
    found = bwt if variant == bwt["variant"] else bwt["variants"].get(variant, {})
    return found.get("differences", {})


def _variant(
    design: Design,
    a: str,
    b: str,
    config: MeasureConfig,
    metric: str,
    split: str,
    ranking: Differences,
) -> dict[str, Any]:
    arms = arms_of(design)
    for name in (a, b):
        if name not in arms:
            raise ParamsError(
                f"no arm {name!r} in plan.yaml; there are {', '.join(arms)}{did_you_mean(name, list(arms))}"
            )
    first, second = arms[a], arms[b]
    chains = [_chain(design, first), _chain(design, second)]
    steps = list(zip(*chains, strict=False)) if len(chains[0]) == len(chains[1]) else []
    nodes = [first.final, second.final, *(nodes for step in steps for nodes in step)]
    names = list(dict.fromkeys(n for by_seed in nodes for n in by_seed.values()))
    judges = [GOLD, REWARD_JUDGE] if metric == SCORE else []
    by_judge = [SCORE, REWARD_JUDGE] if metric in BY_JUDGE else []
    greedy = [GREEDY] if metric == SCORE else []
    everything = _read(names, list(dict.fromkeys([metric, *judges, *by_judge, *greedy])), split)
    table = everything.loc[everything["metric"] == metric]
    tasks = tuple(t for t in tasks_of(table, design.trained) if _known(table, t, names))
    if not tasks:
        raise ParamsError(_unknown_metric(names, metric, split))
    scores = scores_of(
        table, split, names, tasks, count=config.bootstrap, seed=config.seed, metric=metric
    )
    rng = numpy_stream("measure", config.seed, "seeds")
    draws = statistics.draw_seeds(len(design.seeds), config.bootstrap, rng)
    pooled = bool((table["problem"] == POOLED).any())
    level = settings(config, len(design.seeds))["level_of_differences"]
    pairs = Pairs(scores, design.seeds, draws, level, pooled, design.one_start)
    trained = [i for i, t in enumerate(tasks) if t in design.trained] or list(range(len(tasks)))
    rows = {task: pairs.row(first.final, second.final, [i]) for i, task in enumerate(tasks)}
    mean = pairs.row(first.final, second.final, trained)
    ranked: Mapping[str, Any] = ranking.get(a, {}).get(b, {})
    is_ranked = bool(ranked) and _same(ranked["seeds"], mean["difference"]["seeds"])
    if is_ranked:
        mean |= {"difference": ranked, "p": None, "differs": statistics.side(ranked) != 0}
    adjusted = statistics.holm({task: row["p"] for task, row in rows.items()})
    for task, row in rows.items():
        row["p_holm"] = adjusted[task]
        row["differs"] = row["differs"] and adjusted[task] < 1 - level
        row["trained"], row["recall"] = task in design.trained, task in design.recall
    return {
        "seeds": list(design.seeds),
        "covers": statistics.covers(len(design.seeds)),
        "runs": design.replicates,
        "nodes": {a: _names(first.final), b: _names(second.final)},
        "mean_over": [tasks[i] for i in trained],
        "problems": scores.used,
        MEAN: mean,
        "tasks": rows,
        "positions": [
            {
                "position": i,
                "a_phase": first.phases[i - 1] if i and first.phases else "base",
                "b_phase": second.phases[i - 1] if i and second.phases else "base",
                **pairs.row(x, y, trained),
                "tasks": {
                    t: pairs.row(x, y, [c])["difference"]["value"] for c, t in enumerate(tasks)
                },
            }
            for i, (x, y) in enumerate(steps)
        ],
        "parts": _parts(pairs, trained, everything, names, split, config).of(
            first.final, second.final
        )
        if metric == SCORE
        else None,
        "turnover": _turnover(everything, design, first, second, split),
        "same_judge": sorted(same_judge(everything) & set(tasks)) if metric in BY_JUDGE else [],
        "verdict": statistics.verdict(mean["differs"], len(design.seeds)).value,
        "ranked": is_ranked,
        "note": pairs.note(
            first.final == second.final, mean["differs"], len(ranking) if is_ranked else 0
        ),
    }


def _turnover(
    table: pd.DataFrame, design: Design, a: Arm, b: Arm, split: str
) -> dict[str, Any] | None:
    """Problems that A solves and B does not (`gained`), and the other way round (`lost`); None without greedy answers."""
    verified = [task for task in design.trained if task not in judged_tasks(table)]
    names = list(dict.fromkeys([*a.final.values(), *b.final.values()]))
    return turnover(solved(table, names, verified, split), a.final, b.final)


@dataclass(frozen=True)
class Pairs:
    """Paired differences of two sets of checkpoints over one set of draws."""

    scores: Scores
    seeds: tuple[int, ...]
    draws: Float[Array, "draw seed"]
    level: float
    pooled: bool = False
    """Whether the metric is one number per checkpoint and task."""
    one_start: bool = False
    """Whether the seeds begin at one model."""

    def row(self, a: BySeed, b: BySeed, columns: Iterable[int]) -> dict[str, Any]:
        """Means of both, the paired difference with its interval, its p-value, and whether it is not 0."""
        at = list(columns)
        x, y = (self.scores.of(nodes)[..., at].mean(-1) for nodes in (a, b))
        found = statistics.interval(x - y, self.draws, level=self.level)
        difference = as_json(found, self.seeds)
        told = found.excludes(0.0)
        if self.pooled and len(self.seeds) == 1:  # one number per checkpoint: nothing was resampled
            difference |= {"low": None, "high": None}
            told = False
        return {
            "a": _mean(x),
            "b": _mean(y),
            "difference": difference,
            "p": found.p if told or not self.pooled else 1.0,
            "differs": told,
        }

    def intervals(self, values: Float[Array, "item seed draw"]) -> list[dict[str, Any] | None]:
        """Means over seeds with their intervals, as JSON."""
        found = statistics.intervals(values, self.draws, level=self.level)
        return [as_json(one, self.seeds) for one in found]

    def note(self, same: bool, differs: bool, ranked: int) -> str:
        """What the intervals cover and what that leaves open; `ranked` arms were compared at once, 0 for this pair alone."""
        text = self._covers(same, differs)
        if same:
            return text
        if ranked > 2:
            return (
                f"{text}; that of the mean holds for all {ranked} arms at once, as in the ranking"
            )
        return text if ranked else f"{text}; that of the mean is of this pair alone"

    def _covers(self, same: bool, differs: bool) -> str:
        count = len(self.seeds)
        if same:
            return "both arms end in the same checkpoint"
        if self.pooled and count == 1:
            return "one number per checkpoint and one seed: no interval"
        if count == 1:
            start = (
                "these two checkpoints differ" if differs else "these two checkpoints may be equal"
            )
            return f"{start}; with one seed the intervals cover problems only, and another run may differ by more: add seeds"
        few = ", widened to a t-interval over the seeds" if count < statistics.FEW_SEEDS else ""
        which = " of RL from one base (another base may differ)" if self.one_start else ""
        return f"the intervals cover problems and {count} seeds{which}{few}"


def _parts(
    pairs: Pairs,
    trained: list[int],
    table: pd.DataFrame,
    names: list[str],
    split: str,
    config: MeasureConfig,
) -> Parts:
    """The columns `trained`, split into verified and judged tasks, with the judged ones' hidden taste."""
    tasks = [pairs.scores.tasks[i] for i in trained]
    judges = judged_tasks(table)
    judged = tuple(i for i, task in zip(trained, tasks, strict=True) if task in judges)
    gold = gold_scores(table, split, names, tasks, config)
    verified = tuple(i for i in trained if i not in judged)
    return Parts(pairs.scores, verified, judged, gold, pairs.intervals)


def _same(ranked: Mapping[str, float], found: Mapping[str, float]) -> bool:
    """Whether the ranking is of the same scores, up to the digits that it is written with."""
    return ranked.keys() == found.keys() and all(abs(ranked[s] - found[s]) < 2e-6 for s in found)


def _mean(values: Float[Array, "seed draw"]) -> float:
    return float(values[:, 0].mean())


def _names(nodes: BySeed) -> dict[str, str]:
    return {str(seed): node for seed, node in nodes.items()}


def _chain(design: Design, arm: Arm) -> list[BySeed]:
    """The checkpoints an arm runs through, the base first; nothing for a merge or the base."""
    if arm.kind in ("order", "joint", "distill"):
        return [design.position(arm.name, i) for i in range(len(design.order_phases[arm.name]) + 1)]
    return [design.bases, arm.final] if arm.kind == "single" else []


def _read(names: Iterable[str], metrics: list[str], split: str) -> pd.DataFrame:
    import pandas as pd

    frames = []
    columns = ["node", "split", "task", "problem", "metric", "value"]
    for name in names:
        file = paths.evaluation(name)
        if not file.is_file():
            raise ParamsError(f"{file} not found: {repair(name)}")
        wanted = [("metric", "in", metrics), ("split", "==", split)]
        frames.append(pd.read_parquet(file, columns=columns, filters=wanted))
    return pd.concat(frames, ignore_index=True)


def _known(table: pd.DataFrame, task: str, names: list[str]) -> bool:
    """Whether every checkpoint has the metric on the task."""
    rows = table[(table["task"] == task) & table["value"].notna()]
    return set(rows["node"]) >= set(names)


def _unknown_metric(names: list[str], metric: str, split: str) -> str:
    import pandas as pd

    file: Path = paths.evaluation(names[0])
    known = sorted(pd.read_parquet(file, columns=["metric"])["metric"].unique())
    if metric in known:
        return f"no task has the metric {metric!r} on {split} at every checkpoint of both arms"
    return f"no metric {metric!r} on {split}; there are {', '.join(known)}{did_you_mean(metric, known)}"
