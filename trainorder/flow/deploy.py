"""`trainorder deploy`: a deployment of the flow whose run form has the orders, and the process that runs it here.

Prefect's own way (`flow.serve`): a run that is started in the UI, by a schedule or by `prefect deployment run` runs in this
folder. Without a server of the user's, the project's own is started and stays until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import multiprocessing
import os
import signal
import sys

from rich.console import Console

from trainorder import plan, preflight
from trainorder.config import params_file
from trainorder.flow.run import guarded, serving
from trainorder.reading import read_yaml
from trainorder.ui import PREFECT_PORT, free_port

NEEDED = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "CANCELLATION_CLEANUP")
"""Services of Prefect's server that deployments need and a single run does not."""


def main() -> int:
    """Serve until Ctrl-C; 2 when the params are wrong."""
    parser = argparse.ArgumentParser(prog="trainorder deploy", description=__doc__)
    parser.add_argument("--name", default="orders")
    parser.add_argument("--cron", default=None)
    parser.add_argument("--port", type=int, default=PREFECT_PORT)
    asked = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    return guarded(lambda: serve(asked.name, asked.cron, asked.port, console), console)


def serve(name: str, cron: str | None, port: int, console: Console) -> None:
    """Register the deployment and run what it is asked for.

    Raises:
        ParamsError: the params cannot work.
    """
    file = str(params_file())
    preflight.check(plan.load().params)
    data = read_yaml(params_file())
    for service in NEEDED:
        os.environ.setdefault(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "true")
    with serving(free_port(port)) as (users, server):
        from prefect.runner import Runner

        from trainorder.flow import tasks

        flow = importlib.import_module("flows.pipeline").trainorder_flow
        url = server.wait_until_ready() if server else (users or "").removesuffix("/api")
        runner = Runner(name=name, limit=1, pause_on_shutdown=True)
        runner.handle_sigterm = signal.default_int_handler  # its own leaves the server running
        tasks.reach()
        with tasks.reaching_the_server():
            key = runner.add_flow(
                flow,
                name=name,
                cron=cron,
                parameters={"params": file, "orders": data["orders"]},
                tags=tasks.marks(),
                description="Edit `orders` and run: only what is new trains.",
            )
        form = f"{url}/deployments/deployment/{key}"
        console.print(f"deployment trainorder/{name}: {form}")
        console.print(
            "Run > Custom run edits the orders; Ctrl-C stops this process and pauses schedules"
        )
        try:
            asyncio.run(runner.start())
        finally:
            _end_runs()


def _end_runs(patience: float = 10.0) -> None:
    """End the processes of flow runs, which stop their stages, before the server goes."""
    for child in multiprocessing.active_children():
        child.terminate()
        child.join(patience)
        child.kill()


if __name__ == "__main__":
    sys.exit(main())
