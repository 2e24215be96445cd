"""The runs of configs/orders24.yaml, as the numbers that claims about orders are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from stages.measure_bwt import read_evaluations
from trainorder import order as ordering
from trainorder import plan
from trainorder.config import load_params
from trainorder.measure.evidence import Evidence, gather
from trainorder.measure.scores import scores_of
from trainorder.metrics.correlation import spearman
from trainorder.plan.design import BySeed, from_plan

PARAMS = Path("configs/orders24.yaml")
PREFERENCE = "creative"
"""The phase that is rewarded by a judge."""
VERIFIED = ("math", "code", "qa")
"""The omni order up to its last phase: verified tasks from the most to the least structured."""

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
