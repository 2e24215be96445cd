"""The plan as a tree on the terminal: what is cached, what is restored, what trains, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainorder import lineage, paths
from trainorder.config import DEFAULT
from trainorder.plan.compile import Node, Plan
from trainorder.plan.orders import pending
from trainorder.plan.state import State

if TYPE_CHECKING:
    from rich.tree import Tree

WORDS = {
    "cached": "[green]cached[/]",
    "restorable": "[cyan]restorable[/]",
    "stale": "[yellow]to train[/]",
}

STARTUP_SECONDS = 6.0
"""Importing torch and transformers, opening MLflow: once per stage."""
MODEL_SIZE = 190_000
"""Parameters of the tiny model that the following seconds were measured on, on one core."""
SECONDS_PER_ROLLOUT = 0.33 / 128
SECONDS_PER_SFT_LINE = 0.092 / 109
SECONDS_PER_PAIR = 43 / 3500 / 4
SECONDS_PER_ANSWER = 5.0 / (5 * 512 * 5)


def tree(plan: Plan, states: Mapping[str, State]) -> Tree:
    """One branch per seed, children under the checkpoint they start from."""
    from rich.tree import Tree

    times = seconds(plan)
    root = Tree(f"[bold]{len(plan.nodes)} checkpoints[/]", guide_style="dim")
    branches: dict[str, Tree] = {}
    for node in plan.nodes.values():
        above = branches[node.parents[0]] if node.parents else root
        branches[node.id] = above.add(_line(node, states[node.stage], times[node.id]))
    return root


def _line(node: Node, state: State, time: float | None) -> str:
    name = node.phase or node.merge or f"{node.id}  SFT of seed {node.seed}"
    if node.variant != DEFAULT and node.parents[0] == f"s{node.seed}":
        name = f"[bold]{node.variant}[/] {name}"
    text = f"{name}  [dim]{node.kind}[/]" if node.parents else name
    cost = f"  {duration(time)}" if state == "stale" else ""
    return f"{text}  {WORDS[state]}{cost}"


def summary(plan: Plan, states: Mapping[str, State]) -> list[str]:
    """Totals in words: nodes by state, time, disk, and orders that wait for a measurement."""
    counts = Counter(states[node.stage] for node in plan.nodes.values())
    lines = [f"{counts['stale']} new, {counts['restorable']} restorable, {counts['cached']} cached"]
    if counts["stale"]:
        workers = plan.params.flow.workers
        lines.append(
            f"about {duration(_wall(plan, states))} with {workers} workers, {_disk(plan, states)}"
        )
    waiting = pending(plan.params, plan.resolved)
    if waiting:
        longest = len(next(iter(plan.singles.values())))
        each = "per seed and variant" if plan.variants else "per seed"
        lines.append(
            f"{', '.join(waiting)}: once the transfer is measured, up to {longest - 1} more nodes each {each}"
        )
    return lines


def seconds(plan: Plan) -> dict[str, float | None]:
    """Node -> expected seconds: as long per step as the same phase took last time, else the table above.

    None where nothing is known: a model from elsewhere that was never trained here.
    """
    found = {node: m for node, m in lineage.manifests().items() if m.get("steps")}
    per_step = {
        m["phase"] if "--" in node else None: m["seconds"] / m["steps"] for node, m in found.items()
    }
    return {node.id: _node_seconds(plan, node, per_step) for node in plan.nodes.values()}


def _node_seconds(plan: Plan, node: Node, per_step: Mapping[str | None, float]) -> float | None:
    if node.kind == "merge":
        return STARTUP_SECONDS
    size = _size(plan)
    params = plan.params.variant(node.variant)
    steps = params.sft.steps if node.phase is None else params.phases[node.phase].steps
    if node.phase in per_step:
        return per_step[node.phase] * steps
    if size is None:
        return None
    if node.phase is None:
        lines = params.sft.batch_size + params.sft.drill_batch_size
        return STARTUP_SECONDS + steps * lines * SECONDS_PER_SFT_LINE * size
    rl = params.phase_rl(node.phase)
    rollouts = steps * rl.prompts_per_step * rl.group_size
    return STARTUP_SECONDS + rollouts * SECONDS_PER_ROLLOUT * size


def _size(plan: Plan) -> float | None:
    """The model's size against the measured one."""
    policy = plan.params.policy
    if policy.path is not None:
        return None
    return policy.tiny_bytes(500) / 4 / MODEL_SIZE


def _wall(plan: Plan, states: Mapping[str, State]) -> float | None:
    """Bases and judge one after the other, then everything else shared among the workers."""
    times = seconds(plan)
    stale = [node for node in plan.nodes.values() if states[node.stage] == "stale"]
    if any(times[node.id] is None for node in stale):
        return None
    first = sum(times[n.id] or 0 for n in stale if n.kind == "base")
    rest = sum(times[n.id] or 0 for n in stale if n.kind != "base")
    size = _size(plan) or 1.0
    if any(states[stage] == "stale" for stage in plan.judge_stages):
        judge = plan.params.judge
        first += (
            STARTUP_SECONDS
            + 2 * judge.prompts * judge.answers * judge.epochs * SECONDS_PER_PAIR * size
        )
    answers = sum(t.dev + t.test for t in plan.params.tasks.values()) * (
        plan.params.evaluation.samples + 1
    )
    evaluations = sum(states[f"evaluate@{node}"] == "stale" for node in plan.nodes)
    rest += evaluations * (STARTUP_SECONDS + answers * SECONDS_PER_ANSWER * size)
    return first + rest / plan.params.flow.workers


def _disk(plan: Plan, states: Mapping[str, State]) -> str:
    """Checkpoints to come, each once in the folder and once in DVC's cache."""
    new = sum(states[node.stage] == "stale" for node in plan.nodes.values())
    one = next((s for n in plan.nodes if (s := _folder_bytes(paths.checkpoint(n)))), None)
    if one is None and plan.params.policy.path is None:
        one = int(4 * MODEL_SIZE * (_size(plan) or 1))
    if one is None:
        return "disk not known before the first checkpoint"
    return f"{new} x {_bytes(one)} of checkpoints, twice (folder and DVC cache)"


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(time: float | None) -> str:
    """Seconds for people.

    >>> duration(42.4), duration(90), duration(7500), duration(None)
    ('42 s', '1.5 min', '2.1 h', 'unknown time')
    """
    if time is None:
        return "unknown time"
    if time < 60:
        return f"{time:.0f} s"
    return f"{time / 60:.2g} min" if time < 3600 else f"{time / 3600:.2g} h"
