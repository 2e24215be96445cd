"""Prefect and MLflow servers on loopback, over what was run in this project."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.owner import VIEW
from trainorder.process import (
    LOOPBACK,
    LOOPBACK_NAMES,
    die_with_parent,
    is_loopback,
    keep_loopback_direct,
)

ANYWHERE = ("", "0.0.0.0", "::")
"""Hosts that mean every address of the machine."""
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
TRAINING_MODE = "workflowType=machine_learning"
"""Else MLflow's pages open on its GenAI part."""
START_SECONDS = 600.0
UNUSED_SERVICES = (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "TRIGGERS",
    "PAUSE_EXPIRATIONS",
    "CANCELLATION_CLEANUP",
)
"""Prefect's services for deployments: the flow is started by hand, so they would only poll the database."""


def prefect_environment(project: Path) -> dict[str, str]:
    """What makes Prefect keep its state in the project and send nothing out; what the user has set stays as it is."""
    settings = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in UNUSED_SERVICES}
    settings |= {
        "PREFECT_HOME": str(project / ".prefect"),
        "PREFECT_PROFILES_PATH": str(prefect_profiles()),  # a user's profile holds for every home
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
        "DO_NOT_TRACK": "1",
    }
    database = project / ".prefect" / "prefect.db"
    if not paths.fits_url(str(database)):
        address = f"sqlite+aiosqlite:///{paths.in_url(database)}"
        settings["PREFECT_API_DATABASE_CONNECTION_URL"] = address
    return {name: os.environ.get(name, value) for name, value in settings.items()}


def prefect_profiles() -> Path:
    """The file with the user's Prefect profiles, where Prefect looks for it."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    return Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")


def origins(host: str, port: int) -> set[str]:
    """Where the pages of a server come from: its address, for a server on loopback every name of that.

    >>> sorted(origins("127.0.0.1", 4200))
    ['http://127.0.0.1:4200', 'http://[::1]:4200', 'http://localhost:4200']
    >>> "http://10.0.0.5:4200" in origins("10.0.0.5", 4200)
    True
    """
    names = {*LOOPBACK_NAMES, *({host} - set(ANYWHERE))}
    return {f"http://{f'[{name}]' if ':' in name else name}:{port}" for name in names}


class Server:
    """A server process, on loopback unless told otherwise, for the time of a with-block; `wait_until_ready` tells when it answers."""

    def __init__(
        self,
        port: int,
        command: list[str],
        environment: Mapping[str, str],
        health: str,
        log: Path,
        host: str = LOOPBACK,
    ) -> None:
        keep_loopback_direct(host)
        name = LOOPBACK if host in ANYWHERE else host
        self.url = f"http://{f'[{name}]' if ':' in name else name}:{port}"
        self.log = log
        self._health = self.url + health
        self._command = command
        self.environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us only; we stop the server when we are done
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and the workers it started."""
        assert self._process is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)

    def wait_until_ready(self) -> str:
        """Return the address once the server answers.

        Raises:
            RuntimeError: the server ended, or did not answer in time.
        """
        assert self._process is not None, "wait_until_ready outside the with-block"
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
                raise RuntimeError(f"{self.url} did not start; {self.log} ends with:\n{tail}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self._health, timeout=1).close()
                return self.url
            time.sleep(0.1)
        raise RuntimeError(
            f"{self.url} did not answer within {START_SECONDS:.0f} s; see {self.log}"
        )


def prefect_server(port: int = 0, host: str = LOOPBACK) -> Server:
    """A Prefect server over ./.prefect; port 0 takes a free one. Loopback unless told otherwise."""
    port = port or free_port()
    command = [sys.executable, "-m", "trainorder.flow.server", "--host", host, "--port", str(port)]
    server = Server(port, command, {}, "/api/health", Path(".prefect/server.log"), host)
    page = {"PREFECT_SERVER_UI_API_URL": f"{server.url}/api"}  # else the page asks port 4200
    server.environment |= prefect_environment(Path.cwd()) | page
    return server


def mlflow_server(port: int = 0, host: str = LOOPBACK) -> Server:
    """An MLflow server over the project's store; port 0 takes a free one. Loopback unless told otherwise."""
    from trainorder.owner import artifacts, store_uri

    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", store_uri(), "--workers", "1"]
    command += ["--artifacts-destination", str(artifacts())]
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # background jobs of its GenAI part
        "DO_NOT_TRACK": "1",
    }
    return Server(port, command, environment, "/health", artifacts() / "server.log", host)


def free_port(wanted: int = 0) -> int:
    """`wanted` if nothing listens there, else a port the system gives."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return probe.getsockname()[1]
    raise RuntimeError(f"no free port on {LOOPBACK}")


def reach(host: str) -> str:
    """Who can open the pages.

    >>> reach("127.0.0.1")
    'reachable from this machine only (127.0.0.1); --host changes that'
    """
    if is_loopback(host):
        return f"reachable from this machine only ({host}); --host changes that"
    return f"warning: listening on {host}: anybody who reaches this machine can read and change everything, no password is asked"


def serve(
    prefect_port: int = PREFECT_PORT, mlflow_port: int = MLFLOW_PORT, host: str = LOOPBACK
) -> None:
    """Start both servers, print where to look and who can, stop both on Ctrl-C or SIGTERM.

    Raises:
        FileNotFoundError: nothing was run or pulled here yet.
    """
    from rich.console import Console

    from trainorder import owner
    from trainorder.report import mirror

    stored = not owner.own_store() or (owner.home() / "mlflow.db").exists()
    if not stored and not any(paths.run("x").parent.glob("*/manifest.json")):
        raise FileNotFoundError(
            "nothing was run in this folder yet: `trainorder run` or `dvc pull` first"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False, soft_wrap=True)
    filled = mirror.fill() if owner.own_store() else 0
    if filled:
        console.print(f"MLflow's store was empty: {filled} runs filled in from runs/", style="dim")
    theirs = owner.store_uri() if owner.store_uri().startswith("http") else None
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as servers:
        prefect = servers.enter_context(prefect_server(free_port(prefect_port), host))
        mlflow = theirs or servers.enter_context(mlflow_server(free_port(mlflow_port), host))
        console.print("starting MLflow and Prefect ...", style="dim")
        mlflow_url = mlflow if isinstance(mlflow, str) else mlflow.wait_until_ready()
        for name, link in links(mlflow_url, prefect.wait_until_ready()).items():
            console.print(f"{name:<28} {link}")
        console.print(reach(host), style="dim")
        console.print("Ctrl-C stops both", style="dim")
        signal.pause()


def links(mlflow_url: str, prefect_url: str) -> dict[str, str]:
    """What to open, by name: pages with the orders and nodes on them, never a home page."""
    result = {}
    orders, nodes = (_experiment(mlflow_url, name) for name in ("orders", "nodes"))
    if orders is not None:
        runs = _current_orders(mlflow_url, orders)
        if len(runs) > 1:
            query = f"runs={_quoted(runs)}&experiments={_quoted([orders])}&{TRAINING_MODE}"
            result["MLflow: orders compared"] = f"{mlflow_url}/#/compare-runs?{query}"
        result["MLflow: orders, table"] = _page(mlflow_url, orders)
        result["MLflow: orders, curves"] = _page(mlflow_url, orders, "&compareRunsMode=CHART")
    if nodes is not None:
        result["MLflow: nodes, table"] = _page(mlflow_url, nodes)
        result["MLflow: nodes, curves"] = _page(mlflow_url, nodes, "&compareRunsMode=CHART")
    result["Prefect: runs of the flow"] = f"{prefect_url}/runs"
    if paths.REPORT.exists():
        result["Report"] = paths.REPORT.absolute().as_uri()
    return result


def _page(url: str, experiment: str, mode: str = "") -> str:
    return f"{url}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}{mode}&{TRAINING_MODE}"


def _quoted(value: list[str]) -> str:
    return urllib.parse.quote(json.dumps(value, separators=(",", ":")))


def _experiment(url: str, name: str) -> str | None:
    from trainorder.owner import experiment_name

    query = urllib.parse.urlencode({"experiment_name": experiment_name(name)})
    try:
        found = _ask(f"{url}/api/2.0/mlflow/experiments/get-by-name?{query}")
    except urllib.error.HTTPError:  # 404: nothing was logged there yet
        return None
    return found["experiment"]["experiment_id"]


def _current_orders(url: str, experiment: str) -> list[str]:
    """Run ids of the latest measurement's arms that train in phases, best first: the others have no place on those axes.

    Work trees of one clone share a store: those of the other trees are left out.
    """
    from trainorder.owner import is_from_here, own_filter
    from trainorder.tracking import ARM

    tags = {"current": "true"} | ARM
    wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    wanted += ["params.pos1 LIKE '%'"]
    body = {
        "experiment_ids": [experiment],
        "filter": " and ".join(filter(None, (*wanted, own_filter()))),
        "max_results": 50,
        "order_by": ["metrics.mean DESC"],
    }
    found = _ask(f"{url}/api/2.0/mlflow/runs/search", body)
    return [
        run["info"]["run_id"]
        for run in found.get("runs", [])
        if is_from_here({tag["key"]: tag["value"] for tag in run["data"]["tags"]})
    ]


def _ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
