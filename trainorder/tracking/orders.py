"""What MLflow shows of the measurement: one summary run per arm, its seeds below it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainorder.owner import identity, is_from_here, own_filter
from trainorder.tracking.store import (
    ORDERS,
    attach,
    connect,
    log,
    own_runs,
    share_view,
)
from trainorder.tracking.tracker import PARENT

if TYPE_CHECKING:
    from mlflow import MlflowClient


ARM = {"row": "arm"}
"""Tag of a run that stands for an arm as a whole: what the compare page of `trainorder ui` shows."""


@dataclass(frozen=True)
class OrderRecord:
    """Summary of one arm of the comparison, or of one of its seeds, as MLflow shows it."""

    name: str
    params: dict[str, str]
    """`pos1`, `pos2`, ...: the phases; whatever else tells arms apart."""
    metrics: list[tuple[str, float, int]]
    """(name, value, position); position 0 is the base."""
    tags: dict[str, str]
    note: str = ""
    """Its description, as Markdown."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Name -> content of what is stored with it."""
    above: str | None = None
    """Name of the record that it is shown below."""

    @property
    def key(self) -> str:
        """Hash of the whole content: the same measurement has the same key, a changed number another."""
        files = {name: hashlib.sha256(text).hexdigest() for name, text in self.files.items()}
        parts = [self.name, self.params, self.metrics, self.tags, self.note, files]
        content = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def log_orders(records: Sequence[OrderRecord], view: Mapping[str, Any] | None = None) -> int:
    """One summary run per record in the experiment `<project>/orders`, an arm before its seeds; what is already there is not added again.

    Positions are MLflow's steps, so its charts and parallel coordinates show orders side by side. Runs of earlier
    measurements stay, with the tag `current` false; those of other projects and folders are not touched. Returns how many
    runs were added. `view` is how the experiment's page opens from our links.
    """
    client, experiment = connect(ORDERS)
    if view is not None:
        wanted = " and ".join(filter(None, (view["searchFilter"], own_filter())))
        share_view(client, experiment, {**view, "searchFilter": wanted})
    mine = identity()
    here = (run for run in own_runs(client, experiment) if is_from_here(run.data.tags))
    known = {run.data.tags.get("order_key"): run for run in here}
    ids: dict[str, str] = {}
    for record in records:  # an arm comes before its seeds
        run = known.get(record.key)
        parent = {} if record.above is None else {PARENT: ids[record.above]}
        if run is None:
            ids[record.name] = _add_order(client, experiment, record, {**mine, **parent})
            continue
        ids[record.name] = run.info.run_id
        if parent and run.data.tags.get(PARENT) != parent[PARENT]:  # the arm has a seed more
            client.set_tag(run.info.run_id, PARENT, parent[PARENT])
    keys = {record.key for record in records}
    for key, run in known.items():
        current = str(key in keys).lower()
        if run.data.tags.get("current") != current:
            client.set_tag(run.info.run_id, "current", current)
    return len(keys - known.keys())


def _add_order(
    client: MlflowClient, experiment: str, record: OrderRecord, mine: Mapping[str, str]
) -> str:
    tags = {**record.tags, **mine, "mlflow.note.content": record.note}
    run_id = client.create_run(experiment, run_name=record.name, tags=tags).info.run_id
    now = int(time.time() * 1000)
    metrics = [(name, value, now, step) for name, value, step in record.metrics]
    log(client, run_id, metrics=metrics, params=record.params)
    attach(client, run_id, record.files)
    # last: a run cut off before this is not "known"
    log(client, run_id, tags={"current": "true", "order_key": record.key})
    client.set_terminated(run_id, "FINISHED")
    return run_id
