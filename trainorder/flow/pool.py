"""Stages on the workers of a Prefect work pool, each in a clone of its own that shares a DVC remote with this one.

`flow.pool` names the pool. What trains, judges or evaluates is then a flow run of its own (flows/stage.py): a worker makes it
with `dvc repro --pull` and pushes it, and this folder restores it from the remote. DVC compares params, code and data as
everywhere, and what it does not find there is made here: a worker with other code costs time and changes no byte.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling

from trainorder import owner, paths, plan
from trainorder.config import PARAMS_VARIABLE, load_params, params_file
from trainorder.files import write_text
from trainorder.flow.dvc import Runner, StageFailed, has_remote
from trainorder.flow.experiment import EDITED
from trainorder.flow.state import EMBEDDED, FlowError
from trainorder.plan import Plan
from trainorder.process import exclusive

FLOW = "trainorder-stage"
ENTRY = "flows/stage.py:stage_flow"
CLONE = "TRAINORDER_CLONE"
"""Environment variable of a worker: the clone that it works in."""
SENT = ("train", "judge", "evaluate")
"""What workers do; the rest takes seconds, or needs everything."""
ASK_SECONDS = 1.0
TRIES = 3
"""Of a stage whose worker died; one that failed is not sent again."""


class Pool:
    """A work pool whose workers make stages for this folder.

    Raises:
        FlowError: no Prefect server that others reach, no DVC remote, or no such pool.
    """

    def __init__(self, name: str, runner: Runner, say: Callable[[str], None]) -> None:
        self.name, self._runner = name, runner
        self._stopped = threading.Event()
        if os.environ.get(EMBEDDED) == "1":
            raise FlowError(
                f"flow.pool: {name} needs a Prefect server that the workers reach: set PREFECT_API_URL"
            )
        if not has_remote():
            raise FlowError(
                f"flow.pool: {name} needs a DVC remote that the workers reach: `dvc remote add -d store URL`"
            )
        self._register()
        runner.push(None, say)  # what was made here before

    def _register(self) -> None:
        """Make the deployment that stages are runs of current."""
        with get_client(sync_client=True) as client:
            try:
                client.read_work_pool(self.name)
            except ObjectNotFound as error:
                raise FlowError(
                    f"flow.pool: Prefect has no work pool {self.name}; in every clone: "
                    f"`{CLONE}=$PWD prefect worker start --pool {self.name} --type process --limit 1`"
                ) from error
            client.create_deployment(
                flow_id=client.create_flow_from_name(FLOW),
                name=self.name,
                work_pool_name=self.name,
                entrypoint=ENTRY,
                pull_steps=[
                    {
                        "prefect.deployments.steps.set_working_directory": {
                            "directory": f"{{{{ ${CLONE} }}}}"
                        }
                    }
                ],
                enforce_parameter_schema=False,
                description="One stage of a plan, made by a worker in its clone; trainorder's flow starts them.",
            )

    def make(self, stage: str, current: Plan, say: Callable[[str], None]) -> None:
        """Have a worker make a stage and push it.

        Raises:
            StageFailed: it did not end well, or the flow is stopping.
        """
        asked = {
            "stage": stage,
            "params": params_file().read_text(encoding="utf-8"),
            "resolved": {name: list(order) for name, order in current.resolved.items()},
            "project": owner.project(),
        }
        for tried in range(1, TRIES + 1):
            sent = partial(
                run_deployment,
                f"{FLOW}/{self.name}",
                parameters=asked,
                flow_run_name=stage,
                timeout=0,
                idempotency_key=uuid4().hex,  # asked again, the server starts no second run
            )
            run = patiently(sent)
            say(f"sent to the work pool {self.name}")
            state = self._await(run.id)
            if state is None:
                raise StageFailed(f"{stage} was not made: the flow is stopping")
            if state.is_completed():
                return
            why = f"{state.name}: {state.message}"
            if (
                tried == TRIES or not state.is_crashed()
            ):  # else its worker died, or could not start it
                raise StageFailed(f"{stage} was not made in the work pool {self.name}: {why}")
            say(f"{why}; sent again")

    def _await(self, run: UUID) -> Any:
        """The final state of a run; None after `stop`, which cancels it."""
        with get_client(sync_client=True) as client:
            while True:
                state = patiently(lambda: client.read_flow_run(run)).state
                if state is not None and state.is_final():
                    return state
                if self._stopped.wait(ASK_SECONDS):
                    client.set_flow_run_state(run, Cancelling(), force=True)
                    return None

    def stop(self) -> None:
        """Cancel what workers do for this folder."""
        self._stopped.set()


def patiently(ask: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The answer of Prefect's server, which is asked again while it is busy or cannot be reached.

    Raises:
        PrefectHTTPStatusError: the server refused, or was still busy after `seconds`.
        HTTPError: it was not reached in that time.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            busy = (
                not isinstance(error, PrefectHTTPStatusError) or error.response.status_code >= 500
            )
            if not busy or time.monotonic() > end:
                raise
        time.sleep(ASK_SECONDS)


def make(stage: str, params: str, resolved: dict[str, list[str]], project: dict[str, str]) -> None:
    """What a worker does: one stage in this clone, from what the DVC remote holds, pushed there.

    Its run in MLflow is that of the project whose flow asked.

    Raises:
        StageFailed: the stage did not end well.
        ParamsError: the params cannot work with this clone's code.
    """
    from trainorder.flow.tasks import one_gpu

    say, runner = get_run_logger().info, Runner()
    with exclusive(paths.FLOW_LOCK, "writes a plan in this clone", patience=60.0):
        own = Path("params.yaml")
        file = own if own.is_file() and own.read_text(encoding="utf-8") == params else EDITED
        if file == EDITED:
            write_text(EDITED, params)
        os.environ[PARAMS_VARIABLE] = str(file)
        os.environ[owner.PROJECT] = json.dumps(project)
        plan.repair()
        plan.write(plan.compile_plan(load_params(), resolved))
    with one_gpu():
        runner.repro(stage, say, parents=True, pull=True)
    runner.push(stage, say)
