"""The command that says what a checkpoint has become: probe."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainorder.cli.app import AsJson, ParamsFile, app, print_json, print_parts
from trainorder.refusing import refusing

if TYPE_CHECKING:
    from trainorder.plan import Plan
    from trainorder.probes.run import Found


@app.command()
def probe(
    a: Annotated[
        str | None, typer.Argument(help="The checkpoint to compare with, e.g. base.")
    ] = None,
    b: Annotated[
        str | None, typer.Argument(help="The checkpoint that is looked at, e.g. s0--math.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="A probe; give it again for more than one. All if left out."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every row, also by kind of module and by format.")
    ] = False,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict",
            help="In place of A and B: which probes of every phase go with what it made the model forget.",
        ),
    ] = False,
    variant: Annotated[
        str, typer.Option(help="With --predict: under which variant of the params.")
    ] = "default",
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """What B has become since A: updates, answers, diversity, divergence, gradients, states. Trains nothing; kept by content."""
    with refusing():
        from trainorder import plan
        from trainorder.config import load_params
        from trainorder.probes import run
        from trainorder.reading import ParamsError
        from trainorder.registries import EVERY, chosen_probes
        from trainorder.report import node as nodes
        from trainorder.rewards import grading

        found, of_pair = dict[str, Any](), list[run.Found]()
        chosen, current, config = chosen_probes(only or [EVERY]), plan.load(), load_params()
        grading.configure(config.grading)
        if predict:
            if a is not None:
                raise ParamsError(
                    "probe --predict looks at every phase of the plan: leave A and B out"
                )
            found = _predicted(current, chosen, variant, config.measure.level)
        elif a is None or b is None:
            raise ParamsError("probe takes two nodes of the plan, or --predict")
        else:
            for name in (a, b):
                nodes.check(current, name)
            of_pair = run.run([(b, a)], chosen)
    from trainorder.report import probes

    if predict:
        print_json(found) if as_json else print_parts(probes.predictions(found, every))
    elif as_json:
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
                    for one in of_pair
                ],
            }
        )
    else:
        print_parts(probes.lines(of_pair, every))


def _predicted(current: Plan, chosen: list[str], variant: str, level: float) -> dict[str, Any]:
    """Probes of every evaluated phase, and how they go with forgetting."""
    import pandas

    from trainorder.metrics.correlation import MIN_ITEMS_INTERVAL
    from trainorder.probes import predict, run
    from trainorder.reading import ParamsError

    known, missing = predict.steps(current, variant)
    if len(known) < MIN_ITEMS_INTERVAL:
        raise ParamsError(
            f"probe --predict needs {MIN_ITEMS_INTERVAL} evaluated phases for an interval, there are {len(known)} under "
            f"variant {variant!r}: `trainorder run` first"
        )
    pairs = [(step.node, step.parent) for step in known]
    found = run.run(pairs, chosen, Progress(len(pairs), len(chosen)))
    lost = predict.losses(known)
    table = pandas.concat([run.table(found), predict.transfer(known)], ignore_index=True)
    return {
        "variant": variant,
        "level": level,
        "steps": len(known),
        "seeds": sorted({step.seed for step in known}),
        "resampled": len(set(predict.clusters(known))),
        "not_evaluated": missing,
        "seconds": round(sum(one.seconds for one in found), 1),
        "costs": run.costs(found),
        "forgetting": [
            {
                "node": step.node,
                "phase": step.phase,
                **predict.forgetting(step, of),
                "tasks": of,
            }
            for step, of in zip(known, lost, strict=True)
        ],
        "predictions": predict.predict(table, known, lost, level=level),
    }


@dataclass
class Progress:
    """A line on stderr for every pair of checkpoints whose probes are done, with the time that the others take."""

    pairs: int
    probes: int
    found: list[Found] = field(default_factory=list)

    def __call__(self, new: Found) -> None:
        """Count one probe of a pair."""
        from trainorder.plan.show import duration

        self.found.append(new)
        done, within = divmod(len(self.found), self.probes)
        if within:
            return
        seconds = [sum(one.seconds for one in self._of(i) if not one.known) for i in range(done)]
        left = mean([s for s in seconds if s] or [0.0]) * (self.pairs - done)
        rest = f", about {duration(left)} left" if done < self.pairs else ""
        typer.echo(f"{done}/{self.pairs} {new.node} {duration(seconds[-1])}{rest}", err=True)

    def _of(self, pair: int) -> list[Found]:
        return self.found[pair * self.probes : (pair + 1) * self.probes]
