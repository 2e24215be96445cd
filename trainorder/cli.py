"""The command `trainorder`. What is heavy is imported inside the commands, so that a typo is reported at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from trainorder.project import PRESETS
from trainorder.refusing import refusing

if TYPE_CHECKING:
    from rich.console import RenderableType

    from trainorder.config import Params

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _use(params: str | None) -> None:
    """Let this command and all it starts read another file than params.yaml."""
    from trainorder.config import PARAMS_VARIABLE

    if params is not None:
        os.environ[PARAMS_VARIABLE] = params


def _version(asked: bool) -> None:
    from importlib.metadata import version

    if asked:
        print(f"trainorder {version('trainorder')}")
        raise typer.Exit


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ParamsFile = Annotated[
    str | None,
    typer.Option("--params", callback=_use, metavar="FILE", help="Another file than params.yaml."),
]


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """In which order should a language model be trained on its skills?"""
    from trainorder.process import make_surroundings_usual

    make_surroundings_usual()


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine and this folder offer to a run, and what to do where something is missing. Exit code 1 if a run would fail."""
    with refusing():
        from rich.markup import escape

        from trainorder.preflight import doctor

        found = doctor.examine()
    if as_json:
        _print_json(doctor.as_json(found))
    else:
        colours = {"ok": "green", "note": "yellow", "problem": "red"}
        for one in found:
            text = f"{one.what:<24} {one.found}" + (f"; {one.advice}" if one.advice else "")
            _print([f"[{colours[one.state]}]{one.state:<7}[/] {escape(text)}"])
    if any(one.state == "problem" for one in found):
        raise typer.Exit(1)


@app.command()
def show(
    node: Annotated[str, typer.Argument(help="A node of the plan, e.g. s0--math.")],
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """One checkpoint: lineage, params, scores, alarms and files."""
    with refusing():
        from trainorder import plan
        from trainorder.report import node as nodes

        found = nodes.facts(plan.load(), node)
    if as_json:
        _print_json(found)
    else:
        _print(nodes.lines(found))


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
def check(
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
        own = list(preflight.rows.lines(current.params))
        own += preflight.judges.check(current.params)
    checked = current.params
    waiting = plan.pending(checked, current.resolved)
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
        from trainorder import plan, storage
        from trainorder.plan import show

        current = plan.load()
        if resolve:
            current = plan.compile_plan(current.params, plan.measured())
        if dag:
            print("\n".join(show.graph(current)))
            return
        plan.repair()
        changed = plan.write(current)
        states = plan.status(current)
        sizes = storage.sizes(current) if "stale" in states.values() else None
        times = show.seconds(current, sizes)
    if as_json:
        _print_json(show.document(current, states, times, sizes) | {"changed": changed})
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(show.tree(current, states, times))
    for line in show.summary(current, states, times, sizes):
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
        if until_settled and changes:
            raise ParamsError(
                "--until-settled adds seeds by itself: leave --set, --seeds and --exp out"
            )
        if not until_settled and (max_seeds is not None or minutes is not None):
            raise ParamsError("--max-seeds and --minutes are of --until-settled: add it")
        level = _sandbox(plan.load().params)
    if level:
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
def compare(
    a: Annotated[str, typer.Argument(help="An order, a merge, a phase trained alone, or base.")],
    b: Annotated[str, typer.Argument(help="What A is compared with.")],
    metric: Annotated[str, typer.Option(help="Any metric of the evaluations.")] = "score",
    split: Annotated[str, typer.Option(help="test, or dev.")] = "test",
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """Is A better than B, on which tasks, from which phase on, and does that survive seeds and variants?"""
    with refusing():
        from trainorder import plan
        from trainorder.config import load_params
        from trainorder.measure.compare import compare as compare_arms
        from trainorder.plan.design import from_plan

        designs = from_plan(plan.stored())
        found = compare_arms(designs, a, b, load_params().measure, metric=metric, split=split)
    if as_json:
        _print_json(found)
        return
    from trainorder.report import console as answers

    _print(answers.comparison(found))


@app.command()
def power(
    difference: Annotated[
        list[float] | None,
        typer.Option("--difference", help="Of mean scores; give it again for more than one."),
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="Of the intervals; that of the verdict if left out.")
    ] = None,
    wanted: Annotated[
        float, typer.Option("--power", help="Share of experiments that are to tell it.")
    ] = 0.8,
    variant: Annotated[str, typer.Option(help="Under which variant of the params.")] = "default",
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """How many seeds and problems this experiment needs to tell a difference of two arms, from its own variance."""
    with refusing():
        from trainorder.measure.power import needs

        found = needs(difference, level=level, wanted=wanted, variant=variant)
    if as_json:
        _print_json(found)
        return
    from trainorder.report.power import table

    _print(table(found))


@app.command()
def mixture(
    variant: Annotated[str, typer.Option(help="Under which variant of the params.")] = "default",
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """Which weights of tasks a joint phase should have, by a quadratic fit to the joint phases that were measured."""
    with refusing():
        from trainorder.config import load_params
        from trainorder.measure import mixtures

        found = mixtures.mixture(load_params(), variant)
    _print_json(found) if as_json else _print(mixtures.table(found))


@app.command()
def recommend(
    two_stage: Annotated[
        bool,
        typer.Option(
            "--two-stage", help="Transfer to phases that were trained before, not from the base."
        ),
    ] = False,
    variant: Annotated[str, typer.Option(help="Under which variant of the params.")] = "default",
    rule: Annotated[str, typer.Option(help="Which of the listed rules --apply takes.")] = "exact",
    apply: Annotated[bool, typer.Option("--apply", help="Add the order to params.yaml.")] = False,
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """Which order the measured transfer recommends, how sure that is, and what to run to be surer."""
    with refusing():
        from trainorder import results
        from trainorder.editing.orders import apply_order, check_rule

        bwt = results.of_variant(variant)
        key = "recommended_two_stage" if two_stage else "recommended"
        check_rule(bwt[key], rule)
        applied = apply_order(bwt[key], rule) if apply else None
    if as_json:
        _print_json({"variant": variant, "recommended": bwt[key], "applied": applied})
        return
    from trainorder.report import console as answers

    _print(answers.recommendation(bwt, key))
    if applied:
        print(applied)


@app.command()
def table(
    out: Annotated[str, typer.Option(help="A file to write instead of the terminal.")] = "",
    params: ParamsFile = None,
) -> None:
    """All orders as Markdown: predicted by each predictor and measured, under every variant."""
    with refusing():
        from pathlib import Path

        from trainorder import results
        from trainorder.report.markdown import orders_page

        text = orders_page(results.load())
        if out:
            Path(out).write_text(text, encoding="utf-8")
    if not out:
        print(text, end="")


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(help="A method or a piece; all if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the published methods of the RL step, or print one's formulas, options and lines of params.yaml."""
    with refusing():
        from trainorder.rl import catalog

        if name is not None and not as_json:
            print(catalog.describe(name), end="")
            return
        rows = catalog.listing()
        if name is not None:
            from trainorder.config.presets import preset

            rows = [row for row in rows if row["name"] == preset(name).name]
    if as_json:
        _print_json(rows if name is not None else [*rows, *catalog.choosers()])
        return
    for family in dict.fromkeys(row["family"] for row in rows):
        print(family.replace("_", " "))
        for row in rows:
            if row["family"] == family:
                papers = ", ".join(row["papers"])
                print(f"  {row['name']:<30} {papers:<24} {row['status']:<9} {row['summary']}")
    for row in catalog.choosers():
        print(
            f"{row['family'] + ': ' + row['name']:<32} {', '.join(row['papers']):<24} {row['summary']}"
        )
    print("`trainorder methods NAME` prints formulas, options and the lines of params.yaml")


@app.command()
def export(
    node: Annotated[str, typer.Argument(help="A node of the plan, e.g. s0--math.")],
    folder: Annotated[str, typer.Argument(help="A folder that does not exist yet.")],
    params: ParamsFile = None,
) -> None:
    """Write a node as an ordinary Hugging Face folder: a LoRA node with its adapter added to the weights of its base."""
    with refusing():
        from pathlib import Path

        from trainorder import paths
        from trainorder.policy import Policy
        from trainorder.reading import ParamsError

        if Path(folder).exists():
            raise ParamsError(f"{folder} exists: name a folder that does not")
        Policy.load(paths.checkpoint(node)).save(folder)
    print(f"{folder}: AutoModelForCausalLM.from_pretrained reads it")


@app.command()
def report(params: ParamsFile = None) -> None:
    """Write reports/report.html again from what was measured; trains nothing."""
    with refusing():
        from trainorder.report import write_report

        print(write_report())


@app.command()
def verify(
    node: Annotated[str | None, typer.Argument(help="A node of the plan; all if left out.")] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Check DVC's cache too.")] = False,
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """Recompute all hashes and name what differs from the records: checkpoint, parents, data, params, code."""
    with refusing():
        from trainorder import verify

        found = verify.verify(node) + (verify.verify_cache() if cache else [])
    if as_json:
        _print_json({"node": node, "differences": found})
        raise typer.Exit(int(bool(found)))
    for line in found:
        print(line)
    if found:
        print(f"{len(found)} difference(s). {verify.REPAIR}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{node or 'every node'}: as recorded")


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
    uncommitted: Annotated[
        bool, typer.Option("--uncommitted", help="Results that no git commit names too.")
    ] = False,
) -> None:
    """Show what can be freed, and with --yes free it; what committed plans need stays."""
    with refusing():
        from trainorder import storage
        from trainorder.files import size_text

        with storage.nothing_running():
            found = storage.candidates(uncommitted=uncommitted)
            for item in found:
                print(f"{size_text(item.size):>10}  {item.what}")
            total = size_text(sum(item.size for item in found))
            if yes:
                storage.free(found)
    print(f"{total:>10}  {'freed' if yes else 'would be freed; add --yes to do it'}")


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


def _print(parts: Iterable[RenderableType]) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for part in parts:
        console.print(part)


def _print_json(document: object) -> None:
    import json
    import math

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(plain(document), indent=1, allow_nan=False))


if __name__ == "__main__":
    app()
