"""`trainorder run --dry-run`: every part of a run on one problem of each task, and what the run would cost; nothing is trained.

The data are built by their DVC stage, so that the run finds them. The model has shapes alone (torch's meta device). A problem
of each task goes through template, tokenizer, room for the answer and grader; a judge that is not trained here is asked about one pair.
What this machine lacks (a model on the hub, an endpoint, a package, memory) is a line `missing`, and everything else is tried.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from typer import Exit

from trainorder import paths, plan, preflight
from trainorder.config import Params, PreferenceConfig
from trainorder.flow import dvc
from trainorder.plan import show, times
from trainorder.process import exclusive, keep_loopback_direct
from trainorder.reading import NotHere, ParamsError
from trainorder.refusing import refusing

if TYPE_CHECKING:
    from trainorder.policy import Policy
    from trainorder.tasks.base import Problem, Task


def main() -> int:
    """0 where the run can begin, 1 where this machine lacks something; what else stops it is one line, as in `trainorder check`."""
    keep_loopback_direct()
    try:
        with refusing(), exclusive(paths.FLOW_LOCK, "runs a flow in this folder"):
            wanted = plan.load()
            missing = preflight.lacking(wanted.params)
            plan.repair()
            plan.write(wanted)
            _build()
            for line in report(wanted, missing):
                print(line, flush=True)
    except Exit as refused:
        return refused.exit_code
    return int(bool(missing))


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


def report(wanted: plan.Plan, missing: list[str]) -> Iterator[str]:
    """The lines to print; `missing`, what this machine lacks, grows by what is found on the way.

    Raises:
        ParamsError: a problem does not fit the model, a right answer is graded wrong, or a judge gives no verdict.
    """
    from trainorder.rewards import grading
    from trainorder.tasks import load_problems, load_task

    params = wanted.params
    grading.configure(params.grading)
    name = params.policy.path or "the built-in one"
    try:
        policy = _model(params)
    except NotHere:  # one of `missing`
        policy = None
        yield f"model   {name}: not here; template, tokens and room of the answers are not tried"
    else:
        count = sum(parameter.numel() for parameter in policy.model.parameters())
        yield f"model   {name}: {count:,} weights, context {policy.context or 'unknown'}"
    for name in params.tasks:
        problems = load_problems(name, "train") or load_problems(name, "test")
        yield f"{name:<7} {_through(params, policy, name, load_task(name), problems[0])}"
    for name, judge in wanted.judges.items():
        if isinstance(config := judge.config, PreferenceConfig):
            yield f"judge   {name}: trained by the run, on {config.prompts} prompts with {config.answers} answers each"
        try:
            yield from (f"judge   {line}" for line in preflight.judges.check(params, [name]))
        except NotHere as error:
            missing.append(str(error))
    yield from _costs(wanted)
    yield from (f"missing {line}" for line in missing)
    yield "nothing was trained; data/ is built, `trainorder run` goes on from there" + (
        " once nothing is missing" if missing else ""
    )


def _model(params: Params) -> Policy:
    import torch

    from trainorder.policy import Policy

    if params.policy.path is not None:
        return Policy.start(params.policy, weights=False)
    with torch.device("meta"):
        return Policy.build_tiny(params.policy, paths.TOKENIZER, 0)


def _through(params: Params, policy: Policy | None, name: str, task: Task, problem: Problem) -> str:
    """One problem through template, tokenizer and grader, or without a model through the grader alone: what came out, as text."""
    from trainorder.rewards import grading

    room = params.tasks[name].max_new_tokens
    answer = problem.gold if problem.gold is not None else problem.reference
    said, seen, known = "", answer or "", "a known answer"
    if policy is not None:
        prompt = policy.encode_prompt(problem.prompt)
        limit = policy.context
        if limit is not None and len(prompt) + room > limit:
            raise ParamsError(
                f"tasks.{name}: a prompt of {len(prompt)} tokens and max_new_tokens {room} do not fit the model's {limit}"
            )
        said = f"prompt {len(prompt)} tokens, room for {room}, "
        if answer is not None:
            ids = policy.encode_completion(answer)
            if len(ids) > room:
                raise ParamsError(
                    f"tasks.{name}.max_new_tokens is {room}, a known answer has {len(ids)} tokens: raise it"
                )
            seen, known = policy.decode(ids), f"{known} has {len(ids)} and"
    if answer is None:
        return f"{said}no right answer is known"
    right, empty = (r.value for r in grading.grade(task, [seen, ""], [problem, problem]))
    if task.rewarded_by == "judge":
        return f"{said}rewarded by a judge"
    if right != 1.0 or empty != 0.0:
        raise ParamsError(
            f"tasks.{name}: a right answer scores {right}, an empty one {empty}; the grader sees {seen[:200]!r}"
        )
    return f"{said}{known} scores {right:g}, an empty one {empty:g}"


def _costs(wanted: plan.Plan) -> Iterator[str]:
    """Time, disk, memory and questions to judges; sizes and memory only where model and machines are known."""
    from trainorder import footprint, room
    from trainorder.files import size_text

    params = wanted.params
    memory, sizes = list[tuple[str, int, int]](), None
    with suppress(NotHere):  # one of `missing`
        machine, config = (
            footprint.Machine.here(params.training),
            footprint.model_config(params.policy),
        )
        sizes = room.sizes(wanted)
        for stage in footprint.stages(params, machine, config, activations=False):
            memory.append((stage.name, *stage.total(machine)))
    for stage, gpu, host in memory:
        yield f"memory  {stage}: {f'{size_text(gpu)} of a GPU, ' if gpu else ''}{size_text(host)} of RAM at least"
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
    states = plan.status(wanted)
    lines = show.summary(wanted, states, times.expected(wanted, sizes), sizes)
    yield from (f"plan    {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
