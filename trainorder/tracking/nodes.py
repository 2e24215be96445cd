"""Runs of nodes after they were made: what was measured of a node joins its run, and runs of killed processes end."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainorder import paths
from trainorder.files import read_jsonl
from trainorder.lineage import variant_of
from trainorder.owner import folder_of, identity, own_filter, own_store
from trainorder.process import is_held
from trainorder.tracking.store import (
    NODES,
    attach,
    connect,
    is_charted,
    log,
    log_data,
    log_traces,
    own_runs,
    share_view,
)
from trainorder.tracking.tracker import ORDER, PARENT, node_tags, read_run_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RECORDED = "recorded_run_id"
"""Tag of a run that was filled in from a node's records: the id in its run.json, of a store that is not here."""
BEST = "best"
MODEL = "model_id"
"""Tag of a run: the logged model that stands for its checkpoint."""


@dataclass(frozen=True)
class NodeRecord:
    """A node as its files tell."""

    name: str
    run_id: str | None
    """In its run.json: None for a merge, and where MLflow could not be reached."""
    manifest: Mapping[str, Any]
    metrics: Mapping[str, float]
    """Of its evaluation, e.g. `test/score/math`."""

    @property
    def key(self) -> str:
        """The id of its run, or a name for a run that was never opened."""
        return self.run_id or f"{self.name} {str(self.manifest.get('weights', ''))[:12]}"


def read_node(name: str, metrics: Mapping[str, float] | None = None) -> NodeRecord:
    """The record of a node whose files lie here."""
    file = paths.run(name) / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return NodeRecord(name, read_run_id(name), manifest, metrics or {})


def log_nodes(records: Sequence[NodeRecord]) -> int:
    """Give every node's run its checkpoint as a model, what it read and what it scored; returns how many runs changed.

    A node without a run in this experiment (a merge, or one that was made elsewhere) gets one from its records. What a run
    already holds is not sent again; one that the store knows as another project's is left out. Rollouts are traced for the
    nodes of the first seed: MLflow takes 37 CPU milliseconds for a trace, and the other seeds' are in their manifests.
    """
    client, experiment = connect(NODES)
    traced = min((record.manifest.get("seed", 0) for record in records), default=0)
    runs = {
        run.data.tags.get(RECORDED, run.info.run_id): run for run in own_runs(client, experiment)
    }
    ids: dict[str, str] = {}
    changed = 0
    for record in sorted(records, key=lambda record: (record.name.count("--"), record.name)):
        known = runs.get(record.key)
        is_new = known is None
        if known is None:
            if record.run_id is not None and _is_others(client, record.run_id):
                continue
            known = _create(client, experiment, record, ids)
        ids[record.name] = run_id = known.info.run_id
        above = ids.get(_above(record), "")
        tags = {PARENT: above} if above and known.data.tags.get(PARENT) != above else {}
        model = known.data.tags.get(MODEL)
        if model is None and "weights" in record.manifest:
            tags[MODEL] = model = _model(client, experiment, run_id, record)
            if record.manifest.get("seed", 0) == traced:
                log_traces(experiment, run_id, record.name, record.manifest.get("rollouts", []))
        new = {n: v for n, v in record.metrics.items() if known.data.metrics.get(n) != v}
        now = int(time.time() * 1000)
        metrics = [(n, v, now, 0) for n, v in new.items()]
        log(client, run_id, metrics=metrics, tags=tags, model_id=model)
        changed += is_new or MODEL in tags or bool(new)
    scores = sorted({name for record in records for name in record.metrics if "/score/" in name})
    view = {
        "selectedColumns": [f"metrics.`{name}`" for name in scores],
        "orderByKey": "tags.`mlflow.runName`",  # by name is by lineage, and every row is in sight
        "orderByAsc": True,
        "searchFilter": own_filter(),
    }
    share_view(client, experiment, view)
    return changed


def _above(record: NodeRecord) -> str:
    """The node below whose run a node's run is shown: its parent, or the base of a merge; "" for a base."""
    return next(iter(record.manifest.get("parents", {})), "")


def fill(records: Sequence[NodeRecord]) -> int:
    """Bring nodes into a store that has no run of this project; returns how many runs that makes.

    A clone that pulled has the records of every node and no store. The runs get ids of their own.
    """
    client, experiment = connect(NODES)
    if next(own_runs(client, experiment), None) is not None:
        return 0
    return log_nodes(records)


def register(node: str, about: str) -> str | None:
    """Make a node the alias BEST of the project's registered model; returns the version, None without a model of it.

    The name holds the project's id, so that projects on one server keep theirs apart.
    """
    from mlflow.exceptions import MlflowException

    client, experiment = connect(NODES)
    run = next((r for r in own_runs(client, experiment) if r.data.tags.get("node") == node), None)
    model = run.data.tags.get(MODEL) if run is not None else None
    if run is None or model is None:
        return None
    name = f"trainorder-{identity()['project'][:8]}"
    with suppress(MlflowException):  # it is there
        client.create_registered_model(name, description="The best checkpoint of every measurement")
    found = client.search_model_versions(f"name='{name}'")
    version = next((v for v in found if v.tags.get(MODEL) == model), None)
    if version is None:
        version = client.create_model_version(
            name,
            client.get_logged_model(model).artifact_location,
            run.info.run_id,
            tags={MODEL: model, "node": node},
            model_id=model,
        )
    if version.description != about:
        client.update_model_version(name, version.version, about)
    client.set_registered_model_alias(name, BEST, version.version)
    return str(version.version)


def _is_others(client: MlflowClient, run_id: str) -> bool:
    """Whether the store knows a run, and as another project's; one of ours may be in an experiment of another name."""
    from mlflow.exceptions import MlflowException

    if own_store():
        return False
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return False
    return run.data.tags.get("project") != identity()["project"]


def _create(
    client: MlflowClient, experiment: str, record: NodeRecord, ids: Mapping[str, str]
) -> Run:
    """A run from what lies in runs/; the ids of its parents' runs are in `ids`.

    Who made the node, on which machine and from which commit is not in its records, so the run names none.
    """
    manifest = record.manifest
    parents = list(manifest.get("parents", {}))
    tags = {"phase": manifest.get("phase"), "variant": variant_of(manifest)}
    tags = node_tags(record.name, manifest.get("seed", 0), tags)
    tags |= {name: value for name, value in identity().items() if name != "host"}
    tags |= {RECORDED: record.key, "parent_node": ", ".join(parents)}
    if (above := ids.get(_above(record))) is not None:
        tags |= {"parent_run_id": above, PARENT: above}
    file = paths.run(record.name) / "metrics.jsonl"
    written = file if file.is_file() else paths.run(record.name) / "manifest.json"
    end = int(written.stat().st_mtime * 1000)
    start = end - int(1000 * manifest.get("seconds", 0.0))
    run = client.create_run(experiment, start_time=start, run_name=record.name, tags=tags)
    run_id = run.info.run_id
    sounded = set[str]()
    metrics = [
        (name, math.nan if value is None else value, end, line["step"])
        for line in (read_jsonl(file) if file.is_file() else [])
        for name, value in line.items()
        if name != "step" and is_charted(name, value, sounded)
    ]
    log(client, run_id, metrics=metrics, params=manifest.get("params", {}))
    order = paths.run(record.name) / ORDER
    attach(client, run_id, {ORDER: order.read_bytes()} if order.is_file() else {})
    client.set_terminated(run_id, "FINISHED", end)
    return run


def _model(client: MlflowClient, experiment: str, run_id: str, record: NodeRecord) -> str:
    """Log a node's checkpoint as a model of its run; returns the model's id."""
    from mlflow.entities import LoggedModelOutput

    model = client.create_logged_model(
        experiment,
        name=record.name,
        source_run_id=run_id,
        model_type="checkpoint",
        params={"checkpoint": str(paths.checkpoint(record.name))},
        tags={"weights": record.manifest["weights"], "node": record.name},
    )
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, record.manifest["steps"] or 0)])
    log_data(client, run_id, record.manifest.get("data", {}))
    return model.model_id


def sweep() -> int:
    """Mark node runs that a killed process of this project and machine left RUNNING as KILLED.

    One whose node is being made now, here or in another folder of the project, is left alone.
    """
    client, experiment = connect(NODES)
    host = socket.gethostname()
    left = [
        run
        for run in own_runs(client, experiment)
        if run.info.status == "RUNNING" and run.data.tags.get("host", host) == host
        if not is_held(
            folder_of(run.data.tags) / paths.RESUME / f"{run.data.tags.get('node')}.lock"
        )
    ]
    for run in left:
        client.set_terminated(run.info.run_id, "KILLED")
    return len(left)
