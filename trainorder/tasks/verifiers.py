"""verifiers: single-turn tasksets of verifiers 0.4 (extra `verifiers`; its pins are its own, so use an environment of its own).

A reply becomes a trace of the prompt and one answer, which the task scores offline. Refused with the reason: tasks of several
turns, with tools, images or containers, and rewards that need a runtime, which offline scoring would leave out silently.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from trainorder.reading import ParamsError
from trainorder.rewards import format
from trainorder.tasks.base import Message, Problem, Prompt, Reward, Split, content_id, split_of
from trainorder.tasks.leaks import normal_form

RUNTIME = "runtime"
TRIED = 8
"""Tasks on which the contract is tried."""
NONSENSE = "xyzzy"


@dataclass(frozen=True)
class Verifiers:
    """The tasks of an installed taskset; a reply's weighted rewards as a share of the positive weights."""

    taskset: str = ""
    """Id of the taskset: an importable package."""
    config: dict[str, Any] = field(default_factory=dict)
    """The taskset's own settings."""
    binary: bool = False
    """Only full marks count, 1 or 0."""
    most: int = 10_000
    """Tasks that are taken of a taskset, the first ones."""
    version: int = field(default=1, init=False)
    rewarded_by: Literal["verifier", "judge"] = field(default="verifier", init=False)

    def __post_init__(self) -> None:
        if not self.taskset:
            raise ValueError("taskset: name an installed taskset")

    def read(
        self, task: str, reserved: Sequence[str] = ()
    ) -> tuple[dict[Split, list[Problem]], list[Any]]:
        """Every task once, its split by the hash of its question."""
        found: dict[Split, dict[str, Problem]] = {"train": {}, "dev": {}, "test": {}}
        for index, made in enumerate(self._tasks()):
            problem = problem_of(task, made.data, index)
            found[split_of(problem.id)].setdefault(problem.id, problem)
        return {split: list(own.values()) for split, own in found.items()}, []

    def few(self, task: str, taken: Any) -> list[Problem]:
        """The first problems of each split, then the longest."""
        found, _ = self.read(task)
        own = [p for split, problems in found.items() for p in problems[: taken[split]]]
        return [*own[:8], *sorted(own, key=lambda p: len(p.text))[-20:]]

    def draw(self, rng: random.Random) -> Problem:
        """A random training task."""
        return rng.choice(self.read("verifiers")[0]["train"])

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Never asked: tasksets promise no right answer."""
        return problem.gold or ""

    def drill(self, rng: random.Random) -> str | None:
        """None."""
        return None

    def grade(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Reward]:
        """The task's own score; parts are its rewards. None where one of them failed."""
        return [self._grade(text, p) for text, p in zip(completions, problems, strict=True)]

    def _grade(self, completion: str, problem: Problem) -> Reward:
        made = self._tasks()[problem.meta["index"]]
        if _prompt(made.data) != problem.prompt:
            raise ParamsError(
                f"taskset {self.taskset}: task {problem.meta['index']} is another one than was built: run `dvc repro build_data`"
            )
        if not format.visible(completion):
            return Reward(0.0)
        return _score(made, completion, binary=self.binary)

    def _tasks(self) -> list[Any]:
        return _loaded(self.taskset, json.dumps(self.config, sort_keys=True), self.most)


def problem_of(task: str, data: Any, index: int) -> Problem:
    """The problem of a task's data: those of one question are of one split (`task.key` hashes the position too)."""
    problem = Problem("", task, _prompt(data), None, None, {"index": index})
    content = data.model_dump(mode="json", exclude_none=True, exclude={"idx", "id"})
    variant = [json.dumps(content, sort_keys=True)]
    return replace(problem, id=content_id(task, normal_form(problem.question), variant=variant))


@cache
def _loaded(taskset: str, config: str, most: int) -> list[Any]:
    """The first `most` tasks, if they are of one turn and the first ones keep the contract."""
    _package()
    loaders: Any = importlib.import_module("verifiers.v1.utils.loaders")
    try:
        kind = loaders.taskset_config_type(taskset)
        made = loaders.load_taskset(kind.model_validate({**json.loads(config), "id": taskset}))
        tasks = list(itertools.islice(made, most))
    except Exception as error:  # a plugin may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ParamsError(
            f"taskset {taskset!r} cannot be loaded: {type(error).__name__}: {reason}"
        ) from None
    if not tasks:
        raise ParamsError(f"taskset {taskset!r} has no task")
    _check_environment(loaders, taskset)
    for task in tasks:
        _check_single_turn(taskset, task)
    for task in tasks[:TRIED]:
        if (_score(task, NONSENSE, binary=False).value or 0.0) >= 1:
            raise ParamsError(
                f"taskset {taskset!r} cannot be trained on: it gives full marks to {NONSENSE!r}"
            )
    return tasks


def _check_environment(loaders: Any, taskset: str) -> None:
    single: Any = importlib.import_module("verifiers.v1").SingleAgentEnv
    found = loaders.environment_class(taskset, "")
    if found is not single:
        raise ParamsError(
            f"taskset {taskset!r} brings an environment of its own ({found.__name__}): only one turn is trained on"
        )


def _check_single_turn(taskset: str, task: Any) -> None:
    data, why = task.data, ""
    rewards = [*task.hooks("reward"), *(judge.score for judge in task.plugged_judges())]
    if data.prompt is None:
        why = "has no prompt"
    elif data.image or getattr(task, "NEEDS_CONTAINER", False):
        why = "needs a container"
    elif list(type(task).toolsets(task.config)):
        why = "uses tools"
    elif needy := [fn.__name__ for fn in rewards if _needs_runtime(fn)]:
        why = f"has rewards that need a runtime ({', '.join(needy)})"
    elif not rewards:
        why = "has no reward"
    if why:
        raise ParamsError(f"taskset {taskset!r} cannot be trained on: task {data.idx} {why}")


def _needs_runtime(function: Any) -> bool:
    parameter = inspect.signature(function).parameters.get(RUNTIME)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _prompt(data: Any) -> Prompt:
    """The system prompt and the turns; one turn of the user is a text."""
    given = [data.prompt] if isinstance(data.prompt, str) else list(data.prompt)
    turns: list[Message] = (
        [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    )
    for turn in given:
        plain = turn if isinstance(turn, str) else turn.content
        if not isinstance(plain, str):
            raise ParamsError(f"task {data.idx}: only text can be asked")
        turns.append({"role": "user" if isinstance(turn, str) else turn.role, "content": plain})
    return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns


def _score(task: Any, completion: str, *, binary: bool) -> Reward:
    """What the task gives a trace of its prompt and this reply."""
    vf: Any = _package()
    graph: Any = importlib.import_module("verifiers.v1.graph")
    prompt = _prompt(task.data)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    nodes = [graph.MessageNode(message=kinds[t["role"]](content=t["content"])) for t in turns]
    nodes.append(graph.MessageNode(message=vf.AssistantMessage(content=completion), sampled=True))
    for number, node in enumerate(nodes[1:]):
        node.parent = number
    whose = vf.TraceTask(type=type(task).__name__, data=task.data)
    traces: Any = importlib.import_module("verifiers.v1.trace")
    trace = vf.Trace(task=whose, agent=traces.AgentInfo(config=vf.AgentConfig()), nodes=nodes)
    asyncio.run(task.score(trace))
    return share(trace.rewards, binary=binary)


def share(rewards: dict[str, Any], *, binary: bool) -> Reward:
    """The weighted rewards divided by the sum of the positive weights, cut to 0..1; None where one is missing."""
    if not rewards or any(reward is None for reward in rewards.values()):
        return Reward(None)
    whole = sum(reward.weight for reward in rewards.values() if reward.weight > 0)
    if whole <= 0:
        return Reward(None)
    value = min(1.0, max(0.0, sum(r.score * r.weight for r in rewards.values()) / whole))
    parts = {name: min(1.0, max(0.0, float(reward.score))) for name, reward in rewards.items()}
    return Reward(float(value >= 1) if binary else value, parts)


@cache
def _package() -> Any:
    try:
        return importlib.import_module("verifiers.v1")
    except ImportError as error:
        raise ParamsError(
            f"kind verifiers needs the package verifiers 0.4 ({error}): pip install 'trainorder[verifiers]'"
        ) from None
