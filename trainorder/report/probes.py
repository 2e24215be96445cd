"""What probes found, for a reader: on the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainorder import paths
from trainorder.probes.base import AFTER, ALL, BEFORE, CHANGE, Row
from trainorder.probes.headlines import HEADLINES, by_pair
from trainorder.probes.run import Found, asked
from trainorder.report.words import Bwt

if TYPE_CHECKING:
    import pandas as pd
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


ALARMS = {
    "alarm_one_form": "one form of answer now crowds out the others",
    "alarm_wrong_form": "the form that gains share scores less than another",
}


def predictions(found: Mapping[str, Any], every: bool) -> Iterator[RenderableType]:
    """How signals go with forgetting, strongest within a phase at its place first."""
    from rich.table import Table

    rows = found["predictions"]
    shown = [row for row in rows if every or row["outcome"] == "others"]
    shown.sort(key=lambda row: -_strength(row["place"]["spearman"]))
    left = f"; {found['not_evaluated']} more are not evaluated" if found["not_evaluated"] else ""
    branches = found["resampled"] < found["steps"]
    over = f"{found['resampled']} branches of the plan" if branches else "phases"
    seeds = len(found["seeds"])
    yield (
        f"{found['steps']} phases of {seeds} seed{'s' * (seeds > 1)}{left}. Spearman with the mean score that a phase cost the "
        f"tasks it does not train, {found['level']:.0%} intervals over {over}"
    )
    table = Table(box=None)
    for name in ("probe", "measure", "on tasks", "forgetting of"):
        table.add_column(name)
    places = ("phases", "all phases", "within a phase", "and at its place")
    for name in (*places, *(["in seeds"] if seeds > 1 else []), "strongest in"):
        table.add_column(name, justify="right")
    for row in shown:
        cells = [row["probe"], row["label"], row["role"], row["outcome"], str(row["steps"])]
        cells += [_interval(row[name]) for name in ("all", "within", "place")]
        if seeds > 1:
            cells.append(" ".join(_signed(one) for one in row["place"]["seeds"].values()))
        table.add_row(*cells, f"{row['place']['strongest']:.0%}")
    yield table
    clear = sum(row["place"]["low"] > 0 or row["place"]["high"] < 0 for row in rows)
    chance = (1 - found["level"]) * len(rows)
    narrow = "" if branches else ", and phases that share checkpoints make intervals too narrow"
    yield (
        f"Within a phase at its place {clear} of {len(rows)} intervals exclude 0; about {chance:.0f} would by chance alone{narrow}."
        + (
            ""
            if every
            else " --all adds the forgetting of tasks trained before, and that of each task."
        )
    )
    yield f"{found['seconds']:.0f} s of computing, kept from then on: " + "; ".join(found["costs"])


def _strength(value: float) -> float:
    return abs(value) if math.isfinite(value) else 0.0


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "-"


def _interval(found: Mapping[str, float]) -> str:
    if not math.isfinite(found["spearman"]) or not math.isfinite(found["low"]):
        return _signed(found["spearman"])
    return f"{found['spearman']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


@dataclass(frozen=True)
class Section:
    """What the page says of probes."""

    columns: list[str]
    arms: list[tuple[str, list[str]]]
    """(arm, values): its end against its base, a mean over seeds."""
    steps: list[tuple[str, list[str]]]
    """(node, values): every checkpoint against what it was trained from."""
    alarms: list[str]


def section(bwt: Bwt) -> Section | None:
    """The section of the page; None where params.yaml asks for no probes, or they have not run."""
    pairs = set(asked()) if paths.PROBES.is_file() else set[tuple[str, str]]()
    if not pairs:
        return None
    import pandas as pd

    table = pd.read_parquet(paths.PROBES)
    known = {
        pair: [headline.value(found) for headline in HEADLINES]
        for pair, found in by_pair(table).items()
    }
    used = [i for i in range(len(HEADLINES)) if any(v[i] is not None for v in known.values())]
    bases = {str(seed): node for seed, node in bwt["base"]["nodes"].items()}
    arms = []
    for row in bwt["ranking"]:
        ends = [(node, bases.get(str(seed), "")) for seed, node in row["nodes"].items()]
        found = [known[pair] for pair in ends if pair in known]
        if found:
            means = [_mean([values[i] for values in found]) for i in used]
            arms.append((row["arm"], [number(value) for value in means]))
    steps = [
        (f"{node} after {other}", [number(values[i]) for i in used])
        for (node, other), values in known.items()
        if (node, other) in pairs
    ]
    return Section([HEADLINES[i].label for i in used], arms, steps, list(_alarms(table)))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _alarms(table: pd.DataFrame) -> Iterator[str]:
    for row in table[table["measure"].isin(list(ALARMS)) & (table["value"] > 0)].itertuples():
        yield f"{row.node}, compared with {row.other}, on {row.task}: {ALARMS[str(row.measure)]}"
