"""Starts a flow of flows/ as a command: Prefect's server, the terminal, the exit code. `trainorder run` is such a command.

Prefect is imported while its server starts, and the project is looked at in the same time; what writes the report is
imported at the end.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from trainorder import paths, results
from trainorder.config import params_file
from trainorder.files import disk_trouble, is_disk_full
from trainorder.flow.experiment import Experiment, prepare
from trainorder.flow.state import EMBEDDED, FlowError
from trainorder.process import QUIET, keep_loopback_direct
from trainorder.reading import ParamsError
from trainorder.ui import Server, prefect_environment, prefect_profiles, prefect_server


def main() -> int:
    """Run the experiment, or the flow that is named; 0 when all is up to date, 1 after a failure, 2 when the input is wrong."""
    console = Console(highlight=False)
    if sys.argv[1:]:
        return guarded(lambda: start(sys.argv[1], lambda: None), console)

    def work() -> None:
        file = str(params_file())
        experiment = Experiment(file)
        try:
            start("flows.pipeline:trainorder_flow", lambda: prepare(experiment), params=file)
        finally:
            experiment.close()
        _show(console)

    return guarded(work, console)


def command(module: str, *arguments: str) -> NoReturn:
    """Become `python -m module`: a flow's own file has imported Prefect, which reads the server's address only then."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments, *sys.argv[1:]])


def guarded(work: Callable[[], None], console: Console) -> int:
    """The exit code of some work; what stopped it is one line on the console."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        work()
        return 0
    except ParamsError as error:
        code, text = 2, str(error)
    except RuntimeError as error:
        code, text = 1, str(error)
    except KeyboardInterrupt:
        code, text = (
            130,
            "stopped; what was finished is kept, the next `trainorder run` goes on from there",
        )
    except OSError as error:
        code, text = 1 if is_disk_full(error) else 2, disk_trouble(error)
        if not text:
            raise
    console.print(f"error: {text}", style="red", markup=False, soft_wrap=True)
    return code


def start(name: str, meanwhile: Callable[[], None], **parameters: Any) -> Any:
    """Run the flow `module:function` of the project, on the user's Prefect server or one of its own; returns what it returns.

    `meanwhile` is called while the server starts.

    Raises:
        FlowError: Prefect's server does not answer, or the run was cancelled there.
    """
    with serving() as (users, server):
        meanwhile()
        from prefect import tags

        from trainorder.flow import tasks

        module, _, function = name.partition(":")
        flow = getattr(importlib.import_module(module), function)
        if server is not None:
            server.wait_until_ready()
        try:
            tasks.reach()  # the flow's own client would try for minutes
            with tasks.reaching_the_server(), tags(*tasks.marks()):
                return flow(**parameters)
        except tasks.ServerError as error:
            raise FlowError(
                f"Prefect at {users or 'its own server'} does not answer ({error}): start it, or unset PREFECT_API_URL "
                f"(or leave the Prefect profile that names it) and trainorder starts a server of its own"
            ) from error
        except tasks.RunCancelled as error:
            tasks.cancelled()
            raise FlowError(
                f"{error}; what was finished is kept, the next `trainorder run` goes on from there"
            ) from None
        finally:
            with suppress(*tasks.UNREACHABLE):  # must not hide the cause
                tasks.settle()


@contextmanager
def serving(port: int = 0) -> Iterator[tuple[str | None, Server | None]]:
    """The address of the user's Prefect server, or one of the project's own for the block."""
    keep_loopback_direct()
    users = _users_prefect()
    if users is None:
        os.environ.update(prefect_environment(Path.cwd()))
        os.environ[EMBEDDED] = "1"
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # the server has all logs
    with nullcontext() if users is not None else prefect_server(port) as server:
        if server is not None:
            os.environ["PREFECT_API_URL"] = f"{server.url}/api"  # Prefect reads it when imported
        yield users, server


def _users_prefect() -> str | None:
    """Address of the Prefect server that the user chose, by a variable, profile, .env or prefect.toml; None: no such."""
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"] or None
    files = (prefect_profiles(), Path("prefect.toml"), Path(".env"), Path("pyproject.toml"))
    mentions = ("", "", "PREFECT_", "[tool.prefect")
    if not any(
        file.is_file() and mention in file.read_text(encoding="utf-8", errors="replace")
        for file, mention in zip(files, mentions, strict=True)
    ):
        return None
    # in a process of its own: Prefect reads its settings once, and the server's address may follow
    source = "from prefect.settings import get_current_settings as s; print(s().api.url or '')"
    asked = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise FlowError(
            f"Prefect cannot read its settings: {asked.stderr.strip().splitlines()[-1]}"
        )
    return asked.stdout.strip() or None


def _show(console: Console) -> None:
    """The table of arms, as wide as the terminal allows, and where to look next."""
    from rich.table import Table

    from trainorder.report import words

    bwt = results.load()
    columns = ["arm", "mean", "interval", "minus best"]
    columns += ["minus joint"] if console.width >= 100 else []
    columns += ["phases"] if console.width >= 140 else []
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in words.arms(bwt):
        table.add_row(*(row[column] for column in columns))
    console.print()
    console.print(table)
    console.print(f"\n{words.headline(bwt)}.", style="bold")
    console.print(" ".join([words.verdict(bwt), *words.caveats(bwt)]) + "\n")
    if QUIET in os.environ:
        return
    console.print(f"report   {paths.REPORT.absolute()}", soft_wrap=True)
    console.print("servers  trainorder ui   (MLflow and Prefect over what was run)")


if __name__ == "__main__":
    sys.exit(main())
