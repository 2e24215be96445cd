"""The pipeline files of plan/: one DVC stage per checkpoint, judge and evaluation, each with exactly the files that it reads.

DVC cannot unroll lists of unknown length in dvc.yaml, so these stages are compiled. plan/<node>/dvc.yaml has `train` and
`evaluate` of a node (`dvc repro plan/s0--math/dvc.yaml`), plan/dvc.yaml the judges (`judge-<name>`) and what reads what all
nodes left: `measure_bwt`, `report`, `metrics`. A file per node, since DVC parses and writes a file's whole dvc.lock after each of
its stages. Each stage depends on two files of .fingerprints: what its code means, and the values of params.yaml that it reads.
Children depend on their parent's checkpoint only: manifest, metrics and MLflow run id are outputs of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder import paths
from trainorder.config import ROLES, EndpointJudgeConfig, ModelFolder
from trainorder.plan.names import (
    EVALUATE,
    JUDGE,
    MEASURE,
    METRICS,
    PROBE,
    REPORT,
    TRAIN,
    judge_code,
    merge_values,
    phase_code,
)
from trainorder.reading import found_at
from trainorder.registries import asks_base
from trainorder.tasks import kind_of
from trainorder.tasks.base import SPLITS

if TYPE_CHECKING:
    from trainorder.config import AnyJudgeConfig, Role
    from trainorder.plan.compile import Node, Plan

RECORDS = ("manifest.json", "metrics.jsonl", "run.json", "drawn.jsonl")
"""What an RL phase leaves in runs/<node>; supervised training leaves no order of problems, a merge and a model as it is the manifest only."""


Stages = dict[str, dict[str, Any]]
"""Name -> command, dependencies, outputs."""


def content(plan: Plan) -> dict[Path, Stages]:
    """The stages of each pipeline file."""
    shared = {f"{JUDGE}-{name}": _judge(plan, name) for name in plan.judges}
    shared |= _measurement(plan)
    own = {
        paths.pipeline(node.id): {TRAIN: _node(plan, node), EVALUATE: _evaluation(plan, node)}
        for node in plan.nodes.values()
    }
    return {
        file: {
            name: {"wdir": os.path.relpath(".", file.parent), **stage}
            for name, stage in stages.items()
        }
        for file, stages in {paths.PIPELINE: shared, **own}.items()
    }


def _measurement(plan: Plan) -> Stages:
    """What is made of all nodes' scores and records."""
    stages: Stages = {}
    evaluations = [paths.evaluation(node) for node in plan.nodes]
    records = [
        paths.run(node.id) / name
        for node in plan.nodes.values()
        for name in _records(node)
        if name not in ("run.json", "drawn.jsonl")
    ]
    stages[MEASURE] = _stage(MEASURE, MEASURE, MEASURE, [paths.PLAN, *evaluations], [paths.BWT])
    shown: list[Path] = []
    if plan.params.probes:
        made = [paths.checkpoint(node) for node in plan.nodes]
        read = [paths.PLAN, *made, *manifests(plan), *evaluations, paths.TASK_DATA]
        stages[PROBE] = _stage(PROBE, PROBE, PROBE, read, [paths.PROBES])
        shown = [paths.PROBES]
    stages[REPORT] = _stage(
        REPORT, REPORT, REPORT, [paths.BWT, *evaluations, *records, *shown], [paths.REPORT]
    )
    curves = [record for record in records if record.name == "metrics.jsonl"]
    stages[METRICS] = _stage(METRICS, METRICS, None, [paths.BWT, *curves], [])
    # small and in git: DVC's experiments put the files of plots there, and its run cache keeps no stage that has such outputs
    stages[METRICS]["outs"] = [
        {str(made): {"cache": False}} for made in (paths.METRICS, paths.PLOTS)
    ]
    return stages


def manifests(plan: Plan) -> list[Path]:
    """Of every node: what says from which it was trained."""
    return [paths.run(node) / "manifest.json" for node in plan.nodes]


def settings(plan: Plan) -> dict[str, str]:
    """File of .fingerprints -> the sections of params.yaml that stages with this fingerprint read, as text."""
    every = plan.settings()
    sections = {
        "build_data": ("tasks", "data", "policy"),
        **({"sft_warmup": ("policy", "sft", "training")} if plan.params.sft else {}),
        **({} if plan.params.sft else {"base_model": ("policy",)}),
        "evaluate": ("evaluation", "training"),
        "measure_bwt": ("measure",),
        **({PROBE: ("probes",)} if plan.params.probes else {}),
    }
    found = {name: {key: every[key] for key in keys} for name, keys in sections.items()}
    found[REPORT] = {"judges": _prices(plan)}
    training = {"training": every["training"]}
    for name, judge in every["judges"].items():
        found[judge_code(name)] = {"judges": judge, **training}
    for name, merge in every["merges"].items():
        found[merge_values(name)] = {"merges": merge, **training}
    for name, phase in every["phases"].items():
        found[phase_code(name)] = {"phases": phase}
    for variant, phases in every["variants"].items():
        for name, phase in phases.items():
            found[phase_code(name, variant)] = {"phases": phase}
    return {f"{name}.json": json.dumps(value, indent=1) + "\n" for name, value in found.items()}


def _prices(plan: Plan) -> dict[str, list[float]]:
    """Judge -> its prices, of those that have some: the page shows what they cost."""
    configs = {name: judge.config for name, judge in plan.judges.items()}
    return {
        name: [config.input_price, config.output_price]
        for name, config in configs.items()
        if isinstance(config, EndpointJudgeConfig) and config.cost(1, 1) is not None
    }


def _node(plan: Plan, node: Node) -> dict[str, Any]:
    if node.kind == "model":
        command = f"base_model --node {node.id}"
        code = values = "base_model"
    elif node.kind == "base":
        command = f"sft_warmup --node {node.id} --seed {node.seed}"
        code = values = "sft_warmup"
    elif node.merge is not None:
        base, *merged = node.parents
        command = (
            f"merge --node {node.id} --base {base} --merge {node.merge} --parents {','.join(merged)} "
            f"--tasks {','.join(merged_tasks(plan, node))} --seed {node.seed}"
        )
        code, values = "merge", merge_values(node.merge)
    else:
        assert node.phase is not None
        stage = {"sft": "sft_phase", "distill": "distill"}.get(node.kind, "rl")
        command = (
            f"{stage} --node {node.id} --parent {node.parents[0]} --phase {node.phase} --variant {node.variant} "
            f"--seed {node.seed}"
        )
        if node.teachers:
            command += f" --teachers {','.join(f'{task}={other}' for task, other in node.teachers)}"
        code = values = phase_code(node.phase, node.variant)
    outs = [paths.checkpoint(node.id), *(paths.run(node.id) / name for name in _records(node))]
    return _stage(command, code, values, _reads(plan, node), outs)


def _records(node: Node) -> Sequence[str]:
    if node.kind in ("merge", "model"):
        return RECORDS[:1]
    return RECORDS[:3] if node.kind in ("base", "sft") else RECORDS


def _judge(plan: Plan, name: str) -> dict[str, Any]:
    judge, base = plan.judges[name], plan.bases()[0].id
    command = (
        f"train_judge --judge {name} --base {base} --tasks {','.join(judge.tasks)} --seed {judge.seed} "
        f"--first {judge.first}"
    )
    reads: list[object] = [paths.checkpoint(base), *judge_files(judge.config)]
    reads += [file for task in judge.tasks for file in _problems(plan, task)]
    outs = [paths.JUDGE / name, paths.JUDGE / f"{name}.json"]
    return _stage(command, judge_code(name), judge_code(name), reads, outs)


def judge_files(config: AnyJudgeConfig) -> list[str]:
    """The user's files that a judge is made of: pairs, and a model that is no name on the hub."""
    named = [config.pairs, getattr(config, "path", None)]
    return [path for path in named if path and found_at(path)]


def _problems(plan: Plan, task: str) -> list[Path]:
    """What a judge reads of a task: of own rows all splits, since the base answers those without a reference."""
    own = kind_of(task, plan.params.tasks[task]) == "rows"
    return [paths.TASK_DATA / task / f"{split}.jsonl" for split in (SPLITS if own else ["train"])]


def _evaluation(plan: Plan, node: Node) -> dict[str, Any]:
    command = f"evaluate --node {node.id} --seed {node.seed}"
    reads = [paths.checkpoint(node.id), paths.TASK_DATA, *_judges(plan, plan.judged)]
    if asks_base(plan.params.evaluation.pieces()):
        reads.append(paths.checkpoint(plan.params.base_of(node.seed)))
    return _stage(command, EVALUATE, EVALUATE, reads, [paths.evaluation(node.id)])


def _stage(
    command: str, code: str, values: str | None, reads: Iterable[object], outs: Iterable[object]
) -> dict[str, Any]:
    prints = [paths.FINGERPRINTS / code]
    if values is not None:
        prints.append(paths.FINGERPRINTS / f"{values}.json")
    return {
        "cmd": f"python -m stages.{command}",
        "deps": list(dict.fromkeys(map(str, [*prints, *reads]))),
        "outs": [str(out) for out in outs],
    }


def _reads(plan: Plan, node: Node) -> Iterator[object]:
    """What a node's stage reads beside its two fingerprints."""
    yield from (paths.checkpoint(parent) for parent in node.parents)
    if node.merge is not None:
        if isinstance(plan.params.merges[node.merge].scale, list):
            tasks = merged_tasks(plan, node)
            yield from (paths.TASK_DATA / task / "dev.jsonl" for task in tasks)
            yield from _judges(plan, tasks)
    elif node.kind == "base":
        sft = plan.params.sft
        yield from (paths.SFT_DATA, paths.TOKENIZER, *_model(plan))
        yield from (paths.TASK_DATA / task / "dev.jsonl" for task in (sft.gate if sft else ()))
    elif node.phase is None:
        yield from _model(plan)
    elif node.kind == "sft":
        rows = plan.params.phases[node.phase].data or ""
        yield from [rows] if found_at(rows) else []
        yield paths.TASK_DATA  # no row may be a dev or test problem
    else:
        params = plan.params.variant(node.variant)
        tasks, teacher = params.phases[node.phase].tasks, params.phase_rl(node.phase).teacher
        yield from map(paths.checkpoint, node.learns_from)
        if isinstance(teacher, ModelFolder) and found_at(teacher.path):
            yield teacher.path
        yield from _judges(plan, tasks, ["reward"])
        yield from (paths.TASK_DATA / task / "train.jsonl" for task in tasks)


def _model(plan: Plan) -> Iterator[str]:
    """The user's model, where it lies in a file or folder."""
    path = plan.params.policy.path
    if path is not None and found_at(path):
        yield path


def _judges(plan: Plan, tasks: Iterable[str], roles: Sequence[Role] = ROLES) -> Iterator[object]:
    """The judges that have these roles in these tasks."""
    names = [plan.judged[t][role] for t in tasks if t in plan.judged for role in roles]
    yield from (paths.JUDGE / name for name in dict.fromkeys(names))


def merged_tasks(plan: Plan, node: Node) -> list[str]:
    """What the nodes that a merge joins were trained on."""
    params = plan.params.variant(node.variant)
    phases = [plan.nodes[parent].phase for parent in node.parents[1:]]
    return list(dict.fromkeys(t for phase in phases if phase for t in params.phases[phase].tasks))
