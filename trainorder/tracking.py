"""What a node logs: runs/<node>/metrics.jsonl is the truth, MLflow shows a copy.

Every run carries tags that say whose it is (trainorder/owner.py), and nobody else's run is changed.

The only module that knows MLflow. A store that is down, slow or broken costs one warning, never a number and never a
training step. MLflow takes seconds to import, so it is imported when the first run opens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from trainorder import paths
from trainorder.files import write_json
from trainorder.owner import (
    alone_in,
    artifacts,
    experiment_name,
    identity,
    own_filter,
    own_store,
    store_uri,
)
from trainorder.process import is_held, keep_loopback_direct
from trainorder.resume import NOTHING, Work

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NODES = "nodes"
ORDERS = "orders"
RECORDED = "recorded_run_id"
"""Tag of a run that was filled in from a node's records: the id in its run.json, of a store that is not here."""
MAX_METRICS, MAX_PARAMS = 1000, 100  # of one log_batch call; MLflow refuses more


class Tracker:
    """Log of one node: `with Tracker("s0--math", 0, params, {"phase": "math", "parent": "s0"}) as tracker`.

    Leaves runs/<node>/metrics.jsonl (one line per `log`) and runs/<node>/run.json (`{"run_id": ...}`, null where MLflow
    could not be reached). Metrics go to MLflow in batches: every `batch_seconds`, and at the end. A stage that goes on
    after a kill goes on in the same MLflow run, without repeating or losing a step.
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
        self._mirror = _Mirror(node, dict(params), _node_tags(node, seed, tags), batch_seconds)
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
        self._mirror.add(int(step), values)

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the MLflow run."""
        self._mirror.tag(name, value)

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
        self.due = time.monotonic() + batch_seconds
        self.warned = False

    def open(self, known: str | None) -> str | None:
        """Open the run `known` again if the store still has it, else a new one; returns its id."""
        with self._guarded():
            self.client, experiment = connect(NODES)
            if known is not None and self._reopen(known):
                return self.run_id
            tags = self.tags | identity()
            run = self.client.create_run(experiment, run_name=self.node, tags=tags)
            self.run_id = run.info.run_id
            _log_params(self.client, self.run_id, self.params)
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
        self.run_id = known
        return True

    def tag(self, name: str, value: str) -> None:
        if self.run_id is not None and self.client is not None:
            with self._guarded():
                self.client.set_tag(self.run_id, name, value)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.run_id is None:
            return
        now = int(time.time() * 1000)
        new = {name: v for name, v in metrics.items() if (name, step) not in self.sent}
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
            _log_metrics(self.client, self.run_id, self.pending)
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


def connect(experiment: str) -> tuple[MlflowClient, str]:
    """A client of the store and the id of `experiment`, created where missing.

    One process at a time goes through here: of several that create the tables of a fresh SQLite file together, most
    fail (mlflow#23721).
    """
    keep_loopback_direct()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    artifacts().mkdir(exist_ok=True)
    with alone_in(artifacts()), _quiet_start():
        from mlflow import MlflowClient

        uri, name = store_uri(), experiment_name(experiment)
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        if found is not None:
            return client, found.experiment_id
        # resolved by the server that shows it, so a project that was moved or copied keeps its files
        location = f"mlflow-artifacts:/{experiment}" if own_store() else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # else its pages open on GenAI
        return client, client.create_experiment(name, artifact_location=location, tags=kind)


def create_store() -> None:
    """Create the store and both experiments, so that parallel nodes meet a ready one.

    Raises:
        RuntimeError: the store cannot be reached or created.
    """
    try:
        for experiment in (NODES, ORDERS):
            connect(experiment)
    except Exception as error:
        raise RuntimeError(
            f"MLflow store {store_uri()} cannot be opened: {error}; unset MLFLOW_TRACKING_URI to use the project's own"
        ) from error


@dataclass(frozen=True)
class OrderRecord:
    """Summary of one arm of the comparison under one seed, as MLflow shows it."""

    name: str
    params: dict[str, str]
    """`pos1`, `pos2`, ...: the phases; whatever else tells arms apart."""
    metrics: list[tuple[str, float, int]]
    """(name, value, position); position 0 is the base."""
    tags: dict[str, str]

    @property
    def key(self) -> str:
        """Hash of the whole content: the same measurement has the same key, a changed number another."""
        content = json.dumps([self.name, self.params, self.metrics, self.tags], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def log_orders(records: Sequence[OrderRecord]) -> int:
    """One summary run per record in the experiment `orders`; what is already there is not added again.

    Positions are MLflow's steps, so its charts and parallel coordinates show orders side by side. Runs of earlier
    measurements stay, with the tag `current` false; those of other projects and folders are not touched. Returns how many
    runs were added.
    """
    client, experiment = connect(ORDERS)
    mine = identity()
    here = (run for run in _own_runs(client, experiment) if _is_from_here(run))
    known = {run.data.tags.get("order_key"): run for run in here}
    for record in records:
        if record.key not in known:
            _add_order(client, experiment, record, mine)
    keys = {record.key for record in records}
    for key, run in known.items():
        current = str(key in keys).lower()
        if run.data.tags.get("current") != current:
            client.set_tag(run.info.run_id, "current", current)
    return len(keys - known.keys())


def _add_order(
    client: MlflowClient, experiment: str, record: OrderRecord, mine: Mapping[str, str]
) -> None:
    tags = {**record.tags, **mine}
    run_id = client.create_run(experiment, run_name=record.name, tags=tags).info.run_id
    _log_params(client, run_id, record.params)
    now = int(time.time() * 1000)
    _log_metrics(client, run_id, [(name, value, now, step) for name, value, step in record.metrics])
    client.set_tag(run_id, "current", "true")
    client.set_tag(
        run_id, "order_key", record.key
    )  # last: a run cut off before this is not "known"
    client.set_terminated(run_id, "FINISHED")


def fill() -> int:
    """Bring the records in runs/ into a store that has no run of this project; returns how many runs that makes.

    A clone that pulled has the records of every node and no store. The runs get ids of their own.
    """
    client, experiment = connect(NODES)
    if next(_own_runs(client, experiment), None) is not None:
        return 0
    made: dict[str, str] = {}
    mine = identity()
    files = paths.run("x").parent.glob("*/metrics.jsonl")
    for file in sorted(files, key=lambda file: (file.parent.name.count("--"), file)):
        node = file.parent.name
        beside = file.with_name("manifest.json")
        manifest = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        tags = {"node": node, **mine, RECORDED: read_run_id(node) or ""}
        tags |= {name: str(manifest[name]) for name in ("seed", "phase") if name in manifest}
        for parent in manifest.get("parents", {}):
            tags |= {"parent_node": parent, "parent_run_id": made.get(parent, "")}
        time_ms = int(file.stat().st_mtime * 1000)
        run = client.create_run(experiment, start_time=time_ms, run_name=node, tags=tags)
        made[node] = run.info.run_id
        _log_params(client, made[node], manifest.get("params", {}))
        metrics = [
            (name, math.nan if value is None else value, time_ms, line["step"])
            for line in map(json.loads, file.read_text(encoding="utf-8").split("\n")[:-1])
            for name, value in line.items()
            if name != "step"
        ]
        _log_metrics(client, made[node], metrics)
        client.set_terminated(made[node], "FINISHED", time_ms)
    return len(made)


def log_final(metrics: Mapping[str, Mapping[str, float]]) -> int:
    """Add metrics (evaluations) to finished node runs: run id -> metrics. Returns how many runs changed.

    What a run already holds is not sent again; a run that the store does not know, or knows as another project's, is left
    out.
    """
    client, experiment = connect(NODES)
    changed = 0
    for run in _own_runs(client, experiment):
        wanted = metrics.get(run.data.tags.get(RECORDED, run.info.run_id), {})
        new = {name: v for name, v in wanted.items() if run.data.metrics.get(name) != v}
        if new:
            now = int(time.time() * 1000)
            _log_metrics(client, run.info.run_id, [(name, v, now, 0) for name, v in new.items()])
            changed += 1
    return changed


def sweep() -> int:
    """Mark node runs that a killed process of this project and machine left RUNNING as KILLED.

    One whose node is being made now, here or in another folder of the project, is left alone.
    """
    client, experiment = connect(NODES)
    host = socket.gethostname()
    left = [
        run
        for run in _own_runs(client, experiment)
        if run.info.status == "RUNNING" and run.data.tags.get("host", host) == host
        if not is_held(_folder(run) / paths.RESUME / f"{run.data.tags.get('node')}.lock")
    ]
    for run in left:
        client.set_terminated(run.info.run_id, "KILLED")
    return len(left)


def _own_runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs([experiment], own_filter(), max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _folder(run: Run) -> Path:
    """Where a run was made; this folder for runs of before there was the tag."""
    return Path(run.data.tags.get("folder", Path.cwd()))


def _is_from_here(run: Run) -> bool:
    """Whether a run was made in this folder, or in one that was moved here or deleted."""
    return _folder(run) == Path.cwd() or not _folder(run).is_dir()


def _node_tags(node: str, seed: int, tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a node's run; `parent_run_id` comes from the parent's run.json, where there is one."""
    parent = tags.get("parent")
    result = {"node": node, "seed": str(seed)}
    result |= {
        name: str(value) for name, value in tags.items() if name != "parent" and value is not None
    }
    if parent is not None:
        result["parent_node"] = str(parent)
        parent_run = read_run_id(str(parent))
        if parent_run is not None:
            result["parent_run_id"] = parent_run
    return result


def read_run_id(node: str) -> str | None:
    """The MLflow run that made this node, or None where it is not known."""
    file = paths.run(node) / "run.json"
    return json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.is_file() else None


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    entities = [Param(name, str(value)) for name, value in _flat(params)]
    for start in range(0, len(entities), MAX_PARAMS):
        client.log_batch(run_id, params=entities[start : start + MAX_PARAMS])


def _log_metrics(
    client: MlflowClient, run_id: str, metrics: Sequence[tuple[str, float, int, int]]
) -> None:
    """Metrics are (name, value, timestamp in ms, step)."""
    from mlflow.entities import Metric

    for start in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run_id, [Metric(*m) for m in metrics[start : start + MAX_METRICS]])


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections as dotted names.

    >>> dict(_flat({"rl": {"lr": 0.1, "betas": [0.9, 0.95]}, "seed": 0}))
    {'rl.lr': 0.1, 'rl.betas': [0.9, 0.95], 'seed': 0}
    """
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Without MLflow's and Alembic's lines about creating tables."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
