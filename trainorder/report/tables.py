"""Rows and cells of the page's tables; a heat map is a table whose cells have a colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainorder import paths
from trainorder.metrics.statistics import side
from trainorder.report import words
from trainorder.report.records import digest
from trainorder.report.words import Bwt

Rgb = tuple[int, int, int]

LOW, HIGH = (248, 251, 254), (24, 88, 158)
"""Ends of the scale of scores."""
LOSS, NEUTRAL, GAIN = (179, 88, 6), (255, 255, 255), (33, 102, 172)
"""Orange, white, blue: distinct to every kind of colour vision; the sign is in the text for print."""


@dataclass(frozen=True)
class Cell:
    """One coloured cell."""

    text: str
    style: str = ""
    small: str = ""
    """Second line: the interval."""
    mark: bool = False
    """Outlined: the task that this row's phase trained."""


@dataclass(frozen=True)
class Heat:
    """One heat map with its captions."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    subtitle: str = ""
    facts: tuple[tuple[str, str], ...] = ()


def reward_matrices(bwt: Bwt) -> list[Heat]:
    """R of every order on test: row 0 is the base, row i what was scored after position i."""
    result = []
    for name, order in words.orders(bwt).items():
        labels = ["base", *(f"{i}. {phase}" for i, phase in enumerate(order["phases"], 1))]
        trained = [[], *order["positions"]]
        rows = [
            (
                label,
                [score_cell(v, task in now) for task, v in zip(bwt["tasks"], values, strict=True)],
            )
            for label, now, values in zip(labels, trained, order["R"]["test"], strict=True)
        ]
        measures = order["measures"]["test"]
        facts = tuple(
            (title, words.with_interval(m))
            for key, title in MEASURES.items()
            if (m := measures.get(key)) is not None
        )
        noise = order["forgetting_of_noise"]["test"]
        if noise is not None:
            facts += (("forgetting that noise alone shows", words.signed(noise)),)
        final = measures["ACC"]
        subtitle = (
            f"final mean {words.score(final['value'])} ({words.interval(final)})" if final else ""
        )
        result.append(Heat(name, _columns(bwt), rows, subtitle, facts))
    return result


MEASURES = {"BWT": "backward transfer", "FWT": "forward transfer", "forgetting": "forgetting"}
"""Measure in bwt.json -> its name on the page."""


PALER = 4
"""Changes whose interval includes 0 are drawn as if they were so many times smaller."""


def step_changes(bwt: Bwt) -> list[Heat]:
    """What every step of an order changed of every task on test, best order first; joint training has no steps."""
    found = {name: order for name, order in words.shown(bwt).items() if len(order["phases"]) > 1}
    bound = _bound(
        i["value"]
        for order in found.values()
        for step in order["steps"]
        for i in step.values()
        if i
    )
    return [
        Heat(
            name,
            _columns(bwt),
            [
                (
                    f"{place}. {phase}",
                    [
                        _change_cell(
                            i["value"] if (i := step[task]) else None,
                            bound * (PALER if i and not side(i) else 1),
                            words.interval(i, sign=True),
                            task in own,
                        )
                        for task in bwt["tasks"]
                    ],
                )
                for place, (phase, own, step) in enumerate(
                    zip(order["phases"], order["positions"], order["steps"], strict=True), 1
                )
            ],
            words.path(order["phases"]),
        )
        for name, order in found.items()
    ]


def transfer_from_base(bwt: Bwt) -> Heat | None:
    """What one phase, trained from the base, did to every task (dev: this matrix chooses the order)."""
    table = bwt["transfer"]["from_base"]["dev"]
    if not table:
        return None
    bound = _bound(i["value"] for row in table.values() for i in row.values())
    rows = [
        (
            phase,
            [
                _change_cell(
                    row[t]["value"],
                    bound,
                    words.interval(row[t], sign=True),
                    t in bwt["phases"][phase],
                )
                for t in bwt["tasks"]
            ],
        )
        for phase, row in ((p, table[p]) for p in words.phases(bwt, table))
    ]
    return Heat("From the base", _columns(bwt), rows)


def transfer_later(bwt: Bwt, key: str, title: str) -> Heat | None:
    """What a later phase did to a phase trained before (`after_training`) or not yet (`before_training`)."""
    table = bwt["transfer"][key]["dev"]
    known = [p for p in bwt["singles"] if p in table or any(p in row for row in table.values())]
    phases = words.phases(bwt, known)
    if not phases:
        return None
    bound = _bound(c["mean"] for row in table.values() for c in row.values())
    rows = [
        (later, [_later_cell(table.get(later, {}).get(p), bound) for p in phases])
        for later in phases
    ]
    return Heat(title, phases, rows)


def _later_cell(found: Mapping[str, Any] | None, bound: float) -> Cell:
    return (
        Cell("")
        if found is None
        else _change_cell(found["mean"], bound, f"n = {found['n']}", False)
    )


def precedence(bwt: Bwt) -> Heat | None:
    """P(row before column) in the order that is best for a resampled transfer matrix."""
    recommended = bwt["recommended"]
    if recommended is None:
        return None
    before, phases = recommended["before"], recommended["order"]
    rows = [
        (i, [Cell("") if i == j else _share_cell(before[i][j]) for j in phases]) for i in phases
    ]
    return Heat("How sure the sequence is", phases, rows)


@dataclass(frozen=True)
class Arm:
    """One row of the ranking."""

    name: str
    phases: str
    kind: str
    mean: str
    interval: str
    whisker: str
    """Inline SVG."""
    against_best: str
    against_joint: str
    parts_best: str
    """What the difference from the best is made of."""
    parts_joint: str
    best: bool
    same_as: str


def ranking(bwt: Bwt) -> tuple[list[Arm], str]:
    """Rows of the ranking, and the axis above their whiskers."""
    ranking = bwt["ranking"]
    scale = Scale.of(
        [row for row in ranking if row["kind"] in ("order", "joint", "distill")] or ranking
    )
    best = words.leader(bwt)["mean"]["value"]
    level = f"{bwt['settings']['level']:.0%}"
    arms = [
        Arm(
            name=row["arm"],
            phases=""
            if row["arm"] in ("_".join(row["phases"] or ()), row["kind"])
            else words.path(row["phases"]) or row["kind"],
            kind=row["kind"],
            mean=words.score(row["mean"]["value"]),
            interval=words.interval(row["mean"]),
            whisker=_whisker(row, scale, best, level),
            against_best=difference(row["differences"]["best"]),
            against_joint=difference(row["differences"]["joint"]),
            parts_best=_split(row["differences"]["best"]),
            parts_joint=_split(row["differences"]["joint"]),
            best=row["arm"] == bwt["winner"]["best"],
            same_as=words.listed(row["same_as"]),
        )
        for row in ranking
    ]
    return arms, _axis(scale)


def by_task(bwt: Bwt) -> Heat:
    """Final test score of every arm on every task; the best of a column is outlined."""
    best = {t: max(row["tasks"][t]["value"] for row in bwt["ranking"]) for t in bwt["tasks"]}
    small = len(bwt["ranking"]) <= 2 * words.MANY
    rows = []
    for row in bwt["ranking"]:
        cells = [
            score_cell(i["value"], i["value"] == best[t], words.interval(i) if small else "")
            for t, i in ((t, row["tasks"][t]) for t in bwt["tasks"])
        ]
        rows.append((row["arm"], [*cells, score_cell(row["greedy"]), score_cell(row["pass_at_k"])]))
    return Heat("", [*_columns(bwt), "greedy", "pass@k"], rows)


def guards(bwt: Bwt) -> Heat | None:
    """What every arm changed of the tasks that no phase trains; first row: their scores at the base."""
    found = bwt["guards"]
    if not found:
        return None
    columns = [("lm-eval " if g["kind"] == "harness" else "") + g["task"] for g in found]
    bound = _bound(i["value"] for g in found for i in g["change"].values() if i)
    base = [Cell(words.score(g["base"]["value"]), small=words.interval(g["base"])) for g in found]
    rows = [("base", base)]
    for row in bwt["ranking"]:
        if row["arm"] != "base":
            changes = [g["change"][row["arm"]] for g in found]
            cells = [_change_cell(i["value"], bound * (1 if side(i) else PALER), words.interval(i, sign=True), False) for i in changes]  # fmt: skip
            rows.append((row["arm"], cells))
    return Heat("", columns, rows)


def costs(
    found: Mapping[str, Mapping[str, Any]], moved: Mapping[str, float] | None = None
) -> list[dict[str, str]]:
    """Node, tokens and seconds from the manifests, with a last row of sums; `moved` is the KL to the parent by node."""
    rows = [
        (n, m.get("steps"), m.get("tokens") or 0, m.get("seconds") or 0.0) for n, m in found.items()
    ]
    total = ("all nodes", None, sum(r[2] for r in rows), sum(r[3] for r in rows))
    longest = max([r[3] for r in rows], default=0.0) or 1.0
    return [
        {
            "node": name,
            "steps": str(steps or ""),
            "kl": f"{moved[name]:.4f}" if moved and name in moved else "",
            "tokens": f"{tokens:,}".replace(",", " "),
            "seconds": f"{seconds:.1f}",
            "rate": f"{tokens / seconds:,.0f}".replace(",", " ") if seconds and tokens else "",
            "bar": f"{100 * seconds / longest:.0f}" if name != "all nodes" else "0",
        }
        for name, steps, tokens, seconds in [*rows, total]
    ]


def provenance(
    names: Sequence[str], found: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Node -> its evaluation file and what its manifest says it was made from, as short hashes."""
    return [
        {
            "node": name,
            "evaluation": digest(paths.evaluation(name)) or "-",
            "weights": _short(found.get(name, {}).get("weights")),
            "parents": ", ".join(found.get(name, {}).get("parents", {})) or "-",
            "params": _short(found.get(name, {}).get("params_hash")),
            "code": _short(*found.get(name, {}).get("code", {}).values()),
            "data": _short(*found.get(name, {}).get("data", {}).values()),
        }
        for name in names
    ]


def _short(*hashes: str | None) -> str:
    return " ".join(h[:8] for h in hashes if h) or "-"


def _columns(bwt: Bwt) -> list[str]:
    return list(words.task_names(bwt).values())


def score_cell(value: float | None, mark: bool = False, small: str = "") -> Cell:
    """A score on the scale from LOW to HIGH."""
    if value is None:
        return Cell("")
    return Cell(words.score(value), fill(mix(LOW, HIGH, min(max(value, 0.0), 1.0))), small, mark)


def _share_cell(value: float) -> Cell:
    return Cell(f"{value:.0%}", fill(mix(LOW, HIGH, value)))


def _change_cell(value: float | None, bound: float, small: str, mark: bool) -> Cell:
    if value is None:
        return Cell("")
    part = min(abs(value) / bound, 1.0)
    colour = mix(NEUTRAL, GAIN if value > 0 else LOSS, part**0.6)
    return Cell(words.signed(value), fill(colour), small, mark)


def _bound(values: Any) -> float:
    """The change that gets the full colour, at least 5 points: noise should look pale."""
    return max([0.05, *(abs(v) for v in values if v is not None)])


def mix(a: Rgb, b: Rgb, part: float) -> Rgb:
    """The colour `part` of the way from a to b."""
    return tuple(round(x + (y - x) * part) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def fill(colour: Rgb) -> str:
    """Background with a text colour that can be read on it (relative luminance of sRGB)."""
    red, green, blue = (c / 255 for c in colour)
    dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18
    return f"background:rgb{colour};color:{'#fff' if dark else '#000'}".replace(" ", "")


@dataclass(frozen=True)
class Scale:
    """Score -> x on a strip of `width` units."""

    low: float
    high: float
    width: float = 260.0

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Scale:
        """As wide as the means, intervals and seeds of these arms."""
        means = [row["mean"] for row in rows]
        ends = [mean[end] for mean in means for end in ("low", "high") if mean[end] is not None]
        ends += [value for mean in means for value in mean["seeds"].values()]
        pad = 0.04 * (max(ends) - min(ends)) or 0.05
        return cls(min(ends) - pad, max(ends) + pad)

    def holds(self, value: float) -> bool:
        """Whether a score lies on the strip."""
        return self.low <= value <= self.high

    def x(self, value: float) -> float:
        """Position of a score."""
        return round(self.width * (value - self.low) / (self.high - self.low), 1)

    def ticks(self) -> list[float]:
        """Round values inside the scale, 3 to 6 of them."""
        for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
            first = int(self.low / step) + 1
            found = [i * step for i in range(first, int(self.high / step) + 1)]
            if len(found) <= 6:
                return found
        return []


def _whisker(row: Mapping[str, Any], scale: Scale, best: float, level: str) -> str:
    """Dot, interval, one tick per seed, and the best arm's mean as a dotted line; an arrow for an arm off the strip."""
    mean = row["mean"]
    x, y = scale.x(mean["value"]), 11
    parts = [
        f'<line class="grid" x1="{scale.x(t)}" x2="{scale.x(t)}" y1="0" y2="22"/>'
        for t in scale.ticks()
    ]
    parts.append(f'<line class="best" x1="{scale.x(best)}" x2="{scale.x(best)}" y1="0" y2="22"/>')
    if not scale.holds(mean["value"]):
        tip, way = (2.0, 1) if mean["value"] < scale.low else (scale.width - 2.0, -1)
        parts.append(f'<path class="open" d="M{tip} {y}l{8 * way} -4.5v9z"/>')
    else:
        if mean["low"] is not None:
            a, b = (min(max(scale.x(mean[end]), 0.0), scale.width) for end in ("low", "high"))
            parts.append(f'<path class="ci" d="M{a} {y}H{b}M{a} {y - 4}v8M{b} {y - 4}v8"/>')
        if len(mean["seeds"]) > 1:
            parts += [
                f'<circle class="seed" cx="{scale.x(v)}" cy="{y}" r="2.2"/>'
                for v in mean["seeds"].values()
                if scale.holds(v)
            ]
        parts.append(_dot(row["kind"], x, y))
    text = f"{row['arm']}: {words.score(mean['value'])}, {level} interval {words.interval(mean)}"
    return f'<svg viewBox="0 0 {scale.width:.0f} 22" role="img" aria-label="{text}">{"".join(parts)}</svg>'


def _dot(kind: str, x: float, y: float) -> str:
    """Full circle for an order, square for joint, diamond for distillation, open triangle for a merge, cross for the base."""
    shapes = {
        "order": f'<circle class="dot" cx="{x}" cy="{y}" r="5"/>',
        "joint": f'<rect class="dot" x="{x - 4.5:.1f}" y="{y - 4.5}" width="9" height="9"/>',
        "distill": f'<path class="dot" d="M{x} {y - 6}l6 6l-6 6l-6 -6z"/>',
        "merge": f'<path class="open" d="M{x} {y - 5.5}l5.2 9.4h-10.4z"/>',
        "base": f'<path class="cross" d="M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8"/>',
    }
    return shapes[kind]


def _axis(scale: Scale) -> str:
    labels = "".join(f'<text x="{scale.x(t)}" y="11">{t:.2f}</text>' for t in scale.ticks())
    return f'<svg class="axis" viewBox="0 0 {scale.width:.0f} 14">{labels}</svg>'


def _split(i: Mapping[str, Any] | None) -> str:
    return "" if i is None else words.split(i["parts"])


def difference(i: Mapping[str, Any] | None) -> str:
    """A paired difference with its interval, empty where there is none."""
    return "" if i is None else words.with_interval(i)
