"""The command `trainorder`. What is heavy is imported inside the commands, so that a typo is reported at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

app = typer.Typer(
    help="In which order should a language model be trained on its skills?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def check() -> None:
    """Say within a second whether params.yaml can work."""
    with refusing():
        from trainorder import plan

        current = plan.load()
    params = current.params
    waiting = plan.pending(params, current.resolved)
    unused = sorted(
        set(params.tasks) - {t for phase in params.phases.values() for t in phase.tasks}
    )
    print(
        f"params.yaml can work: {len(params.orders)} orders of {len(params.phases)} phases over "
        f"{len(params.tasks)} tasks, {len(params.seeds)} seed(s), {len(current.nodes)} checkpoints"
    )
    if waiting:
        print(f"wait for the measured transfer: {', '.join(waiting)}")
    if unused:
        print(f"held out (evaluated, never trained): {', '.join(unused)}")


@app.command("plan")
def plan_command(
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Fill in `recommended` from reports/bwt.json.")
    ] = False,
) -> None:
    """Compile params.yaml into plan.yaml and show what is cached, restorable and to train."""
    with refusing():
        from trainorder import plan
        from trainorder.plan import show

        current = plan.load()
        if resolve:
            current = plan.compile_plan(current.params, plan.measured())
        changed = plan.write(current)
        states = plan.status(current)
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(show.tree(current, states))
    for line in show.summary(current, states):
        console.print(line)
    console.print(f"plan.yaml {'written' if changed else 'unchanged'}", style="dim")


@app.command()
def run() -> None:
    """Bring everything params.yaml asks for up to date, then print which order won and how sure that is."""
    with refusing():
        from trainorder import plan

        plan.load()
    os.execv(sys.executable, [sys.executable, "-m", "flows.pipeline"])


@app.command()
def report() -> None:
    """Write reports/report.html anew from what was measured; trains nothing."""
    with refusing():
        from trainorder.report import write_report

        print(write_report())


@app.command()
def ui(
    prefect_port: Annotated[int, typer.Option(help="Another is taken if it is busy.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Another is taken if it is busy.")] = 5000,
) -> None:
    """Open MLflow and Prefect on loopback over what was run; Ctrl-C stops both."""
    with refusing():
        from trainorder.ui import serve

        serve(prefect_port, mlflow_port)


@contextmanager
def refusing() -> Iterator[None]:
    """Turn wrong input into one line on stderr and exit code 2."""
    from trainorder.config import ParamsError

    try:
        yield
    except (ParamsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
