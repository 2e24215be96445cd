"""Base retention: what each arm changed of tasks that no phase trains, held-out ones of the plan and lm-eval's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainorder import paths
from trainorder.measure.evidence import Evidence
from trainorder.measure.scores import SCORE, Scores, repair, scores_of
from trainorder.reading import ParamsError

if TYPE_CHECKING:
    import pandas as pd

HARNESS = "harness"
"""Split of the rows of lm-eval's tasks (trainorder/evaluation/harness.py)."""


def guards(table: pd.DataFrame, evidence: Evidence) -> list[dict[str, Any]]:
    """One entry per guard task: its score at the base, and every arm's change of it, paired by problem and seed.

    Raises:
        ParamsError: a node lacks a task of lm-eval that another has.
    """
    design = evidence.design
    untrained = evidence.tasks[len(design.trained) :]
    found = [_entry(evidence, evidence.scores["test"], task, "held_out") for task in untrained]
    scores = _harness_scores(table, evidence)
    return found + [_entry(evidence, scores, task, HARNESS) for task in scores.tasks]


def _harness_scores(table: pd.DataFrame, evidence: Evidence) -> Scores:
    nodes, config = evidence.design.nodes(), evidence.config
    rows = table.loc[(table["split"] == HARNESS) & table["node"].isin(nodes)]
    tasks = tuple(sorted(map(str, rows["task"].unique())))
    have = set(
        rows.loc[rows["metric"] == SCORE, ["node", "task"]].itertuples(index=False, name=None)
    )
    for node in nodes:
        if lacking := [task for task in tasks if (node, task) not in have]:
            raise ParamsError(
                f"{paths.evaluation(node)} has no scores of lm-eval's {', '.join(lacking)}: {repair(node)}"
            )
    return scores_of(rows, HARNESS, nodes, tasks, count=config.bootstrap, seed=config.seed)


def _entry(evidence: Evidence, scores: Scores, task: str, kind: str) -> dict[str, Any]:
    column, arms = scores.tasks.index(task), list(evidence.design.arms())
    base = scores.of(evidence.design.bases)[..., column]
    changes = {arm.name: scores.of(arm.final)[..., column] - base for arm in arms}
    return {
        "task": task,
        "kind": kind,
        "problems": scores.used[task],
        "base": evidence.interval(base),
        "change": {arm: evidence.interval(change) for arm, change in changes.items()},
    }
