"""Are the claims right? Simulated experiments with a known truth, judged by the code that judges real ones.

    python -m benchmarks.planted_worlds             # 1,000 experiments of each kind, about 6 minutes on one core

A world has tasks, one phase each; a phase lifts its own task and moves the others by planted effects. Every trained
checkpoint drifts at random (another run would drift otherwise), and problems are answered a few times. Nothing is
mocked: the scores go through `trainorder.measure` as if they came from evaluations. Scores of all experiments of a world
are drawn at once.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from trainorder.config import MeasureConfig
from trainorder.measure.evidence import Evidence
from trainorder.measure.ranking import paired, ranked, winner
from trainorder.measure.recommendation import from_base, judged
from trainorder.measure.scores import SPLITS, Scores
from trainorder.metrics import statistics
from trainorder.order import every_order
from trainorder.plan.design import Design

Array = np.ndarray
Effects = Float[Array, "task task"]


@dataclass(frozen=True)
class Planted:
    """A kind of world: `effects[k, j]` is what training task k does to the score on task j."""

    effects: Effects
    random: float = 0.0
    """Standard deviation of effects that every experiment draws for itself, added to `effects`."""
    own: float = 0.0
    """Standard deviation of what each order's final scores are off from additive effects."""
    seeds: int = 3
    orders: int = 6
    """Measured orders: the first is 0, 1, 2, ..., the second its reverse, and so on in reverse pairs."""
    drift: float = 0.01
    """Standard deviation of the random change of every score in every training run."""
    problems: int = 128
    samples: int = 4
    draws: int = 200
    base: float = 0.4
    learned: float = 0.7

    @property
    def n(self) -> int:
        """Number of tasks."""
        return len(self.effects)

    @cached_property
    def chains(self) -> list[tuple[int, ...]]:
        """The measured orders."""
        rest = [tuple(int(k) for k in row) for row in every_order(self.n)]
        rng = np.random.default_rng(3)
        chains: list[tuple[int, ...]] = []
        while rest and len(chains) < self.orders:
            one = rest[int(rng.integers(len(rest)))] if chains else rest[0]
            chains += dict.fromkeys([one, one[::-1]])
            rest = [order for order in rest if order not in chains]
        return chains[: self.orders]

    @cached_property
    def paths(self) -> list[tuple[int, ...]]:
        """Every trained checkpoint of a seed by the phases behind it, parents first; () is the base."""
        singles = [(k,) for k in range(self.n)]
        prefixes = [chain[: i + 1] for chain in self.chains for i in range(self.n)]
        return list(dict.fromkeys([(), *singles, *sorted(prefixes, key=len)]))

    @cached_property
    def design(self) -> Design:
        """What `trainorder.measure` is told of every experiment."""
        names = [f"t{i}" for i in range(self.n)]
        seeds = range(self.seeds)
        return Design(
            bases={s: _node(s, ()) for s in seeds},
            orders={
                f"o{i}": {s: tuple(_node(s, c[: j + 1]) for j in range(self.n)) for s in seeds}
                for i, c in enumerate(self.chains)
            },
            order_phases={f"o{i}": tuple(names[k] for k in c) for i, c in enumerate(self.chains)},
            singles={name: {s: _node(s, (k,)) for s in seeds} for k, name in enumerate(names)},
            merges={},
            phase_tasks={name: (name,) for name in names},
        )


def _node(seed: int, path: tuple[int, ...]) -> str:
    return "--".join([f"s{seed}", *(f"t{k}" for k in path)])


@dataclass(frozen=True)
class Experiment:
    """One experiment and what is true in it."""

    evidence: Evidence
    values: Float[Array, " order"]
    """Expected final mean of every order, in the sequence of `every_order`, up to a constant."""

    def value(self, order: tuple[int, ...]) -> float:
        """Expected final mean of an order, up to a constant."""
        rows = every_order(len(order))
        return float(self.values[(rows == np.array(order)).all(1).argmax()])


def experiments(world: Planted, count: int, *, first: int = 0) -> Iterator[Experiment]:
    """`count` experiments in the world: bases, singles and orders of all seeds, evaluated on dev and test."""
    rng = np.random.default_rng([first, 7])
    n, orders = world.n, every_order(world.n)
    effects = world.effects + world.random * rng.normal(size=(count, n, n))
    own = world.own * rng.normal(size=(count, len(orders)))
    ranks = np.argsort(orders, axis=1)
    later = ranks[:, :, None] > ranks[:, None, :]  # [order, k, j]: k comes after j
    values = np.einsum("ckj,okj->co", effects, later) / n + own
    at = {tuple(int(k) for k in row): i for i, row in enumerate(orders)}
    levels: dict[tuple[int, tuple[int, ...]], Array] = {}
    for seed in range(world.seeds):
        for path in world.paths:
            drift = world.drift * rng.normal(size=(count, n))
            if not path:
                level = world.base + drift
            else:
                level = levels[seed, path[:-1]] + effects[:, path[-1]] + drift
                level[:, path[-1]] = world.learned + drift[:, path[-1]]
                if path in at:
                    level += own[:, at[path], None]
            levels[seed, path] = level
    table = np.stack(list(levels.values()), axis=1)
    names = [_node(seed, path) for seed, path in levels]
    weights = np.random.default_rng(1)
    draws = [statistics.draw_problems(world.problems, world.draws, weights) for _ in range(n)]
    split = {name: _evaluate(world, table, draws, rng) for name in SPLITS}
    config = MeasureConfig(bootstrap=max(world.draws, 100))
    tasks = tuple(f"t{i}" for i in range(n))
    used = dict.fromkeys(tasks, world.problems)
    seed_draws = statistics.draw_seeds(world.seeds, world.draws, np.random.default_rng(0))
    for key in range(count):
        scores = {
            name: Scores(tasks, dict(zip(names, found[key], strict=True)), used)
            for name, found in split.items()
        }
        means = {name: {} for name in SPLITS}
        evidence = Evidence(world.design, config, tasks, scores, means, seed_draws)
        yield Experiment(evidence, values[key])


def _evaluate(
    world: Planted, table: Array, draws: list[Array], rng: np.random.Generator
) -> Float[Array, "key node draw task"]:
    """Binomial answers to problems of different difficulty, averaged in every draw."""
    count, nodes, n = table.shape
    values = np.empty((count, nodes, world.draws + 1, n), dtype=np.float32)
    for task in range(n):
        hard = rng.uniform(-0.25, 0.25, (count, 1, world.problems))
        chance = np.clip(table[:, :, task, None] + hard, 0.02, 0.98)
        answers = rng.binomial(world.samples, chance) / world.samples
        values[..., task] = answers @ draws[task].T
    return values


RECOMMENDATION = (
    ("stands out", bool),
    ("identified", bool),
    ("recommended order is best", bool),
    ("P(optimal)", float),
    ("regret", float),
    ("true regret", float),
)
"""Columns of `recommendations`; `stands out`: the verdict is not `open`, whatever the number of seeds."""


def recommendations(world: Planted, count: int, *, first: int = 0) -> np.ndarray:
    """The recommended order of `count` experiments and what is true of it: a record of RECOMMENDATION each."""
    rows = [_recommended(one) for one in experiments(world, count, first=first)]
    return np.array(rows, dtype=list(RECOMMENDATION))


def _recommended(one: Experiment) -> tuple[bool | float, ...]:
    judgement = judged(one.evidence, from_base(one.evidence), "additive")
    found = judgement.found
    lost = float(one.values.max()) - one.value(found.order)
    return (
        judgement.verdict != statistics.Verdict.OPEN,
        statistics.identified(judgement.verdict),
        lost < 1e-9,
        found.p_optimal,
        found.regret,
        lost,
    )


def run(world: Planted, count: int, *, first: int = 0) -> dict[str, Any]:
    """Shares over `count` experiments: how often each command claims something, and how often it is right."""
    rows = [_judged(world, one) for one in experiments(world, count, first=first)]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    claims = [row["recommended order is best"] for row in rows if row["stands out"]]
    mean["right where it stands out"] = float(np.mean(claims)) if claims else float("nan")
    return {"experiments": count, **mean}


def _judged(world: Planted, one: Experiment) -> dict[str, float]:
    evidence = one.evidence
    arms, finals = ranked(evidence)
    pairs = paired(evidence, arms, finals)
    won = winner(evidence, arms, pairs)
    truth = {f"o{i}": one.value(chain) for i, chain in enumerate(world.chains)}
    best_of_run = max(truth.values())
    tied = {name for name, value in truth.items() if value > best_of_run - 1e-9}
    covered = [
        found.low <= truth[a] - truth[b] <= found.high
        for (a, b), found in pairs.items()
        if a in truth and b in truth
    ]
    verdict = statistics.verdict(pairs["o0", "o1"].excludes(), world.seeds)
    return {
        **dict(zip([name for name, _ in RECOMMENDATION], _recommended(one), strict=True)),
        "compare: not open": verdict != statistics.Verdict.OPEN,
        "compare: settled": statistics.identified(verdict),
        "winner: settled": statistics.identified(won["verdict"]),
        "winner: not open": won["verdict"] != statistics.Verdict.OPEN,
        "set misses a best arm": not tied <= set(won["candidates"]),
        "set holds the base": "base" in won["candidates"],
        "all differences covered": all(covered),
    }


NOTHING = np.zeros((4, 4))


def worlds() -> dict[str, Planted]:
    """The worlds of the command."""
    strong = strong_effects()
    found = {
        "identical tasks, 1 seed": Planted(NOTHING, seeds=1),
        "identical tasks, 1 seed, 10 orders": Planted(NOTHING, seeds=1, orders=10, drift=0.0),
        "identical tasks, 3 seeds": Planted(NOTHING),
        "identical tasks, 3 seeds, 10 orders": Planted(NOTHING, orders=10),
        "identical tasks, 3 seeds, large drift": Planted(NOTHING, drift=0.04),
        "identical tasks, 5 seeds": Planted(NOTHING, seeds=5),
    }
    for orders in (4, 8):
        for seeds in (1, 3, 5):
            world = Planted(strong, seeds=seeds, orders=orders)
            found[f"strong effects, {orders} orders, {seeds} seeds"] = world
    for own in (0.0, 0.005, 0.01, 0.03):
        for seeds in (1, 3, 5):
            world = Planted(NOTHING, random=0.08, own=own, seeds=seeds, orders=4)
            found[f"random effects, off by {own:g}, {seeds} seeds"] = world
    return found


def strong_effects() -> Effects:
    """Best order 0, 1, 2, 3 alone: every phase costs the phases that should come later 12 points."""
    return -0.12 * np.triu(np.ones((4, 4)), k=1)


COLUMNS = {
    "stands out": "out",
    "right where it stands out": "right",
    "recommended order is best": "best",
    "P(optimal)": "P(opt)",
    "regret": "regret",
    "true regret": "true",
    "winner: not open": "winner",
    "set misses a best arm": "missed",
    "all differences covered": "cover",
    "compare: not open": "compare",
}
"""Key of `run` -> its heading."""


def main() -> int:
    """Print one row per world."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planted_worlds", description=__doc__
    )
    parser.add_argument("--count", type=int, default=1000, help="experiments of each kind")
    count = parser.parse_args().count
    print(f"{'world':<40}" + "".join(f"{name:>8}" for name in [*COLUMNS.values(), "ratio", "s"]))
    for name, world in worlds().items():
        start = time.perf_counter()
        parts = [run(world, min(100, count - i), first=i) for i in range(0, count, 100)]
        found = {key: float(np.nanmean([part[key] for part in parts])) for key in COLUMNS}
        shown = "".join(
            f"{found[key]:>8.4f}" if "regret" in key else f"{found[key]:>8.3f}" for key in COLUMNS
        )
        ratio = found["regret"] / found["true regret"] if found["true regret"] > 0.002 else math.nan
        print(f"{name:<40}{shown}{ratio:>8.2f}{time.perf_counter() - start:>8.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
