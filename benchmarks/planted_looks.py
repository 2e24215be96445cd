"""Are claims right that are looked for again and again while seeds are added? Simulated experiments with a known truth.

    python -m benchmarks.planted_looks             # 1,000 experiments of each kind, about 5 minutes on one core

Two arms are equal or `gap` apart, the others far below. At every look the intervals are those of the ranking, at the level
that trainorder/metrics/sequential.py gives the look, or one of the rules beside it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from trainorder.metrics import sequential, statistics

LOOKS = tuple(range(3, 13))
"""Numbers of seeds: ten looks."""
BELOW = 0.3
LEVEL = 0.95

RULES: dict[str, Callable[[int, Sequence[int]], float]] = {
    "one look's level": lambda i, looks: LEVEL,
    "spending, joint": lambda i, looks: sequential.level_at(LEVEL, looks[: i + 1], looks[i]),
    "Bonferroni, 6/(pi k)^2": lambda i, looks: 1 - (1 - LEVEL) * 6 / (math.pi * (i + 1)) ** 2,
    "Bonferroni, 1/looks": lambda i, looks: 1 - (1 - LEVEL) / len(looks),
}
"""Rule -> level at look i. The last one must know the number of looks beforehand."""


@dataclass(frozen=True)
class World:
    """Scores of arms: what runs, problems and a run's answers to a problem vary by."""

    arms: int = 3
    gap: float = 0.0
    run: float = 0.03
    problem: float = 0.05
    problems: int = 64
    draws: int = 100

    def scores(
        self, count: int, seeds: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "world arm seed draw"]:
        """`count` experiments of that many seeds."""
        size = (count, self.arms)
        values = self.run * rng.normal(size=(*size, seeds, 1))
        values = values + self.problem * rng.normal(size=(*size, 1, self.problems))
        values = values + self.problem * rng.normal(size=(*size, seeds, self.problems))
        levels = np.where(np.arange(self.arms) < 2, 0.0, -BELOW)
        levels[0] = self.gap
        draws = statistics.draw_problems(self.problems, self.draws, rng)
        return values @ draws.T + levels[:, None, None]


def half_widths(
    scores: Float[np.ndarray, "world arm seed draw"], world: World, level: float, seed: int = 0
) -> Float[np.ndarray, "world arm arm"]:
    """Half widths of the ranking's intervals: of all pairs at once, never below the pair's own."""
    rng = np.random.default_rng(seed)
    count, arms, seeds, draws = scores.shape
    half = statistics.simultaneous(scores, num_problems=world.problems, level=level, rng=rng)
    first, second = np.triu_indices(arms, k=1)
    pairs = (scores[:, first] - scores[:, second]).reshape(-1, seeds, draws)
    alone = statistics.intervals(pairs, statistics.draw_seeds(seeds, draws - 1, rng), level=level)
    own = np.array([(one.high - one.low) / 2 for one in alone]).reshape(count, -1)
    half[:, first, second] = np.maximum(half[:, first, second], own)
    half[:, second, first] = half[:, first, second]
    return half


def run(
    world: World, rule: str, count: int, *, looks: Sequence[int] = LOOKS, seed: int = 0
) -> dict[str, float]:
    """Shares of experiments: a difference of any two arms claimed falsely at any look; the winner settled, and rightly.

    `seeds`: mean number at which it ended, settled or not; `width`: of the last look's interval between the first two arms.
    """
    scores = world.scores(count, looks[-1], np.random.default_rng(seed))
    truth = np.where(np.arange(world.arms) < 2, 0.0, -BELOW)
    truth[0] = world.gap
    false, ended, right = (np.zeros(count, bool) for _ in range(3))
    seeds = np.full(count, looks[-1])
    width = 0.0
    for i, number in enumerate(looks):
        now = scores[:, :, :number]
        half = half_widths(now, world, RULES[rule](i, looks), seed)
        mean = now[..., 0].mean(-1)
        found = mean[:, :, None] - mean[:, None]
        false |= (np.abs(found - (truth[:, None] - truth)) > half + 1e-9).any((1, 2))
        led = (found > half) | np.eye(world.arms, dtype=bool)
        new = led.all(-1).any(-1) & ~ended
        right |= new & (led.all(-1).argmax(-1) == 0)
        seeds[new] = number
        ended |= new
        width = float(np.median(half[:, 0, 1]))
    return {
        "false": float(false.mean()),
        "settled": float(ended.mean()),
        "right": float(right.mean()),
        "seeds": float(seeds.mean()),
        "width": width,
    }


WORLDS = {
    "2 equal arms": World(arms=2),
    "2 equal arms of 3": World(),
    "2 equal arms of 3, noise of problems": World(run=0.02, problem=0.25),
    "gap .05": World(gap=0.05),
    "gap .10": World(gap=0.10),
}


def main() -> int:
    """Print one row for each world and rule."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted_looks")
    parser.add_argument("--count", type=int, default=1000, help="experiments of each kind")
    count = parser.parse_args().count
    print(f"{'world':<38}{'rule':<26}" + "".join(f"{k:>9}" for k in ("false", "settled", "right", "seeds", "width")))  # fmt: skip
    for name, world in WORLDS.items():
        for rule in RULES:
            found = run(world, rule, count)
            shown = "".join(f"{value:>9.3f}" for value in found.values())
            print(f"{name:<38}{rule:<26}{shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
