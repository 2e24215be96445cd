"""What the base's score of a problem would take off the noise of a comparison (CUPED; Deng, Xu, Kohavi and Walker 2013).

    python -m benchmarks.control_variate [FOLDER]    # of a run's evaluations; trains nothing

Scores A and B of a problem, less theta times the base's score of it, differ by A - B all the same: arms answer the same
problems, so the adjustment cancels to the last bit, and a paired difference is a control variate already. It helps
only where the base's mean is known from more problems than the arms answer (the regression estimator with double sampling; Cochran,
Sampling Techniques, 1977, chapter 12). The variance then falls by the share r^2 of A - B that the base explains, at most.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from trainorder.measure.scores import SCORE


@dataclass(frozen=True)
class Gain:
    """Of one task."""

    task: str
    problems: int
    pairs: int
    unpaired: float
    """Share of the variance of A - B that pairing takes away: 1 - var(A - B) / (var A + var B), mean over pairs."""
    explained: float
    """Share of the variance of A - B over problems that the base's scores explain, less what chance explains."""

    @property
    def narrower(self) -> float:
        """Share by which the interval over problems shrinks, if the base's mean were known exactly.

        >>> Gain("math", 64, 3, 0.5, 0.19).narrower
        0.1
        """
        return round(1 - (1 - max(self.explained, 0.0)) ** 0.5, 9)


def explained(
    difference: Float[np.ndarray, " problem"], base: Float[np.ndarray, " problem"]
) -> float:
    """Adjusted r^2 of a least-squares line; 0 on average where the two are independent.

    >>> float(round(explained(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 3.0, 5.0, 7.0])), 6))
    1.0
    """
    r = float(np.corrcoef(difference, base)[0, 1])
    return 1 - (1 - r**2) * (len(base) - 1) / (len(base) - 2)


def gains(folder: Path, split: str = "test") -> Iterator[Gain]:
    """By task, over all pairs of checkpoints that differ; the base is a checkpoint of the same seed without a phase.

    Raises:
        SystemExit: no evaluations, or none of a base.
    """
    wanted = [("metric", "==", SCORE), ("split", "==", split)]
    columns = ["node", "task", "problem", "value"]
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise SystemExit(f"{folder} holds no evaluations: run `trainorder run` first")
    table = pd.concat(pd.read_parquet(file, columns=columns, filters=wanted) for file in files)
    bases = [node for node in table["node"].unique() if "--" not in node]
    if not bases:
        raise SystemExit(f"{folder} holds no evaluation of a base")
    for task, rows in table.groupby("task"):
        wide = rows.pivot_table(index="node", columns="problem", values="value").dropna(axis=1)
        found = []
        for base in bases:
            x = wide.loc[base].to_numpy(dtype=float)
            own = [n for n in wide.index if n not in bases and _seed(n, base, bases)]
            for a, b in combinations(own, 2):
                y, z = wide.loc[a].to_numpy(dtype=float), wide.loc[b].to_numpy(dtype=float)
                if (y - z).std() > 0 and x.std() > 0:
                    paired = 1 - (y - z).var() / max(y.var() + z.var(), 1e-12)
                    found.append((paired, explained(y - z, x)))
        if found:
            mean = np.mean(found, axis=0)
            yield Gain(str(task), wide.shape[1], len(found), float(mean[0]), float(mean[1]))


def _seed(node: str, base: str, bases: list[str]) -> bool:
    """Whether a node comes from that base: the only one, or the one that its name begins with."""
    return len(bases) == 1 or node.startswith(f"{base}--")


def main() -> int:
    """Print one row per task."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_variate")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("evaluations"))
    folder = parser.parse_args().folder
    print("| task | problems | pairs | variance that pairing removes | the rest that the base explains | interval narrower by |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for one in gains(folder):
        print(
            f"| {one.task} | {one.problems} | {one.pairs} | {one.unpaired:.0%} | {one.explained:.1%} | {one.narrower:.1%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
