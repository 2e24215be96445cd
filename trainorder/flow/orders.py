"""The Prefect flow: one task per DVC stage, parents first, independent ones side by side."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import httpx
from prefect import Task, flow, get_run_logger, tags, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectHTTPStatusError
from prefect.futures import PrefectFuture
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.urls import url_for

from trainorder.flow.dvc import Runner, StageFailed
from trainorder.flow.progress import Display
from trainorder.flow.schedule import Schedule, topological
from trainorder.paths import judge_work
from trainorder.plan import names
from trainorder.resume import finished

NAME = "trainorder"
STATES = {"ran": "Completed", "restored": "Restored", "unchanged": "Unchanged"}
PATIENCE = {"timeout": 20.0}
"""Seconds for the first answer of a server that the user named."""
IDLE_THREADS = 8  # beside the workers: tasks of stages that are up to date


class ServerError(RuntimeError):
    """The Prefect server cannot be reached, or refuses us."""


class Pipeline:
    """Stages as Prefect tasks; lives inside one flow run."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.runner = Runner()
        self.flow_run: str | None = None
        self.futures: dict[str, PrefectFuture] = {}
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self._ended: queue.Queue[str] = queue.Queue()
        self._task = self._make_task()

    def bring_up_to_date(self, schedule: Schedule) -> None:
        """Run what the schedule has not done; stages that are up to date only appear, named Cached.

        Raises:
            StageFailed: a stage failed; those that do not depend on it were brought up to date all the same.
        """
        self.display.show(schedule, len(schedule.done))
        for stage in schedule.parents:
            if stage in schedule.done and stage not in self.futures:
                self.outcomes[stage] = "up to date"
                self._submit(stage, schedule, cached=True)
        try:
            while schedule.open:
                for stage in schedule.start():
                    self.display.started(stage)
                    self._submit(stage, schedule).add_done_callback(self._note(stage))
                self._wait(schedule)
        except BaseException:
            self.runner.stop()
            raise
        blocked = schedule.blocked - self.failures.keys()
        for stage in (s for s in topological(schedule.parents) if s in blocked):
            self.outcomes[stage] = "blocked"
            self._submit(stage, schedule).wait()
        for future in self.futures.values():
            future.wait()
        if self.failures:
            raise StageFailed("\n\n".join(self.failures.values()))

    def _submit(self, stage: str, schedule: Schedule, *, cached: bool = False) -> PrefectFuture:
        parents: list[Any] = [self.futures[p] for p in schedule.parents[stage] if p in self.futures]
        named = self._task.with_options(task_run_name=stage)
        self.futures[stage] = named.submit(stage, cached=cached, wait_for=parents)  # pyrefly: ignore
        return self.futures[stage]

    def _note(self, stage: str) -> Any:
        return lambda _: self._ended.put(stage)

    def _wait(self, schedule: Schedule) -> None:
        try:
            stage = self._ended.get(timeout=0.5)
        except queue.Empty:
            self.display.tick()
            return
        how = self.outcomes[stage]
        schedule.finish(stage, ok=how != "failed")
        self.seconds[stage] = self.display.finished(stage, how)

    def _make_task(self) -> Task[[str, bool], State]:
        @task(name="stage", cache_policy=NO_CACHE, retries=0, persist_result=False)
        def stage(name: str, cached: bool) -> State:
            """One DVC stage; Prefect never decides whether it runs."""
            if cached:
                return Completed(name="Cached", message="nothing it depends on has changed")
            try:
                outcome = self.runner.repro(name, get_run_logger().info)
            except BaseException as error:
                self.outcomes[name] = "failed"
                self.failures[name] = str(error)
                raise
            does, made = names.parts(name)
            if does in ("train", "judge"):  # DVC has the result: nothing will resume from its parts
                finished(judge_work(made) if does == "judge" else made)
            self.outcomes[name] = outcome
            return Completed(name=STATES[outcome])

        return stage  # pyrefly: ignore[bad-return]


def run_flow(
    body: Callable[[], None], pipeline: Pipeline, workers: int, name: str, marks: Sequence[str]
) -> None:
    """Run `body` as a Prefect flow run of this name, tagged with `marks`; what it raises comes out here too.

    Raises:
        ServerError: Prefect's server does not answer.
    """

    @flow(  # pyrefly: ignore[no-matching-overload]
        name=NAME,
        flow_run_name=name,
        task_runner=ThreadPoolTaskRunner(max_workers=workers + IDLE_THREADS),
        retries=0,
        persist_result=False,
    )
    def orders() -> None:
        pipeline.flow_run = flow_run.get_id()
        page = url_for("flow-run", obj_id=pipeline.flow_run)
        pipeline.display.say(f"[dim]live until the run ends: {page}   afterwards: trainorder ui[/]")
        try:
            body()
        finally:
            if pipeline.outcomes:
                create_table_artifact(key="stages", table=_stage_rows(pipeline))

    try:
        with _reaching_the_server(), tags(*marks):
            orders()
    finally:
        with suppress(httpx.HTTPError, PrefectHTTPStatusError):  # must not hide the cause
            _settle(pipeline)


@contextmanager
def _reaching_the_server() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(
            str(error).strip().splitlines()[0] if str(error) else repr(error)
        ) from error


def _settle(pipeline: Pipeline, seconds: float = 10.0) -> None:
    """Wait until the server has written down what it was told: it is stopped next, and drops what is in flight."""
    if pipeline.flow_run is None:
        return
    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=seconds, at_exit=False)
    end = time.monotonic() + seconds
    mine = FlowRunFilter.model_validate({"id": {"any_": [pipeline.flow_run]}})
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


def publish(table: list[dict[str, Any]], text: str) -> None:
    """Leave the comparison as artifacts of the flow run: the arms as a table, the verdict as text."""
    create_table_artifact(key="arms", table=table)
    create_markdown_artifact(key="verdict", markdown=text)


def sweep(marks: Sequence[str]) -> int:
    """Mark the runs with all of these tags that a killed flow left RUNNING as crashed; only one flow runs per folder.

    Raises:
        ServerError: Prefect's server does not answer.
    """
    running = {"state": {"type": {"any_": ["RUNNING"]}, "name": None}}
    mine = {"tags": {"all_": list(marks)}}
    state = Crashed(message="the process of this run terminated unexpectedly")
    with _reaching_the_server(), get_client(PATIENCE, sync_client=True) as client:
        left = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(running | mine))
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter.model_validate(mine),
            task_run_filter=TaskRunFilter.model_validate(running),
        )
        for run in left:
            client.set_flow_run_state(run.id, state, force=True)
        for task_run in tasks:
            client.set_task_run_state(task_run.id, state, force=True)
    return len(left)


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
