"""Do the intervals of all differences between arms hold at once? Equal arms with a known truth, by number of arms and seeds.

    python -m benchmarks.planted_arms              # 600 experiments of each kind, under a minute on one core

`false`: share of experiments that claim any difference; `5 sd`: share of differences found, with the right sign, where arms are five
standard deviations of a difference apart. The intervals are the ranking's, by its own code.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from benchmarks import planted_looks
from trainorder.metrics import statistics

ARMS, SEEDS = (2, 4, 6, 10), (2, 3, 5)
APART = 5


@dataclass(frozen=True)
class World:
    """What equal arms vary by, as standard deviations; one run of `problems` problems."""

    run: float = 0.03
    problem: float = 0.1
    """Of an arm on a problem, in every seed."""
    answer: float = 0.1
    """Of one run's answers to a problem."""
    noisier: float = 1.0
    """The first arm's runs vary this many times as much."""
    shared: float = 0.0
    """Share of the runs' variance that each half of the arms has in common, as orders with one beginning have."""
    problems: int = 64
    draws: int = 120

    def scores(
        self, count: int, arms: int, seeds: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "world arm seed draw"]:
        """`count` experiments."""
        spread = self.run * np.where(np.arange(arms) == 0, self.noisier, 1.0)[:, None, None]
        alone = math.sqrt(1 - self.shared) * rng.normal(size=(count, arms, seeds, 1))
        together = math.sqrt(self.shared) * rng.normal(size=(count, 2, seeds, 1))
        found = spread * (alone + together[:, np.arange(arms) % 2])
        found = found + self.problem * rng.normal(size=(count, arms, 1, self.problems))
        found = found + self.answer * rng.normal(size=(count, arms, seeds, self.problems))
        return found @ statistics.draw_problems(self.problems, self.draws, rng).T

    def error(self, seeds: int) -> float:
        """Standard deviation of a measured difference of two arms of ordinary noise."""
        of_problems = (self.problem**2 + self.answer**2 / seeds) / self.problems
        return math.sqrt(2 * (self.run**2 / seeds + of_problems))


WORLDS = {
    "runs vary": World(),
    "runs and problems alike": World(problem=0.25, answer=0.25),
    "one arm noisier": World(noisier=4.0),
    "halves share .7": World(shared=0.7),
    "halves share .95": World(shared=0.95),
}


def run(world: World, arms: int, seeds: int, count: int) -> dict[str, float]:
    """`false` and `power` over `count` experiments."""
    rng = np.random.default_rng([arms, seeds])
    scores = world.scores(count, arms, seeds, rng)
    looked = planted_looks.World(arms=arms, problems=world.problems)
    first, second = np.triu_indices(arms, k=1)
    half = planted_looks.half_widths(scores, looked, 0.95)[:, first, second]
    mean = scores[..., 0].mean(-1)
    difference = mean[:, first] - mean[:, second]
    return {
        "false": float((np.abs(difference) > half).any(1).mean()),
        "power": float((difference + APART * world.error(seeds) > half).mean()),
    }


def main() -> int:
    """Print a table: a row for each world and number of arms."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted_arms")
    parser.add_argument("--count", type=int, default=600, help="experiments of each kind")
    count = parser.parse_args().count
    print("| equal arms | arms |" + "".join(f" {n} seeds: false / {APART} sd |" for n in SEEDS))
    print("|---|---|" + "---|" * len(SEEDS))
    for name, world in WORLDS.items():
        for arms in ARMS:
            found = [run(world, arms, seeds, count) for seeds in SEEDS]
            shown = "".join(f" {one['false']:.3f} / {one['power']:.2f} |" for one in found)
            print(f"| {name} | {arms} |{shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
