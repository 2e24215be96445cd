"""The stages as tasks of a Prefect flow run: one per DVC stage, parents first, independent ones side by side."""

from __future__ import annotations

import os
import queue
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import State, StateDetails
from prefect.concurrency.sync import concurrency
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.futures import PrefectFuture
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed
from prefect.utilities.engine import collect_task_run_inputs_sync
from prefect.utilities.urls import url_for

from trainorder import owner, paths
from trainorder.config import DEFAULT
from trainorder.flow.dvc import Runner, StageFailed
from trainorder.flow.pool import SENT, Pool
from trainorder.flow.progress import Display
from trainorder.flow.schedule import Schedule, topological
from trainorder.flow.state import EMBEDDED, HOME, MIRROR
from trainorder.paths import judge_work
from trainorder.plan import Plan, names
from trainorder.reading import ParamsError, read_yaml
from trainorder.report import words
from trainorder.resume import finished

GPU = Path("/dev/nvidia0")
CANCEL_SECONDS = 5.0
"""Between two looks whether the run was cancelled."""
STAGES = "what became of every DVC stage, and its seconds"
STARTED: list[str] = []
"""Ids of the flow runs of this process."""
STATES = {"ran": "Completed", "restored": "Restored", "unchanged": "Unchanged"}
UNREACHABLE = (httpx.HTTPError, PrefectHTTPStatusError)
PATIENCE = {"timeout": 20.0}
"""Seconds for the first answer of a server that the user named."""
THREADS = 72
"""Of a flow's task runner: `flow.workers` has at most 64."""


class ServerError(RuntimeError):
    """The Prefect server cannot be reached, or refuses us."""


class RunCancelled(RuntimeError):
    """The flow run was cancelled in Prefect."""


class Pipeline:
    """Stages as Prefect tasks; lives inside one flow run."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.runner = Runner()
        self.pool: Pool | None = None
        self.cached: dict[str, State] = {}
        self.futures: dict[str, PrefectFuture] = {}
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self._ended: queue.Queue[str] = queue.Queue()
        self._key = str(flow_run.get_id())
        self._progress = None
        self._asked = time.monotonic()
        STARTED.append(self._key)
        page = url_for("flow-run", obj_id=self._key)
        display.say(f"[dim]live until the run ends: {page}   afterwards: trainorder ui[/]")

    def say(self, text: str) -> None:
        """A line for the terminal and for the run's logs."""
        self.display.say(text)
        get_run_logger().info(text)

    def bring_up_to_date(self, schedule: Schedule, current: Plan) -> None:
        """Run what the schedule has not done; stages that are up to date only appear, named Cached.

        Raises:
            StageFailed: a stage failed, other than the copy to MLflow; those that do not depend on it were brought up to
                date all the same.
            RunCancelled: somebody cancelled the flow run; all stages were stopped, and go on from their step checkpoints.
        """
        self.display.show(schedule, len(schedule.done))
        new = schedule.done - self.futures.keys() - self.cached.keys()
        cached = [stage for stage in topological(schedule.parents) if stage in new]
        if cached:
            self._show_cached(cached, schedule, current)
        pool = current.params.flow.pool
        if schedule.open and pool is not None and self.pool is None:
            self.pool = Pool(pool, self.runner, get_run_logger().info)
        if schedule.open and self._progress is None:
            self._progress = create_progress_artifact(0.0, "progress", "stages that are up to date")
        try:
            while schedule.open:
                for stage in schedule.start():
                    self.display.started(stage)
                    self._submit(stage, schedule, current).add_done_callback(self._note(stage))
                self._wait(schedule)
        except BaseException:
            self.runner.stop()
            if self.pool is not None:
                self.pool.stop()
            raise
        blocked = schedule.blocked - self.failures.keys()
        for stage in (s for s in topological(schedule.parents) if s in blocked):
            self.outcomes[stage] = "blocked"
            self._submit(stage, schedule, current).wait()
        for future in self.futures.values():
            future.wait()
        create_table_artifact(key="stages", table=_stage_rows(self), description=STAGES)
        if (lost := self.failures.pop(MIRROR, None)) is not None:
            said = [line for line in lost.splitlines() if not line.startswith("ERROR: ")]
            self.say(f"warning: {said[-1].removeprefix('error: ')}")
        if self.failures:
            text = "\n\n".join(self.failures.values())
            about = f"```\n{text}\n```\nRun again: what was finished is kept."
            create_markdown_artifact(key="failure", markdown=about, description="what failed")
            raise StageFailed(text)

    def _show_cached(self, stages: Sequence[str], schedule: Schedule, current: Plan) -> None:
        """Task runs that ended as they began: the engine would take a third of a second for each."""
        message = "nothing it depends on has changed"
        with get_client(sync_client=True) as client:
            for stage in stages:
                name, marks = labels(stage, current)
                above: list[Any] = [*collect_task_run_inputs_sync(self._parents(stage, schedule))]
                made = client.create_task_run(
                    run_stage,
                    UUID(self._key),
                    dynamic_key=stage,
                    name=name,
                    extra_tags=marks,
                    state=Completed(name="Cached", message=message),
                    task_inputs={"wait_for": above},
                )
                details = StateDetails(task_run_id=made.id)
                # without data, what waits for it would ask for a result that nobody stored
                self.cached[stage] = Completed(data=stage, state_details=details)
                self.outcomes[stage] = "up to date"

    def _parents(self, stage: str, schedule: Schedule) -> list[Any]:
        started = {**self.cached, **self.futures}
        return [started[p] for p in schedule.parents[stage] if p in started]

    def _submit(self, stage: str, schedule: Schedule, current: Plan) -> PrefectFuture:
        name, marks = labels(stage, current)
        named = run_stage.with_options(task_run_name=name, tags=marks)
        self.futures[stage] = named.submit(  # pyrefly: ignore
            stage, self, current, wait_for=self._parents(stage, schedule)
        )
        return self.futures[stage]

    def _note(self, stage: str) -> Any:
        return lambda _: self._ended.put(stage)

    def _wait(self, schedule: Schedule) -> None:
        self._see_cancellation()
        try:
            stage = self._ended.get(timeout=0.5)
        except queue.Empty:
            self.display.tick()
            return
        if stage not in self.outcomes:
            said = self.futures[stage].state.message
            self.outcomes[stage] = "failed"
            self.failures[stage] = f"{stage}: Prefect ended its task before it began: {said}"
        how = self.outcomes[stage]
        schedule.finish(stage, ok=how != "failed")
        self.seconds[stage] = self.display.finished(stage, how)
        if self._progress is not None:
            share = 100.0 * len(schedule.done) / len(schedule.parents)
            update_progress_artifact(self._progress, share)

    def _see_cancellation(self) -> None:
        if time.monotonic() - self._asked < CANCEL_SECONDS:
            return
        self._asked = time.monotonic()
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(self._key)).state
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                raise RunCancelled("cancelled in Prefect")


@task(name="stage", cache_policy=NO_CACHE, retries=0, persist_result=False)
def run_stage(name: str, pipeline: Any, current: Any) -> State:
    """One DVC stage; Prefect never decides whether it runs."""
    does, made = names.parts(name)
    try:
        outcome = _brought_up(name, does, pipeline, current)
    except BaseException as error:
        pipeline.outcomes[name] = "failed"
        pipeline.failures[name] = str(error)
        raise
    if does in ("train", "judge"):  # DVC has the result: nothing will resume from its parts
        finished(judge_work(made) if does == "judge" else made)
    pipeline.outcomes[name] = outcome
    return Completed(name=STATES[outcome])


def _brought_up(stage: str, does: str, pipeline: Pipeline, current: Plan) -> str:
    """Bring a stage up to date here, or in the work pool and then here from the DVC remote."""
    say, pool = get_run_logger().info, pipeline.pool
    if pool is None:
        with one_gpu():
            return pipeline.runner.repro(stage, say)
    if does in SENT:
        pool.make(stage, current, say)
        return pipeline.runner.repro(stage, say, pull=True)
    outcome = pipeline.runner.repro(stage, say, pull=True)
    if outcome != "unchanged" and does == "build_data":
        pipeline.runner.push(stage, say)
    return outcome


def labels(stage: str, current: Plan) -> tuple[str, set[str]]:
    """Name of a stage's task run, and its tags: what it does, kind, phase, orders, seed and variant of its node."""
    does, made = names.parts(stage)
    if made not in current.nodes:
        return f"{does} {made}".strip(), {does}
    node = current.nodes[made]
    marks = {does, node.kind, f"seed={node.seed}"}
    marks |= {f"phase={node.phase}"} if node.phase else set()
    marks |= {f"merge={node.merge}"} if node.merge else set()
    marks |= {f"variant={node.variant}"} if node.variant != DEFAULT else set()
    for name, by_seed in current.arms(node.variant)[0].items():
        marks |= {f"order={name}"} if made in by_seed.get(node.seed, ()) else set()
    return f"{does} {made}", marks


@contextmanager
def one_gpu() -> Iterator[None]:
    """Hold this machine's GPU, which trains one node at a time; nothing without one.

    The limit `gpu-HOST` of Prefect is made with one slot where it is missing; its slots are the user's to change.
    """
    if not GPU.exists():
        yield
        return
    limit = f"gpu-{socket.gethostname()}"
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(limit)
        except ObjectNotFound:
            client.upsert_global_concurrency_limit_by_name(limit, 1)
    with concurrency(limit):
        yield


@contextmanager
def reaching_the_server() -> Iterator[None]:
    """Raise a ServerError where the server does not answer."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(
            str(error).strip().splitlines()[0] if str(error) else repr(error)
        ) from error


def reach() -> None:
    """Ask Prefect's server for something.

    Raises:
        ServerError: it does not answer.
    """
    with reaching_the_server(), get_client(PATIENCE, sync_client=True) as client:
        client.read_flow_runs(limit=1)


def settle(seconds: float = 10.0) -> None:
    """Wait until the server has written down what it was told: it is stopped next, and drops what is in flight."""
    if not STARTED:
        return
    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=seconds, at_exit=False)
    end = time.monotonic() + seconds
    mine = FlowRunFilter.model_validate({"id": {"any_": STARTED}})
    states = {"type": {"any_": ["PENDING", "RUNNING", "SCHEDULED"]}, "name": None}
    unfinished = TaskRunFilter.model_validate({"state": states})
    with get_client(sync_client=True) as client:
        while time.monotonic() < end:
            left = client.read_task_runs(
                flow_run_filter=mine, task_run_filter=unfinished, limit=200
            )
            if sum(run.state_name != "NotReady" for run in left) == 0:
                return
            time.sleep(0.1)


def cancelled() -> None:
    """Set the flow run that was cancelled to its final state."""
    state = Cancelled(message="the stages were stopped; the next run goes on from their steps")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(STARTED[-1]), state, force=True)


def publish(bwt: Any) -> None:
    """Leave the answer as artifacts of the flow run: arms, transfer, verdict, and where the report is."""
    create_table_artifact(
        key="arms", table=words.arms(bwt), description="all arms on test, best first"
    )
    transfer = bwt["transfer"]["from_base"]["test"] if bwt["transfer"] else {}
    rows = [
        {"phase": phase, **{t: round(cell["value"], 4) for t, cell in cells.items()}}
        for phase, cells in transfer.items()
    ]
    if rows:
        about = "what a phase, trained from the base, adds to each task's test score"
        create_table_artifact(key="transfer", table=rows, description=about)
    create_markdown_artifact(
        key="verdict", markdown=words.summary(bwt), description="which order, and how sure"
    )
    create_link_artifact(
        paths.REPORT.absolute().as_uri(), "the report", "report", "on the machine that ran it"
    )


def name_of_run() -> str:
    """The orders of a flow run, by which it is named."""
    given = flow_run.parameters
    orders = given.get("orders")
    with suppress(ParamsError, AttributeError, TypeError):
        orders = orders or read_yaml(Path(given["params"]))["orders"]
    return shorten(", ".join(orders or ["trainorder"]), 80)


def sweep() -> int:
    """Mark the runs of this project that a killed flow left RUNNING as crashed; only one flow runs per folder.

    Called inside a flow run, which is spared with those that it is a part of.

    Raises:
        ServerError: Prefect's server does not answer.
    """
    running = {"state": {"type": {"any_": ["RUNNING"]}, "name": None}}
    mine = {} if has_own_records() else {"tags": {"all_": marks()}}
    alive = {flow_run.get_id(), flow_run.get_parent_flow_run_id(), flow_run.get_root_flow_run_id()}
    state = Crashed(message="the process of this run terminated unexpectedly")
    with reaching_the_server(), get_client(PATIENCE, sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(running | mine))
        left = [run for run in found if str(run.id) not in alive]
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter.model_validate(mine),
            task_run_filter=TaskRunFilter.model_validate(running),
        )
        for run in left:
            client.set_flow_run_state(run.id, state, force=True)
        for task_run in (run for run in tasks if str(run.flow_run_id) not in alive):
            client.set_task_run_state(task_run.id, state, force=True)
    return len(left)


def marks() -> list[str]:
    """Tags of this project's flow runs: whose they are, on a server that others use too."""
    return [f"{key}={value}" for key, value in owner.identity().items()]


def has_own_records() -> bool:
    """Whether Prefect's records lie in this folder, so that all of them are ours; a PREFECT_HOME may hold others'."""
    if Path(os.environ.get("PREFECT_HOME", "")) != HOME.absolute():
        return False
    return os.environ.get(EMBEDDED) == "1"


def _stage_rows(pipeline: Pipeline) -> list[dict[str, Any]]:
    seconds = pipeline.seconds
    return [
        {
            "stage": stage,
            "outcome": how,
            "seconds": round(seconds[stage], 1) if stage in seconds else "",
        }
        for stage, how in pipeline.outcomes.items()
    ]
