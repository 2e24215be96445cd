"""`trainorder check` and `trainorder plan` as a user meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project

from trainorder import results

pytestmark = pytest.mark.long("every test starts the command several times in a process of its own")


def test_check_says_what_the_params_ask_for(project: Project):
    out = project.cli("check").stdout
    assert (
        "params.yaml can work: 4 orders of 4 phases over 3 tasks, 1 seed(s), 11 checkpoints" in out
    )
    assert "wait for the measured transfer: recommended" in out
    assert not (project.root / "plan.yaml").exists()


def test_check_is_printed_as_json_too(project: Project):
    found = json.loads(project.cli("check", "--json").stdout)
    assert (found["orders"], found["checkpoints"], found["seeds"]) == (4, 11, [0])
    assert found["phases"] == ["math", "qa", "creative", "joint"]
    assert found["waiting"] == ["recommended"]


def test_an_answer_that_cannot_be_printed_is_one_line(project: Project):
    command = [sys.executable, "-m", "trainorder.cli", "check"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command,
            cwd=project.root,
            env=project.env,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left on the disk")
    assert done.stderr.count("\n") == 1


def test_the_help_states_the_exit_codes_and_a_dry_run_cannot_be_quiet(project: Project):
    said = " ".join(project.cli("--help").stdout.split())
    assert "Exit codes: 0, done; 1, the state of the machine" in said
    assert "2, something in what you gave" in said
    refused = project.cli("run", "--dry-run", "--quiet", ok=False)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --dry-run only prints: leave --quiet out\n",
    )


def test_a_mistake_costs_one_line_exit_code_2_and_no_file(project: Project):
    project.edit("params.yaml", "structured_first: [math,", "structured_first: [maths,")
    before = sorted(project.root.rglob("*"))
    for command in ("check", "plan"):
        refused = project.cli(command, ok=False)
        assert refused.returncode == 2
        assert refused.stdout == ""
        assert refused.stderr == (
            "error: orders.structured_first: no phase 'maths'; there are creative, joint, math, qa "
            "(did you mean 'math'?)\n"
        )
    after = [p for p in sorted(project.root.rglob("*")) if "__pycache__" not in p.parts]
    assert after == [p for p in before if "__pycache__" not in p.parts]


def test_plan_shows_the_tree_and_writes_plan_yaml_once(project: Project):
    first = project.cli("plan")
    assert "11 checkpoints" in first.stdout
    assert "s0  SFT of seed 0  to train" in first.stdout
    assert first.stdout.count("to train") == 11
    assert "11 new, 0 restorable, 0 cached" in first.stdout
    assert re.search(
        r"about [\d.]+ min with 2 workers, 11 x [\d.]+ [KM]iB of checkpoints", first.stdout
    )
    assert "recommended: once the transfer is measured, up to 2 more nodes" in first.stdout
    assert "plan.yaml written" in first.stdout
    assert "plan.yaml unchanged" in project.cli("plan").stdout


def test_plan_is_printed_as_json_too(project: Project):
    found = json.loads(project.cli("plan", "--json").stdout)
    assert len(found["nodes"]) == 11
    assert found["nodes"]["s0--math"]["state"] == "stale"
    assert found["nodes"]["s0--math"]["parents"] == ["s0"]
    assert found["nodes"]["s0--math"]["seconds"] > 0
    assert found["waiting"] == ["recommended"]


def test_doctor_finds_what_is_installed_and_names_what_stops_a_run(project: Project):
    found = {one["what"]: one for one in json.loads(project.cli("doctor", "--json").stdout)}
    assert found["torch"]["found"].startswith("2.")
    assert found["project"]["state"] == "ok"
    assert {one["state"] for one in found.values()} <= {"ok", "note"}
    (project.root / "runs").write_text("not a folder")
    refused = project.cli("doctor", ok=False)
    assert refused.returncode == 1
    assert re.search(r"problem\s+project\s+cannot run; .*/runs cannot be written", refused.stdout)


def test_show_tells_where_a_checkpoint_comes_from_and_refuses_one_that_is_not_there(
    project: Project,
):
    refused = project.cli("show", "s0--mat", ok=False)
    assert refused.returncode == 2
    assert "no node 's0--mat' in the plan" in refused.stderr
    assert "did you mean 's0--math'?" in refused.stderr
    assert "node 's0--math' is not made yet" in project.cli("show", "s0--math", ok=False).stderr
    manifest = {
        "node": "s0--math",
        "seed": 0,
        "phase": "math",
        "steps": 2,
        "weights": "0123456789abcdef",
        "seconds": 1.5,
        "tokens": 2000,
        "files": {},
        "parents": {"s0": "ffff"},
        "params": {"rl": {"lr": 0.1}},
        "data": {},
        "code": {},
        "hash": "",
    }
    (project.root / "runs" / "s0--math").mkdir(parents=True)
    (project.root / "runs" / "s0--math" / "manifest.json").write_text(json.dumps(manifest))
    out = project.cli("show", "s0--math").stdout
    assert "s0--math  2 steps of math, seed 0, 2,000 tokens, 1.5 s" in out
    assert "weights 0123456789ab" in out
    assert "not evaluated: `dvc repro plan/s0--math/dvc.yaml:evaluate`" in out
    assert json.loads(project.cli("show", "s0--math", "--json").stdout)["lineage"] == [
        "s0",
        "s0--math",
    ]


def test_plan_needs_a_dvc_project(project: Project):
    (project.root / ".dvc" / "config").rename(project.root / "config")
    (project.root / ".dvc" / "tmp").mkdir(exist_ok=True)
    for leftover in sorted((project.root / ".dvc").rglob("*"), reverse=True):
        leftover.rmdir() if leftover.is_dir() else leftover.unlink()
    (project.root / ".dvc").rmdir()
    refused = project.cli("plan", ok=False)
    assert refused.returncode == 2
    assert "is no DVC project: run `dvc init` here" in refused.stderr


def test_resolve_needs_a_measurement_and_then_fills_in_the_order(project: Project):
    refused = project.cli("plan", "--resolve", ok=False)
    assert refused.returncode == 2
    assert "reports/bwt.json not found: nothing is measured yet" in refused.stderr
    (project.root / "reports").mkdir()
    (project.root / "reports/bwt.json").write_text(
        results.to_json(
            {
                "version": results.VERSION,
                "recommended": {"order": ["qa", "creative", "math"]},
                "variants": {},
            }
        )
    )
    out = project.cli("plan", "--resolve").stdout
    assert "13 checkpoints" in out  # s0--qa is a single already; two more
    assert "once the transfer is measured" not in out
    assert "13 checkpoints" in project.cli("plan").stdout  # plan.yaml remembers


def test_check_is_fast_and_imports_nothing_heavy(project: Project):
    """Params alone take a third of what importing a model library takes, with files, machine and tasks less than that."""
    script = (
        "import sys, time\nfrom trainorder import plan\nplan.load()\nprint(time.process_time())\n"
        "from trainorder.cli import app\ntry: app(['check'])\nexcept SystemExit: pass\nprint(time.process_time())\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pandas', 'mlflow', 'prefect', 'dvc') if m in sys.modules])\n"
        "before = time.process_time()\nimport torch, transformers\nprint(time.process_time() - before)\n"
    )
    done = project.run(sys.executable, "-c", script)
    first, *_, whole, heavy, libraries = done.stdout.splitlines()
    assert heavy == "[]"
    assert float(first) < float(libraries) / 3
    assert float(whole) < float(libraries)


def test_the_module_and_the_command_are_the_same():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'trainorder = "trainorder.cli:app"' in text


def test_check_imports_no_torch_before_a_model_of_the_users_is_read() -> None:
    code = "import sys, trainorder.plan, trainorder.preflight; print(*{'torch', 'transformers', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
