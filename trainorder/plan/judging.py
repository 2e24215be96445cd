"""What judges that are asked will be asked: calls and their tokens, from the plan alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, comb
from typing import Any

from trainorder.config import EndpointJudgeConfig, PreferenceConfig
from trainorder.data import few_problems
from trainorder.plan import names
from trainorder.plan.appointed import Appointed
from trainorder.plan.compile import Node, Plan
from trainorder.plan.state import State
from trainorder.tasks import make_task
from trainorder.tasks.base import OwnRows

FRAME = 150
"""Tokens around request and answers: system message, marks, question; about."""
CHARACTERS = 4
"""Of a token of English text, about."""


def calls(plan: Plan, states: Mapping[str, State]) -> dict[str, int]:
    """Judge -> calls at most, of the stages that have to run. Equal answers and kept verdicts are not asked about again."""
    found = {}
    for name, judge in plan.judges.items():
        if not isinstance(judge.config, PreferenceConfig):
            verdicts = ceil(sum(_verdicts(plan, states, name, judge)))
            found[name] = verdicts * (1 if judge.config.rubric is not None else 2)
    return found


def lines(plan: Plan, states: Mapping[str, State]) -> Iterator[str]:
    """A line about each judge that will be asked."""
    for name, count in calls(plan, states).items():
        if not count:
            continue
        tokens = _answers_and_frame(plan, name)
        rate = getattr(plan.judges[name].config, "requests_per_minute", None)
        pace = f", {count / rate / 60:.1f} h at {rate:g} a minute" if rate else ""
        yield (
            f"judge {name}: at most {count} calls, each of about {tokens} tokens and the prompt{pace}; "
            f"verdicts that are kept cost nothing{_price(plan, name, count)}"
        )


def _answers_and_frame(plan: Plan, name: str) -> int:
    """Tokens of what a judge reads beside the prompt, where all answers are as long as they may be."""
    config, tasks = plan.judges[name].config, plan.judges[name].tasks
    shown = 1 if getattr(config, "rubric", None) is not None else 2
    return FRAME + shown * max(plan.params.tasks[task].max_new_tokens for task in tasks)


def cost(plan: Plan, name: str, count: int) -> float | None:
    """What so many calls of a judge cost at most, at its prices; None where it has none.

    A prompt counts by the longest of a few, at CHARACTERS a token; a reply by the judge's `max_tokens`.
    """
    config, tasks = plan.judges[name].config, plan.judges[name].tasks
    if not isinstance(config, EndpointJudgeConfig) or config.cost(1, 1) is None:
        return None
    texts = [p.text for task in tasks for p in few_problems(task, plan.params.tasks[task])[1]]
    asked = _answers_and_frame(plan, name) + max(map(len, texts), default=0) / CHARACTERS
    return config.cost(count * asked, count * config.max_tokens)


def _price(plan: Plan, name: str, count: int) -> str:
    found = cost(plan, name, count)
    return "" if found is None else f"; at its prices about {found:,.2f} at most"


def _verdicts(
    plan: Plan, states: Mapping[str, State], name: str, judge: Appointed
) -> Iterator[float]:
    """Verdicts of each stage that has to run."""
    if states[names.judge(name)] == "stale":
        yield _to_compare(plan, judge)
    for node in plan.nodes.values():
        if node.phase is not None and states[node.stage] == "stale":
            yield _in_training(plan, node, name)
        if states[names.evaluation(node.id)] == "stale":
            yield _in_evaluation(plan, name)


def _to_compare(plan: Plan, judge: Appointed) -> float:
    """Comparisons of its agreement, where there is something to agree with."""
    config = judge.config
    task = config.task or judge.tasks[0]
    if config.pairs:
        pairs = config.heldout_prompts
    elif getattr(make_task(task, plan.params.tasks[task]), "has_taste", False):
        pairs = config.heldout_prompts * comb(config.answers, 2)
    else:
        return 0
    return pairs * (2 if getattr(config, "rubric", None) is not None else 1)


def _in_training(plan: Plan, node: Node, name: str) -> float:
    params = plan.params.variant(node.variant)
    assert node.phase is not None
    phase, rl = params.phases[node.phase], params.phase_rl(node.phase)
    if phase.kind == "sft":
        return 0
    own = [task for task in phase.tasks if plan.judged.get(task, {}).get("reward") == name]
    share = sum(phase.tasks[task] for task in own) / sum(phase.tasks.values())
    return phase.steps * rl.prompts_per_step * rl.group_size * share


def _in_evaluation(plan: Plan, name: str) -> float:
    samples, found = plan.params.evaluation.samples, 0
    for task, roles in plan.judged.items():
        each = (samples + 1) * (roles["evaluation"] == name)
        each += samples * (roles["reward"] == name != roles["evaluation"])
        found += each and each * _exam_problems(plan, task)
    return found


def _exam_problems(plan: Plan, task: str) -> int:
    """Problems of dev and test; of own rows no more than there are."""
    config = plan.params.tasks[task]
    made: Any = make_task(task, config)
    if not isinstance(made, OwnRows) or not hasattr(made, "survey"):
        return config.dev + config.test
    counts = made.survey(task)["counts"]
    return min(config.dev, counts["dev"]) + min(config.test, counts["test"])
