"""The plan as a tree on the terminal: what is cached, what is restored, what trains, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from trainorder import lineage, paths
from trainorder.config import DEFAULT, Params, PreferenceConfig, SftConfig
from trainorder.files import size_text
from trainorder.plan import judging, names
from trainorder.plan.compile import Node, Plan, Sizes
from trainorder.plan.orders import pending
from trainorder.plan.state import State
from trainorder.sources import section

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
SAMPLED, TRAINED = 1 / 60 / 135e6, 1 / 36 / 135e6
"""Seconds per token and weight of SmolLM2-135M on one core: a larger model's time is its products'."""


Times = Mapping[str, float | None]
"""Node -> expected seconds (`seconds`)."""


def tree(plan: Plan, states: Mapping[str, State], times: Times) -> Tree:
    """One branch per seed, children under the checkpoint they start from."""
    from rich.tree import Tree

    root = Tree(f"[bold]{len(plan.nodes)} checkpoints[/]", guide_style="dim")
    branches: dict[str, Tree] = {}
    for node in plan.nodes.values():
        above = branches[node.parents[0]] if node.parents else root
        branches[node.id] = above.add(_line(plan, node, states[node.stage], times[node.id]))
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
            "seconds": times[node.id],
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
        time = duration(_wall(plan, states, times, sizes))
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


def seconds(plan: Plan, sizes: Sizes | None = None) -> dict[str, float | None]:
    """Node -> expected seconds: as long per step as the same phase of this model took last time, else the table above.

    None where nothing is known: another model on a GPU that was never trained here.
    """
    known = lineage.manifests()
    found = {node: m for node, m in known.items() if m.get("steps") and _is_of(plan, known, node)}
    per_step = {
        m["phase"] if "--" in node else None: m["seconds"] / m["steps"] for node, m in found.items()
    }
    speed = _Speed.of(plan, sizes)
    return {node.id: _node_seconds(plan, node, per_step, speed) for node in plan.nodes.values()}


def _is_of(plan: Plan, known: Mapping[str, Mapping[str, Any]], node: str) -> bool:
    """Whether a node descends from the model that params.yaml names now."""
    while node in known and known[node]["parents"]:
        node = next(iter(known[node]["parents"]))
    return node in known and known[node]["params"].get("policy") == section(plan.params.policy)


@dataclass(frozen=True)
class _Speed:
    """Seconds of the parts of a plan on one core: of the built-in model by what it does, of another by weights and tokens."""

    params: Params
    weights: float
    """Of another model; of the built-in one its size against the measured one."""
    own: bool

    @classmethod
    def of(cls, plan: Plan, sizes: Sizes | None) -> Self | None:
        """None where nothing is known: no size, or a GPU."""
        params = plan.params
        if params.policy.path is None:
            return cls(params, params.policy.tiny_bytes(500) / 4 / MODEL_SIZE, True)
        if sizes is None or _has_gpu(params):
            return None
        return cls(params, sizes.full / 4, False)

    def rollouts(self, phase: str, params: Params) -> float:
        rl, tasks = params.phase_rl(phase), params.phases[phase].tasks
        count = rl.prompts_per_step * rl.group_size
        if self.own:
            return count * SECONDS_PER_ROLLOUT * self.weights
        total = sum(tasks.values())
        tokens = sum(params.tasks[t].max_new_tokens * w / total for t, w in tasks.items())
        return count * tokens * self.weights * (SAMPLED + TRAINED)

    def line(self) -> float:
        """A line of the warm-up."""
        if self.own:
            return SECONDS_PER_SFT_LINE * self.weights
        return self._tokens() * self.weights * TRAINED

    def pair(self) -> float:
        """An answer that a judge learns from."""
        return (
            SECONDS_PER_PAIR * self.weights if self.own else self._tokens() * self.weights * TRAINED
        )

    def answers(self) -> float:
        """All answers of an evaluation."""
        each = self.params.evaluation.samples + 1
        tasks = self.params.tasks.values()
        if self.own:
            return sum(t.dev + t.test for t in tasks) * each * SECONDS_PER_ANSWER * self.weights
        tokens = sum((t.dev + t.test) * t.max_new_tokens for t in tasks)
        return tokens * each * self.weights * SAMPLED

    def _tokens(self) -> float:
        tasks = self.params.tasks.values()
        return sum(task.max_new_tokens for task in tasks) / len(tasks)


def _has_gpu(params: Params) -> bool:
    from trainorder.device import device_of

    return device_of(params.training.device) != "cpu"


def _node_seconds(
    plan: Plan, node: Node, per_step: Mapping[str | None, float], speed: _Speed | None
) -> float | None:
    params = plan.params.variant(node.variant)
    if node.kind in ("merge", "model"):
        return STARTUP_SECONDS
    sft = params.sft or SftConfig()
    steps = sft.steps if node.phase is None else params.phases[node.phase].steps
    if node.phase in per_step:
        return per_step[node.phase] * steps
    if speed is None:
        return None
    if node.phase is None:
        lines = sft.batch_size + sft.drill_batch_size
        return STARTUP_SECONDS + steps * lines * speed.line()
    phase = params.phases[node.phase]
    if phase.kind == "sft":
        return STARTUP_SECONDS + steps * phase.supervised.batch_size * speed.line()
    return STARTUP_SECONDS + steps * speed.rollouts(node.phase, params)


def _wall(
    plan: Plan, states: Mapping[str, State], times: Times, sizes: Sizes | None
) -> float | None:
    """Bases and judge one after the other, then everything else shared among the workers."""
    speed = _Speed.of(plan, sizes)
    stale = [node for node in plan.nodes.values() if states[node.stage] == "stale"]
    if speed is None or any(times[node.id] is None for node in stale):
        return None
    first = sum(times[n.id] or 0 for n in stale if not n.parents)
    rest = sum(times[n.id] or 0 for n in stale if n.parents)
    for name, judge in plan.judges.items():
        config, stale_judge = judge.config, states[names.judge(name)] == "stale"
        if stale_judge and isinstance(config, PreferenceConfig):
            answers = config.prompts * config.answers
            first += STARTUP_SECONDS + answers * config.epochs * speed.pair()
    evaluations = sum(states[names.evaluation(node)] == "stale" for node in plan.nodes)
    rest += evaluations * (STARTUP_SECONDS + speed.answers())
    return first + rest / plan.params.flow.workers


def _disk(plan: Plan, states: Mapping[str, State], sizes: Sizes | None) -> str:
    """Checkpoints to come, each once in the folder and once in DVC's cache."""
    stale = [node for node in plan.nodes.values() if states[node.stage] == "stale"]
    if sizes is None or not stale:
        return "no checkpoints"
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
