"""`trainorder mixture`: the quadratic surrogate finds the mixture that the measured ones point to."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from trainorder.cli import app
from trainorder.order.mixture import fit
from trainorder.results import VERSION, to_json

TASK = "{train: 4, dev: 2, test: 2}"
MIXES = {"math": (1, 0), "qa": (0, 1), "even": (1, 1), "more_math": (3, 1)}


def curve(share: float) -> float:
    """Best at .6."""
    return 0.2 + 0.2 * share + share * (1 - share)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    phases = [
        f"  {name}: {{kind: structured, steps: 4, tasks: {{{', '.join(f'{t}: {w}' for t, w in zip(('math', 'qa'), mix, strict=True) if w)}}}}}"
        for name, mix in MIXES.items()
    ]
    orders = ", ".join(f"{name}: [{name}]" for name in MIXES)
    lines = [f"tasks: {{math: {TASK}, qa: {TASK}}}", "phases:", *phases]
    lines += [f"orders: {{{orders}}}", "allow_unequal_budgets: true", ""]
    (tmp_path / "params.yaml").write_text("\n".join(lines))
    return tmp_path


def measured(folder: Path, names: tuple[str, ...] = tuple(MIXES)) -> None:
    found: dict[str, Any] = {"version": VERSION, "variant": "default", "variants": {}}
    found["tasks"] = ["qa", "held_out", "math"]
    found["orders"] = {}
    for name in names:
        score = curve(MIXES[name][0] / sum(MIXES[name]))
        rows = [[0.0, 0.0, 0.0], [score + 0.1, 0.9, score - 0.1]]
        found["orders"][name] = {"phases": [name], "R": {"dev": rows, "test": []}}
    (folder / "reports").mkdir(exist_ok=True)
    (folder / "reports" / "bwt.json").write_text(to_json(found))


def test_it_names_the_best_mixture_of_the_measured_curve(project: Path):
    measured(project)
    found = json.loads(CliRunner().invoke(app, ["mixture", "--json"]).stdout)
    assert found["best"]["mixture"] == {"math": 0.6, "qa": 0.4}
    assert found["best"]["predicted"] == pytest.approx(curve(0.6), abs=1e-3)
    assert [row["order"] for row in found["rows"]] == ["even", "more_math", "math", "qa"]
    shown = CliRunner().invoke(app, ["mixture"]).stdout
    assert "tasks: {math: 0.6, qa: 0.4}" in shown


def test_too_few_mixtures_are_refused_with_what_to_write(project: Path):
    measured(project, ("math", "even"))
    refused = CliRunner().invoke(app, ["mixture"])
    assert refused.exit_code == 2
    assert "needs at least 3 measured mixtures" in refused.stderr
    assert "orders: {even: [even]" in refused.stderr


def test_noise_around_a_flat_curve_explains_nothing_of_what_is_left_out():
    draw = np.random.default_rng(0)
    mixtures = [{"a": i, "b": 5 - i, "c": j} for i, j in itertools.product(range(1, 5), range(3))]
    scores = draw.normal(0.5, 0.02, len(mixtures)).tolist()
    assert fit(mixtures, scores).explained < 0.2
