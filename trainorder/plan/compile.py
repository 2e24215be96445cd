"""The plan: which checkpoints the orders need, each exactly once, and what every DVC stage reads."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainorder import fingerprint, paths
from trainorder.config import Params, ParamsError, load_params, read_yaml

Kind = Literal["base", "structured", "creative", "mixed", "merge"]
Resolved = Mapping[str, Sequence[str]]

STAGE_OF = {
    "base": "sft_warmup",
    "structured": "structured_rl",
    "creative": "creative_rl",
    "mixed": "joint_rl",
    "merge": "merge",
}
"""Kind of a node -> the DVC stage that makes it."""

SLOTS = {"base": 6, "structured": 4, "creative": 4, "mixed": 8, "merge": 12}
"""Length of a node's `inputs` in plan.yaml, as many as dvc.yaml lists: DVC cannot unroll a list of unknown length."""

HEADER = "# Compiled from params.yaml by `trainorder plan`: edit params.yaml, not this file.\n"


@dataclass(frozen=True)
class Node:
    """A checkpoint of the plan.

    >>> Node("s0--math", "structured", 0, ("s0",), phase="math").stage
    'structured_rl@s0--math'
    """

    id: str
    kind: Kind
    seed: int
    parents: tuple[str, ...] = ()
    """None for a base; base first, then the merged nodes, for a merge."""
    phase: str | None = None
    merge: str | None = None

    @property
    def stage(self) -> str:
        """The DVC stage that makes the node."""
        return f"{STAGE_OF[self.kind]}@{self.id}"


@dataclass(frozen=True)
class Plan:
    """All nodes, parents before children, and how the orders run through them."""

    params: Params
    nodes: dict[str, Node]
    orders: dict[str, dict[int, tuple[str, ...]]]
    """Order -> seed -> its nodes, first phase first. Orders that wait for a measurement are left out."""
    singles: dict[int, dict[str, str]]
    """Seed -> phase -> the node trained on it from the base: transfer and merges start from these."""
    resolved: dict[str, tuple[str, ...]]
    """What a measurement filled in: `recommended` -> phases."""

    def bases(self) -> list[Node]:
        """One SFT checkpoint per seed."""
        return [node for node in self.nodes.values() if node.kind == "base"]

    def text(self) -> str:
        """plan.yaml."""
        from ruamel.yaml import YAML

        yaml = YAML(typ="safe", pure=True)
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.default_flow_style = None
        yaml.width = 4096
        stream = io.StringIO()
        yaml.dump(self.data(), stream)
        return HEADER + stream.getvalue()

    def data(self) -> dict[str, Any]:
        """The content of plan.yaml."""
        groups = {
            name: {n.id: self._entry(n) for n in self.nodes.values() if n.kind == kind}
            for name, kind in GROUPS.items()
        }
        return {
            "resolved": {name: list(phases) for name, phases in self.resolved.items()},
            "phases": {
                name: {"kind": phase.kind, "tasks": dict(phase.tasks)}
                for name, phase in self.params.phases.items()
            },
            "train_judge": {"base": self.bases()[0].id, "task": self.params.judge.task},
            **groups,
            "evaluate": {node.id: {"seed": node.seed} for node in self.nodes.values()},
            "orders": {
                name: {str(seed): list(nodes) for seed, nodes in by_seed.items()}
                for name, by_seed in self.orders.items()
            },
            "singles": {str(seed): dict(nodes) for seed, nodes in self.singles.items()},
            "merges": {
                n.id: {
                    "base": n.parents[0],
                    "parents": list(n.parents[1:]),
                    "merge": n.merge,
                    "seed": n.seed,
                }
                for n in self.nodes.values()
                if n.kind == "merge"
            },
            "evaluations": [str(paths.evaluation(node)) for node in self.nodes],
        }

    def fingerprints(self) -> dict[str, str]:
        """Files of .fingerprints: what the code of every stage means, and params.json with the values it reads."""
        settings = json.dumps(self.settings(), indent=1) + "\n"
        return {**fingerprint.compute(self.code()), "params.json": settings}

    def settings(self) -> dict[str, Any]:
        """params.yaml with its defaults filled in: stages depend on values, however they are written.

        A section that names tasks carries what these are (`tasks` -> kind, options, length of an answer), and a
        phase its own `rl`.
        """
        params = self.params
        sections = params.model_dump()
        return {
            **{
                name: sections[name]
                for name in ("policy", "tasks", "data", "evaluation", "measure")
            },
            "sft": {**sections["sft"], "tasks": self._tasks(params.sft.gate)},
            "judge": {**sections["judge"], "tasks": self._tasks([params.judge.task])},
            "phases": {
                name: {
                    **phase.model_dump(),
                    "rl": params.phase_rl(name).model_dump(),
                    "of": self._tasks(phase.tasks),
                }
                for name, phase in params.phases.items()
            },
            "merges": sections["merges"],
        }

    def _tasks(self, names: Iterable[str]) -> dict[str, Any]:
        tasks = {name: self.params.tasks[name] for name in names}
        return {
            name: {
                "kind": task.kind or name,
                "options": task.options,
                "max_new_tokens": task.max_new_tokens,
            }
            for name, task in tasks.items()
        }

    def code(self) -> dict[str, dict[str, Any]]:
        """Fingerprint -> the stage module it covers, and the kinds of tasks that this module loads by name."""
        tasks = self.params.tasks
        loads = {
            "build_data": list(tasks),
            "sft_warmup": list(self.params.sft.gate),
            "train_judge": [self.params.judge.task],
            "merge": [],
            "evaluate": list(tasks),
            "measure_bwt": [],
            "report": [],
        }
        modules = {name: f"stages.{name}" for name in loads}
        for name, phase in self.params.phases.items():
            loads[phase_code(name)] = list(phase.tasks)
            modules[phase_code(name)] = "stages.rl"
        return {
            name: {
                "module": modules[name],
                "tasks": sorted({tasks[t].kind or t for t in loads[name]}),
            }
            for name in modules
        }

    def _entry(self, node: Node) -> dict[str, Any]:
        if node.kind == "base":
            entry: dict[str, Any] = {"seed": node.seed}
        elif node.kind == "merge":
            base, *parents = node.parents
            entry = {
                "base": base,
                "merge": node.merge,
                "parents": ",".join(parents),
                "seed": node.seed,
            }
        else:
            entry = {"parent": node.parents[0], "phase": node.phase, "seed": node.seed}
        return {**entry, "inputs": self._inputs(node)}

    def _inputs(self, node: Node) -> list[str]:
        """What the node's stage reads beside what dvc.yaml spells out; the last one fills the spare slots."""
        slots = SLOTS[node.kind]
        files = list(self._reads(node))
        if len(files) > slots and node.kind != "merge":  # coarser, but nothing is missed
            files = [file for file in files if not file.startswith(f"{paths.TASK_DATA}/")] + [
                str(paths.TASK_DATA)
            ]
        if len(files) > slots:
            raise ParamsError(
                f"{node.id} merges {len(files)} checkpoints, and dvc.yaml has room for {slots}: use fewer phases, or "
                f"add lines to `deps` of `merge` in dvc.yaml and raise SLOTS in trainorder/plan/compile.py"
            )
        return files + files[-1:] * (slots - len(files))

    def _reads(self, node: Node) -> Iterator[str]:
        if node.kind == "merge":
            yield from (str(paths.checkpoint(parent)) for parent in node.parents[1:])
        elif node.phase is None:
            path = self.params.policy.path
            yield path if path is not None and Path(path).is_dir() else str(paths.TOKENIZER)
            yield from (str(paths.TASK_DATA / task / "dev.jsonl") for task in self.params.sft.gate)
        else:
            tasks = self.params.phases[node.phase].tasks
            if self.params.judge.task in tasks:
                yield str(paths.JUDGE / "reward")
            yield from (str(paths.TASK_DATA / task / "train.jsonl") for task in tasks)


GROUPS: dict[str, Kind] = {
    "bases": "base",
    "structured": "structured",
    "creative": "creative",
    "joint": "mixed",
    "merge": "merge",
}
"""Key of plan.yaml that a DVC stage unrolls -> its nodes. DVC reads params.yaml into the same namespace, so that none of
these may be a key there."""


def phase_code(phase: str) -> str:
    """Name of a phase's fingerprint."""
    return f"phase_{phase}"


def compile_plan(params: Params, resolved: Resolved | None = None) -> Plan:
    """The plan of checked params (`trainorder.plan.check.check`).

    Under each seed, orders with a common beginning share its nodes; every phase of an order with two or more phases
    is also trained from the base, for the transfer matrix and the merges. `resolved` fills `recommended`; one that
    is no permutation of today's phases is dropped.
    """
    usable = _usable(params, resolved or {})
    nodes: dict[str, Node] = {}
    orders: dict[str, dict[int, tuple[str, ...]]] = {}
    singles: dict[int, dict[str, str]] = {}
    for seed in params.seeds:
        base = f"s{seed}"
        nodes[base] = Node(base, "base", seed)
        for name, phases in order_phases(params, usable).items():
            orders.setdefault(name, {})[seed] = tuple(_grow(params, nodes, base, seed, phases))
        phases = single_phases(params)
        singles[seed] = {phase: _grow(params, nodes, base, seed, [phase])[0] for phase in phases}
        for merge in params.merges:
            parents = (base, *singles[seed].values())
            nodes[f"{base}--{merge}"] = Node(
                f"{base}--{merge}", "merge", seed, parents, merge=merge
            )
    return Plan(params, nodes, orders, singles, usable)


def _grow(
    params: Params, nodes: dict[str, Node], base: str, seed: int, phases: Sequence[str]
) -> list[str]:
    """Add the path base--phase--phase... to the tree; returns its nodes."""
    path, parent = [], base
    for phase in phases:
        node = f"{parent}--{phase}"
        nodes.setdefault(node, Node(node, params.phases[phase].kind, seed, (parent,), phase=phase))
        path.append(node)
        parent = node
    return path


def order_phases(params: Params, resolved: Resolved) -> dict[str, Sequence[str]]:
    """Order -> phases, with `recommended` and `recommended_reverse` filled in where they are known."""
    best = resolved.get("recommended")
    known = {} if best is None else {"recommended": best, "recommended_reverse": best[::-1]}
    filled = {k: known.get(v) if isinstance(v, str) else v for k, v in params.orders.items()}
    return {name: phases for name, phases in filled.items() if phases is not None}


def pending(params: Params, resolved: Resolved | None = None) -> list[str]:
    """Orders that wait for the measured transfer."""
    known = order_phases(params, _usable(params, resolved or {}))
    return [name for name in params.orders if name not in known]


def single_phases(params: Params) -> list[str]:
    """Phases of the orders with two or more phases, as `phases` lists them: a reorder changes nothing here."""
    explicit = [o for o in params.orders.values() if not isinstance(o, str) and len(o) > 1]
    return [phase for phase in params.phases if any(phase in order for order in explicit)]


def _usable(params: Params, resolved: Resolved) -> dict[str, tuple[str, ...]]:
    best = tuple(resolved.get("recommended", ()))
    asked = any(isinstance(order, str) for order in params.orders.values())
    fits = sorted(best) == sorted(single_phases(params))
    return {"recommended": best} if best and asked and fits else {}


def load() -> Plan:
    """The plan of params.yaml, with what plan.yaml already knows about `recommended`.

    Raises:
        ParamsError: params.yaml is wrong.
    """
    from trainorder.plan.check import check

    params = load_params()
    check(params)
    known = read_yaml(paths.PLAN) if paths.PLAN.is_file() else {}
    return compile_plan(params, (known or {}).get("resolved"))


def measured() -> dict[str, list[str]]:
    """`resolved` as the measurement in reports/bwt.json has it; empty where it recommends nothing.

    Raises:
        ParamsError: nothing was measured yet.
    """
    if not paths.BWT.is_file():
        raise ParamsError(
            f"{paths.BWT} not found: run `dvc repro measure_bwt` first, it measures the transfer"
        )
    found = json.loads(paths.BWT.read_text(encoding="utf-8"))["recommended"]
    return {} if found is None else {"recommended": list(found["order"])}


def write(plan: Plan) -> bool:
    """Write plan.yaml, whole and then renamed; returns whether it changed."""
    text = plan.text()
    if paths.PLAN.is_file() and paths.PLAN.read_text(encoding="utf-8") == text:
        return False
    temporary = paths.PLAN.with_name(f".{paths.PLAN.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(paths.PLAN)
    return True
