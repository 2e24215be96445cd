"""Runs probes over a pair of checkpoints, and keeps what they found by the content of what they read."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from trainorder import fingerprint, machine, paths
from trainorder.adapters import weights_hash
from trainorder.files import sha256, write_json
from trainorder.fingerprint import Code
from trainorder.lineage import content_hash
from trainorder.probes.base import Checkpoint, Pair, Probe, Row, check_made
from trainorder.reading import ParamsError, found_at, read_json, read_yaml, shaped
from trainorder.registries import PROBES, chosen_probes, load

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("probe", "node", "other", "task", "part", "measure", "value")
"""Of the long table."""


@dataclass(frozen=True)
class Found:
    """What one probe found of one pair."""

    probe: str
    node: str
    other: str
    rows: list[Row]
    seconds: float
    """What it cost when it was computed."""
    known: bool
    """Whether it was kept from before."""


class _Kept(TypedDict):
    seconds: float
    rows: list[list[Any]]


def run(
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    say: Callable[[Found], None] = lambda found: None,
) -> list[Found]:
    """Every probe of every (node, other), from `paths.PROBED` where it was computed before from the same content.

    Raises:
        ParamsError: no such probe, a checkpoint or an evaluation that is missing, or two that cannot be compared.
    """
    probes = [load(PROBES, name, "probes") for name in chosen_probes(names)]
    code = {
        name: hashlib.sha256(text.encode()).hexdigest()
        for name, text in fingerprint.compute(
            {p.name: Code(_module(p), frozenset({PROBES[p.name]})) for p in probes}
        ).items()
    }
    results = []
    opened, known = dict[str, Checkpoint](), dict[str, dict[Any, Any]]()
    for node, other in pairs:  # models of the last pair alone stay in memory
        opened = {
            name: opened.get(name) or Checkpoint(name, known.setdefault(name, {}))
            for name in (node, other)
        }
        inputs = _Inputs(Pair(opened[node], opened[other]))
        for probe in probes:
            results.append(_found(probe, inputs, code[probe.name]))
            say(results[-1])
    return results


def table(found: Iterable[Found]) -> pd.DataFrame:
    """The long table."""
    import pandas as pd

    rows = [(one.probe, one.node, one.other, *row) for one in found for row in one.rows]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": "float64"})


def _module(probe: Probe) -> str:
    return PROBES[probe.name].partition(":")[0]


@dataclass
class _Inputs:
    """A pair, and the hashes of what probes read of it."""

    pair: Pair
    _known: dict[str, str] = field(default_factory=dict)

    def digest(self, reads: Iterable[str]) -> str:
        """Of all that these `Reads` stand for, both checkpoints in their order."""
        lines = [f"{kind} {self._of(kind)}" for kind in sorted(reads)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _of(self, kind: str) -> str:
        if kind not in self._known:
            self._known[kind] = " ".join(self._hash(kind, one) for one in self.pair.both)
        return self._known[kind]

    def _hash(self, kind: str, checkpoint: Checkpoint) -> str:
        if kind == "data":
            return self._data
        if kind == "parents":
            parent = checkpoint.parent
            return "none" if parent is None else _weights(parent.name)
        if kind == "evaluations":
            assert checkpoint.table is not None  # says where it is missing
            return sha256(paths.evaluation(checkpoint.name))
        hashed = _weights(checkpoint.name)
        if kind in ("forward", "backward"):
            hashed += self._hash("evaluations", checkpoint)
        return hashed

    @cached_property
    def _data(self) -> str:
        return content_hash(paths.TASK_DATA) if paths.TASK_DATA.is_dir() else "none"


def _weights(node: str) -> str:
    check_made(node)
    return weights_hash(paths.checkpoint(node))


def _found(probe: Probe, inputs: _Inputs, code: str) -> Found:
    key = hashlib.sha256(f"{probe.name} {code} {inputs.digest(probe.reads)}".encode()).hexdigest()
    node, other = inputs.pair.node.name, inputs.pair.other.name
    file = paths.PROBED / f"{probe.name}-{key[:32]}.json"
    kept = _read(file)
    if kept is not None:
        rows = [Row(*row) for row in kept["rows"]]
        return Found(probe.name, node, other, rows, kept["seconds"], True)
    if not machine.chosen():  # the same arithmetic in a stage and on the command line
        machine.prepare(machine.allowed_cores(), paths.checkpoint(node))
    start = time.perf_counter()
    rows = probe(inputs.pair)
    seconds = round(time.perf_counter() - start, 3)
    write_json(file, {"seconds": seconds, "rows": [list(row) for row in rows]}, indent=None)
    return Found(probe.name, node, other, rows, seconds, False)


def _read(file: Path) -> _Kept | None:
    """A damaged file is computed again."""
    if not file.is_file():
        return None
    try:
        return read_json(file, _Kept, "it is computed again")
    except (ParamsError, json.JSONDecodeError):
        return None


class _Planned(TypedDict):
    probes: NotRequired[list[list[str]]]


def asked() -> list[tuple[str, str]]:
    """The (node, other) that plan.yaml has probes compare; none where there is no plan.yaml or it asks for none.

    Raises:
        ParamsError: it is damaged.
    """
    if not found_at(paths.PLAN):
        return []
    repair = "`trainorder plan` writes it from params.yaml"
    content = shaped(read_yaml(paths.PLAN), _Planned, paths.PLAN, repair)
    return [(node, other) for node, other in content.get("probes", [])]


def costs(found: Iterable[Found]) -> list[str]:
    """What every probe cost: `sparsity: 61 pairs, 9.3 s, of which 2 were computed now`."""
    each: dict[str, list[Found]] = {}
    for one in found:
        each.setdefault(one.probe, []).append(one)
    return [
        f"{name}: {len(own)} pairs, {sum(one.seconds for one in own):.1f} s, "
        f"of which {sum(not one.known for one in own)} were computed now"
        for name, own in each.items()
    ]
