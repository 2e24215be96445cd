"""The plan as a tree on the terminal: what is cached, what is restored, what trains, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainorder import paths
from trainorder.config import DEFAULT
from trainorder.files import size_text
from trainorder.plan import judging
from trainorder.plan.compile import Node, Plan, Sizes
from trainorder.plan.orders import pending
from trainorder.plan.state import State
from trainorder.plan.times import Times, wall

if TYPE_CHECKING:
    from rich.tree import Tree

WORDS = {
    "cached": "[green]cached[/]",
    "restorable": "[cyan]restorable[/]",
    "stale": "[yellow]to train[/]",
}


def tree(plan: Plan, states: Mapping[str, State], times: Times) -> Tree:
    """One branch per seed, children under the checkpoint they start from."""
    from rich.tree import Tree

    root = Tree(f"[bold]{len(plan.nodes)} checkpoints[/]", guide_style="dim")
    branches: dict[str, Tree] = {}
    for node in plan.nodes.values():
        above = branches[node.parents[0]] if node.parents else root
        branches[node.id] = above.add(_line(plan, node, states[node.stage], times[node.stage]))
    return root


def _line(plan: Plan, node: Node, state: State, time: float | None) -> str:
    if node.kind == "model":
        name = f"{node.id}  {plan.params.policy.path} as it is"
    else:
        of = "all seeds" if node.id == paths.BASE else f"seed {node.seed}"
        name = node.phase or node.merge or f"{node.id}  SFT of {of}"
    first = bool(node.parents) and not plan.nodes[node.parents[0]].parents
    if first and node.variant != DEFAULT:
        name = f"[bold]{node.variant}[/] {name}"
    if first and node.parents[0] == paths.BASE and len(plan.params.seeds) > 1:
        name = f"s{node.seed} {name}"
    text = f"{name}  [dim]{node.kind}[/]" if node.parents else name
    cost = f"  {duration(time)}" if state == "stale" else ""
    return f"{text}  {WORDS[state]}{cost}"


def graph(plan: Plan) -> Iterator[str]:
    """The checkpoints as a Mermaid graph, which GitHub, GitLab and editors draw: one box a node, an arrow from what it starts at.

    `dvc dag` draws every stage with every file that it reads: thousands of columns for the default experiment.
    """
    numbers = {name: f"n{number}" for number, name in enumerate(plan.nodes)}
    yield "graph LR"
    for node in plan.nodes.values():
        label = node.phase or node.merge or node.id
        first = bool(node.parents) and not plan.nodes[node.parents[0]].parents
        if first and node.variant != DEFAULT:
            label = f"{node.variant}: {label}"
        if first and len(plan.params.seeds) > 1:
            label = f"s{node.seed} {label}"
        yield f'  {numbers[node.id]}["{label}"]'
        yield from (f"  {numbers[parent]} --> {numbers[node.id]}" for parent in node.parents)
        if node.teacher is not None:
            yield f"  {numbers[node.teacher]} -. teaches .-> {numbers[node.id]}"


def document(
    plan: Plan, states: Mapping[str, State], times: Times, sizes: Sizes | None = None
) -> dict[str, Any]:
    """The plan as plain data: per node its stage, state, parents and expected seconds, and what waits for a measurement."""
    nodes = {
        node.id: {
            "stage": node.stage,
            "state": states[node.stage],
            "kind": node.kind,
            "phase": node.phase,
            "seed": node.seed,
            "variant": node.variant,
            "parents": list(node.parents),
            "seconds": times[node.stage],
        }
        for node in plan.nodes.values()
    }
    waiting = list(pending(plan.params, plan.resolved))
    return {"nodes": nodes, "waiting": waiting, "summary": summary(plan, states, times, sizes)}


def summary(
    plan: Plan, states: Mapping[str, State], times: Times, sizes: Sizes | None = None
) -> list[str]:
    """Totals as sentences: nodes by state, time, disk, and orders that wait for a measurement.

    `sizes` are those of checkpoints, where some must train.
    """
    counts = Counter(states[node.stage] for node in plan.nodes.values())
    lines = [f"{counts['stale']} new, {counts['restorable']} restorable, {counts['cached']} cached"]
    if counts["stale"]:
        workers = plan.params.flow.workers
        time = duration(wall(plan, states, times))
        lines.append(f"about {time} with {workers} workers, {_disk(plan, states, sizes)}")
    lines += judging.lines(plan, states)
    waiting = pending(plan.params, plan.resolved)
    if waiting:
        longest = len(next(iter(plan.singles.values())))
        each = "per seed and variant" if plan.variants else "per seed"
        lines.append(
            f"{', '.join(waiting)}: once the transfer is measured, up to {longest - 1} more nodes each {each}"
        )
    return lines


def _disk(plan: Plan, states: Mapping[str, State], sizes: Sizes | None) -> str:
    """Checkpoints to come, each once in the folder and once in DVC's cache."""
    stale = [node for node in plan.nodes.values() if states[node.stage] == "stale"]
    if not stale:
        return "no checkpoints"
    if sizes is None:
        return f"{len(stale)} checkpoints of unknown size"
    counts = Counter(sizes.of(node) for node in stale)
    each = " and ".join(f"{count} x {size_text(size)}" for size, count in counts.items())
    return f"{each} of checkpoints, twice (folder and DVC cache)"


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
