"""Does the tool find what is planted, on a real policy? Pairs of tasks whose truth is known, each at three strengths.

    python -m benchmarks.planted_policy            # trains what is missing of configs/planted.yaml, then prints the table
    python -m benchmarks.planted_policy --table    # the table of what is there; trains nothing

Power is promised from the dev split (its effect and its noise, by `trainorder power`'s own simulation), the sign is looked for on
test: other problems of the same runs. A promise is kept where the interval excludes 0 on the planted side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from benchmarks.published import train
from stages.measure_bwt import read_evaluations
from trainorder import paths
from trainorder.config import MeasureConfig
from trainorder.measure.compare import arms_of
from trainorder.measure.scores import SPLITS, Scores, scores_of
from trainorder.metrics import power, statistics
from trainorder.plan import stored
from trainorder.plan.design import DEFAULT, Design, from_plan
from trainorder.reading import ParamsError

PARAMS = "configs/planted.yaml"
STRENGTHS = {"weak": "weak", "medium": "medium", "strong": DEFAULT}
"""Name -> variant."""
Values = Float[np.ndarray, "seed draw"]


@dataclass(frozen=True)
class Planted:
    """A mean over tasks at arm `plus` minus one at arm `minus`, and its sign; 0: there is none to find."""

    name: str
    plus: tuple[str, tuple[str, ...]]
    """Arm, tasks."""
    minus: tuple[str, tuple[str, ...]]
    sign: int
    from_base: bool = False
    """Whether each side counts as the change from the base, as where the sides are of two tasks."""


PLANTED = (
    Planted("conflict: answer harms reason", ("answer", ("reason",)), ("base", ("reason",)), -1),
    Planted("conflict: reason harms answer", ("reason", ("answer",)), ("base", ("answer",)), -1),
    Planted("helper: easy helps reason", ("easy", ("reason",)), ("base", ("reason",)), 1),
    Planted("twins: again helps reason", ("again", ("reason",)), ("base", ("reason",)), 1),
    Planted(
        "twins: no order",
        ("reason_again", ("reason", "again")),
        ("again_reason", ("reason", "again")),
        0,
    ),
    Planted(
        "asymmetric: answer harms free more than free harms answer",
        ("answer", ("free",)),
        ("free", ("answer",)),
        -1,
        from_base=True,
    ),
)


@dataclass(frozen=True)
class Row:
    """What was found of one planted difference at one strength."""

    planted: Planted
    strength: str
    promised: float
    found: statistics.Interval

    @property
    def verdict(self) -> str:
        """The result in words. A sign was promised where the power was .8 or more."""
        sign = int(self.found.excludes()) * (1 if self.found.value > 0 else -1)
        if self.planted.sign == 0:
            return "none claimed" if sign == 0 else "claimed falsely"
        if sign:
            return "found" if sign == self.planted.sign else "wrong sign"
        return "missed" if self.promised >= power.POWER else "open, not promised"


def judge(
    planted: Planted,
    strength: str,
    dev: tuple[Values, Values],
    test: tuple[Values, Values],
    num_problems: int,
) -> Row:
    """From the scores of both sides on both splits."""
    seeds, draws = test[0].shape
    effect = abs(float((dev[0] - dev[1])[:, 0].mean()))
    noise = power.noise(np.stack(dev), num_problems)
    (promised,) = power.reached(noise, seeds, num_problems, [effect])
    weights = statistics.draw_seeds(seeds, draws - 1, np.random.default_rng(0))
    return Row(planted, strength, promised, statistics.interval(test[0] - test[1], weights))


def rows() -> Iterator[Row]:
    """Every planted difference at every strength.

    Raises:
        ParamsError: nothing is planned, or an evaluation is missing.
    """
    content = stored()
    designs = from_plan(content)
    if not set(STRENGTHS.values()) <= set(designs):
        raise ParamsError(
            f"plan.yaml is not of {PARAMS}: run `python -m benchmarks.planted_policy`"
        )
    table, _ = read_evaluations([paths.evaluation(n) for d in designs.values() for n in d.nodes()])
    config = MeasureConfig(bootstrap=500)
    for strength, variant in STRENGTHS.items():
        design = designs[variant]
        dev, test = (
            scores_of(
                table,
                split,
                design.nodes(),
                design.trained,
                count=config.bootstrap,
                seed=config.seed,
            )
            for split in SPLITS
        )
        for one in PLANTED:
            used = sum(test.used[name] for name in one.plus[1])
            yield judge(one, strength, _sides(one, design, dev), _sides(one, design, test), used)


def _sides(planted: Planted, design: Design, scores: Scores) -> tuple[Values, Values]:
    """Scores of both sides, less the base's where changes are compared."""

    def side(arm: str, names: tuple[str, ...]) -> Values:
        columns = [design.trained.index(name) for name in names]
        values = scores.of(arms_of(design)[arm].final)[..., columns].mean(-1)
        if planted.from_base:
            values = values - scores.of(design.bases)[..., columns].mean(-1)
        return values

    return side(*planted.plus), side(*planted.minus)


def main() -> int:
    """Train what is missing, print the table; exit code 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted_policy")
    parser.add_argument("--table", action="store_true", help="train nothing")
    if not parser.parse_args().table and (code := train(PARAMS)):
        return code
    try:
        found = list(rows())
    except ParamsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("| planted | strength | promised power | measured on test | |\n|---|---|---|---|---|")
    for one in found:
        it = one.found
        promised = "" if one.planted.sign == 0 else f"{one.promised:.2f}"
        print(
            f"| {one.planted.name} | {one.strength} | {promised} | {it.value:+.3f} ({it.low:+.3f} to {it.high:+.3f}) | {one.verdict} |"
        )
    return int(any(one.verdict in ("missed", "wrong sign", "claimed falsely") for one in found))


if __name__ == "__main__":
    sys.exit(main())
