"""What papers say about the order of training, measured on all 24 orders of the default phases.

    python -m benchmarks.claims            # trains what is missing, then prints the tables
    python -m benchmarks.claims --table    # the tables of what is there; trains nothing
    python -m benchmarks.claims --write    # also writes the tables in docs/findings.md

An ordinary run (`make orders24`), which goes on where it was ended. Every claim is one number per seed, the difference that it
says is above or below 0, with an interval over training runs and problems of its own; a star marks what holds after correction for the number of claims.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from benchmarks import published
from benchmarks.order_runs import PARAMS, PREFERENCE, Runs, Values, load
from trainorder.config import load_params
from trainorder.metrics.correlation import spearman
from trainorder.metrics.statistics import Interval, holm

LEVEL = 0.95
FALL = 0.02
"""A mean over seeds that is lower by more than this is counted as a fall."""


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, and the difference that it says is above 0 (`says` 1) or below (-1)."""

    source: str
    text: str
    difference: str
    says: int
    values: Callable[[Runs], Values]


OMNI = "Omni-Thinker, 2507.14783"
CASCADE = "Nemotron-Cascade, 2512.13607"
SUPER = "Nemotron 3 Super"
MOPD = "MOPD, 2606.30406"
LOCAL = "Local perturbation, 2606.02398"


def _creative_last(phases: Sequence[str]) -> bool:
    return phases[-1] == PREFERENCE


def _creative_first(phases: Sequence[str]) -> bool:
    return phases[0] == PREFERENCE


def _against_others(runs: Runs, keep: Callable[[Sequence[str]], bool]) -> Values:
    return runs.mean_of(runs.orders(keep)) - runs.mean_of(runs.orders(lambda p: not keep(p)))


CLAIMS = (
    Claim(
        OMNI,
        "structured RL lowers entropy",
        "entropy after minus before, own task",
        -1,
        lambda r: r.change("structured", "own"),
    ),
    Claim(
        OMNI,
        "creative RL raises entropy",
        "entropy after minus before, own task",
        1,
        lambda r: r.change("creative", "own"),
    ),
    Claim(
        OMNI,
        "... of the other tasks as well",
        "entropy after minus before, other tasks",
        1,
        lambda r: r.change("creative", "others"),
    ),
    Claim(
        OMNI,
        "creative last is best",
        "6 orders that end with creative minus the other 18",
        1,
        lambda r: _against_others(r, _creative_last),
    ),
    Claim(
        OMNI,
        "structured first beats joint training",
        "math, code, qa, creative minus joint",
        1,
        lambda r: r.mean(r.omni()) - r.mean("joint"),
    ),
    Claim(
        OMNI,
        "structured first beats merging",
        "math, code, qa, creative minus the merge best on dev",
        1,
        lambda r: r.mean(r.omni()) - r.mean(r.best_on_dev(r.merges())),
    ),
    Claim(
        OMNI,
        "transfer of single runs predicts the order",
        "Spearman over 24 orders, predicted from dev",
        1,
        lambda r: r.additive(),
    ),
    Claim(
        CASCADE,
        "preference RL first is best",
        "6 orders that begin with creative minus the other 18",
        1,
        lambda r: _against_others(r, _creative_first),
    ),
    Claim(
        CASCADE,
        "later stages do not lower earlier tasks",
        "score after minus before a phase, tasks trained earlier",
        1,
        lambda r: r.later().mean(0),
    ),
    Claim(
        SUPER,
        "one stage alone makes other tasks regress",
        "score after minus before a first phase, tasks it does not train",
        -1,
        lambda r: r.unlike(),
    ),
    Claim(
        SUPER,
        "everything at once is best",
        "joint minus the mean of the 24 orders",
        1,
        lambda r: r.mean("joint") - r.mean_of(r.orders()),
    ),
    Claim(
        SUPER,
        "... than the best order as well",
        "joint minus the order best on dev",
        1,
        lambda r: r.mean("joint") - r.mean(r.best_on_dev(r.orders())),
    ),
    Claim(
        MOPD,
        "distilling specialists beats mixing",
        "distil minus joint (distil has the specialists' rollouts besides)",
        1,
        lambda r: r.mean("distil") - r.mean("joint"),
    ),
    Claim(
        MOPD,
        "... cascades",
        "distil minus the mean of the orders that begin with creative",
        1,
        lambda r: r.mean("distil") - r.mean_of(r.orders(_creative_first)),
    ),
    Claim(
        MOPD,
        "... and merging",
        "distil minus the merge best on dev",
        1,
        lambda r: r.mean("distil") - r.mean(r.best_on_dev(r.merges())),
    ),
    Claim(
        LOCAL,
        "later phases harm the first task",
        "math at the end minus right after its phase; math, code, qa, creative",
        -1,
        lambda r: r.since_trained(r.omni(), "math"),
    ),
    Claim(
        LOCAL,
        "a short return repairs it",
        "math after 10 more steps of math minus after 10 more of qa",
        1,
        lambda r: r.at_end("refreshed", "control", "math"),
    ),
    Claim(
        LOCAL,
        "... and raises the mean",
        "mean after 10 more steps of math minus after 10 more of qa",
        1,
        lambda r: r.mean("refreshed") - r.mean("control"),
    ),
)


def verdicts(found: Sequence[Interval], claims: Sequence[Claim] = CLAIMS) -> list[str]:
    """What each difference says of its claim; with a star where that holds after correction for all claims (Holm)."""
    corrected = holm({str(i): one.p for i, one in enumerate(found)})
    return [
        against(claim.says, one) + " *" * (one.excludes() and corrected[str(i)] < 1 - LEVEL)
        for i, (one, claim) in enumerate(zip(found, claims, strict=True))
    ]


def against(says: int, one: Interval) -> str:
    """Whether the interval lies where the claim says, on the other side of 0, or holds 0."""
    if not one.excludes():
        return "open"
    return "supported" if one.value * says > 0 else "contradicted"


def tables() -> Iterator[str]:
    """Claims under every learning rate; then how much of the orders' spread is the order's and how much the run's."""
    runs = load()
    columns = []
    for one in runs.values():
        found = [
            one.evidence.estimates(claim.values(one)[None], level=LEVEL)[0] for claim in CLAIMS
        ]
        columns.append(list(zip(found, verdicts(found), strict=True)))
    rates = [f"{one:g}" for one in _rates(list(runs))]
    yield f"| paper | claim | difference | {' | '.join(f'at {r} | verdict' for r in rates)} |"
    yield "|---" * (3 + 2 * len(rates)) + "|"
    for i, claim in enumerate(CLAIMS):
        cells = [cell for column in columns for cell in (_cell(column[i][0]), column[i][1])]
        yield f"| {claim.source} | {claim.text} | {claim.difference} | {' | '.join(cells)} |"
    yield ""
    for rate, one in zip(rates, runs.values(), strict=True):
        yield from places(one, rate)
        yield ""
    yield "| over the 24 orders | " + " | ".join(f"at {r}" for r in rates) + " |"
    yield "|---" * (1 + len(rates)) + "|"
    spreads = [spread(one) for one in runs.values()]
    for key in spreads[0]:
        yield f"| {key} | {' | '.join(s[key] for s in spreads)} |"


def places(runs: Runs, rate: str) -> Iterator[str]:
    """Mean score of the orders that have a phase at a place, minus that of all 24."""
    design = runs.evidence.design
    every = runs.mean_of(runs.orders())
    count = len(design.singles)
    yield f"| at {rate}, phase | {' | '.join(f'place {place}' for place in range(1, count + 1))} |"
    yield "|---" * (1 + count) + "|"
    for phase in sorted(design.singles):
        at = [
            runs.mean_of(runs.orders(lambda p, i=i, phase=phase: p[i] == phase)) - every
            for i in range(count)
        ]
        cells = [_cell(one) for one in runs.evidence.estimates(np.stack(at), level=LEVEL)]
        yield f"| {phase} | {' | '.join(cells)} |"


def spread(runs: Runs) -> dict[str, str]:
    """How much orders differ, beside how much the runs of one order do."""
    orders = runs.orders()
    values = np.stack([runs.mean(order)[:, 0] for order in orders])
    means = values.mean(1)
    rest = values - means[:, None] - values.mean(0)[None] + values.mean()
    noise = float((rest**2).sum() / ((len(orders) - 1) * (values.shape[1] - 1)))
    between = max(float(means.var(ddof=1)) - noise / values.shape[1], 0.0)
    agree = [
        spearman(values[:, a], values[:, b]) for a, b in combinations(range(values.shape[1]), 2)
    ]
    best, worst = int(means.argmax()), int(means.argmin())
    fell = runs.later()[..., 0].mean(1) < -FALL
    return {
        "highest mean score": f"{means[best]:.3f} ({' > '.join(orders[best].split('_'))})",
        "lowest mean score": f"{means[worst]:.3f} ({' > '.join(orders[worst].split('_'))})",
        "standard deviation between orders, noise taken off": f"{between**0.5:.4f}",
        "standard deviation of one run of an order": f"{noise**0.5:.4f}",
        f"changes of a task trained earlier that are below -{FALL:g}, of {len(fell)}": str(
            int(fell.sum())
        ),
        "Spearman of the rankings under two seeds": ", ".join(f"{one:+.2f}" for one in agree),
    }


def _rates(variants: Sequence[str]) -> list[float]:
    params = load_params(PARAMS)
    return [params.variant(name).rl.lr for name in variants]


def _cell(one: Interval) -> str:
    return f"{one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f})"


def main() -> int:
    """Train what is missing and print the tables; the exit code of the run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument(
        "--write", action="store_true", help=f"write the tables in {published.FINDINGS}"
    )
    arguments = parser.parse_args()
    code = 0
    if not arguments.table:
        code = published.train(PARAMS)
    text = "\n".join(tables())
    print(text)
    if arguments.write and code == 0:
        published.publish("claims", text)
    return code


if __name__ == "__main__":
    sys.exit(main())
