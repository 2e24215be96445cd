"""What a probe is: a function of two checkpoints, what it reads, and what it says of a checkpoint beside itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from trainorder import paths
from trainorder.adapters import is_adapter_node, load_adapter, weights_of
from trainorder.lineage import read_manifest
from trainorder.reading import ParamsError
from trainorder.tasks.base import Prompt

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from trainorder.policy import Policy

Reads = Literal["weights", "parents", "evaluations", "data", "forward", "backward"]
"""weights of both checkpoints; parents, those of the checkpoints they were trained from; evaluations; data, the built
problems; forward and backward passes of both models."""
ALL = "*"
"""In the columns `task` and `part`: all of them together."""
PAIRED = "+"
"""Between two tasks in the column `task`, of what is between them: `code+math`."""
BEFORE, AFTER, CHANGE = ".before", ".after", ".change"
"""End the measures that describe one checkpoint: the other one, the node, and the difference."""


class Row(NamedTuple):
    """One finite number that a probe found."""

    task: str
    part: str
    """Of the model (a kind of module), or of the answers (a format, `within` a problem or `across` problems)."""
    measure: str
    value: float


class Answer(NamedTuple):
    """One answer that an evaluation kept."""

    problem: str
    prompt: Prompt
    text: str
    score: float | None


@dataclass(frozen=True)
class Probe:
    """An entry of `trainorder.registries.PROBES`."""

    name: str
    function: Callable[[Pair], Iterator[Row]]
    reads: tuple[Reads, ...]
    neutral: Mapping[str, float] = field(default_factory=dict)
    """Measure -> its value where both checkpoints are the same; measures of CHANGE are 0 there."""

    def __call__(self, pair: Pair) -> list[Row]:
        """What it finds; numbers that do not exist are left out."""
        return [row for row in self.function(pair) if math.isfinite(row.value)]


def probe(
    *reads: Reads, neutral: Mapping[str, float] | None = None
) -> Callable[[Callable[[Pair], Iterator[Row]]], Probe]:
    """Make a probe of a function."""

    def made(function: Callable[[Pair], Iterator[Row]]) -> Probe:
        entry = Probe(function.__name__, function, reads, neutral or {})
        object.__setattr__(entry, "__doc__", function.__doc__)
        return entry

    return made


def compared(
    task: str, part: str, measure: str, before: float | None, after: float | None
) -> Iterator[Row]:
    """A measure of one checkpoint at both: its rows, without those that do not exist."""
    known = {BEFORE: _known(before), AFTER: _known(after)}
    for end, value in known.items():
        if value is not None:
            yield Row(task, part, measure + end, value)
    if known[BEFORE] is not None and known[AFTER] is not None:
        yield Row(task, part, measure + CHANGE, known[AFTER] - known[BEFORE])


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Checkpoint:
    """A node as probes read it, each part when it is first asked for."""

    name: str
    known: dict[Any, Any] = field(default_factory=dict, compare=False)
    """Numbers that a probe found of this checkpoint alone, for the other pairs that it stands in; never tensors."""

    @cached_property
    def policy(self) -> Policy:
        """Model and tokenizer."""
        from trainorder.policy import Policy

        return Policy.load(paths.checkpoint(self.name))

    @cached_property
    def parent(self) -> Checkpoint | None:
        """What it was trained from, or the base that it was merged onto; None for a base.

        Raises:
            FileNotFoundError: it has no manifest.
        """
        parents = list(read_manifest(self.name)["parents"])
        return Checkpoint(parents[0]) if parents else None

    @property
    def table(self) -> pd.DataFrame:
        """Its evaluation.

        Raises:
            ParamsError: it was not evaluated.
        """
        return self._evaluation[0]

    @cached_property
    def _evaluation(self) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """The table and the answers; apart, as pandas copies `attrs` deeply with every selection."""
        import pandas as pd

        file = paths.evaluation(self.name)
        if not file.is_file():
            raise ParamsError(
                f"{file} not found: run `dvc repro {paths.pipeline(self.name)}:evaluate`"
            )
        table = pd.read_parquet(file)
        answers = table.attrs.get("answers") or []
        table.attrs = {}
        return table, answers

    @cached_property
    def _kept(self) -> list[dict[str, Any]]:
        rows = self._evaluation[1]
        if not rows:
            raise ParamsError(
                f"{paths.evaluation(self.name)} keeps no answers: raise evaluation.answers from 0, and evaluate again"
            )
        return rows

    @cached_property
    def tasks(self) -> list[str]:
        """Those whose answers the evaluation keeps, in its order."""
        return list(dict.fromkeys(row["task"] for row in self._kept))

    def judged(self, task: str) -> bool:
        """Whether a judge scores the task."""
        rows = self.table[self.table["task"] == task]
        return bool((rows["metric"] == "reward_judge").any())

    def greedy(self, task: str) -> list[Answer]:
        """The most likely answer to each kept problem."""
        return [
            Answer(row["problem"], row["prompt"], row["answer"], row["score"])
            for row in self._kept
            if row["task"] == task
        ]

    def sampled(self, task: str) -> list[list[Answer]]:
        """The samples of each kept problem; the most likely answer alone in a table of an older version."""
        return [
            [
                Answer(row["problem"], row["prompt"], text, score)
                for text, score in zip(
                    row.get("sampled", [row["answer"]]),
                    row.get("scores", [row["score"]]),
                    strict=True,
                )
            ]
            for row in self._kept
            if row["task"] == task
        ]

    def some(self, task: str, most: int) -> list[Answer]:
        """At most so many samples: the first of every problem, then the second, and so on."""
        groups = self.sampled(task)
        rounds = max(map(len, groups), default=0)
        return [group[i] for i in range(rounds) for group in groups if i < len(group)][:most]

    def values(self, task: str, metric: str, split: str = "test") -> pd.Series:
        """Problem -> value, in order of the problems' names."""
        rows = self.table[
            (self.table["task"] == task)
            & (self.table["metric"] == metric)
            & (self.table["split"] == split)
            & (self.table["problem"] != ALL)
        ]
        return rows.set_index("problem")["value"].sort_index().dropna()


@dataclass(frozen=True)
class Pair:
    """What a probe is asked about: what `node` has become, compared with `other`."""

    node: Checkpoint
    other: Checkpoint

    @property
    def tasks(self) -> list[str]:
        """The tasks of which both evaluations keep answers."""
        return [task for task in self.node.tasks if task in self.other.tasks]

    @property
    def both(self) -> tuple[Checkpoint, Checkpoint]:
        """`other`, then `node`: before and after."""
        return self.other, self.node


def check_made(node: str) -> None:
    """Refuse a node whose checkpoint does not lie here.

    Raises:
        ParamsError: names the command that makes it.
    """
    folder = paths.checkpoint(node)
    if not folder.is_dir():
        raise ParamsError(f"{folder} not found: run `dvc repro {paths.pipeline(node)}`")


class Change(NamedTuple):
    """One tensor before, and what was added to it; both float32."""

    name: str
    before: Tensor
    delta: Tensor


def changes(before: Checkpoint, after: Checkpoint) -> Iterator[Change]:
    """Every tensor of a model that two checkpoints share, one at a time.

    Of adapters on the same full weights the difference is computed from the adapters alone, so that a tensor that neither
    adapts has exactly no change.

    Raises:
        ParamsError: a checkpoint is missing, or the two are not of one architecture.
    """
    import torch

    from trainorder.merge import Weights

    for node in (before, after):
        check_made(node.name)
    places = [weights_of(paths.checkpoint(node.name)) for node in (before, after)]
    low = [_Adapter(node.name) for node in (before, after)]
    with ExitStack() as stack:
        first, second = (Weights(stack, place) for place in places)
        if first.names != second.names:
            only = sorted(set(first.names) ^ set(second.names))
            raise ParamsError(
                f"{before.name} and {after.name} are not of one architecture: {only[0]} is in one of them only"
            )
        for name in first.names:
            weights = first.get(name).float()
            then = weights + low[0].added(name, weights)
            if places[0] == places[1]:
                delta = low[1].added(name, weights) - low[0].added(name, weights)
            else:
                theirs = second.get(name).float()
                if theirs.shape != weights.shape:
                    raise ParamsError(
                        f"{before.name} and {after.name} are not of one architecture: {name} is {tuple(weights.shape)} "
                        f"in one and {tuple(theirs.shape)} in the other"
                    )
                delta = theirs + low[1].added(name, theirs) - then
            yield Change(name, then, torch.as_tensor(delta))


class _Adapter:
    """What a LoRA node adds to the weights below it; nothing of any other node."""

    def __init__(self, name: str) -> None:
        folder = paths.checkpoint(name)
        self._tensors: Mapping[str, Tensor] = {}
        if is_adapter_node(folder):
            self._tensors, config = load_adapter(folder)
            self._factor = config["lora_alpha"] / config["r"]

    def added(self, name: str, weights: Tensor) -> Tensor:
        """Alpha / rank * B A of one tensor."""
        module = name.removesuffix(".weight")
        down = self._tensors.get(f"{module}.lora_A.default.weight")
        up = self._tensors.get(f"{module}.lora_B.default.weight")
        if down is None or up is None:
            return weights.new_zeros(weights.shape)
        return (up.float() @ down.float()) * self._factor


STEMS = frozenset({"model", "transformer", "layers", "h", "blocks", "weight", "base_model"})


def module_of(name: str) -> str:
    """The kind of module that a tensor belongs to, the same in every layer.

    >>> module_of("model.layers.3.mlp.down_proj.weight"), module_of("model.norm.weight"), module_of("lm_head.weight")
    ('mlp.down_proj', 'norm', 'lm_head')
    """
    parts = [part for part in name.split(".") if part not in STEMS and not part.isdigit()]
    return ".".join(parts) or name


def mean(values: Sequence[float]) -> float:
    """Nan of none."""
    return math.fsum(values) / len(values) if values else math.nan


def scores(answers: Sequence[Answer]) -> list[float]:
    """Those that exist."""
    return [answer.score for answer in answers if answer.score is not None]
