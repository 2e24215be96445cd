"""The command that says what a checkpoint has become: probe."""

from __future__ import annotations

from typing import Annotated

import typer

from trainorder.cli.app import AsJson, ParamsFile, app, print_json, print_parts
from trainorder.refusing import refusing


@app.command()
def probe(
    a: Annotated[str, typer.Argument(help="The checkpoint to compare with, e.g. base.")],
    b: Annotated[str, typer.Argument(help="The checkpoint that is looked at, e.g. s0--math.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="A probe; give it again for more than one. All if left out."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every row, also by kind of module and by format.")
    ] = False,
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """What B has become since A: updates, answers, diversity, divergence, gradients, states. Trains nothing; kept by content."""
    with refusing():
        from trainorder import plan
        from trainorder.config import load_params
        from trainorder.probes import run
        from trainorder.registries import EVERY, chosen_probes
        from trainorder.report import node as nodes
        from trainorder.rewards import grading

        chosen = chosen_probes(only or [EVERY])
        current = plan.load()
        for name in (a, b):
            nodes.check(current, name)
        grading.configure(load_params().grading)
        found = run.run([(b, a)], chosen)
    if as_json:
        print_json(
            {
                "node": b,
                "other": a,
                "probes": [
                    {
                        "probe": one.probe,
                        "seconds": one.seconds,
                        "kept": one.known,
                        "rows": [row._asdict() for row in one.rows],
                    }
                    for one in found
                ],
            }
        )
        return
    from trainorder.report import probes

    print_parts(probes.lines(found, every))
