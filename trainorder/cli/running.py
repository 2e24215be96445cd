"""Commands from an empty folder to a finished run: init, doctor, check, plan, run, deploy, ui."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from trainorder.cli.app import AsJson, ParamsFile, app, print_json, print_parts
from trainorder.project import PRESETS
from trainorder.refusing import refusing

if TYPE_CHECKING:
    from trainorder.config import Params


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="A folder that is empty or does not exist.")] = ".",
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "tiny",
    diff: Annotated[
        bool,
        typer.Option(
            "--diff", help="Show what this version would write in a project; change nothing."
        ),
    ] = False,
) -> None:
    """Make a folder a project: params.yaml, dvc.yaml, stages/, flows/, git and DVC."""
    with refusing():
        from pathlib import Path

        from trainorder import project

        folder = Path(name)
        if diff:
            lines = list(project.diff(folder))
            print("\n".join(lines) or "this version would write the same files")
            return
        written = project.create(folder, preset)
    print(f"{folder.absolute()}: {len(written)} files from the preset {preset}, under git and DVC")
    there = "" if name == "." else f"cd {name} && "
    print(f"next: {there}trainorder check && trainorder plan && trainorder run")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine and this folder offer to a run, and what to do where something is missing. Exit code 1 if a run would fail."""
    with refusing():
        from rich.markup import escape

        from trainorder.preflight import doctor

        found = doctor.examine()
    if as_json:
        print_json(doctor.as_json(found))
    else:
        colours = {"ok": "green", "note": "yellow", "problem": "red"}
        for one in found:
            text = f"{one.what:<24} {one.found}" + (f"; {one.advice}" if one.advice else "")
            print_parts([f"[{colours[one.state]}]{one.state:<7}[/] {escape(text)}"])
    if any(one.state == "problem" for one in found):
        raise typer.Exit(1)


@app.command()
def check(
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """Say within seconds whether params.yaml, the files it names and this machine can work."""
    with refusing():
        from trainorder import plan, preflight
        from trainorder.config import params_file
        from trainorder.plan.orders import held_out

        current = plan.load()
        preflight.check(current.params)
        level = _sandbox(current.params)
        own = preflight.lines(current.params)
        own += preflight.judges.check(current.params)
    checked = current.params
    waiting = plan.pending(checked, current.resolved)
    if as_json:
        print_json(
            {
                "params": str(params_file()),
                "orders": len(current.orders) + len(waiting),
                "phases": list(checked.phases),
                "tasks": list(checked.tasks),
                "variants": list(checked.variants),
                "seeds": list(checked.seeds),
                "checkpoints": len(current.nodes),
                "waiting": list(waiting),
                "held_out": held_out(checked),
                "isolation": level or None,
                "notes": own,
            }
        )
        return
    variants = f"{1 + len(checked.variants)} variants, " if checked.variants else ""
    print(
        f"{params_file()} can work: {len(current.orders) + len(waiting)} orders of {len(checked.phases)} phases over "
        f"{len(checked.tasks)} tasks, {variants}{len(checked.seeds)} seed(s), {len(current.nodes)} checkpoints"
    )
    for line in own:
        print(line)
    if level:
        print(f"model-written programs run at isolation {level}")
    if waiting:
        print(f"wait for the measured transfer: {', '.join(waiting)}")
    if unused := held_out(checked):
        print(f"held out (evaluated, never trained): {', '.join(unused)}")


@app.command("plan")
def plan_command(
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Fill in `recommended` from reports/bwt.json.")
    ] = False,
    dag: Annotated[
        bool,
        typer.Option("--dag", help="Print the checkpoints as a Mermaid graph, and write nothing."),
    ] = False,
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """Compile params.yaml into plan.yaml and show what is cached, restorable and to train."""
    with refusing():
        from trainorder import plan, room
        from trainorder.plan import show, times
        from trainorder.reading import NotHere

        current = plan.load()
        if resolve:
            current = plan.compile_plan(current.params, plan.measured())
        if dag:
            print("\n".join(show.graph(current)))
            return
        plan.repair()
        changed = plan.write(current)
        states = plan.status(current)
        sizes = None
        with suppress(NotHere):  # a model that is not here: `check` says so
            sizes = room.sizes(current) if "stale" in states.values() else None
        seconds = times.expected(current, sizes)
    if as_json:
        print_json(show.document(current, states, seconds, sizes) | {"changed": changed})
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(show.tree(current, states, seconds))
    for line in show.summary(current, states, seconds, sizes):
        console.print(line)
    console.print(f"plan.yaml {'written' if changed else 'unchanged'}", style="dim")


@app.command()
def run(
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Build the data, try one problem of each task and judge, print costs; train nothing.",
        ),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change params.yaml first: orders.mine='[math, qa]', rl.lr=1e-3. Given twice, a key is swept.",
        ),
    ] = None,
    exp: Annotated[
        str | None,
        typer.Option("--exp", metavar="NAME", help="Save the run as a DVC experiment."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="+N or LIST",
            help="Change `seeds` of params.yaml first: +2 adds two unused ones and trains only these, 0,1,2 is the list.",
        ),
    ] = None,
    until_settled: Annotated[
        bool,
        typer.Option(
            "--until-settled", help="Add seeds, round by round, until the best arm is settled."
        ),
    ] = False,
    max_seeds: Annotated[
        int | None, typer.Option(help="Of --until-settled: no more seeds than these; default 12.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Of --until-settled: no round that would end later than this."),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Print only the table of arms, its verdict and warnings."),
    ] = False,
    params: ParamsFile = None,
) -> None:
    """Bring everything params.yaml asks for up to date, then print which order won and how sure that is."""
    changes = bool(settings or exp or seeds is not None)
    with refusing():
        from trainorder import plan
        from trainorder.reading import ParamsError

        if dry_run and (changes or until_settled):
            raise ParamsError(
                "--dry-run trains nothing: leave --set, --seeds, --exp and --until-settled out"
            )
        if dry_run and quiet:
            raise ParamsError("--dry-run only prints: leave --quiet out")
        if until_settled and changes:
            raise ParamsError(
                "--until-settled adds seeds by itself: leave --set, --seeds and --exp out"
            )
        if not until_settled and (max_seeds is not None or minutes is not None):
            raise ParamsError("--max-seeds and --minutes are of --until-settled: add it")
        level = _sandbox(plan.load().params)
    if quiet:
        from trainorder.process import QUIET

        os.environ[QUIET] = "1"
    elif level:
        print(f"model-written programs run at isolation {level}", flush=True)
    if until_settled:
        with refusing():
            from trainorder.editing import settle

            code = settle.until_settled(
                settle.MAX_SEEDS if max_seeds is None else max_seeds, minutes
            )
        raise typer.Exit(code)
    if changes:
        with refusing():
            from trainorder.editing import sweep

            code = sweep.run(settings or [], exp, seeds)
        raise typer.Exit(code)
    module = "trainorder.flow.dry" if dry_run else "trainorder.flow.run"
    os.execv(sys.executable, [sys.executable, "-m", module])


@app.command()
def deploy(
    name: Annotated[str, typer.Option(help="Name of the deployment.")] = "orders",
    cron: Annotated[str | None, typer.Option(help="When it runs by itself, `0 3 * * *`.")] = None,
    port: Annotated[
        int, typer.Option(help="Of Prefect's server, where the user has none; another if busy.")
    ] = 4200,
    params: ParamsFile = None,
) -> None:
    """Serve the flow: its run form in Prefect's UI has the orders, and a run trains only what is new. Ctrl-C ends it."""
    given = ["--name", name, "--port", str(port), *(["--cron", cron] if cron else [])]
    os.execv(sys.executable, [sys.executable, "-m", "trainorder.flow.deploy", *given])


@app.command()
def ui(
    prefect_port: Annotated[int, typer.Option(help="Another is taken if it is busy.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Another is taken if it is busy.")] = 5000,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; anything but loopback opens both to the network."),
    ] = "127.0.0.1",
) -> None:
    """Open MLflow and Prefect on loopback over what was run; Ctrl-C stops both."""
    with refusing():
        from trainorder.ui import serve

        serve(prefect_port, mlflow_port, host)


def _sandbox(params: Params) -> str:
    """The isolation of model-written programs here, refused below `grading.isolation`; empty where no task runs any."""
    from trainorder.rewards import grading
    from trainorder.tasks import make_task

    grading.configure(params.grading)
    return grading.sandbox_level([make_task(name, task) for name, task in params.tasks.items()])
