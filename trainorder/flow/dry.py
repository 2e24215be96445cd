"""`trainorder run --dry-run`: every part of a run on one problem of each task, and what the run would cost; nothing is trained.

The data are built by their DVC stage, so that the run finds them. The model has shapes alone (torch's meta device). A problem
of each task goes through template, tokenizer, room for the answer and grader; a judge that is not trained here is asked about one pair.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from typer import Exit

from trainorder import paths, plan, preflight
from trainorder.config import Params, PreferenceConfig
from trainorder.flow import dvc
from trainorder.plan import show, times
from trainorder.process import exclusive, keep_loopback_direct
from trainorder.reading import ParamsError
from trainorder.refusing import refusing

if TYPE_CHECKING:
    from trainorder.policy import Policy
    from trainorder.tasks.base import Problem, Task


def main() -> int:
    """0 where the run can begin; what stops it is one line, as in `trainorder check`."""
    keep_loopback_direct()
    try:
        with refusing(), exclusive(paths.FLOW_LOCK, "runs a flow in this folder"):
            wanted = plan.load()
            preflight.check(wanted.params)
            plan.repair()
            plan.write(wanted)
            _build()
            for line in report(wanted):
                print(line, flush=True)
    except Exit as refused:
        return refused.exit_code
    return 0


def _build() -> None:
    """Bring the data up to date by their stage.

    Raises:
        ParamsError: in the stage's words.
    """
    try:
        dvc.Runner().repro("build_data", lambda line: None, parents=True)
    except dvc.StageFailed as error:
        _, found, said = str(error).partition("\nerror: ")
        raise ParamsError(said.partition("\n")[0] if found else str(error)) from None


def report(wanted: plan.Plan) -> Iterator[str]:
    """The lines to print.

    Raises:
        ParamsError: a problem does not fit the model, a right answer is graded wrong, or a judge cannot be asked.
    """
    from trainorder.rewards import grading
    from trainorder.tasks import load_problems, load_task

    params = wanted.params
    grading.configure(params.grading)
    policy = _model(params)
    count = sum(parameter.numel() for parameter in policy.model.parameters())
    yield f"model   {params.policy.path or 'the built-in one'}: {count:,} weights, context {policy.context or 'unknown'}"
    for name in params.tasks:
        problems = load_problems(name, "train") or load_problems(name, "test")
        yield f"{name:<7} {_through(params, policy, name, load_task(name), problems[0])}"
    for name, judge in wanted.judges.items():
        if isinstance(config := judge.config, PreferenceConfig):
            yield f"judge   {name}: trained by the run, on {config.prompts} prompts with {config.answers} answers each"
    yield from (f"judge   {line}" for line in preflight.judges.check(params))
    yield from _costs(wanted)
    yield "nothing was trained; data/ is built, `trainorder run` goes on from there"


def _model(params: Params) -> Policy:
    import torch

    from trainorder.policy import Policy

    if params.policy.path is not None:
        return Policy.start(params.policy, weights=False)
    with torch.device("meta"):
        return Policy.build_tiny(params.policy, paths.TOKENIZER, 0)


def _through(params: Params, policy: Policy, name: str, task: Task, problem: Problem) -> str:
    """One problem through template, tokenizer and grader: what came out, as text."""
    from trainorder.rewards import grading

    room = params.tasks[name].max_new_tokens
    prompt = policy.encode_prompt(problem.prompt)
    limit = policy.context
    if limit is not None and len(prompt) + room > limit:
        raise ParamsError(
            f"tasks.{name}: a prompt of {len(prompt)} tokens and max_new_tokens {room} do not fit the model's {limit}"
        )
    said = f"prompt {len(prompt)} tokens, room for {room}"
    answer = problem.gold if problem.gold is not None else problem.reference
    if answer is None:
        return f"{said}, no right answer is known"
    ids = policy.encode_completion(answer)
    if len(ids) > room:
        raise ParamsError(
            f"tasks.{name}.max_new_tokens is {room}, a known answer has {len(ids)} tokens: raise it"
        )
    said += f", a known answer has {len(ids)}"
    right, empty = (
        r.value for r in grading.grade(task, [policy.decode(ids), ""], [problem, problem])
    )
    if task.rewarded_by == "judge":
        return f"{said}; rewarded by a judge"
    if right != 1.0 or empty != 0.0:
        raise ParamsError(
            f"tasks.{name}: a right answer scores {right}, an empty one {empty}; the grader sees {policy.decode(ids)[:200]!r}"
        )
    return f"{said} and scores {right:g}, an empty one {empty:g}"


def _costs(wanted: plan.Plan) -> Iterator[str]:
    """Time, disk, memory and questions to judges."""
    from trainorder import footprint, storage
    from trainorder.files import size_text

    params = wanted.params
    machine = footprint.Machine.here(params.training)
    config = footprint.model_config(params.policy)
    for stage in footprint.stages(params, machine, config, activations=False):
        gpu, host = stage.total(machine)
        yield f"memory  {stage.name}: {f'{size_text(gpu)} of a GPU, ' if gpu else ''}{size_text(host)} of RAM at least"
    asked = 0
    for node in wanted.nodes.values():
        if node.phase is not None and node.kind != "sft":
            changed = params.variant(node.variant)
            phase, rl = changed.phases[node.phase], changed.phase_rl(node.phase)
            judged = sum(w for task, w in phase.tasks.items() if task in wanted.judged)
            each = rl.prompts_per_step * rl.group_size * phase.steps
            asked += round(each * judged / sum(phase.tasks.values()))
    if asked:
        yield f"judges  score about {asked:,} answers in RL"
    states, sizes = plan.status(wanted), storage.sizes(wanted)
    lines = show.summary(wanted, states, times.expected(wanted, sizes), sizes)
    yield from (f"plan    {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
