"""`python -m flows.search --budget 30`: look for the best order within a budget of trained phases.

Rounds, each an ordinary plan that is run like any other (reports/search.yaml is its params file):

1. every phase from the base, one order of the params, joint training and merges: what the params ask for anyway
2. the order that the single phases predict (trainorder/search.py), and its reverse: does order matter, is it predicted?
3. the order that all steps measured so far predict, those after other phases included; again, until it is measured already
   and no other is predicted within the error that predictions have shown

It ends there, or when the budget is spent. Scores are the dev split's; the report of the last round shows test. All
checkpoints are cached: a second search, or one with a larger budget, trains only what is new.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from trainorder import paths, plan, results
from trainorder.config import Params, load_params, params_file, parse_params
from trainorder.flow.experiment import LOCKED, write_params
from trainorder.flow.run import guarded, start
from trainorder.plan.check import check
from trainorder.plan.orders import listed_orders, single_phases
from trainorder.process import held, make_surroundings_usual
from trainorder.reading import ParamsError, read_yaml
from trainorder.search import Known, Order

FILE = Path("reports/search.yaml")


def main() -> int:
    """0 when the search ended by itself or by its budget, 1 after a failed run, 2 for wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.search",
        description="Look for the best order within a budget of trained phases.",
    )
    parser.add_argument(
        "--budget", type=int, default=30, help="phases to train at most, all seeds together"
    )
    parser.add_argument("--minutes", type=float, default=None, help="start no round after this")
    parser.add_argument(
        "--params", default=str(params_file()), help="another file than params.yaml"
    )
    arguments = parser.parse_args()
    make_surroundings_usual()

    def work() -> None:
        Search.of(arguments.params, arguments.budget, arguments.minutes).first_round()
        start("flows.search:search_flow", lambda: None, **vars(arguments))

    return guarded(work, Console(highlight=False))


@dataclass
class Search:
    """What is being looked for, and what was tried."""

    source: Path
    params: Params
    budget: int
    end: float
    orders: dict[str, list[str]] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    """Measured minus predicted, of every order tried after the first round."""

    @classmethod
    def of(cls, file: str, budget: int, minutes: float | None) -> Search:
        """The search that a params file allows.

        Raises:
            ParamsError: the params cannot work.
        """
        params = load_params(Path(file))
        check(params)
        end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        return cls(Path(file), params, budget, end)

    def first_round(self) -> list[str]:
        """The phases to be ordered; the first round's orders are noted.

        Raises:
            ParamsError: there is nothing to order, or the budget does not allow the first round.
        """
        phases = single_phases(self.params)
        if len(phases) < 2:
            raise ParamsError("orders: the search needs one order that lists two or more phases")
        listed = listed_orders(self.params)
        start = next(list(o) for o in listed.values() if sorted(o) == sorted(phases))
        self.orders = {"start": start}
        self.orders |= {name: list(o) for name, o in listed.items() if len(o) == 1}
        if not self._fits(self.orders):
            need = self._trained(self.orders)
            raise ParamsError(
                f"--budget {self.budget}: the first round alone trains {need} phases; give it more"
            )
        return list(phases)

    def run(self, train: Callable[[str], Any]) -> str:
        """All rounds, each by `train` of its params file; returns why the search ended.

        Raises:
            Busy: a flow runs in this folder; it may be one that reads the params file of another search.
        """
        with held(paths.FLOW_LOCK, LOCKED):
            return self._rounds(train)

    def _rounds(self, train: Callable[[str], Any]) -> str:
        phases = self.first_round()
        known = self._measure(train)
        first = known.ranked(phases)[0][1]
        tried = [first, first[::-1]]
        while True:
            for order in (o for o in tried if o not in known.scores):
                predicted = known.predict(order)
                if not self._add(order):
                    return self._finish(known, f"the budget of {self.budget} phases is spent")
                print(f"next: {' > '.join(order)}, predicted {predicted:.3f}", flush=True)
                known = self._measure(train)
                self.errors.append(known.mean(order) - predicted)
                print(f"measured {known.mean(order):.3f}", flush=True)
                if time.monotonic() > self.end:
                    return self._finish(known, "the time is spent")
            fresh = [item for item in known.ranked(phases) if item[1] not in known.scores]
            best = max(known.mean(o) for o in known.scores if sorted(o) == sorted(phases))
            if not fresh:
                return self._finish(known, "every order is measured")
            if fresh[0][0] + self._error() < best:
                reason = f"no other order is predicted within {self._error():.3f} of the best"
                return self._finish(known, reason)
            tried = [fresh[0][1]]

    def _error(self) -> float:
        """Root mean square of what predictions missed by."""
        return math.sqrt(math.fsum(e * e for e in self.errors) / max(1, len(self.errors)))

    def _add(self, order: Order) -> bool:
        """Add an order to the plan, if the budget allows it."""
        more = {**self.orders, "_".join(order): list(order)}
        if not self._fits(more):
            return False
        self.orders = more
        return True

    def _fits(self, orders: Mapping[str, Sequence[str]]) -> bool:
        return self._trained(orders) <= self.budget

    def _trained(self, orders: Mapping[str, Sequence[str]]) -> int:
        nodes = plan.compile_plan(self._with(orders)).nodes.values()
        return sum(node.phase is not None for node in nodes)

    def _with(self, orders: Mapping[str, Sequence[str]]) -> Params:
        return parse_params(self._data(orders), source=str(FILE))

    def _data(self, orders: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The params file with these orders, and without variants: they come after an order is found."""
        data = {**read_yaml(self.source), "orders": {name: list(o) for name, o in orders.items()}}
        data.pop("variants", None)
        return data

    def _measure(self, train: Callable[[str], Any]) -> Known:
        """Run the plan of the orders so far; returns what its evaluations say."""
        self._write()
        train(str(FILE))
        return self._known(plan.compile_plan(self._with(self.orders)))

    def _write(self) -> None:
        about = (
            f"Written by `python -m flows.search` from {self.source}; the next round overwrites it."
        )
        write_params(FILE, self._data(self.orders), about)

    def _known(self, current: plan.Plan) -> Known:
        import pandas as pd

        phases = single_phases(self.params)
        tasks = list(dict.fromkeys(t for p in phases for t in self.params.phases[p].tasks))
        scores: dict[Order, list[Mapping[str, float]]] = {}
        for node in current.nodes.values():
            path = _path(current, node)
            if path is None or not set(path) <= set(phases):
                continue
            table: Any = pd.read_parquet(paths.evaluation(node.id))
            rows = table[(table["split"] == "dev") & (table["metric"] == "score")]
            means = rows.groupby("task")["value"].mean()
            scores.setdefault(path, []).append({task: float(means[task]) for task in tasks})
        trains = {phase: set(self.params.phases[phase].tasks) for phase in phases}
        mean = {
            p: {t: math.fsum(s[t] for s in found) / len(found) for t in tasks}
            for p, found in scores.items()
        }
        return Known(mean, trains)

    def _finish(self, known: Known, why: str) -> str:
        size = len(single_phases(self.params))
        ranking = sorted((o for o in known.scores if len(o) == size), key=known.mean, reverse=True)
        print(f"\nsearch ended: {why}; {self._trained(self.orders)} phases trained")
        for order in ranking:
            print(f"  {known.mean(order):.3f}  {' > '.join(order)}")
        if self.errors:
            print(
                f"predictions missed by {self._error():.3f} (root mean square of {len(self.errors)})"
            )
        from trainorder.report import words

        print("these are dev scores; on test:")
        print(words.summary(results.load()))
        print(f"report {paths.REPORT}, made from {FILE}")
        return why


def _path(current: plan.Plan, node: plan.Node) -> Order | None:
    """The phases behind a node; None for a merge."""
    if node.kind == "merge":
        return None
    phases: list[str] = []
    while node.phase is not None:
        phases.insert(0, node.phase)
        node = current.nodes[node.parents[0]]
    return tuple(phases)


if __name__ == "__main__":
    sys.exit(main())
