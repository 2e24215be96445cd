"""Planted worlds: long tables of evaluations whose truth is known, and the plan.yaml they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trainorder.config import MeasureConfig
from trainorder.measure import measure
from trainorder.plan.design import from_plan
from trainorder.streams import numpy_stream


@dataclass(frozen=True)
class World:
    """Training a phase lifts its own tasks to `learned` and moves every other task by `effects[phase][task]`."""

    tasks: tuple[str, ...] = ("math", "code", "qa", "creative", "constraints")
    phases: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {t: (t,) for t in ("math", "code", "qa", "creative")}
    )
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    merges: tuple[str, ...] = ()
    effects: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    learned: float = 0.7
    base: float = 0.4
    seeds: tuple[int, ...] = (0,)
    problems: int = 256
    samples: int = 4
    key: int = 0
    judged: tuple[str, ...] = ()
    variant: str = ""
    """Put into the names of all checkpoints but the bases."""
    drift: float = 0.0
    """Standard deviation of the random change that every training run makes to every score."""

    def plan(self) -> dict[str, Any]:
        """The content of plan.yaml."""
        singles = self._singles()
        groups: dict[str, dict[str, Any]] = {"structured": {}, "creative": {}, "joint": {}}
        chains = [*((p,) for p in singles), *self.orders.values()]
        for seed in self.seeds:
            for chain in chains:
                for i, phase in enumerate(chain):
                    node = self.node(seed, chain[: i + 1])
                    parent = self.node(seed, chain[:i]) if i else f"s{seed}"
                    entry = {"parent": parent, "phase": phase, "seed": seed}
                    groups["joint" if len(self.phases[phase]) > 1 else "structured"][node] = entry
        orders = {
            name: {
                str(s): [self.node(s, chain[: i + 1]) for i in range(len(chain))]
                for s in self.seeds
            }
            for name, chain in self.orders.items()
        }
        merges = {
            self.node(s, [m]): {
                "base": f"s{s}",
                "parents": [self.node(s, [p]) for p in singles],
                "merge": m,
                "seed": s,
            }
            for s in self.seeds
            for m in self.merges
        }
        nodes = [*(f"s{s}" for s in self.seeds), *(n for g in groups.values() for n in g), *merges]
        return {
            "resolved": {},
            "settings": {"measure": {"bootstrap": 500, "level": 0.95, "seed": 0}},
            "phases": {p: {"tasks": dict.fromkeys(tasks, 1.0)} for p, tasks in self.phases.items()},
            "bases": {f"s{s}": {"seeds": [s]} for s in self.seeds},
            **groups,
            "orders": orders,
            "singles": {str(s): {p: self.node(s, [p]) for p in singles} for s in self.seeds},
            "merges": merges,
            "variants": {},
            "recall": [],
            "evaluations": [f"evaluations/{node}.parquet" for node in nodes],
        }

    def node(self, seed: int, chain: Sequence[str]) -> str:
        """`s0--math--code`, or `s0--half--math--code` in the variant `half`."""
        return "--".join([f"s{seed}", *filter(None, [self.variant]), *chain])

    def _singles(self) -> list[str]:
        chains = [order for order in self.orders.values() if len(order) > 1]
        return list(dict.fromkeys(p for chain in chains for p in chain)) or [
            p for p, tasks in self.phases.items() if len(tasks) == 1
        ]

    def truth(self, chain: Sequence[str]) -> dict[str, float]:
        """Expected scores after these phases."""
        level = dict.fromkeys(self.tasks, self.base)
        for phase in chain:
            for task in self.tasks:
                if task in self.phases[phase]:
                    level[task] = self.learned
                else:
                    level[task] += self.effects.get(phase, {}).get(task, 0.0)
        return level

    def chain_of(self, node: str) -> list[str]:
        """The phases a node was trained on; a merge counts as its singles' average, here as no phase."""
        return [part for part in node.split("--")[1:] if part not in (*self.merges, self.variant)]

    def table(self) -> pd.DataFrame:
        """All evaluations."""
        return pd.concat([self.evaluation(node) for node in self.nodes()], ignore_index=True)

    def nodes(self) -> list[str]:
        """All nodes of the plan."""
        return [
            name.removeprefix("evaluations/")[: -len(".parquet")]
            for name in self.plan()["evaluations"]
        ]

    def evaluation(self, node: str) -> pd.DataFrame:
        """The long table of one node: `samples` graded answers per problem, averaged."""
        seed = int(node.split("--")[0][1:])
        level = self.truth(self.chain_of(node))
        for i in range(len(node.split("--"))) if self.drift else ():
            rng = numpy_stream("drift", self.key, *node.split("--")[: i + 1])
            level = {t: x + self.drift * float(rng.normal()) for t, x in level.items()}
        if node.split("--")[-1] in self.merges:
            level = {task: (x + self.learned) / 2 for task, x in level.items()}
        columns: dict[str, list[np.ndarray]] = {
            k: [] for k in ("split", "task", "problem", "metric", "value")
        }
        for split in ("dev", "test"):
            for task in self.tasks:
                ids = np.array([f"{task}/{split}{i}" for i in range(self.problems)])
                metrics = self._metrics(node, split, task, level[task])
                for metric, values in metrics.items():
                    many = len(values) > 1
                    columns["value"].append(values)
                    columns["problem"].append(ids if many else np.array(["*"]))
                    for key, text in (("split", split), ("task", task), ("metric", metric)):
                        columns[key].append(np.full(len(values), text))
        frame = pd.DataFrame({key: np.concatenate(parts) for key, parts in columns.items()})
        frame.insert(0, "node", node)
        frame.insert(1, "seed", seed)
        return frame

    def _metrics(self, node: str, split: str, task: str, level: float) -> dict[str, np.ndarray]:
        hard = numpy_stream("world", self.key, split, task).uniform(-0.25, 0.25, self.problems)
        rng = numpy_stream("world", self.key, node, split, task)
        chance = np.clip(level + hard, 0.02, 0.98)
        score = rng.binomial(self.samples, chance) / self.samples
        metrics = {
            "score": score,
            "greedy": (chance > 0.5).astype(float),
            "pass_at_k": (score > 0).astype(float),
            "entropy_own": 1.5 - level + 0.1 * rng.random(self.problems),
            "entropy_fixed": 1.6 - level + 0.1 * rng.random(self.problems),
            "length": 20 + 5 * rng.random(self.problems),
            "unscored": np.zeros(self.problems),
        }
        if task in self.judged:
            metrics |= {
                "reward_judge": np.clip(score * 1.2, 0, 1),
                "gold": np.clip(score * 0.9, 0, 1),
                "distinct_2": rng.random(self.problems),
                "compression_ratio": np.array([2.0 + level]),
                "vendi": np.array([40.0 + 20 * level]),
            }
        return metrics


@dataclass(frozen=True)
class Varied:
    """A world and the same under other settings: they share the bases."""

    default: World
    others: Mapping[str, World]

    def plan(self) -> dict[str, Any]:
        """The content of plan.yaml, every variant's arms under `variants`."""
        plan = self.default.plan()
        plan["variants"] = {}
        for name, world in self.others.items():
            other = world.plan()
            arms = ("phases", "orders", "singles", "merges")
            plan["variants"][name] = {key: other[key] for key in arms}
            for group in ("structured", "creative", "joint"):
                plan[group] |= {n: {**e, "variant": name} for n, e in other[group].items()}
            known = set(plan["evaluations"])
            plan["evaluations"] += [file for file in other["evaluations"] if file not in known]
        return plan

    def nodes(self) -> dict[str, World]:
        """Checkpoint -> the world it belongs to."""
        return {n: w for w in [*self.others.values(), self.default] for n in w.nodes()}

    def table(self) -> pd.DataFrame:
        """All evaluations."""
        parts = [world.evaluation(node) for node, world in self.nodes().items()]
        return pd.concat(parts, ignore_index=True)

    def write(self, folder: Path) -> None:
        """plan.yaml and evaluations, as the pipeline leaves them."""
        (folder / "evaluations").mkdir(parents=True, exist_ok=True)
        (folder / "plan.yaml").write_text(json.dumps(self.plan()))
        for node, world in self.nodes().items():
            world.evaluation(node).to_parquet(folder / "evaluations" / f"{node}.parquet")


SINGLE = ("math", "code", "qa", "creative")
HARMFUL = {
    "creative": {"math": -0.12, "code": -0.08, "qa": -0.08},
    "math": {"qa": 0.06},
    "qa": {"code": -0.06, "math": -0.04},
}
"""Creative harms what comes before it, qa likewise code and math, math helps qa: best is creative, qa, then code and
math in either order."""


def default_world(**changes: Any) -> World:
    """The default experiment: four tasks in several orders, joint, four merges, a held-out task."""
    orders = {
        "structured_first": SINGLE,
        "creative_first": ("creative", "qa", "code", "math"),
        "recommended": ("creative", "qa", "math", "code"),
        "reverse": ("code", "math", "qa", "creative"),
        "joint": ("joint",),
    }
    settings: dict[str, Any] = {
        "phases": {**{t: (t,) for t in SINGLE}, "joint": SINGLE},
        "orders": orders,
        "merges": ("average", "arithmetic", "ties", "dare"),
        "effects": HARMFUL,
        "judged": ("creative",),
    }
    return World(**{**settings, **changes})


def every_order(variants: Mapping[str, float] | None = None, **changes: Any) -> Varied:
    """All 24 orders of the four default tasks with joint training and two merges; a variant scales the effects."""
    orders = {"_".join(p): p for p in permutations(SINGLE)}
    settings: dict[str, Any] = {
        "phases": {**{t: (t,) for t in SINGLE}, "joint": SINGLE},
        "orders": {**orders, "joint": ("joint",)},
        "merges": ("average", "ties"),
        "effects": HARMFUL,
        "judged": ("creative",),
    }
    default = World(**{**settings, **changes})
    scaled = {
        name: {
            phase: {t: x * factor for t, x in row.items()} for phase, row in default.effects.items()
        }
        for name, factor in (variants or {}).items()
    }
    return Varied(default, {v: replace(default, variant=v, effects=e) for v, e in scaled.items()})


TWO = World(
    tasks=("a", "b"),
    phases={"a": ("a",), "b": ("b",)},
    orders={"x": ("a", "b"), "y": ("b", "a")},
    effects={"b": {"a": -0.25}},
    problems=200,
)
"""Two phases in both sequences: b harms a by 0.25, so b before a wins by 0.125 on the mean."""


def measured(
    world: World, table: pd.DataFrame | None = None, config: MeasureConfig | None = None
) -> dict[str, Any]:
    """The measurement of a world, or of another table of its plan."""
    plan = world.plan()
    found = world.table() if table is None else table
    return measure(found, from_plan(plan), config or MeasureConfig(bootstrap=100))
