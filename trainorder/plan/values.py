"""The values of params.yaml that can change a result: each stage depends on the sections that it reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trainorder.config import DEFAULT, AnyJudgeConfig, ModelJudgeConfig
from trainorder.registries import chosen_probes
from trainorder.sources import find, section
from trainorder.tasks import kind_of, options_of

if TYPE_CHECKING:
    from trainorder.plan.compile import Plan

NO_LINES = {"demonstrations": 0, "drills": 0}
"""What a task writes for a warm-up that there is not."""


def settings(plan: Plan) -> dict[str, Any]:
    """What of params.yaml can change a result, with defaults filled in: stages depend on values, however written.

    A section that names tasks carries what these are (`tasks` -> kind, options, length of an answer), and a
    phase its own `rl` and what samples and trains. A section whose stage samples has `rollout` where the torch
    engine does not.
    """
    params = plan.params
    return {
        "policy": section(params.policy),
        "training": {"dtype": params.training.dtype},
        "tasks": {
            name: task.results() | (NO_LINES if params.sft is None else {})
            for name, task in params.tasks.items()
        },
        "data": params.data.results(),
        "evaluation": {
            **params.evaluation.results(),
            **params.engine(),
            **_roles(plan, params.tasks),
        },
        "measure": params.measure.results(),
        "probes": chosen_probes(params.probes),
        **_sft(plan),
        "judges": _judges(plan),
        "phases": _phases(plan, DEFAULT),
        "variants": {variant: _phases(plan, variant) for variant in params.variants},
        "merges": {
            name: merge.results()
            | (
                {**params.engine(), **_roles(plan, params.tasks)}
                if isinstance(merge.scale, list)
                else {}
            )
            for name, merge in params.merges.items()
        },
    }


def _sft(plan: Plan) -> dict[str, Any]:
    sft = plan.params.sft
    return {} if sft is None else {"sft": {**sft.results(), "tasks": _tasks(plan, sft.gate)}}


def _judges(plan: Plan) -> dict[str, Any]:
    return {
        name: {
            **judge.config.results(),
            **_content(judge.config),
            **plan.params.engine(),
            "tasks": _tasks(plan, judge.tasks),
        }
        for name, judge in plan.judges.items()
    }


def _roles(plan: Plan, tasks: Iterable[str]) -> dict[str, Any]:
    """`judges`: who judges those of the tasks that are judged; nothing where none is."""
    found = {task: plan.judged[task] for task in tasks if task in plan.judged}
    return {"judges": found} if found else {}


def _phases(plan: Plan, variant: str) -> dict[str, Any]:
    params = plan.params.variant(variant)
    training = params.training.results()
    supervised = {
        name: {**phase.results(), "training": training}
        for name, phase in params.phases.items()
        if phase.kind == "sft"
    }
    return supervised | {
        name: {
            **phase.results(),
            "rl": params.phase_rl(name).results(),
            "rollout": params.rollout.results(),
            "training": training,
            "of": _tasks(plan, phase.tasks),
            **_roles(plan, phase.tasks),
        }
        for name, phase in params.phases.items()
        if phase.kind != "sft"
    }


def _tasks(plan: Plan, names: Iterable[str]) -> dict[str, Any]:
    tasks = {name: plan.params.tasks[name] for name in names}
    return {
        name: {
            "kind": kind_of(name, task),
            "options": options_of(task),
            "max_new_tokens": task.max_new_tokens,
        }
        for name, task in tasks.items()
    }


def _content(config: AnyJudgeConfig) -> dict[str, str]:
    """The content of an installed package that a judge's model lies in, which no file of the project shows."""
    content = find(config.path).content if isinstance(config, ModelJudgeConfig) else None
    return {} if content is None else {"content": content}
