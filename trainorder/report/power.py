"""How many seeds and problems detect a difference, as sentences and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainorder.metrics.power import MAX_SEEDS
from trainorder.report import words

if TYPE_CHECKING:
    from rich.console import RenderableType


def table(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The answer of `trainorder power` (trainorder/measure/power.py::needs)."""
    from rich import box
    from rich.table import Table

    one = found["seeds"] == 1
    yield (
        f"{found['arms']} trained arms, {found['seeds']} seed{'' if one else 's'}, {found['num_problems']} test problems; "
        f"level {found['level']:g} for all pairs at once, power {found['power']:g}"
    )
    yield _noise(found["sd"])
    rows = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    heads = ["difference", "power now", "seeds needed", "problems needed"]
    for head in [*heads[:2], *([] if one else heads[2:3]), heads[3]]:
        rows.add_column(head, justify="right")
    for row in found["rows"]:
        seeds = [] if one else [_number(row["seeds"], f"over {MAX_SEEDS}")]
        cells = [f"{row['difference']:g}", f"{row['power']:.0%}"]
        rows.add_row(*cells, *seeds, _number(row["problems"], "no number"))
    yield rows
    if one:
        yield (
            "Variance between seeds is not measured with one seed: these numbers hold over problems alone and are lower bounds. "
            "`trainorder run --seeds +2` measures it."
        )
    else:
        yield "Seeds needed with these problems; problems needed, of all trained tasks together, with these seeds."


def _noise(sd: Mapping[str, float | None]) -> str:
    """What a difference of two arms varies by, in standard deviations for one seed and these problems."""
    if sd["runs"] is None:
        return f"A difference of two arms varies by {words.score(sd['problems'])} with the choice of problems."
    return (
        f"A difference of two arms, of one seed, varies by {words.score(sd['runs'])} between runs, {words.score(sd['problems'])} "
        f"with the choice of problems and {words.score(sd['answers'])} with a run's answers to them."
    )


def _number(value: int | None, none: str) -> str:
    return none if value is None else f"{value:,}"
