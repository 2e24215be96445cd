"""The log of one node while it is made: metrics.jsonl, run.json, and MLflow's copy of both."""

from __future__ import annotations

import getpass
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from trainorder import paths
from trainorder.config import DEFAULT
from trainorder.files import write_json, write_jsonl
from trainorder.owner import identity, store_uri
from trainorder.resume import NOTHING, Work
from trainorder.tracking.store import NODES, attach, connect, is_charted, log
from trainorder.tracking.usage import Usage

if TYPE_CHECKING:
    from mlflow import MlflowClient

ORDER = "drawn.jsonl"
"""In runs/<node>: the problems of every step of an RL phase, as drawn."""
PARENT = "mlflow.parentRunId"
"""MLflow's tag by which a run is shown below another."""


class Tracker:
    """Log of one node: `with Tracker("s0--math", 0, params, {"phase": "math", "parent": "s0"}) as tracker`.

    Leaves runs/<node>/metrics.jsonl (one line per `log`) and runs/<node>/run.json (`{"run_id": ...}`, null where MLflow
    could not be reached). Metrics go to MLflow in batches: every `batch_seconds`, and at the end; with them what the process
    uses, which the files leave out so that the same node has the same lines. A stage that goes on after a kill goes on in the
    same MLflow run, without repeating or losing a step.
    """

    def __init__(
        self,
        node: str,
        seed: int,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        *,
        batch_seconds: float = 10.0,
        work: Work = NOTHING,
    ) -> None:
        self.node = node
        self.run_id: str | None = None
        self._work, self._text = work, ""
        self._mirror = _Mirror(node, dict(params), node_tags(node, seed, tags), batch_seconds)
        self._file: IO[str] | None = None

    def __enter__(self) -> Tracker:
        folder = paths.run(self.node)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("w", encoding="utf-8")
        known = self._work.latest("mlflow")
        self.run_id = self._mirror.open(known.state["run_id"] if known else None)
        if known is None or known.state["run_id"] != self.run_id:
            self._work.save("mlflow", {}, {"run_id": self.run_id})
        write_json(folder / "run.json", {"run_id": self.run_id}, indent=None)
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line `{"step": ..., "area/quantity": ...}`; a number that is not finite is written as null."""
        assert self._file is not None, "Tracker.log outside its with-block"
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        line = json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n"
        self._text += line
        self._file.write(line)
        self._file.flush()
        self._mirror.add(int(step), values | self._mirror.usage.read())

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the MLflow run."""
        self._mirror.tag(name, value)

    def keep_order(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Write what every step drew to runs/<node>/drawn.jsonl, a line per step, and store it with the MLflow run."""
        file = paths.run(self.node) / ORDER
        write_jsonl(file, steps)
        self._mirror.attach({ORDER: file.read_bytes()})

    def state(self) -> dict[str, Any]:
        """Every line so far, for `restore`."""
        return {"lines": self._text}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind the lines that `state` took; MLflow gets those of them that it does not have."""
        assert self._file is not None, "Tracker.restore outside its with-block"
        assert not self._text, "Tracker.restore after Tracker.log"
        self._text = state["lines"]
        self._file.write(self._text)
        self._file.flush()
        for line in self._text.split("\n")[:-1]:
            metrics = json.loads(line)
            step = metrics.pop("step")
            self._mirror.add(step, {k: math.nan if v is None else v for k, v in metrics.items()})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._mirror.close("FINISHED" if kind is None else "FAILED")


class _Mirror:
    """The MLflow copy of one node; every failure ends in `_warn_once`."""

    def __init__(
        self, node: str, params: dict[str, Any], tags: dict[str, str], batch_seconds: float
    ) -> None:
        self.node, self.params, self.tags = node, params, tags
        self.batch_seconds = batch_seconds
        self.run_id: str | None = None
        self.client: MlflowClient | None = None
        self.pending: list[tuple[str, float, int, int]] = []
        self.sent: set[tuple[str, int]] = set()
        """(metric, step) of what a killed process sent before this one."""
        self.sounded: set[str] = set()
        self.due = time.monotonic() + batch_seconds
        self.usage = Usage()
        self.warned = False

    def open(self, known: str | None) -> str | None:
        """Open the run `known` again if the store still has it, else a new one; returns its id."""
        with self._guarded():
            self.client, experiment = connect(NODES)
            if known is not None and self._reopen(known):
                return self.run_id
            tags = self.tags | _source() | identity()
            run = self.client.create_run(experiment, run_name=self.node, tags=tags)
            self.run_id = run.info.run_id
            log(self.client, self.run_id, params=self.params)
        return self.run_id

    def _reopen(self, known: str) -> bool:
        """Go on in the run of a killed process; False where the store does not know it."""
        from mlflow.exceptions import MlflowException

        assert self.client is not None
        try:
            run = self.client.get_run(known)
        except MlflowException:
            return False
        self.client.update_run(known, status="RUNNING")
        for name in run.data.metrics:
            self.sent |= {(name, m.step) for m in self.client.get_metric_history(known, name)}
        self.sounded |= run.data.metrics.keys()
        self.run_id = known
        return True

    def tag(self, name: str, value: str) -> None:
        if self.run_id is not None and self.client is not None:
            with self._guarded():
                self.client.set_tag(self.run_id, name, value)

    def attach(self, files: Mapping[str, bytes]) -> None:
        if self.run_id is not None and self.client is not None:
            with self._guarded():
                attach(self.client, self.run_id, files)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.run_id is None:
            return
        now = int(time.time() * 1000)
        new = {
            name: value
            for name, value in metrics.items()
            if (name, step) not in self.sent and is_charted(name, value, self.sounded)
        }
        self.pending += [(name, value, now, step) for name, value in new.items()]
        if time.monotonic() >= self.due and not self.warned:
            self._send()

    def close(self, status: str) -> None:
        if self.run_id is None or self.client is None:
            return
        self._send()
        with self._guarded():
            self.client.set_terminated(self.run_id, status)

    def _send(self) -> None:
        """Send what is pending; what could not be sent stays pending, and `close` tries once more."""
        assert self.client is not None
        assert self.run_id is not None
        self.due = time.monotonic() + self.batch_seconds
        with self._guarded():
            log(self.client, self.run_id, metrics=self.pending)
            self.pending = []

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.warned:
                text = str(error).strip().splitlines()
                warnings.warn(
                    f"MLflow at {store_uri()} could not take {self.node}: {text[0] if text else error!r}; "
                    f"{paths.run(self.node) / 'metrics.jsonl'} stays complete",
                    RuntimeWarning,
                    stacklevel=4,
                )
            self.warned = True


def node_tags(node: str, seed: int, tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a node's run: where it stands in the tree of checkpoints.

    The parent's run is known from its run.json, where there is one; MLflow nests the run below it.
    """
    parent = tags.get("parent")
    result = {"node": node, "seed": str(seed), "mlflow.note.content": _note(node, seed, tags)}
    result |= {
        name: str(value) for name, value in tags.items() if name != "parent" and value is not None
    }
    if parent is not None:
        result["parent_node"] = str(parent)
        parent_run = read_run_id(str(parent))
        if parent_run is not None:
            result |= {"parent_run_id": parent_run, PARENT: parent_run}
    return result


def _note(node: str, seed: int, tags: Mapping[str, Any]) -> str:
    """The run's description."""
    variant = tags.get("variant") or DEFAULT
    path = [part for part in node.split("--")[1:-1] if part != variant]
    before = f", after {' > '.join(path)}" if path and tags.get("phase") else ""
    under = f", variant {variant}" if variant != DEFAULT else ""
    what = tags.get("phase") or node.split("--")[-1]
    return f"**{what}**{before}, seed {seed}{under}. Checkpoint `{paths.checkpoint(node)}`, records `{paths.run(node)}`."


@cache
def _source() -> dict[str, str]:
    """Who makes a node now, by what and from which commit, as MLflow's pages show it; what is not known is left out."""
    found = {
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
    }
    with suppress(OSError, KeyError):  # no name for this user id
        found["mlflow.user"] = getpass.getuser()
    command = ["git", "rev-parse", "HEAD"]
    with suppress(OSError):
        commit = subprocess.run(command, capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            found["mlflow.source.git.commit"] = commit.stdout.strip()
    return found


def read_run_id(node: str) -> str | None:
    """The MLflow run that made this node, or None where it is not known."""
    file = paths.run(node) / "run.json"
    return json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.is_file() else None
