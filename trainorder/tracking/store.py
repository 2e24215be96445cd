"""The MLflow store: its experiments, whose runs are ours, and how parameters, metrics and files get there."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainorder.files import writing
from trainorder.owner import (
    VIEW,
    alone_in,
    artifacts,
    experiment_name,
    own_filter,
    own_store,
    store_uri,
)
from trainorder.process import keep_loopback_direct

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NODES = "nodes"
ORDERS = "orders"
PROXIED = "mlflow-artifacts:/"
"""Begins the address of files that the server keeps in its own folder."""
MAX_ENTITIES, MAX_PARAMS = 1000, 100  # of one log_batch call; MLflow refuses more


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
    uri, name = store_uri(), experiment_name(experiment)
    with alone_in(artifacts()), _quiet_start():
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        if found is None and own_store():  # made before names began with the project's
            found = client.get_experiment_by_name(experiment)
            if found is not None:
                client.rename_experiment(found.experiment_id, name)
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


def own_runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """Every run of this project in an experiment, latest first."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment], own_filter(), max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def log(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Sequence[tuple[str, float, int, int]] = (),
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    model_id: str | None = None,
) -> None:
    """Metrics (name, value, timestamp in ms, step), nested sections as parameters with dotted names, and tags, in few calls.

    The metrics are of the run, and of a model that it made where `model_id` names one.
    """
    from mlflow.entities import Metric, Param, RunTag

    rows = [Metric(*m, model_id=model_id, run_id=run_id) for m in metrics]
    facts = [Param(name, str(value)) for name, value in _flat(params or {})]
    marks = [RunTag(name, value) for name, value in (tags or {}).items()]
    while rows or facts or marks:
        now = MAX_ENTITIES - len(facts[:MAX_PARAMS]) - len(marks)
        client.log_batch(run_id, rows[:now], facts[:MAX_PARAMS], marks)
        rows, facts, marks = rows[now:], facts[MAX_PARAMS:], []


def is_charted(name: str, value: float, sounded: set[str]) -> bool:
    """Whether MLflow gets a value: an alarm has no chart before it first sounds. `sounded` holds those that did.

    >>> sounded = set()
    >>> [is_charted("alarm/kl", value, sounded) for value in (0.0, 1.0, 0.0)], is_charted("rl/lr", 0.0, sounded)
    ([False, True, True], True)
    """
    if not name.startswith("alarm/"):
        return True
    if value:
        sounded.add(name)
    return name in sounded


def log_data(client: MlflowClient, run_id: str, digests: Mapping[str, str]) -> None:
    """What a run read, as its datasets: file -> sha256."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    context = [InputTag("mlflow.data.context", "training")]
    found = [
        DatasetInput(Dataset(_dataset(file), digest[:12], "local", file), context)
        for file, digest in digests.items()
    ]
    client.log_inputs(run_id, found)


def _dataset(file: str) -> str:
    """data/tasks/math/train.jsonl as `math/train`, checkpoints/judge/reward as `judge/reward`."""
    return "/".join(Path(file).with_suffix("").parts[-2:])


def log_traces(
    experiment: str, run_id: str, node: str, rollouts: Sequence[Mapping[str, Any]]
) -> None:
    """Rollouts as traces of a run: prompt, answer, and reward, advantage, tokens and step as attributes."""
    if not rollouts:
        return
    import mlflow

    with _default_store():
        for row in rollouts:
            prompt = row["prompt"]
            asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            span = mlflow.start_span_no_context(
                f"{row['task']}, step {row['step']}",
                inputs={"messages": asked},
                attributes={key: row[key] for key in ("reward", "advantage", "tokens", "step")},
                tags={"node": node, "task": row["task"], "problem": row["problem"]},
                metadata={"mlflow.sourceRun": run_id},
                experiment_id=experiment,
            )
            span.set_outputs(row["answer"])
            span.end()
        mlflow.flush_trace_async_logging()


@contextmanager
def _default_store() -> Iterator[None]:
    """Our store as MLflow's default, which traces go to; its variable in the environment stays as it was.

    Spans go into the store itself. That their copy among the files has no server to go through is no news.
    """
    import mlflow

    name, logger = "MLFLOW_TRACKING_URI", logging.getLogger("mlflow.tracing")
    before, level = os.environ.get(name), logger.level
    mlflow.set_tracking_uri(store_uri())
    # at once: MLflow's queue needs seconds to empty, for each node again
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about type hints of its own
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def attach(client: MlflowClient, run_id: str, files: Mapping[str, bytes]) -> None:
    """Store files with a run, name -> content.

    The project's own store has no server while stages run: files go where its server will look for them.
    """
    if not files:
        return
    uri = client.get_run(run_id).info.artifact_uri
    if own_store() and uri is not None and uri.startswith(PROXIED):
        for name, content in files.items():
            with writing(artifacts() / uri.removeprefix(PROXIED) / name) as stream:
                stream.write(content)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        client.log_artifacts(run_id, folder)


def share_view(client: MlflowClient, experiment: str, view: Mapping[str, Any]) -> None:
    """Keep a state of the experiment's page under VIEW, for links that open it as it should be read."""
    tag, text = f"mlflow.sharedViewState.{VIEW}", json.dumps(view)
    if client.get_experiment(experiment).tags.get(tag) != text:
        client.set_experiment_tag(experiment, tag, text)


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
