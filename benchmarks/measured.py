"""The measured numbers of methods, which docs/findings.md and docs/methods.md are both written from."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from trainorder.files import write_text

NUMBERS = Path(__file__).parent / "method_outcomes.csv"
STEP_COSTS = Path(__file__).parent / "step_costs.csv"
"""Of every preset, from a random model (`python -m benchmarks.needs_cost --presets`)."""
SEEDS = (0, 1, 2)
POLICY = "policy: {hidden_size: 64, num_layers: 3, num_heads: 2, mlp_size: 192, max_positions: 192}"
ENDING = (
    f"seeds: {list(SEEDS)}",
    "allow_unequal_budgets: true",
    "evaluation: {samples: 4}",
    "measure: {bootstrap: 200}",
    "flow: {workers: 2}",
    "",
)
"""Lines that the params files of measured methods share."""
REFERENCE = "grpo"
CLEAR = 2.0
"""Standard errors over seeds beyond which a verdict says higher or lower."""
MEASURES = {"score": "score", "entropy": "entropy, nats per 100 steps", "others": "other tasks"}
"""Column of the numbers -> of the table."""


@dataclass(frozen=True)
class Measured:
    """A method in one phase: means over seeds; `_minus` is the difference to GRPO paired by seed, `_se` its standard error."""

    phase: str
    method: str
    seeds: int
    score: float
    """Mean test score of the task that was trained."""
    entropy: float
    """Change of the rollouts' entropy, nats per 100 steps."""
    others: float
    """Mean over the other tasks of test score minus that of the base."""
    cost: float | None
    """CPU time of a step against GRPO's."""
    score_minus: float | None = None
    score_se: float | None = None
    entropy_minus: float | None = None
    entropy_se: float | None = None
    others_minus: float | None = None
    others_se: float | None = None
    version: str = ""
    """Commit that it was measured at."""
    grpo: float | None = None
    """Score of GRPO in the same run, with which it is compared."""


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and the standard error over seeds; None where there are too few for one.

    >>> mean_and_error([0.1, 0.2, 0.3])
    (0.2, 0.058)
    >>> mean_and_error([0.1]), mean_and_error([])
    ((0.1, None), (None, None))
    """
    if not values:
        return None, None
    error = round(stdev(values) / len(values) ** 0.5, 3) if len(values) > 1 else None
    return round(mean(values), 3), error


def read(file: Path = NUMBERS) -> list[Measured]:
    """The rows of the file."""
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return [_row(cells) for cells in rows]


def _row(cells: dict[str, str]) -> Measured:
    names = {key: cells.pop(key) for key in ("phase", "method", "version")}
    numbers: dict[str, Any] = {key: float(text) if text else None for key, text in cells.items()}
    return Measured(**names, **numbers | {"seeds": int(cells["seeds"])})


def write(rows: Sequence[Measured], file: Path = NUMBERS) -> None:
    """All rows, instead of those in the file."""
    columns = [field.name for field in fields(Measured)]
    lines = [columns, *([getattr(row, name) for name in columns] for row in rows)]
    text = [",".join("" if cell is None else str(cell) for cell in line) for line in lines]
    write_text(file, "\n".join([*text, ""]))


def tables(rows: Sequence[Measured], left_out: Mapping[str, str]) -> str:
    """The tables of docs/findings.md, one per phase."""
    lines = list[str]()
    for phase in dict.fromkeys(row.phase for row in rows):
        titles = [cell for title in MEASURES.values() for cell in (title, "minus GRPO")]
        lines += [f"**{phase}**", "", f"| method | {' | '.join(titles)} | cost of a step |"]
        lines += ["|---" * (len(titles) + 2) + "|"]
        lines += [_table_row(row) for row in rows if row.phase == phase]
        lines += [""]
        lines += [f"{note}\n" for note in _later([row for row in rows if row.phase == phase])]
    text = "Differences are paired by seed, with their standard error over seeds."
    if left_out:
        names = ", ".join(f"`{name}` ({why})" for name, why in left_out.items())
        text += f" Left out: {names}."
    lines += [text]
    return "\n".join(lines)


def _later(rows: Sequence[Measured]) -> Iterator[str]:
    """Which rows of a phase were measured at another version than GRPO's, and what GRPO scored there."""
    usual = next((row.version for row in rows if row.method == REFERENCE), "")
    for version in dict.fromkeys(row.version for row in rows if row.version != usual):
        own = [row for row in rows if row.version == version]
        names = ", ".join(f"`{row.method}`" for row in own)
        score = "" if own[0].grpo is None else f", where GRPO scores {own[0].grpo:.3f}"
        yield (
            f"Measured at {version}, all others at {usual}: {names}{score}; their differences are to that."
        )


def _table_row(row: Measured) -> str:
    cells = [f"`{row.method}`"]
    for key in MEASURES:
        value, minus = getattr(row, key), getattr(row, f"{key}_minus")
        error = getattr(row, f"{key}_se")
        cells += [f"{value:.3f}" if key == "score" else f"{value:+.3f}"]
        spread = "" if error is None else f" (se {error:.3f})"
        cells += ["" if minus is None else f"{minus:+.3f}{spread}"]
    return f"| {' | '.join([*cells, '' if row.cost is None else f'{row.cost:.2f} x'])} |"


def verdicts(rows: Sequence[Measured], left_out: Mapping[str, str]) -> dict[str, str]:
    """Method -> what was measured of it against GRPO, in one clause; methods that were not measured are missing."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.method, []).append(f"{row.phase}: {', '.join(_clauses(row))}")
    found[REFERENCE] = ["the reference", *found.get(REFERENCE, [])]
    said = {method: "; ".join(phases) for method, phases in found.items()}
    unmeasured = {name: f"not measured: {why}" for name, why in left_out.items()}
    return unmeasured | said


def costs(rows: Sequence[Measured]) -> dict[str, str]:
    """Method -> CPU time of a step against GRPO's, by phase, else that from a random model."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.cost is not None:
            found.setdefault(row.method, []).append(f"{row.phase} {row.cost:.2f} x")
    alone = csv.DictReader(STEP_COSTS.read_text(encoding="utf-8").splitlines())
    random = {row["method"]: f"random model {float(row['cost']):.2f} x" for row in alone}
    return random | {method: ", ".join(phases) for method, phases in found.items()}


def _clauses(row: Measured) -> Iterator[str]:
    if row.method == REFERENCE:
        yield f"score {row.score:.3f}"
        yield f"entropy {row.entropy:+.3f}"
        return
    for key, title in (("score", "score"), ("entropy", "entropy")):
        yield f"{title} {_against(getattr(row, f'{key}_minus'), getattr(row, f'{key}_se'))}"


def _against(minus: float | None, error: float | None) -> str:
    """A difference and whether it is clear of zero.

    >>> _against(-0.083, 0.016), _against(0.02, 0.026), _against(0.02, None)
    ('-0.083 (lower)', '+0.020 (open)', '+0.020 (open)')
    """
    if minus is None:
        return "without GRPO of the same seed"
    clear = error is not None and abs(minus) > CLEAR * error
    return f"{minus:+.3f} ({('higher' if minus > 0 else 'lower') if clear else 'open'})"
