"""What code every stage runs, and the files of .fingerprints that say what it means."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainorder import fingerprint
from trainorder.config import ROLES, AnyJudgeConfig, ModelJudgeConfig, Role
from trainorder.fingerprint import Code
from trainorder.plan import pipeline
from trainorder.plan.names import EVALUATE, PROBE, judge_code, phase_code
from trainorder.registries import (
    BACKENDS,
    ENGINES,
    FORMATS,
    JUDGE_MAKERS,
    JUDGES,
    PROBES,
    chosen_probes,
)
from trainorder.sources import find
from trainorder.tasks import TASKS, harness, kind_of, make_task

if TYPE_CHECKING:
    from trainorder.plan.compile import Plan

SAMPLING = ("merge", "evaluate")
"""Stages that sample with the engine of `rollout.backend`, beside judges and RL phases; the gate of SFT uses torch's."""


def fingerprints(plan: Plan) -> dict[str, str]:
    """Files of .fingerprints: what the code of every stage means, and the values of params.yaml that it reads."""
    texts = fingerprint.compute(code(plan))
    # the user's own rows count as a part of the build, and so does the code of theirs that grades
    for name, config in plan.params.tasks.items():
        files = getattr(make_task(name, config), "files", ())
        texts["build_data"] += "".join(f"{file} {_hash(file)}\n" for file in files)
    own_tasks = harness.files(plan.params.evaluation.harness)
    texts["evaluate"] += "".join(f"{file} {_hash(file)}\n" for file in own_tasks)
    for name, tasks in _graded(plan).items():
        own = [getattr(make_task(task, plan.params.tasks[task]), "code", ()) for task in tasks]
        texts[name] += fingerprint.of_files(sorted({file for files in own for file in files}))
    return {**texts, **pipeline.settings(plan)}


def _stage_tasks(plan: Plan) -> dict[str, list[str]]:
    """Fingerprint of a stage that is no phase and no judge -> the tasks whose code it runs."""
    sft = plan.params.sft
    return {
        "build_data": list(plan.params.tasks),
        **({"base_model": []} if sft is None else {"sft_warmup": list(sft.gate)}),
        "merge": list(plan.params.tasks),
        "evaluate": list(plan.params.tasks),
        "measure_bwt": [],
        "report": [],
        "metrics": [],
        **({PROBE: list(plan.params.tasks)} if plan.params.probes else {}),
    }


def _graded(plan: Plan) -> dict[str, list[str]]:
    """Fingerprint -> the tasks whose answers are graded under it."""
    phases = {
        phase_code(name, variant): list(phase.tasks)
        for variant in plan.params.variant_names()
        for name, phase in plan.params.variant(variant).phases.items()
    }
    return {**_stage_tasks(plan), **phases}


def code(plan: Plan) -> dict[str, Code]:
    """Fingerprint -> the stage module it covers, and what this module loads by name."""
    params, engine = plan.params, ENGINES[plan.params.rollout.backend]
    probes = {PROBES[name] for name in chosen_probes(params.probes)}
    form = FORMATS.get(find(params.policy.path).kind) if params.policy.path else None
    found = {
        stage: Code(
            _module(stage),
            _loads(plan, names, ROLES, build=stage == "build_data")
            | ({engine} if stage in SAMPLING else set())
            | (probes if stage == PROBE else set())
            | ({form} if form and stage in ("build_data", "base_model", "sft_warmup") else set()),
            params.evaluation.pieces() if stage == EVALUATE else frozenset(),
        )
        for stage, names in _stage_tasks(plan).items()
    }
    for name, judge in plan.judges.items():
        makes = {JUDGE_MAKERS[judge.config.kind], engine, *_judge_code(judge.config)}
        found[judge_code(name)] = Code(_module("train_judge"), _loads(plan, judge.tasks) | makes)
    for variant in params.variant_names():
        changed = params.variant(variant)
        for name, phase in changed.phases.items():
            if phase.kind == "sft":
                found[phase_code(name, variant)] = Code(
                    _module("sft_phase"), _loads(plan, params.tasks)
                )
                continue
            backends = {engine, BACKENDS[params.training.backend]}
            found[phase_code(name, variant)] = Code(
                _module("distill" if phase.kind == "distill" else "rl"),
                _loads(plan, phase.tasks, ["reward"]) | backends,
                changed.phase_rl(name).pieces(),
            )
    return found


def _loads(
    plan: Plan, tasks: Collection[str], roles: Sequence[Role] = (), build: bool = False
) -> frozenset[str]:
    """The kinds of these tasks with what they load by name, and the judges that have these roles in them."""
    kinds = {TASKS[kind_of(task, plan.params.tasks[task])] for task in tasks}
    judges = {plan.judged[t][role] for t in tasks if t in plan.judged for role in roles}
    named = [getattr(make_task(task, plan.params.tasks[task]), "loads", None) for task in tasks]
    loaded = {
        target
        for task, own in zip(tasks, named, strict=True)
        if own
        for target in own(task, build=build)
    }
    of_judges = {target for n in judges for target in _judge_code(plan.judges[n].config)}
    return frozenset(kinds | loaded | of_judges)


def _judge_code(config: AnyJudgeConfig) -> set[str]:
    """What is loaded by name where a judge is asked."""
    form = FORMATS.get(find(config.path).kind) if isinstance(config, ModelJudgeConfig) else None
    return {JUDGES[config.kind], *([form] if form else [])}


def _module(stage: str) -> str:
    """The stage's module, put together here: a whole name in the source would be an import of this module (fingerprint.py)."""
    return f"stages.{stage}"


def _hash(file: Path) -> str:
    if not file.is_file():
        return "missing"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
