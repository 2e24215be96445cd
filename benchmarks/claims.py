"""What papers say about the order of training, measured on all 24 orders of the default phases.

    python -m benchmarks.claims            # trains what is missing, then prints the tables
    python -m benchmarks.claims --table    # the tables of what is there; trains nothing
    python -m benchmarks.claims --write    # also writes the tables in docs/findings.md

An ordinary run (`make orders24`), which goes on where it was ended. Every claim is one number per seed, the difference that it
says is above or below 0, with an interval over training runs and problems of its own; a star marks what holds after correction for the number of claims.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float

from stages.measure_bwt import read_evaluations
from trainorder import order as ordering
from trainorder import plan
from trainorder.config import load_params
from trainorder.files import write_text
from trainorder.measure.evidence import Evidence, gather
from trainorder.measure.scores import scores_of
from trainorder.metrics.correlation import spearman
from trainorder.metrics.statistics import Interval, holm
from trainorder.plan.design import BySeed, from_plan

PARAMS = Path("configs/orders24.yaml")
PAGE = Path("docs/findings.md")
BEGIN, END = "<!-- claims -->", "<!-- end of claims -->"
PREFERENCE = "creative"
"""The phase that is rewarded by a judge."""
VERIFIED = ("math", "code", "qa")
"""The omni order up to its last phase: verified tasks from the most to the least structured."""
LEVEL = 0.95
FALL = 0.02
"""A mean over seeds that is lower by more than this is counted as a fall."""

Values = Float[np.ndarray, "seed draw"]


@dataclass(frozen=True)
class Runs:
    """The experiment under one learning rate."""

    evidence: Evidence
    entropy: dict[str, Float[np.ndarray, "draw task"]]
    """Node -> entropy of its own answers by task, nats per token."""

    def mean(self, arm: str) -> Values:
        """Mean test score of an arm over the trained tasks."""
        return self.evidence.mean_score("test", self._finals()[arm])

    def task(self, nodes: BySeed, task: str) -> Values:
        """Test score of one task at a node of each seed."""
        return self.evidence.scores["test"].of(nodes)[..., self.evidence.tasks.index(task)]

    def orders(self, keep: Callable[[Sequence[str]], bool] = lambda _: True) -> list[str]:
        """The orders of all single phases that `keep` takes by their phases."""
        design = self.evidence.design
        every = sorted(design.singles)
        return [n for n, p in design.order_phases.items() if sorted(p) == every and keep(p)]

    def mean_of(self, arms: Sequence[str]) -> Values:
        """Mean over arms of their mean scores."""
        return np.mean([self.mean(arm) for arm in arms], axis=0)

    def best_on_dev(self, arms: Sequence[str]) -> str:
        """The arm with the highest mean dev score over seeds, so that its test score is not picked."""
        finals = self._finals()
        return max(
            arms, key=lambda a: float(self.evidence.mean_score("dev", finals[a])[:, 0].mean())
        )

    def merges(self) -> list[str]:
        """The merged arms."""
        return list(self.evidence.design.merges)

    def omni(self) -> str:
        """The order that Omni-Thinker proposes."""
        (name,) = self.orders(lambda phases: tuple(phases) == (*VERIFIED, PREFERENCE))
        return name

    def change(self, kind: str, on: str) -> Values:
        """Mean change of entropy in a phase: kind structured or creative; on its own tasks or on the others."""
        return self._changes(self.entropy, kind, lambda step, task: (task == step) == (on == "own"))

    def later(self) -> Float[np.ndarray, "change seed draw"]:
        """Change of score in a phase on a task that a phase before it trained, for all such pairs in the orders."""
        return np.stack(
            [
                self.task(step.node, task) - self.task(step.parent, task)
                for step in self.evidence.design.steps()
                if self._single(step.phase)
                for task in step.before
            ]
        )

    def unlike(self) -> Values:
        """Mean change of score in a phase from the base on the tasks that it does not train."""
        design = self.evidence.design
        found = [
            self.task(nodes, task) - self.task(design.bases, task)
            for phase, nodes in design.singles.items()
            for task in design.singles
            if task != phase
        ]
        return np.mean(found, axis=0)

    def since_trained(self, order: str, task: str) -> Values:
        """Score of a task at an order's end minus that right after its phase."""
        design = self.evidence.design
        at = design.order_phases[order].index(task) + 1
        end = self._finals()[order]
        return self.task(end, task) - self.task(design.position(order, at), task)

    def at_end(self, first: str, second: str, task: str) -> Values:
        """Final score of a task in the first arm minus that in the second."""
        finals = self._finals()
        return self.task(finals[first], task) - self.task(finals[second], task)

    def additive(self) -> Values:
        """Spearman correlation over the 24 orders of what additive transfer predicts from dev with what was measured."""
        evidence, orders = self.evidence, self.orders()
        known = evidence.measured("dev")
        said = [ordering.additive(known, evidence.design.order_phases[order]) for order in orders]
        predicted = np.stack([one[..., evidence.trained].mean(-1) for one in said])
        measured = np.stack([self.mean(order) for order in orders])
        _, seeds, draws = measured.shape
        found = [
            [spearman(predicted[:, s, d], measured[:, s, d]) for d in range(draws)]
            for s in range(seeds)
        ]
        return np.array(found)

    def _changes(
        self,
        values: dict[str, Float[np.ndarray, "draw task"]],
        kind: str,
        keep: Callable[[str, str], bool],
    ) -> Values:
        design, tasks = self.evidence.design, self.evidence.tasks
        found = []
        for step in design.steps():
            if not self._single(step.phase) or (step.phase == PREFERENCE) != (kind == "creative"):
                continue
            moved = np.stack([values[step.node[s]] - values[step.parent[s]] for s in design.seeds])
            columns = [tasks.index(t) for t in design.singles if keep(step.phase, t)]
            found.append(moved[..., columns].mean(-1))
        return np.mean(found, axis=0)

    def _single(self, phase: str) -> bool:
        return phase in self.evidence.design.singles

    def _finals(self) -> dict[str, BySeed]:
        return {arm.name: arm.final for arm in self.evidence.design.arms()}


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


def load() -> dict[str, Runs]:
    """Variant -> its runs, from plan.yaml and the evaluations."""
    content = plan.stored()
    table, _ = read_evaluations([Path(name) for name in content["evaluations"]])
    config = load_params(PARAMS).measure
    found = {}
    for name, design in from_plan(content).items():
        evidence = gather(table, design, config)
        nodes = design.nodes()
        entropy = scores_of(
            table,
            "test",
            nodes,
            evidence.tasks,
            count=config.bootstrap,
            seed=config.seed,
            metric="entropy_own",
        )
        found[name] = Runs(evidence, entropy.values)
    return found


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
    parser.add_argument("--write", action="store_true", help=f"write the tables in {PAGE}")
    arguments = parser.parse_args()
    code = 0
    if not arguments.table:
        command = [sys.executable, "-m", "trainorder.cli", "run", "--params", str(PARAMS)]
        code = subprocess.run(command, check=False).returncode
    text = "\n".join(tables())
    print(text)
    if arguments.write and code == 0:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        write_text(PAGE, f"{before}{BEGIN}\n{text}\n{END}{after}")
    return code


if __name__ == "__main__":
    sys.exit(main())
