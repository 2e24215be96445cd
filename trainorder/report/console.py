"""The answers of `trainorder compare` and `trainorder recommend` for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainorder.report import advice, words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def comparison(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A minus B: the verdict first, then one table by task and one by position for each variant."""
    a, b = found["a"], found["b"]
    yield f"[bold]{verdict(found)}[/]"
    if len(found["variants"]) > 1:
        table = _table(["variant", a, b, f"{a} - {b}", "interval", "by seed", "verdict"], left=1)
        for name, variant in found["variants"].items():
            row = variant["mean"]
            table.add_row(name, *_cells(row), _by_seed(row), variant["verdict"])
        yield table
    for name, variant in found["variants"].items():
        title = f"{name}: " if len(found["variants"]) > 1 else ""
        yield _tasks(found, variant, title)
        if variant["turnover"]:
            yield f"{title}{words.turnover(a, b, variant['turnover'])}"
        if variant["positions"]:
            yield _positions(found, variant, title)
        yield f"[dim]{words.sentence(variant['note'])}[/]"


def verdict(found: Mapping[str, Any]) -> str:
    """The verdict on the difference of the means, and what it is made of.

    >>> row = {"a": .8, "b": .7, "differs": True, "difference": {"value": .1, "low": .05, "high": .15}}
    >>> variant = {"mean": row, "parts": None, "seeds": [0, 1, 2], "verdict": "settled",
    ...            "runs": "training runs", "mean_over": ["math", "code"], "same_judge": []}
    >>> print(verdict({"a": "x", "b": "y", "metric": "score", "split": "test", "variants": {"default": variant},
    ...                "verdict": "settled", "survives": None}))
    Settled: x minus y is +0.100 (+0.050 to +0.150); it holds over problems and training runs.
    Mean score of math and code on test.
    """
    first = next(iter(found["variants"].values()))
    text = words.claim(
        found["verdict"],
        found["a"],
        found["b"],
        first["mean"]["difference"],
        first["parts"],
        first["seeds"],
        first["runs"],
    )
    text += f"\nMean {found['metric']} of {words.listed(first['mean_over'])} on {found['split']}"
    if found["survives"] is not None:
        text += f", under the params as written; the difference excludes 0 {found['survives']}"
    return f"{text}. {words.same_judge(first)}".rstrip()


def _tasks(found: Mapping[str, Any], variant: Mapping[str, Any], title: str) -> Table:
    heads = ["task", found["a"], found["b"], "difference", "interval", "by seed", "p (Holm)", ""]
    table = _table(heads, f"{title}final {found['metric']} ({found['split']})", left=1)
    for task, row in variant["tasks"].items():
        name = words.task(task, held_out=False, recall=row["recall"])
        name += "" if row["trained"] else " (held out)"
        told = "differs" if row["differs"] else "inconclusive"
        table.add_row(name, *_cells(row), _by_seed(row), _p(row["p_holm"]), told)
    table.add_section()
    row = variant["mean"]
    table.add_row(
        "mean", *_cells(row), _by_seed(row), _p(row["p"]), variant["verdict"], style="bold"
    )
    return table


def _positions(found: Mapping[str, Any], variant: Mapping[str, Any], title: str) -> Table:
    tasks = list(variant["tasks"])
    heads = ["after", found["a"], found["b"], "difference", "interval", *tasks]
    table = _table(
        heads, f"{title}mean {found['metric']} after each phase, and the difference by task", left=1
    )
    for row in variant["positions"]:
        pair = (row["a_phase"], row["b_phase"])
        place = "base" if not row["position"] else f"{row['position']}. {pair[0]} | {pair[1]}"
        if row["position"] and pair[0] == pair[1]:
            place = f"{row['position']}. {pair[0]}"
        table.add_row(place, *_cells(row), *(words.signed(row["tasks"][t]) for t in tasks))
    return table


def recommendation(bwt: words.Bwt, key: str) -> Iterator[RenderableType]:
    """The order that the transfer recommends (`key`: recommended or recommended_two_stage), how sure, and what next."""
    found = bwt[key]
    if found is None or found["order"] is None:
        yield f"[bold]Open.[/] {words.sentence(found['run']) if found else 'No phase was trained alone.'}"
        return
    yield f"[bold]{words.path(found['order'])}. {advice.order_verdict(bwt, found)}[/]"
    yield from certainty(found)
    yield _gain(found)
    yield _before(found)
    yield _rules(found)
    if found["best_by_predictor"]:
        yield _predictors(bwt, found)
    for i, step in enumerate(found["next"]):
        orders = "".join(f"\n     \\[{', '.join(order)}]" for order in step["orders"])
        yield f"{'next: ' if not i else '      '}{step['run']}: {step['why']}{orders}"


def certainty(found: Mapping[str, Any]) -> Iterator[str]:
    """How sure a recommended order is, line by line."""
    yield (
        f"P(this order is the best) {advice.p_best(found)}; expected regret {words.score(found['regret'])}; against its "
        f"reverse {words.with_interval(found['gap'])}"
    )
    for reason in advice.reasons(found):
        yield f"  - {reason}"
    if found["undecided"]:
        pairs = [f"{i} before {j} ({found['before'][i][j]:.0%})" for i, j in found["undecided"]]
        yield f"not decided: {words.listed(pairs)}"
    if text := advice.misfit(found):
        yield text
    best = found["measured_best"]
    if best is not None:
        text = f"best measured order on dev: {best['name']} ({words.path(best['order'])}), {words.score(best['mean'])}"
        ahead = best["minus_recommended"]
        if ahead is not None:
            text += f", {words.with_interval(ahead)} against the recommended one"
        yield text


def _gain(found: Mapping[str, Any]) -> Table:
    phases = found["order"]
    source = "from the base" if found["source"] == "from_base" else "after it was trained"
    table = _table(
        ["later phase", *phases],
        f"what a later phase does to an earlier one (column), {source}",
        left=1,
    )
    for k in phases:
        table.add_row(k, *("" if j == k else words.signed(found["gain"][j][k]) for j in phases))
    return table


def _before(found: Mapping[str, Any]) -> Table:
    phases = found["order"]
    table = _table(["P(row before column)", *phases], left=1)
    for i in phases:
        table.add_row(i, *("" if i == j else f"{found['before'][i][j]:.0%}" for j in phases))
    return table


def _rules(found: Mapping[str, Any]) -> Table:
    table = _table(
        ["rule", "order", "predicted gain", "expected regret"], "other ways to choose", left=2
    )
    for rule, entry in found["rules"].items():
        table.add_row(
            rule,
            words.path(entry["order"]),
            words.signed(entry["value"]),
            words.score(entry["regret"]),
        )
    return table


def _predictors(bwt: words.Bwt, found: Mapping[str, Any]) -> Table:
    heads = ["predictor", "its best order", "predicted (dev)", "Spearman (test)", "bias", "RMSE"]
    table = _table(heads, "best order under each predictor", left=2)
    for name, best in found["best_by_predictor"].items():
        if best is None:
            table.add_row(name, "needs pairs trained one after the other", *["-"] * 4)
            continue
        agreement = bwt["prediction"]["predictors"].get(name)
        table.add_row(
            name,
            words.path(best["order"]),
            words.score(best["predicted"]),
            words.correlation(agreement["spearman"], agreement["n"]) if agreement else "-",
            words.signed(agreement["mean_error"]) if agreement else "-",
            words.score(agreement["rmse"]) if agreement else "-",
        )
    return table


def _table(heads: Sequence[str], title: str | None = None, *, left: int) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="dim", padding=(0, 1)
    )
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < left or not head else "right")
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    difference = row["difference"]
    shown = [words.score(row["a"]), words.score(row["b"]), words.signed(difference["value"])]
    return [*shown, words.interval(difference, sign=True)]


def _by_seed(row: Mapping[str, Any]) -> str:
    seeds = row["difference"]["seeds"]
    return " ".join(words.signed(v) for v in seeds.values()) if len(seeds) > 1 else ""


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
