"""Commands that read what was measured: show, compare, power, mixture, recommend, table, methods, report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from trainorder.cli.app import AsJson, ParamsFile, app, json_text, print_json, print_parts
from trainorder.refusing import refusing


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
        print_json(found)
    else:
        print_parts(nodes.lines(found))


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
        print_json(found)
        return
    from trainorder.report import console as answers

    print_parts(answers.comparison(found))


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
    """How many seeds and problems this experiment needs to detect a difference of two arms, from its own variance."""
    with refusing():
        from trainorder.measure.power import needs

        found = needs(difference, level=level, wanted=wanted, variant=variant)
    if as_json:
        print_json(found)
        return
    from trainorder.report.power import table

    print_parts(table(found))


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
    print_json(found) if as_json else print_parts(mixtures.table(found))


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
        print_json({"variant": variant, "recommended": bwt[key], "applied": applied})
        return
    from trainorder.report import console as answers

    print_parts(answers.recommendation(bwt, key))
    if applied:
        print(applied)


@app.command()
def table(
    out: Annotated[str, typer.Option(help="A file to write instead of the terminal.")] = "",
    as_json: AsJson = False,
    params: ParamsFile = None,
) -> None:
    """All orders as Markdown, or as JSON: predicted by each predictor and measured, under every variant."""
    with refusing():
        from pathlib import Path

        from trainorder import results
        from trainorder.report.markdown import orders_document, orders_page

        bwt = results.load()
        text = json_text(orders_document(bwt)) if as_json else orders_page(bwt)
        if out:
            Path(out).write_text(text, encoding="utf-8")
    if not out:
        print(text, end="")


@app.command()
def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A method, a piece, or a name of rl.sampler, rl.items or rl.curriculum; all if left out."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the published methods of the RL step, or print one's formulas, options and lines of params.yaml."""
    with refusing():
        from trainorder.rl import catalog

        if name is not None and not as_json:
            print(catalog.describe(name), end="")
            return
        rows = catalog.listing() if name is None else catalog.rows_of(name)
        rest = catalog.rest() if name is None else []
    if as_json:
        print_json([*rows, *rest])
        return
    for family in dict.fromkeys(row["family"] for row in rows):
        print(family.replace("_", " "))
        for row in rows:
            if row["family"] == family:
                print(f"  {_about(row['name'], row)}")
    for row in rest:
        print(_about(f"{row['family']}: {row['name']}", row))
    print("`trainorder methods NAME` prints formulas, options and the lines of params.yaml")


def _about(name: str, row: Mapping[str, Any]) -> str:
    return f"{name:<40} {', '.join(row['papers']):<24} {row['status']:<9} {row['summary']}"


@app.command()
def report(as_json: AsJson = False, params: ParamsFile = None) -> None:
    """Write reports/report.html again from what was measured; trains nothing."""
    with refusing():
        from trainorder import results
        from trainorder.report import words, write_report
        from trainorder.report.spending import spending

        file = write_report([one.text for one in spending()])
        bwt = results.load()
    if as_json:
        said = {"headline": words.headline(bwt), "verdict": words.verdict(bwt)}
        print_json({"report": str(file), **said, "caveats": words.caveats(bwt)})
    else:
        print(file)
