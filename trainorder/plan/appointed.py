"""Which judges the judged tasks of an experiment have, and on which problems each learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainorder.config import AnyJudgeConfig, Params, PreferenceConfig, Role


@dataclass(frozen=True)
class Appointed:
    """A judge, the judged tasks that it serves, and what sets it apart from the preference models before it."""

    config: AnyJudgeConfig
    tasks: tuple[str, ...]
    seed: int
    """Its number among the preference models of its task."""
    first: int
    """Its first prompt in the task's shuffled training problems; those before it teach other judges."""


def appointed(params: Params, judged: Mapping[str, Mapping[Role, str]]) -> dict[str, Appointed]:
    """The judges that these tasks have, in the order of params.yaml; `judged` is task -> role -> judge."""
    found: dict[str, Appointed] = {}
    taken: dict[str, list[int]] = {}
    for name, config in params.named_judges().items():
        tasks = tuple(task for task, roles in judged.items() if name in roles.values())
        if not tasks:
            continue
        before = taken.setdefault(config.task or tasks[0], [])
        found[name] = Appointed(config, tasks, len(before), sum(before))
        if isinstance(config, PreferenceConfig):
            before.append(0 if config.pairs else config.prompts + config.heldout_prompts)
    return found
