"""The whole pipeline on the smoke params, on real parts: DVC, subprocesses, SQLite, a Prefect server.

Two projects are trained from scratch once per test session, one by `dvc repro`, one by the flow under random kills; the
facts below are read off them. Tests that change something work on a copy.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import documented
import pytest
import screens
from conftest import ROOT, Project, make_project

from trainorder.plan.names import parts

pytestmark = pytest.mark.long(
    "trains the smoke experiment twice: by DVC, and by the flow under kills"
)


@pytest.fixture(scope="session")
def by_dvc(tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]) -> Project:
    """Trained by `dvc repro`, second pass included (the plan is resolved in between, as the flow does)."""
    project = replace(make_project(tmp_path_factory.mktemp("by_dvc") / "project"), settings=warm)
    project.cli("plan")
    project.dvc("repro")
    project.cli("plan", "--resolve")
    project.dvc("repro")
    return project


@pytest.fixture(scope="session")
def soak(by_dvc: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict]:
    """Trained by the Prefect flow, three times killed and started again; and what kill_soak found (`--kills 100`: many more, by hand)."""
    project = Project(tmp_path_factory.mktemp("by_flow") / "project")
    command = ["--kills", "3", "--seconds", "7", "--checkpoint-seconds", "0.5", "--seed", "1"]
    command += ["--params", "configs/smoke.yaml", "--reference", str(by_dvc.root)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_soak", *command, "--keep", str(project.root)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return project, json.loads(done.stdout)


@pytest.fixture(scope="session")
def by_flow(soak: tuple[Project, dict]) -> Project:
    return soak[0]


@pytest.fixture
def trained(by_dvc: Project, tmp_path: Path) -> Project:
    """A copy of the trained project, to change things in."""
    shutil.copytree(by_dvc.root, tmp_path / "project", symlinks=True)
    return replace(by_dvc, root=tmp_path / "project")


def hashes(project: Project, *patterns: str) -> dict[str, str]:
    """Path -> sha256 of every file that matches."""
    files = [
        path
        for pattern in patterns
        for path in sorted(project.root.glob(pattern))
        if path.is_file()
    ]
    assert files
    return {
        str(path.relative_to(project.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def nodes(project: Project) -> list[str]:
    """The nodes of the plan."""
    return [file.parent.name for file in project.root.glob("plan/*/dvc.yaml")]


def stages_run(output: str) -> set[str]:
    """The stages a `dvc repro` executed, without the one that always runs."""
    return set(re.findall(r"Running stage '([^']+)'", output)) - {"fingerprint"}


def test_the_flow_killed_three_times_leaves_the_bytes_of_dvc(soak: tuple[Project, dict]):
    _, found = soak
    assert (found["kills"], found["different"]) == (3, [])
    assert found["files_compared"] > 50


def test_stages_in_processes_of_their_own_leave_the_same_bytes(trained: Project):
    before = hashes(trained, "checkpoints/**/*", "evaluations/*")
    again = ("plan/s0--creative/dvc.yaml:train", "plan/s0--creative/dvc.yaml:evaluate")
    alone = Project(trained.root).dvc("repro", "--force", "--single-item", *again)
    assert stages_run(alone.stdout) == set(again)
    assert hashes(trained, "checkpoints/**/*", "evaluations/*") == before


def test_a_second_run_trains_nothing(by_dvc: Project, by_flow: Project):
    assert stages_run(by_dvc.dvc("repro").stdout) == set()
    before = hashes(by_flow, "runs/**/*", "reports/*")
    by_flow.cli("run")
    assert hashes(by_flow, "runs/**/*", "reports/*") == before


def test_reordering_the_last_two_phases_trains_two_nodes_and_undo_none(trained: Project):
    before = set(nodes(trained))
    # one of the two may be the order that was recommended, and so be trained already
    swaps = {
        "structured_first": ("math", "qa", "creative"),
        "creative_first": ("creative", "qa", "math"),
    }
    name, (a, b, c) = next(
        (name, order)
        for name, order in swaps.items()
        if f"s0--{order[0]}--{order[2]}" not in before
    )
    old, new = f"{name}: [{a}, {b}, {c}]", f"{name}: [{a}, {c}, {b}]"
    trained.edit("params.yaml", old, new)
    assert trained.cli("plan").stdout.count("to train") == 2
    ran = stages_run(trained.dvc("repro").stdout)
    grown = {f"s0--{a}--{c}", f"s0--{a}--{c}--{b}"}
    assert {name for does, name in map(parts, ran) if does == "train"} == grown
    assert {name for does, name in map(parts, ran) if does == "evaluate"} == grown
    trained.edit("params.yaml", new, old)
    trained.cli("plan")
    # metrics are written again, in seconds: files in git have no cache to come from
    ran = {stage for stage in stages_run(trained.dvc("repro").stdout) if ":" in stage}
    assert ran <= {"plan/dvc.yaml:metrics"}


def test_a_lost_checkpoint_is_restored_not_trained(trained: Project):
    before = hashes(trained, "checkpoints/**/*")
    shutil.rmtree(trained.root / "checkpoints")
    assert stages_run(trained.dvc("repro").stdout) == set()
    assert hashes(trained, "checkpoints/**/*") == before


def test_a_second_clone_pulls_everything_and_trains_nothing(trained: Project, tmp_path: Path):
    trained.dvc("remote", "add", "--default", "store", str(tmp_path / "remote"))
    trained.dvc("push", "--run-cache", "--quiet")
    trained.run("git", "add", "--all")
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    trained.run("git", *who, "commit", "--quiet", "--message", "an experiment")
    clone = replace(trained, root=tmp_path / "clone")
    trained.run("git", "clone", "--quiet", ".", str(clone.root))
    assert not (clone.root / "checkpoints").exists()
    assert stages_run(clone.dvc("repro", "--pull").stdout) == set()
    made = ("checkpoints/**/*", "evaluations/*", "runs/**/*", "reports/*")
    assert hashes(clone, *made) == hashes(trained, *made)
    assert "to train" not in clone.cli("plan").stdout


def test_a_run_with_other_params_is_saved_as_an_experiment_that_can_be_applied(trained: Project):
    trained.run("git", "add", "--all")
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    trained.run("git", *who, "commit", "--quiet", "--message", "an experiment")
    before = hashes(trained, "checkpoints/**/*", "evaluations/*")
    measured = (trained.root / "reports/bwt.json").read_bytes()
    done = trained.cli("run", "--set", "measure.level=0.9", "--exp", "narrow")
    assert "experiment narrow: `dvc exp show` compares" in done.stdout
    assert hashes(trained, "checkpoints/**/*", "evaluations/*") == before  # only measured again
    assert (trained.root / "reports/bwt.json").read_bytes() != measured
    header, *rows = csv.DictReader(trained.dvc("exp", "show", "--csv").stdout.splitlines())
    assert "narrow" in {row["Experiment"] for row in (header, *rows)}
    trained.run("git", "checkout", "--quiet", "--", "params.yaml")
    assert "0.9" not in (trained.root / "params.yaml").read_text()
    trained.run("git", "stash", "--quiet", "--include-untracked")
    trained.dvc("exp", "apply", "narrow")
    assert "level: 0.9" in (trained.root / "params.yaml").read_text()


def test_every_command_that_the_docs_show_of_a_finished_run_works(trained: Project):
    trained.run("git", "add", "--all")
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    trained.run("git", *who, "commit", "--quiet", "--message", "an experiment")
    commands = {"trainorder": trained.cli, "dvc": trained.dvc}
    for tool, *words in documented.to_run_here():
        done = commands[tool](*words)
        assert "Traceback" not in done.stderr, (tool, words)


def test_a_stale_plan_stops_dvc_repro_at_once(trained: Project):
    trained.edit("params.yaml", "[math, qa, creative]", "[qa, math, creative]")
    stopped = trained.dvc("repro", ok=False)
    assert stopped.returncode != 0
    assert "trainorder plan" in stopped.stdout + stopped.stderr
    assert stages_run(stopped.stdout) == set()


def test_a_comment_and_a_formula_that_no_phase_names_retrain_nothing_and_a_named_one_all(
    trained: Project,
):
    pieces = trained.root / "trainorder" / "rl" / "pieces" / "advantages.py"
    pieces.write_text(pieces.read_text() + "\n# a comment\n")
    trained.edit(
        "trainorder/rl/pieces/advantages.py",
        "def rloo(roll: Roll, state: State)",
        "def rloo(roll: Roll, state: State, *, unused: float = 1.0)",
    )
    assert stages_run(trained.dvc("repro").stdout) == set()
    assert "to train" not in trained.cli("plan").stdout
    trained.edit("trainorder/rl/pieces/advantages.py", "eps: float = 1e-6", "eps: float = 2e-6")
    assert trained.cli("plan").stdout.count("to train") == len(nodes(trained)) - 1  # not the base


def test_every_phase_learns_something(by_dvc: Project):
    # else equal bytes after kills, reorders and clones would say little
    for path in by_dvc.root.glob("runs/*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest.get("phase"):
            assert manifest["weights"] not in manifest["parents"].values(), manifest["node"]


def test_every_node_leaves_its_manifest_with_its_parents_hash(by_dvc: Project):
    for path in by_dvc.root.glob("runs/*/manifest.json"):
        manifest = json.loads(path.read_text())
        weights = by_dvc.root / "checkpoints" / manifest["node"] / "model.safetensors"
        assert manifest["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        for parent, digest in manifest["parents"].items():
            file = by_dvc.root / "checkpoints" / parent / "model.safetensors"
            assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_bad_input_is_refused_in_words_and_writes_nothing(project: Project):
    project.edit("params.yaml", "orders:", "ordres:")
    for command in ("check", "plan", "run"):
        refused = project.cli(command, ok=False)
        assert refused.returncode == 2
        assert "ordres: unknown key" in refused.stderr
        assert "did you mean 'orders'?" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not [
        p
        for p in ("plan.yaml", "checkpoints", ".prefect", "mlflow.db")
        if (project.root / p).exists()
    ]


def test_mlflow_holds_one_run_per_node_and_one_per_arm(by_flow: Project):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{by_flow.root}/mlflow.db")
    runs = {}
    for name in ("nodes", "orders"):
        [experiment] = client.search_experiments(filter_string=f"name LIKE '%/{name}'")
        runs[name] = client.search_runs([experiment.experiment_id], max_results=1000)
    nodes = {p.parent.name for p in by_flow.root.glob("runs/*/manifest.json")}
    assert sorted(r.data.tags["node"] for r in runs["nodes"]) == sorted(nodes)
    assert {r.info.status for r in runs["nodes"]} == {"FINISHED"}
    bwt = json.loads((by_flow.root / "reports" / "bwt.json").read_text())
    assert len(runs["orders"]) == len({r.data.tags["order_key"] for r in runs["orders"]})
    arms = [r for r in runs["orders"] if r.data.tags["kind"] != "verdict"]
    assert len(arms) == len(bwt["ranking"])
    assert (
        len(
            {r.info.run_id for r in runs["orders"] if r.data.tags["current"] == "true"}
            - {r.info.run_id for r in arms}
        )
        == 1
    )


@pytest.fixture
def looked_at(request: pytest.FixtureRequest) -> Project:
    """A finished run: of the flow above, or the one in the folder that SCREENSHOTS_OF names."""
    if folder := os.environ.get("SCREENSHOTS_OF"):
        return Project(Path(folder).resolve())
    return request.getfixturevalue("by_flow")


def test_the_pages_of_a_finished_run_show_what_they_should_and_no_console_has_an_error(
    looked_at: Project,
):
    assert screens.walk(looked_at) == []


def test_the_report_stands_alone(by_flow: Project):
    page = (by_flow.root / "reports" / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']https?://""", page)
    for order in json.loads((by_flow.root / "reports" / "bwt.json").read_text())["orders"]:
        assert order in page


KINDS_OF_FILE = {
    "checkpoints/s0--math/model.safetensors": "s0--math: checkpoint: {file} was changed",
    "checkpoints/s0--math/tokenizer.json": "s0--math: checkpoint: {file} was changed",
    "checkpoints/s0/model.safetensors": "s0--math: parent s0: the weights",
    "data/tasks/math/train.jsonl": "s0--math: data: {file} is not what it was trained on",
    "runs/s0--math/manifest.json": "s0--math: {file} was changed",
    "runs/s0--math/metrics.jsonl": "plan/s0--math/dvc.yaml:train: {file} was changed",
    "runs/s0--math/run.json": "plan/s0--math/dvc.yaml:train: {file} was changed",
    "evaluations/s0--math.parquet": "plan/s0--math/dvc.yaml:evaluate: {file} was changed",
    "checkpoints/judge/reward/model.safetensors": "plan/dvc.yaml:judge-reward: checkpoints/judge/reward was changed",
    "reports/bwt.json": "plan/dvc.yaml:measure_bwt: {file} was changed",
    "reports/report.html": "plan/dvc.yaml:report: {file} was changed",
    "data/sft/demonstrations.jsonl": "build_data: data/sft was changed",
}


def test_verify_finds_a_flipped_bit_in_every_kind_of_file(trained: Project):
    script = (
        "import json, sys; from pathlib import Path; from trainorder.verify import verify\n"
        "found = {'': verify()}\n"
        f"for name in {list(KINDS_OF_FILE)!r}:\n"
        "    path = Path(name); data = path.read_bytes(); at = len(data) // 2; path.unlink()\n"
        "    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])\n"
        "    found[name] = verify(); path.write_bytes(data)\n"
        "print(json.dumps(found))"
    )
    found = json.loads(trained.run(sys.executable, "-c", script).stdout)
    assert found.pop("") == []
    for file, differences in found.items():
        expected = KINDS_OF_FILE[file].format(file=file)
        assert any(text.startswith(expected) for text in differences), (file, differences)


def test_verify_names_changed_params_and_code_and_damage_in_the_cache(trained: Project):
    assert trained.cli("verify").stdout == "every node: as recorded\n"
    trained.edit("params.yaml", "warmup_steps: 1}", "warmup_steps: 2}")
    trained.edit("trainorder/rl/pieces/advantages.py", "eps: float = 1e-6", "eps: float = 2e-6")
    damaged = next(
        f for f in sorted(trained.root.glob(".dvc/cache/files/md5/??/*")) if f.stat().st_size > 99
    )
    data = bytearray(damaged.read_bytes())
    data[50] ^= 1
    damaged.unlink()
    damaged.write_bytes(data)
    done = trained.cli("verify", "s0--math", "--cache", ok=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "s0--math: params: rl.warmup_steps was 1 and is 2 now" in lines
    assert (
        "s0--math: code: phase_math does something else now (trainorder/rl/pieces/advantages.py)"
        in lines
    )
    assert any(f"{damaged.name}: damaged in DVC's cache" in line for line in lines)
    assert len(lines) == 3
    refused = trained.cli("verify", "s0--mth", ok=False)
    assert refused.returncode == 2
    assert "did you mean 's0--math'?" in refused.stderr
