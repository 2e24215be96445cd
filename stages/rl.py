"""DVC stage `train` of plan/<node>/dvc.yaml: a parent and a phase -> checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import stages
from trainorder import machine, paths
from trainorder.config import ModelFolder, Params, load_params
from trainorder.reading import ParamsError

OPTIONS = {
    "--node": "the node to make",
    "--parent": "the node it is trained from",
    "--phase": "entry of `phases` in params.yaml",
    "--variant": "entry of `variants`, or default",
    "--seed": "training seed of the node",
}


def main(arguments: argparse.Namespace) -> None:
    launch_or_train(arguments, "stages.rl")


def launch_or_train(
    arguments: argparse.Namespace, module: str, teachers: Mapping[str, str] | None = None
) -> None:
    """Train in this process, or as one of several ranks, each of which runs `module` with these arguments."""
    params = load_params().variant(arguments.variant)
    if params.training.backend == "deepspeed":
        from trainorder.rl import ranks

        if not ranks.launched():  # this process becomes or waits for the launcher of the ranks
            raise SystemExit(ranks.launch(module, sys.argv[1:], params.training))
    node, parent, phase = arguments.node, arguments.parent, arguments.phase
    train(node, parent, phase, arguments.seed, params, arguments.variant, teachers)


def train(
    node: str,
    parent: str,
    phase_name: str,
    seed: int,
    params: Params,
    variant: str,
    teachers: Mapping[str, str] | None = None,
) -> None:
    """Train, then write the manifest. `teachers` is task -> node, where each task has one of its own."""
    start = time.monotonic()
    if phase_name not in params.phases:
        raise ParamsError(f"no phase {phase_name!r}; there are {', '.join(sorted(params.phases))}")
    phase, rl = params.phases[phase_name], params.phase_rl(phase_name)

    from trainorder.lineage import inputs, write_manifest
    from trainorder.rewards import grading
    from trainorder.rl import ranks
    from trainorder.rl.trainer import train_phase
    from trainorder.tasks import load_task
    from trainorder.tracking import Tracker

    grading.configure(params.grading)
    prepared = machine.prepare(rl.threads, paths.checkpoint(parent))
    rl = rl.model_copy(update={"threads": prepared["threads"]})
    judges = rewarding(params, phase.tasks)
    sections = {"rl": rl.results(), f"phases.{phase_name}": phase.results()}
    sections |= {"rollout": params.rollout.results(), "training": params.training.results()}
    tags = {"parent": parent, "phase": phase_name, "kind": phase.kind, "variant": variant}
    sandbox = grading.sandbox_level([load_task(task) for task in phase.tasks])
    tags |= {"sandbox": sandbox} if sandbox else {}
    teacher, others, folders = None, list[str](), list[Path]()
    if teachers:
        teacher = {task: paths.checkpoint(other) for task, other in teachers.items()}
        others = list(teachers.values())
    elif node_of := rl.teacher_node(seed):
        teacher, others = str(paths.checkpoint(node_of)), [node_of]
    elif isinstance(rl.teacher, ModelFolder):
        teacher = rl.teacher.path
        folders = [Path(teacher)] if Path(teacher).exists() else []
    came_from: dict[str, Any] = {
        "seed": seed,
        "params": sections,
        "code": f"phase_{phase_name}" + ("" if variant == "default" else f".{variant}"),
        "parents": list(dict.fromkeys([parent, *others])),
        "data": [*data_of(phase.tasks, judges), *folders],
    }
    before, out = paths.checkpoint(parent), paths.checkpoint(node)
    phase_of = partial(
        train_phase,
        before,
        out,
        phase_name,
        phase,
        rl,
        seed,
        rollout=params.rollout,
        training=params.training,
        judges=judges,
        teacher=teacher,
    )
    if not ranks.is_first(params.training):  # one rank keeps the records
        phase_of(ranks.Silent())
        return
    with stages.keeping(node, params, inputs(**came_from)) as work:
        with Tracker(node, seed, sections, tags, work=work) as tracker:
            summary = phase_of(tracker, work)
            tracker.tag("alarms", ", ".join(summary["alarms"]) or "none")
            tracker.keep_order(summary["order"])
        write_manifest(
            node,
            **came_from,
            phase=phase_name,
            steps=summary["steps"],
            run_id=tracker.run_id,
            tokens=summary["tokens"],
            seconds=time.monotonic() - start + work.earlier,
            alarms=summary["alarms"],
            rollouts=summary["rollouts"],
        )


def rewarding(params: Params, tasks: Iterable[str]) -> dict[str, str]:
    """Judged task -> the judge that gives its rewards.

    Raises:
        ParamsError: a task is not built.
    """
    from trainorder.tasks import judged

    return {task: params.judges_of(task)["reward"] for task in judged(tasks)}


def data_of(tasks: Iterable[str], judges: Mapping[str, str]) -> list[Path]:
    """The files a phase reads beside its parent."""
    files = [paths.TASK_DATA / task / "train.jsonl" for task in tasks]
    return [*files, *(paths.JUDGE / name for name in dict.fromkeys(judges.values()))]


if __name__ == "__main__":
    sys.exit(stages.run("rl", __doc__, OPTIONS, main))
