"""How long the stages of a plan take, before they ran: as the same phase took last time, else by sizes and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from trainorder import lineage
from trainorder.config import EvaluationConfig, Params, PreferenceConfig, SftConfig
from trainorder.plan import names
from trainorder.plan.compile import Node, Plan, Sizes
from trainorder.plan.state import State
from trainorder.registries import ways
from trainorder.sources import section

STARTUP_SECONDS = 6.0
"""Importing torch and transformers, opening MLflow: once per stage."""
MODEL_SIZE = 190_000
"""Parameters of the tiny model that the following seconds were measured on, on one core."""
SECONDS_PER_ROLLOUT = 0.33 / 128
SECONDS_PER_SFT_LINE = 0.092 / 109
SECONDS_PER_PAIR = 43 / 3500 / 4
SECONDS_PER_ANSWER = 5.0 / (5 * 512 * 5)
SAMPLED, TRAINED = 1 / 150 / 135e6, 1 / 70 / 135e6
"""Seconds per token and weight of SmolLM2-135M on one core: a larger model's time is its products'."""


Times = Mapping[str, float | None]
"""Stage -> expected seconds; None where nothing is known: another model on a GPU that was never trained here."""


def expected(plan: Plan, sizes: Sizes | None = None) -> dict[str, float | None]:
    """Times of every stage that trains, judges or evaluates.

    A phase takes as long per step as the same phase of this model took last time, else what the table above says.
    """
    known = lineage.manifests()
    found = {node: m for node, m in known.items() if m.get("steps") and _is_of(plan, known, node)}
    per_step = {
        m["phase"] if "--" in node else None: m["seconds"] / m["steps"] for node, m in found.items()
    }
    speed = _Speed.of(plan, sizes)
    times = {node.stage: _node(plan, node, per_step, speed) for node in plan.nodes.values()}
    for name, judge in plan.judges.items():
        if isinstance(judge.config, PreferenceConfig):
            times[names.judge(name)] = (
                None if speed is None else STARTUP_SECONDS + speed.judge(judge.config)
            )
    answers = None if speed is None else STARTUP_SECONDS + speed.answers()
    return times | {names.evaluation(node): answers for node in plan.nodes}


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
    layers: int

    @classmethod
    def of(cls, plan: Plan, sizes: Sizes | None) -> Self | None:
        """None where nothing is known: no size, or a GPU."""
        params = plan.params
        if params.policy.path is None:
            size = params.policy.tiny_bytes(500) / 4 / MODEL_SIZE
            return cls(params, size, True, params.policy.num_layers)
        if sizes is None or _has_gpu(params):
            return None
        return cls(params, sizes.full / 4, False, sizes.layers)

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

    def judge(self, config: PreferenceConfig) -> float:
        """A preference model: the answers that it compares, and learning from them."""
        answers, tokens = config.prompts * config.answers, self._tokens()
        share = 1.0 if config.layers is None else config.layers / self.layers
        if self.own:
            return answers * config.epochs * share * SECONDS_PER_PAIR * self.weights
        sampled = answers + config.heldout_prompts * config.answers
        learned = answers * config.epochs * share
        return (sampled * SAMPLED + learned * TRAINED) * tokens * self.weights

    def answers(self) -> float:
        """All answers of an evaluation."""
        config = self.params.evaluation
        each = config.samples + 1 + sampled_by_ways(config)
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


def _node(
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


def wall(plan: Plan, states: Mapping[str, State], times: Times) -> float | None:
    """Bases and judges one after the other, then everything else shared among the workers."""
    first = rest = 0.0
    roots = {node.stage for node in plan.nodes.values() if not node.parents}
    roots |= {names.judge(name) for name in plan.judges}
    for stage, time in times.items():
        if states[stage] != "stale":
            continue
        if time is None:
            return None
        if stage in roots:
            first += time
        else:
            rest += time
    return first + rest / plan.params.flow.workers


def sampled_by_ways(config: EvaluationConfig) -> float:
    """Answers of full length that `evaluation.ways` sample per problem, beside the samples and the greedy one."""
    counts = [ways()[name].get("answers", 0.0) for _, name in sorted(config.pieces())]
    return float(sum(config.samples if count == "samples" else count for count in counts))
