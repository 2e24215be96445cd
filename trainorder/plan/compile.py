"""The plan: which checkpoints the orders need, each exactly once, and what every DVC stage reads."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from trainorder import fingerprint, paths, results
from trainorder.config import (
    DEFAULT,
    ROLES,
    AnyJudgeConfig,
    ModelFolder,
    ModelJudgeConfig,
    Params,
    PreferenceConfig,
    Role,
    load_params,
)
from trainorder.files import write_text
from trainorder.fingerprint import Code
from trainorder.plan.orders import Resolved, order_phases, single_phases, usable
from trainorder.reading import ParamsError, did_you_mean, found_at, read_yaml, shaped
from trainorder.registries import BACKENDS, ENGINES, FORMATS, JUDGE_MAKERS, JUDGES
from trainorder.sources import find, section
from trainorder.tasks import TASKS, kind_of, make_task, options_of

Kind = Literal["model", "base", "structured", "creative", "mixed", "merge"]

TRAIN_JUDGE = "train_judge"
STAGE_OF = {
    "model": "base_model",
    "base": "sft_warmup",
    "structured": "structured_rl",
    "creative": "creative_rl",
    "mixed": "joint_rl",
    "merge": "merge",
}
"""Kind of a node -> the DVC stage that makes it."""

SAMPLING = ("merge", "evaluate")
"""Stages that sample with the engine of `rollout.backend`, beside judges and RL phases; the gate of SFT uses torch's."""

SLOTS = {
    "model": 1,
    "base": 6,
    "judge": 4,
    "structured": 4,
    "creative": 4,
    "mixed": 8,
    "merge": 12,
    "exams": 6,
}
"""Length of a node's `inputs`, and of `exams`, in plan.yaml, as many as dvc.yaml lists: DVC cannot unroll a list of unknown length."""

SMALL_FILES = 8 << 20
"""Bytes of what the node of a user's model holds, config and tokenizer; about."""

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
    """None for a base (`model` or `base`); base first, then the merged nodes, for a merge."""
    phase: str | None = None
    merge: str | None = None
    variant: str = DEFAULT
    """Whose settings it is made with; a base serves all variants."""
    teacher: str | None = None
    """The node that its phase distils from (`rl.teacher`)."""

    @property
    def stage(self) -> str:
        """The DVC stage that makes the node."""
        return f"{STAGE_OF[self.kind]}@{self.id}"


@dataclass(frozen=True)
class Sizes:
    """Bytes of a checkpoint with full weights (bases, merges), of one of an RL phase, and of one step checkpoint."""

    full: int
    phase: int
    step: int

    def of(self, node: Node) -> int:
        """Bytes of a node's checkpoint."""
        if node.kind == "model":
            return SMALL_FILES
        return self.full if node.kind in ("base", "merge") else self.phase


@dataclass(frozen=True)
class Appointed:
    """A judge, the judged tasks that it serves, and what sets it apart from the preference models before it."""

    config: AnyJudgeConfig
    tasks: tuple[str, ...]
    seed: int
    """Its number among the preference models of its task."""
    first: int
    """Its first prompt in the task's shuffled training problems; those before it teach other judges."""


def appointed(params: Params, judged: Mapping[str, Mapping[Role, str]]) -> dict[str, Appointed]:
    """The judges that these tasks have, in the order of params.yaml; `judged` is task -> role -> judge."""
    found: dict[str, Appointed] = {}
    taken: dict[str, list[int]] = {}
    for name, config in params.named_judges().items():
        tasks = tuple(task for task, roles in judged.items() if name in roles.values())
        if not tasks:
            continue
        before = taken.setdefault(config.task or tasks[0], [])
        found[name] = Appointed(config, tasks, len(before), sum(before))
        if isinstance(config, PreferenceConfig):
            before.append(0 if config.pairs else config.prompts + config.heldout_prompts)
    return found


def judge_files(config: AnyJudgeConfig) -> list[str]:
    """The user's files that a judge is made of: pairs, and a model that is no name on the hub."""
    named = [config.pairs, getattr(config, "path", None)]
    return [path for path in named if path and found_at(path)]


def _judge_code(config: AnyJudgeConfig) -> set[str]:
    """What is loaded by name where a judge is asked."""
    form = FORMATS.get(find(config.path).kind) if isinstance(config, ModelJudgeConfig) else None
    return {JUDGES[config.kind], *([form] if form else [])}


def _content(config: AnyJudgeConfig) -> dict[str, str]:
    """The content of an installed package that a judge's model lies in, which no file of the project shows."""
    content = find(config.path).content if isinstance(config, ModelJudgeConfig) else None
    return {} if content is None else {"content": content}


@dataclass(frozen=True)
class Plan:
    """All nodes, parents before children, and how the orders run through them."""

    params: Params
    nodes: dict[str, Node]
    orders: dict[str, dict[int, tuple[str, ...]]]
    """Order -> seed -> its nodes, first phase first. Orders that wait for a measurement are left out."""
    singles: dict[int, dict[str, str]]
    """Seed -> phase -> the node trained on it from the base: transfer and merges start from these."""
    variants: dict[str, Arms]
    """The same under every other variant."""
    resolved: dict[str, tuple[str, ...]]
    """What a measurement filled in: `recommended` -> phases."""

    def bases(self) -> list[Node]:
        """One SFT checkpoint per seed, or the one model that all seeds begin at."""
        return [node for node in self.nodes.values() if not node.parents]

    @cached_property
    def judged(self) -> dict[str, dict[Role, str]]:
        """Task that a judge scores -> role -> the judge that has it."""
        tasks = self.params.tasks.items()
        judged = [name for name, config in tasks if make_task(name, config).rewarded_by == "judge"]
        return {name: self.params.judges_of(name) for name in judged}

    @cached_property
    def judges(self) -> dict[str, Appointed]:
        """The judges that any task has, as their stages are called."""
        return appointed(self.params, self.judged)

    @property
    def judge_stages(self) -> list[str]:
        """The DVC stages that make the judges."""
        return [f"{TRAIN_JUDGE}@{name}" for name in self.judges]

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
            TRAIN_JUDGE: {name: self._judge_entry(name) for name in self.judges},
            **groups,
            "exams": self._exams(),
            "evaluate": {
                node.id: {"seed": node.seed} | _tag(node.variant) for node in self.nodes.values()
            },
            **self.variant_data(DEFAULT),
            "variants": {name: self.variant_data(name) for name in self.variants},
            "recall": [
                name
                for name, config in self.params.tasks.items()
                if getattr(make_task(name, config), "recall", False)
            ],
            "evaluations": [str(paths.evaluation(node)) for node in self.nodes],
        }

    def variant_data(self, variant: str) -> dict[str, Any]:
        """`phases`, `orders`, `singles` and `merges` of one variant: laid over plan.yaml's own, they describe its arms."""
        params = self.params.variant(variant)
        orders, singles = self.arms(variant)
        return {
            "phases": {
                name: {"kind": phase.kind, "tasks": dict(phase.tasks)}
                for name, phase in params.phases.items()
            },
            "orders": {
                name: {str(seed): list(nodes) for seed, nodes in by_seed.items()}
                for name, by_seed in orders.items()
            },
            "singles": {str(seed): dict(nodes) for seed, nodes in singles.items()},
            "merges": {
                n.id: {
                    "base": n.parents[0],
                    "parents": list(n.parents[1:]),
                    "merge": n.merge,
                    "seed": n.seed,
                }
                | _tag(variant)
                for n in self.nodes.values()
                if n.kind == "merge" and n.variant == variant
            },
        }

    def arms(self, variant: str) -> Arms:
        """Orders and singles of a variant."""
        return (self.orders, self.singles) if variant == DEFAULT else self.variants[variant]

    def fingerprints(self) -> dict[str, str]:
        """Files of .fingerprints: what the code of every stage means, and params.json with the values it reads."""
        settings = json.dumps(self.settings(), indent=1) + "\n"
        texts = fingerprint.compute(self.code())
        for (
            name,
            config,
        ) in self.params.tasks.items():  # the user's own rows count as a part of the build
            files = getattr(make_task(name, config), "files", ())
            texts["build_data"] += "".join(f"{file} {_hash(file)}\n" for file in files)
        for name, tasks in self._graded().items():  # and so does the code of theirs that grades
            own = [getattr(make_task(task, self.params.tasks[task]), "code", ()) for task in tasks]
            texts[name] += fingerprint.of_files(sorted({file for code in own for file in code}))
        return {**texts, "params.json": settings}

    def settings(self) -> dict[str, Any]:
        """What of params.yaml can change a result, with defaults filled in: stages depend on values, however written.

        A section that names tasks carries what these are (`tasks` -> kind, options, length of an answer), and a
        phase its own `rl` and what samples and trains. A section whose stage samples has `rollout` where the torch
        engine does not.
        """
        params = self.params
        return {
            "policy": section(params.policy),
            "training": {"dtype": params.training.dtype},
            "tasks": {
                name: task.results() | (NO_LINES if params.sft is None else {})
                for name, task in params.tasks.items()
            },
            "data": params.data.results(),
            "evaluation": {
                **params.evaluation.results(),
                **params.engine(),
                **self._roles(params.tasks),
            },
            "measure": params.measure.results(),
            **self._sft(),
            "judges": self._judges(),
            "phases": self._phases(DEFAULT),
            "variants": {variant: self._phases(variant) for variant in params.variants},
            "merges": {
                name: merge.results()
                | (
                    {**params.engine(), **self._roles(params.tasks)}
                    if isinstance(merge.scale, list)
                    else {}
                )
                for name, merge in params.merges.items()
            },
        }

    def _sft(self) -> dict[str, Any]:
        sft = self.params.sft
        return {} if sft is None else {"sft": {**sft.results(), "tasks": self._tasks(sft.gate)}}

    def _problems_of(self, task: str) -> str:
        """What a judge reads of a task: of own rows all splits, since the base answers those without a reference."""
        own = kind_of(task, self.params.tasks[task]) == "rows"
        return str(paths.TASK_DATA / task / ("" if own else "train.jsonl"))

    def _judges(self) -> dict[str, Any]:
        return {
            name: {
                **judge.config.results(),
                **_content(judge.config),
                **self.params.engine(),
                "tasks": self._tasks(judge.tasks),
            }
            for name, judge in self.judges.items()
        }

    def _roles(self, tasks: Iterable[str]) -> dict[str, Any]:
        """`judges`: who judges those of the tasks that are judged; nothing where none is."""
        found = {task: self.judged[task] for task in tasks if task in self.judged}
        return {"judges": found} if found else {}

    def _judge_entry(self, name: str) -> dict[str, Any]:
        judge, base = self.judges[name], self.bases()[0].id
        files = [self._problems_of(task) for task in judge.tasks]
        return {
            "base": base,
            "tasks": ",".join(judge.tasks),
            "seed": judge.seed,
            "first": judge.first,
            "code": judge_code(name),
            "settings": f"judges.{name}",
            "inputs": _filled(
                [str(paths.checkpoint(base)), *judge_files(judge.config), *files], SLOTS["judge"]
            ),
        }

    def _phases(self, variant: str) -> dict[str, Any]:
        params = self.params.variant(variant)
        return {
            name: {
                **phase.results(),
                "rl": params.phase_rl(name).results(),
                "rollout": params.rollout.results(),
                "training": params.training.results(),
                "of": self._tasks(phase.tasks),
                **self._roles(phase.tasks),
            }
            for name, phase in params.phases.items()
        }

    def _tasks(self, names: Iterable[str]) -> dict[str, Any]:
        tasks = {name: self.params.tasks[name] for name in names}
        return {
            name: {
                "kind": kind_of(name, task),
                "options": options_of(task),
                "max_new_tokens": task.max_new_tokens,
            }
            for name, task in tasks.items()
        }

    def _stage_tasks(self) -> dict[str, list[str]]:
        """Fingerprint of a stage that is no phase and no judge -> the tasks whose code it runs."""
        sft = self.params.sft
        return {
            "build_data": list(self.params.tasks),
            **({"base_model": []} if sft is None else {"sft_warmup": list(sft.gate)}),
            "merge": list(self.params.tasks),
            "evaluate": list(self.params.tasks),
            "measure_bwt": [],
            "report": [],
        }

    def _graded(self) -> dict[str, list[str]]:
        """Fingerprint -> the tasks whose answers are graded under it."""
        phases = {
            phase_code(name, variant): list(phase.tasks)
            for variant in self.params.variant_names()
            for name, phase in self.params.variant(variant).phases.items()
        }
        return {**self._stage_tasks(), **phases}

    def code(self) -> dict[str, Code]:
        """Fingerprint -> the stage module it covers, and what this module loads by name."""
        params, engine = self.params, ENGINES[self.params.rollout.backend]
        form = FORMATS.get(find(params.policy.path).kind) if params.policy.path else None
        found = {
            stage: Code(
                _module(stage),
                self._loads(names, ROLES, build=stage == "build_data")
                | ({engine} if stage in SAMPLING else set())
                | ({form} if form and stage in ("base_model", "sft_warmup") else set()),
            )
            for stage, names in self._stage_tasks().items()
        }
        for name, judge in self.judges.items():
            makes = {JUDGE_MAKERS[judge.config.kind], engine, *_judge_code(judge.config)}
            found[judge_code(name)] = Code(_module(TRAIN_JUDGE), self._loads(judge.tasks) | makes)
        for variant in params.variant_names():
            changed = params.variant(variant)
            for name, phase in changed.phases.items():
                backends = {engine, BACKENDS[params.training.backend]}
                found[phase_code(name, variant)] = Code(
                    _module("rl"),
                    self._loads(phase.tasks, ["reward"]) | backends,
                    changed.phase_rl(name).pieces(),
                )
        return found

    def _loads(
        self, tasks: Collection[str], roles: Sequence[Role] = (), build: bool = False
    ) -> frozenset[str]:
        """The kinds of these tasks with what they load by name, and the judges that have these roles in them."""
        kinds = {TASKS[kind_of(task, self.params.tasks[task])] for task in tasks}
        judges = {self.judged[t][role] for t in tasks if t in self.judged for role in roles}
        named = [getattr(make_task(task, self.params.tasks[task]), "loads", None) for task in tasks]
        loaded = {
            target
            for task, own in zip(tasks, named, strict=True)
            if own
            for target in own(task, build=build)
        }
        of_judges = {target for n in judges for target in _judge_code(self.judges[n].config)}
        return frozenset(kinds | loaded | of_judges)

    def _entry(self, node: Node) -> dict[str, Any]:
        if node.kind == "model":
            entry: dict[str, Any] = {"seeds": list(self.params.seeds)}
        elif node.kind == "base":
            entry = {"seed": node.seed}
        elif node.kind == "merge":
            base, *parents = node.parents
            entry = {
                "base": base,
                "merge": node.merge,
                "parents": ",".join(parents),
                "tasks": ",".join(self._merged_tasks(node)),
                "seed": node.seed,
            } | _tag(node.variant)
        else:
            assert node.phase is not None
            section = "phases" if node.variant == DEFAULT else f"variants.{node.variant}"
            entry = {
                "parent": node.parents[0],
                "phase": node.phase,
                "variant": node.variant,
                "seed": node.seed,
                "code": phase_code(node.phase, node.variant),
                "settings": f"{section}.{node.phase}",
            }
        return {**entry, "inputs": self._inputs(node)}

    def _inputs(self, node: Node) -> list[str]:
        """What the node's stage reads beside what dvc.yaml spells out; the last one fills the spare slots."""
        slots = SLOTS[node.kind]
        files = list(self._reads(node))
        others = [file for file in files if not file.startswith(f"{paths.TASK_DATA}/")]
        if len(files) > slots and len(others) < len(files):  # coarser, but nothing is missed
            files = [*others, str(paths.TASK_DATA)]
        if len(files) > slots:
            raise ParamsError(
                f"{node.id} merges {len(files)} checkpoints, and dvc.yaml has room for {slots}: use fewer phases, or "
                f"add lines to `deps` of `merge` in dvc.yaml and raise SLOTS in trainorder/plan/compile.py"
            )
        return _filled(files, slots)

    def _exams(self) -> list[str]:
        """What every evaluation reads: all problems, and the judges where there are some."""
        return _filled([str(paths.TASK_DATA), *self._judge_folders(self.judged)], SLOTS["exams"])

    def _judge_folders(self, tasks: Iterable[str], roles: Sequence[Role] = ROLES) -> list[str]:
        """The judges that have these roles in these tasks."""
        names = [self.judged[t][role] for t in tasks if t in self.judged for role in roles]
        return [str(paths.JUDGE / name) for name in dict.fromkeys(names)]

    def _merged_tasks(self, node: Node) -> list[str]:
        """What the merged nodes were trained on."""
        params = self.params.variant(node.variant)
        phases = [self.nodes[parent].phase for parent in node.parents[1:]]
        return list(
            dict.fromkeys(t for phase in phases if phase for t in params.phases[phase].tasks)
        )

    def _reads(self, node: Node) -> Iterator[str]:
        if node.kind == "merge":
            yield from (str(paths.checkpoint(parent)) for parent in node.parents[1:])
            assert node.merge is not None
            if isinstance(self.params.merges[node.merge].scale, list):
                tasks = self._merged_tasks(node)
                yield from (str(paths.TASK_DATA / task / "dev.jsonl") for task in tasks)
                yield from self._judge_folders(tasks)
        elif node.phase is None:
            path, sft = self.params.policy.path, self.params.sft
            other = paths.FINGERPRINTS / "base_model" if sft is None else paths.TOKENIZER
            yield path if path is not None and found_at(path) else str(other)
            gate = () if sft is None else sft.gate
            yield from (str(paths.TASK_DATA / task / "dev.jsonl") for task in gate)
        else:
            params = self.params.variant(node.variant)
            tasks, teacher = params.phases[node.phase].tasks, params.phase_rl(node.phase).teacher
            if node.teacher is not None:
                yield str(paths.checkpoint(node.teacher))
            elif isinstance(teacher, ModelFolder) and found_at(teacher.path):
                yield teacher.path
            yield from self._judge_folders(tasks, ["reward"])
            yield from (str(paths.TASK_DATA / task / "train.jsonl") for task in tasks)


GROUPS: dict[str, Kind] = {
    "model": "model",
    "bases": "base",
    "structured": "structured",
    "creative": "creative",
    "joint": "mixed",
    "merge": "merge",
}
"""Key of plan.yaml that a DVC stage unrolls -> its nodes. DVC reads params.yaml into the same namespace, so that none of
these may be a key there."""


def _module(stage: str) -> str:
    """The stage's module, put together here: a whole name in the source would be an import of this module (fingerprint.py)."""
    return f"stages.{stage}"


def _filled(files: list[str], slots: int) -> list[str]:
    return files + files[-1:] * (slots - len(files))


def _hash(file: Path) -> str:
    if not file.is_file():
        return "missing"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


NO_LINES = {"demonstrations": 0, "drills": 0}
"""What a task writes for a warm-up that there is not."""
Arms = tuple[dict[str, dict[int, tuple[str, ...]]], dict[int, dict[str, str]]]
"""Orders and singles, as `Plan.orders` and `Plan.singles`."""


def _tag(variant: str) -> dict[str, str]:
    return {} if variant == DEFAULT else {"variant": variant}


def judge_code(judge: str) -> str:
    """Name of a judge's fingerprint."""
    return f"{fingerprint.JUDGE}{judge}"


def phase_code(phase: str, variant: str = DEFAULT) -> str:
    """Name of a phase's fingerprint; a variant has its own, as it may train other tasks.

    >>> phase_code("math"), phase_code("math", "half_lr")
    ('phase_math', 'phase_math.half_lr')
    """
    return f"{fingerprint.PHASE}{phase}" + ("" if variant == DEFAULT else f".{variant}")


def compile_plan(params: Params, resolved: Resolved | None = None) -> Plan:
    """The plan of checked params (`trainorder.plan.check.check`).

    Under each seed, orders with a common beginning share its nodes; every phase of an order with two or more phases
    is also trained from the base, for the transfer matrix and the merges. `resolved` fills `recommended`; one that
    is no permutation of today's phases is dropped.
    """
    known = usable(params, resolved or {})
    nodes: dict[str, Node] = {}
    arms: dict[str, Arms] = {variant: ({}, {}) for variant in params.variant_names()}
    for seed in params.seeds:
        base = paths.BASE if params.sft is None else f"s{seed}"
        # the model of all seeds is of none: a change of the seeds changes nothing of it
        nodes[base] = Node(base, "base", seed) if params.sft else Node(base, "model", 0)
        for variant, (orders, singles) in arms.items():
            tree = _Branch(nodes, params.variant(variant), variant, seed, base)
            for name, phases in order_phases(params, known).items():
                orders.setdefault(name, {})[seed] = tuple(tree.grow(phases))
            singles[seed] = {phase: tree.grow([phase])[0] for phase in single_phases(params)}
            for merge in params.merges:
                tree.merge(merge, tuple(singles[seed].values()))
    nodes = _with_teachers(nodes, params)
    orders, singles = arms.pop(DEFAULT)
    return Plan(params, nodes, orders, singles, arms, known)


def _with_teachers(nodes: dict[str, Node], params: Params) -> dict[str, Node]:
    """The nodes with the teachers that their phases name, teachers before their pupils.

    Raises:
        ParamsError: a teacher is no node of the plan, or comes from its own pupil.
    """
    found = dict(nodes)
    for node in nodes.values():
        rl = None if node.phase is None else params.variant(node.variant).phase_rl(node.phase)
        teacher = None if rl is None else rl.teacher_node(node.seed)
        if teacher is None:
            continue
        if teacher not in nodes:
            raise ParamsError(
                f"phases.{node.phase}.rl.teacher: the plan has no node {teacher!r} for {node.id} to learn from; give a node "
                f"(`trainorder plan` lists them) or {{path: FOLDER}}{did_you_mean(teacher, list(nodes))}"
            )
        found[node.id] = replace(node, teacher=teacher)
    if found == nodes:
        return nodes
    ordered = dict[str, Node]()

    def add(name: str, above: tuple[str, ...] = ()) -> None:
        if name in above:
            pupil = next(found[n] for n in above[above.index(name) :] if found[n].teacher)
            raise ParamsError(
                f"phases.{pupil.phase}.rl.teacher: {pupil.teacher} is made from {pupil.id}, which is to learn from it; name "
                "a node that does not come from the pupil, and set rl.teacher only in phases that need it"
            )
        if name not in ordered:
            node = found[name]
            for other in (*node.parents, *([node.teacher] if node.teacher else [])):
                add(other, (*above, name))
            ordered[name] = node

    for name in found:
        add(name)
    return ordered


@dataclass(frozen=True)
class _Branch:
    """The part of the tree that one variant grows on one seed's base."""

    nodes: dict[str, Node]
    params: Params
    variant: str
    seed: int
    base: str

    @property
    def root(self) -> str:
        """What the names of the branch begin with."""
        return f"s{self.seed}" if self.variant == DEFAULT else f"s{self.seed}--{self.variant}"

    def grow(self, phases: Sequence[str]) -> list[str]:
        """Add the path root--phase--phase... to the tree; returns its nodes."""
        path, parent, name = [], self.base, self.root
        for phase in phases:
            name = f"{name}--{phase}"
            kind = self.params.phases[phase].kind
            new = Node(name, kind, self.seed, (parent,), phase=phase, variant=self.variant)
            self.nodes.setdefault(name, new)
            path.append(name)
            parent = name
        return path

    def merge(self, merge: str, parents: tuple[str, ...]) -> None:
        """Add a merge of these nodes."""
        name = f"{self.root}--{merge}"
        self.nodes[name] = Node(
            name, "merge", self.seed, (self.base, *parents), merge=merge, variant=self.variant
        )


def load() -> Plan:
    """The plan of params.yaml, with what plan.yaml already knows about `recommended`.

    Raises:
        ParamsError: params.yaml is wrong.
    """
    from trainorder.plan.check import check

    params = load_params()
    check(params)
    return compile_plan(params, _resolved())


def _resolved() -> dict[str, list[str]]:
    """What plan.yaml knows of `recommended`. All else in it is compiled again, so a damaged one is no error."""
    if not found_at(paths.PLAN):
        return {}
    try:
        return shaped(read_yaml(paths.PLAN), _Compiled, paths.PLAN, REPAIR).get("resolved", {})
    except ParamsError as error:
        print(f"warning: {error}", file=sys.stderr)
        return {}


class _Compiled(TypedDict):
    resolved: NotRequired[dict[str, list[str]]]


class _Base(TypedDict):
    seed: int


class _Model(TypedDict):
    seeds: list[int]


class _Phase(TypedDict):
    phase: str


class _Merge(TypedDict):
    base: str
    merge: str
    seed: int


class _Tasks(TypedDict):
    tasks: dict[str, float]


class _Arms(TypedDict):
    phases: dict[str, _Tasks]
    orders: dict[str, dict[str, list[str]]]
    singles: dict[str, dict[str, str]]
    merges: dict[str, _Merge]


class _Stored(_Arms):
    model: NotRequired[dict[str, _Model]]
    bases: dict[str, _Base]
    structured: dict[str, _Phase]
    creative: dict[str, _Phase]
    joint: dict[str, _Phase]
    variants: dict[str, _Arms]
    recall: list[str]
    evaluations: list[str]


REPAIR = "`trainorder plan` writes it from params.yaml"


def stored() -> dict[str, Any]:
    """The content of plan.yaml, as what was measured last was planned.

    Raises:
        ParamsError: there is none, or it is not what `trainorder plan` writes.
    """
    if not found_at(paths.PLAN):
        raise ParamsError(f"{paths.PLAN} not found: {REPAIR}")
    try:
        content = read_yaml(paths.PLAN)
    except ParamsError as error:
        raise ParamsError(f"{error}; {REPAIR}") from None
    return dict(shaped(content, _Stored, paths.PLAN, REPAIR))


def measured() -> dict[str, list[str]]:
    """`resolved` as the measurement in reports/bwt.json has it; empty where it recommends nothing.

    Raises:
        ParamsError: nothing was measured yet.
    """
    found = results.load()["recommended"]
    return {} if found is None else {"recommended": list(found["order"])}


def write(plan: Plan) -> bool:
    """Write plan.yaml, whole and then renamed; returns whether it changed."""
    text = plan.text()
    if paths.PLAN.is_file() and paths.PLAN.read_bytes() == text.encode():
        return False
    write_text(paths.PLAN, text)
    return True
