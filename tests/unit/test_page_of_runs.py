"""What the page says of the runs behind its numbers: costs, provenance, curves, how to make them again."""

from __future__ import annotations

import html
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from order_worlds import TWO, measured

from trainorder import report
from trainorder.report import plots, records, reproduce, tables


@cache
def two() -> dict[str, Any]:
    return measured(TWO)


def test_costs_add_up_and_provenance_shows_the_files_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sounded = {"entropy": {"first_step": 7, "steps": 3, "value": 0.02}}
    manifest = {
        "alarms": sounded,
        "weights": "ab" * 32,
        "parents": {"s0": "cd" * 32},
        "params_hash": "ef" * 32,
    }
    for name, seconds in (("s0", 10.0), ("s0--math", 2.5)):
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(
            json.dumps({**manifest, "tokens": 1000, "seconds": seconds})
        )
    Path("evaluations").mkdir()
    Path("evaluations/s0.parquet").write_bytes(b"x")
    found = records.manifests(["s0", "s0--math", "s0--code"])
    assert records.alarms(found)[0].endswith(": entropy from step 7 on, 3 steps, last value 0.02")
    logged = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 1.0, "rollout/kl": 0.0321}]
    Path("runs/s0--math/metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in logged))
    base, child, total = tables.costs(found, records.parent_kl(found))
    assert (base["kl"], child["kl"], total["kl"]) == ("", "0.0321", "")
    assert (total["tokens"], total["seconds"]) == ("2 000", "12.5")
    first, second = tables.provenance(["s0", "s0--code"], found)
    assert first["evaluation"] == "2d711642b726"  # sha256 of "x"
    assert (first["weights"], first["parents"], first["params"]) == ("abababab", "s0", "efefefef")
    assert (second["evaluation"], second["weights"]) == ("-", "-")


def test_curves_skip_what_was_not_finite_and_are_drawn_per_phase(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for node in ("s0--a", "s0--b--a"):
        folder = Path("runs") / node
        folder.mkdir(parents=True)
        rows = [{"step": 0, "rollout/reward": 0.5}, {"step": 1, "rollout/reward": None}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert records.curves("s0--a") == {"rollout/reward": [(0, 0.5)]}
    svg = plots.learning(two(), "rollout/reward", "reward")
    assert svg is not None
    assert "from the base" in svg
    assert "after b" in svg
    assert plots.learning(two(), "no/such", "nothing") is None


def test_kl_over_steps_is_drawn_where_it_was_logged_at_more_than_one_and_is_no_rounding(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    bwt = two()
    assert plots.divergences(bwt) == []
    for node, last in (("s0--a", 1), ("s0--b--a", 0)):
        folder = Path("runs") / node
        folder.mkdir(parents=True)
        logged = {"rollout/kl": 0.5, "rollout/mismatch_kl": 1e-9}
        rows = [json.dumps({"step": step, **logged}) for step in range(last + 1)]
        (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    ((svg, caption),) = plots.divergences(bwt)
    assert "KL to the parent, nats per token" in svg
    assert "from the base" in svg
    assert "after b" not in svg  # a single step is no line
    assert caption in html.unescape(report.render(bwt))


def test_the_page_says_how_to_make_its_numbers_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAINORDER_PARAMS", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert dict(reproduce.reproduce({}).facts)["commit"] == "the project has none"
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@x")
    Path("params.yaml").write_text("seeds: [0]\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    command = [*git, "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    Path("dvc.lock").write_text("made by a run")
    machine = {"cores": 2, "processor": "Xeon", "system": "Linux", "arithmetic": {"gemm": "onednn"}}
    node = {"machine": machine, "versions": {"torch": "2.1"}}
    clean = reproduce.reproduce({"s0": node, "s1": node})
    assert clean.facts[0] == ("commit", f"{commit}, nothing changed since")
    assert clean.facts[2:] == [
        ("libraries", "torch 2.1"),
        ("machine", "2 cores of Xeon, Linux, float32 products by onednn"),
    ]
    names = [name for name, _ in clean.commands]
    assert names == [f"git checkout {commit}", "trainorder run", "dvc repro", "trainorder verify"]
    Path("params.yaml").write_text("seeds: [1]\n")
    Path("own.py").write_text("")
    page = report.render(two())
    assert f"{commit}, changed since: own.py, params.yaml" in page
    assert "without the changes named above" in page
    assert '<a href="#reproduce">' in page
