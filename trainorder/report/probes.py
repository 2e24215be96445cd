"""What probes found, for a reader: on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainorder import paths, plan
from trainorder.probes.base import AFTER, ALL, BEFORE, CHANGE, Row
from trainorder.probes.run import Found
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


@dataclass(frozen=True)
class Headline:
    """One column of the page's table: a mean over the tasks of a measure."""

    label: str
    probe: str
    part: str
    measure: str


HEADLINES = (
    Headline("weights unchanged (bf16)", "sparsity", ALL, "unchanged_bf16"),
    Headline("size of the update", "sparsity", ALL, "relative_norm"),
    Headline("its effective rank", "rank", ALL, "effective_rank"),
    Headline("overlap of top tenths", "overlap", ALL, "top_overlap"),
    Headline("KL from before", "kl", ALL, "forward"),
    Headline("KL to before", "kl", ALL, "reverse"),
    Headline("gained", "turnover", ALL, "gained"),
    Headline("lost", "turnover", ALL, "lost"),
    Headline("change of forms", "formats", ALL, "distance"),
    Headline("gain by form", "format_only", ALL, "gain_form"),
    Headline("above a guess", "random_valid", ALL, "above.change"),
    Headline("different answers", "diversity", "within", "semantic_vendi.change"),
    Headline("length", "length_accuracy", ALL, "length.change"),
    Headline("rank of states", "plasticity", ALL, "state_rank.change"),
    Headline("tasks that move alike", "perturbation", "update", "entanglement"),
)
ALARMS = {
    "alarm_one_form": "one form of answer now crowds out the others",
    "alarm_wrong_form": "the form that gains share scores less than another",
}


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
    asked = set(plan.compared()) if paths.PROBES.is_file() else set[tuple[str, str]]()
    if not asked:
        return None
    import pandas as pd

    table = pd.read_parquet(paths.PROBES)
    by_pair: Values = {}
    for key, own in table.groupby(["node", "other"], sort=False):
        by_pair[key] = [_headline(own, headline) for headline in HEADLINES]
    used = [i for i in range(len(HEADLINES)) if any(v[i] is not None for v in by_pair.values())]
    bases = {str(seed): node for seed, node in bwt["base"]["nodes"].items()}
    arms = []
    for row in bwt["ranking"]:
        pairs = [(node, bases.get(str(seed), "")) for seed, node in row["nodes"].items()]
        found = [by_pair[pair] for pair in pairs if pair in by_pair]
        if found:
            means = [_mean([values[i] for values in found]) for i in used]
            arms.append((row["arm"], [number(value) for value in means]))
    steps = [
        (f"{node} after {other}", [number(values[i]) for i in used])
        for (node, other), values in by_pair.items()
        if (node, other) in asked
    ]
    return Section([HEADLINES[i].label for i in used], arms, steps, list(_alarms(table)))


Values = dict[Any, list[float | None]]


def _headline(rows: pd.DataFrame, headline: Headline) -> float | None:
    own = rows[
        (rows["probe"] == headline.probe)
        & (rows["part"] == headline.part)
        & (rows["measure"] == headline.measure)
    ]
    over_all = own[own["task"] == ALL]
    values = (over_all if len(over_all) else own)["value"]
    return float(values.mean()) if len(values) else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _alarms(table: pd.DataFrame) -> Iterator[str]:
    for row in table[table["measure"].isin(list(ALARMS)) & (table["value"] > 0)].itertuples():
        yield f"{row.node}, compared with {row.other}, on {row.task}: {ALARMS[str(row.measure)]}"
