"""Are the claims right? Simulated experiments with a known truth, judged by the code that judges real ones.

    python -m benchmarks.planted_worlds             # 1,000 experiments of each kind, about 3 minutes on one core

A world has tasks, one phase each; a phase lifts its own task and moves the others by planted effects. Every trained
checkpoint drifts at random (another run would drift otherwise), and problems are answered a few times. Nothing is
mocked: the scores go through `trainorder.measure` as if they came from evaluations.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder.config import MeasureConfig
from trainorder.measure.compare import Pairs
from trainorder.measure.design import Design
from trainorder.measure.evidence import Evidence
from trainorder.measure.recommendation import recommended
from trainorder.measure.scores import SPLITS, Scores
from trainorder.metrics import statistics

Array = np.ndarray
Effects = Float[Array, "task task"]


@dataclass(frozen=True)
class Planted:
    """A kind of world: `effects[k, j]` is what training task k does to the score on task j."""

    effects: Effects
    seeds: int = 3
    orders: int = 6
    """Measured orders: the first is 0, 1, 2, ..., the second its reverse, the others are drawn."""
    drift: float = 0.01
    """Standard deviation of the random change of every score in every training run."""
    problems: int = 128
    samples: int = 4
    draws: int = 200
    base: float = 0.4
    learned: float = 0.7
    weights: list[Array] = field(default_factory=list, compare=False)
    """Bootstrap weights, drawn once: they do not depend on scores."""

    @property
    def n(self) -> int:
        """Number of tasks."""
        return len(self.effects)

    def value(self, order: Sequence[int]) -> float:
        """Expected final mean of an order, up to a constant."""
        pairs = [(j, k) for i, j in enumerate(order) for k in order[i + 1 :]]
        return float(sum(self.effects[k, j] for j, k in pairs)) / self.n

    def best(self) -> set[tuple[int, ...]]:
        """The orders with the highest expected final mean."""
        values = {order: self.value(order) for order in permutations(range(self.n))}
        top = max(values.values())
        return {order for order, value in values.items() if value > top - 1e-9}


def experiment(world: Planted, key: int) -> Evidence:
    """One experiment in the world: bases, singles and orders of all seeds, evaluated on dev and test."""
    rng = np.random.default_rng([key, 7])
    names = [f"t{i}" for i in range(world.n)]
    first = list(range(world.n))
    chains = [tuple(first), tuple(first[::-1])]
    rest = [p for p in permutations(first) if p not in chains] if world.n > 1 else []
    picks = rng.permutation(len(rest))[: max(world.orders - 2, 0)]
    chains = [*chains, *(rest[i] for i in picks)][: world.orders]
    levels: dict[str, Array] = {}
    for seed in range(world.seeds):
        root = f"s{seed}"
        levels[root] = world.base + world.drift * rng.normal(size=world.n)
        for chain in [*((k,) for k in first), *chains]:
            node = root
            for k in chain:
                parent, node = node, f"{node}--t{k}"
                if node not in levels:
                    level = (
                        levels[parent] + world.effects[k] + world.drift * rng.normal(size=world.n)
                    )
                    level[k] = world.learned + world.drift * rng.normal()
                    levels[node] = level
    design = Design(
        bases={s: f"s{s}" for s in range(world.seeds)},
        orders={
            f"o{i}": {s: tuple(_path(s, chain)) for s in range(world.seeds)}
            for i, chain in enumerate(chains)
        },
        order_phases={f"o{i}": tuple(names[k] for k in chain) for i, chain in enumerate(chains)},
        singles={name: {s: f"s{s}--{name}" for s in range(world.seeds)} for name in names},
        merges={},
        phase_tasks={name: (name,) for name in names},
    )
    config = MeasureConfig(bootstrap=max(world.draws, 100))
    scores = {split: _evaluate(world, tuple(names), levels, rng) for split in SPLITS}
    seed_draws = statistics.draw_seeds(world.seeds, world.draws, np.random.default_rng(0))
    return Evidence(design, config, tuple(names), scores, {s: {} for s in SPLITS}, seed_draws)


def _path(seed: int, chain: Sequence[int]) -> list[str]:
    return ["--".join([f"s{seed}", *(f"t{k}" for k in chain[: i + 1])]) for i in range(len(chain))]


def _evaluate(
    world: Planted, names: tuple[str, ...], levels: dict[str, Array], rng: np.random.Generator
) -> Scores:
    """Binomial answers to problems of different difficulty, averaged in every draw."""
    if not world.weights:
        fixed = np.random.default_rng(1)
        for _ in names:
            world.weights.append(statistics.draw_problems(world.problems, world.draws, fixed))
    table = np.stack(list(levels.values()))
    values = np.empty((len(levels), world.draws + 1, world.n))
    for task in range(world.n):
        hard = rng.uniform(-0.25, 0.25, world.problems)
        chance = np.clip(table[:, task, None] + hard, 0.02, 0.98)
        answers = rng.binomial(world.samples, chance) / world.samples
        values[:, :, task] = answers @ world.weights[task].T
    used = dict.fromkeys(names, world.problems)
    return Scores(names, dict(zip(levels, values, strict=True)), used)


def told_apart(evidence: Evidence) -> bool:
    """Whether `trainorder compare o0 o1` says identified (the first order against its reverse)."""
    design = evidence.design
    a, b = (design.position(name, len(design.order_phases[name])) for name in ("o0", "o1"))
    columns = list(range(len(evidence.tasks)))
    pairs = Pairs(evidence.scores["test"], design.seeds, evidence.seed_draws, evidence.config.level)
    row = pairs.row(a, b, columns)
    return bool(row["differs"]) and len(design.seeds) > 1


def run(world: Planted, count: int, *, first: int = 0) -> dict[str, Any]:
    """Shares over `count` experiments: how often each command claims something, and how often it is right."""
    best = world.best()
    claims, right, told, optimal, hit = 0, 0, 0, 0.0, 0
    for key in range(first, first + count):
        evidence = experiment(world, key)
        found = recommended(evidence)
        assert found is not None
        order = tuple(int(name[1:]) for name in found["order"])
        identified = found["verdict"] == "identified"
        claims += identified
        right += identified and order in best
        hit += order in best
        optimal += found["p_optimal"]
        told += told_apart(evidence)
    return {
        "experiments": count,
        "recommend: identified": claims / count,
        "right where identified": right / claims if claims else None,
        "recommended order is best": hit / count,
        "mean P(optimal)": optimal / count,
        "compare: told apart": told / count,
    }


def worlds() -> dict[str, Planted]:
    """The worlds of the command."""
    nothing = np.zeros((4, 4))
    strong = strong_effects()
    return {
        "identical tasks, 1 seed": Planted(nothing, seeds=1),
        "identical tasks, 2 seeds": Planted(nothing, seeds=2),
        "identical tasks, 3 seeds": Planted(nothing),
        "identical tasks, 3 seeds, large drift": Planted(nothing, drift=0.04),
        "identical tasks, 3 seeds, 3 orders": Planted(nothing, orders=3),
        "identical tasks, 5 seeds": Planted(nothing, seeds=5),
        "strong effects, 1 seed": Planted(strong, seeds=1),
        "strong effects, 3 seeds": Planted(strong),
        "weak effects, 3 seeds": Planted(strong / 8),
    }


def strong_effects() -> Effects:
    """Best order 0, 1, 2, 3 alone: every phase costs the phases that should come later 12 points."""
    return -0.12 * np.triu(np.ones((4, 4)), k=1)


def main() -> int:
    """Print one row per world."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planted_worlds", description=__doc__
    )
    parser.add_argument("--count", type=int, default=1000, help="experiments of each kind")
    count = parser.parse_args().count
    print(
        f"{'world':<40} {'identified':>11} {'right':>7} {'best':>7} {'P(opt)':>7} {'compare':>8} {'s':>6}"
    )
    for name, world in worlds().items():
        start = time.perf_counter()
        found = run(world, count)
        right = found["right where identified"]
        print(
            f"{name:<40} {found['recommend: identified']:>11.3f} {'-' if right is None else f'{right:.3f}':>7} "
            f"{found['recommended order is best']:>7.3f} {found['mean P(optimal)']:>7.3f} "
            f"{found['compare: told apart']:>8.3f} {time.perf_counter() - start:>6.0f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
