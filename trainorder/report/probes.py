"""What probes found, for a reader: on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainorder.probes.base import AFTER, ALL, BEFORE, CHANGE, Row
from trainorder.probes.run import Found

if TYPE_CHECKING:
    from rich.console import RenderableType

BROAD = frozenset({ALL, "update", "top", "random", "within", "across", "across_right"})
"""Parts that are shown where not every row is asked for."""


@dataclass(frozen=True)
class Line:
    """A measure of two checkpoints: at both, or of the two together."""

    task: str
    part: str
    measure: str
    before: float | None = None
    after: float | None = None
    value: float | None = None
    """The change, or the one number."""


def folded(rows: Iterable[Row], every: bool = True) -> list[Line]:
    """Rows of one probe, what describes both checkpoints in one line."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        if every or row.part in BROAD:
            end = next((e for e in (BEFORE, AFTER, CHANGE) if row.measure.endswith(e)), "")
            name = row.measure.removesuffix(end)
            found.setdefault((row.task, row.part, name), {})[end] = row.value
    return [
        Line(*key, own.get(BEFORE), own.get(AFTER), own.get(CHANGE, own.get("")))
        for key, own in found.items()
    ]


def number(value: float | None) -> str:
    """As it is shown."""
    if value is None:
        return ""
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1e5 else f"{value:.2e}"


def lines(found: Iterable[Found], every: bool) -> Iterator[RenderableType]:
    """A table per probe, with its seconds."""
    from rich.table import Table

    found = list(found)
    if found:
        yield f"{found[0].node}, compared with {found[0].other}"
    for one in found:
        cost = f"{one.seconds:.1f} s" + (", kept from before" if one.known else "")
        shown = folded(one.rows, every)
        if not shown:
            yield f"[bold]{one.probe}[/]  nothing to say of these two ({cost})"
            continue
        table = Table(box=None, title=f"[bold]{one.probe}[/]  {cost}", title_justify="left")
        for name in ("task", "part", "measure"):
            table.add_column(name)
        for name in ("before", "after", "change or value"):
            table.add_column(name, justify="right")
        for line in shown:
            values = (line.before, line.after, line.value)
            table.add_row(line.task, line.part, line.measure, *map(number, values))
        yield table
    total = sum(one.seconds for one in found if not one.known)
    yield f"{total:.1f} s of computing" + ("" if every else "; --all prints every row")
