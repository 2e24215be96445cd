"""DVC does with a plan what the plan says: the real dvc.yaml over stages that only copy names.

A whole plan "trains" in seconds, and a log tells which stages ran. No training code runs.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, Project, make_toy_project
from dvc.repo import Repo

from trainorder import paths
from trainorder.plan import names
from trainorder.reading import read_yaml

pytestmark = pytest.mark.long("DVC writes its lock file after every stage of a whole plan")
MODULES = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__", "fingerprint"}

TOY = """
import argparse
import json
from pathlib import Path


def put(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def record(node, phase=None):
    params = json.loads(Path(".fingerprints/sft_warmup.json").read_text())
    empty = {"files": {}, "parents": {}, "data": {}, "code": {}, "hash": "", "params": params}
    facts = {"node": node, "seed": 0, "phase": phase, "steps": 2, "seconds": 60.0, **empty}
    put(f"runs/{node}/manifest.json", json.dumps(facts))


def main(stage):
    parser = argparse.ArgumentParser()
    for option in ("node", "seed", "parent", "phase", "variant", "base", "merge", "parents", "tasks", "judge", "first"):
        parser.add_argument(f"--{option}")
    a = parser.parse_args()
    with open("log", "a") as log:
        name = f"judge-{a.judge}" if a.judge else a.node or stage
        log.write(f"evaluate-{name}\\n" if stage == "evaluate" else f"{name}\\n")
    if stage == "build_data":
        from trainorder.config import load_params

        for task, config in load_params().tasks.items():
            for split in ("train", "dev", "test"):
                put(f"data/tasks/{task}/{split}.jsonl", f"{task} {getattr(config, split)}")
            put(f"data/tasks/{task}/task.json", "{}")
        for file in ("sft/demonstrations.jsonl", "tokenizer/tokenizer.json", "summary.json"):
            put(f"data/{file}", "{}")
    elif stage == "train_judge":
        for file in (f"{a.judge}/x", f"{a.judge}.json"):
            put(f"checkpoints/judge/{file}", "{}")
    elif stage in ("sft_warmup", "rl", "merge"):
        put(f"checkpoints/{a.node}/weights", a.node)
        record(a.node, a.phase)
        files = ("metrics.jsonl", "run.json", "drawn.jsonl")
        for file in files[: {"merge": 0, "sft_warmup": 2}.get(stage)]:
            put(f"runs/{a.node}/{file}", "{}")
    elif stage == "evaluate":
        put(f"evaluations/{a.node}.parquet", Path(f"checkpoints/{a.node}/weights").read_text())
    elif stage == "measure_bwt":
        from trainorder.reading import read_yaml

        put("reports/bwt.json", " ".join(read_yaml(Path("plan.yaml"))["evaluations"]))
    elif stage == "report":
        put("reports/report.html", Path("reports/bwt.json").read_text())
    elif stage == "metrics":
        table = "order,position,phase,task,variant,score,entropy\\n"
        arms = Path("reports/bwt.json").read_text().split()
        for arm in arms:
            put(f"reports/metrics/{Path(arm).stem}.json", json.dumps({"mean": len(arm) / 100, "math": 0.5}))
            table += "".join(f"{Path(arm).stem},{i},math,math,default,0.{i},0.{i}\\n" for i in (1, 2))
        put("reports/plots/orders.csv", table)
        put("reports/plots/rewards.csv", "node,phase,step,reward,entropy\\ns0,math,1,0.5,0.1\\n")
        put("reports/plots/transfer.csv", "phase,task,change,low,high\\nmath,qa,0.1,0.0,0.2\\n")
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]) -> Project:
    """A project whose stages write names instead of training, brought up to date by `dvc repro`."""
    toys = {name: f"import toy\n\ntoy.main({name!r})\n" for name in MODULES}
    project = make_toy_project(tmp_path_factory.mktemp("toy") / "project", toys)
    project = replace(project, settings=warm)
    (project.root / "toy.py").write_text(TOY)
    for line in (
        "  creative_first: [creative, qa, math]\n",
        "  recommended: recommended\n",
        "  joint: [joint]\n",
        "  dare: {method: dare, density: 0.5, scale: 0.5}\n",
    ):  # DVC's time grows with the square of the stages
        project.edit("params.yaml", line, "")
    project.cli("plan")
    project.dvc("repro")
    return project


@pytest.fixture
def copy(toy: Project, tmp_path: Path) -> Project:
    """A copy to change, with an empty log."""
    shutil.copytree(toy.root, tmp_path / "project")
    project = replace(toy, root=tmp_path / "project")
    (project.root / "log").write_text("")
    return project


AGAIN = {"metrics", "mirror"}
"""Stages that DVC never restores: what they write is in git, or in MLflow."""


def ran(project: Project) -> list[str]:
    """What `dvc repro` runs now, AGAIN aside."""
    (project.root / "log").write_text("")
    project.dvc("repro")
    return sorted(set((project.root / "log").read_text().split()) - AGAIN)


def states(project: Project) -> dict[str, str]:
    """`plan.status` of a project, in a process of its own: it looks at the working directory and its code."""
    script = "import json; from trainorder import plan; p = plan.load(); plan.write(p); print(json.dumps(plan.status(p)))"
    (project.root / "states.py").write_text(script)
    found = json.loads(project.run(sys.executable, "-m", "states").stdout)
    named = {named_as_in_the_log(stage): state for stage, state in found.items()}
    return {stage: state for stage, state in named.items() if stage not in AGAIN}


def named_as_in_the_log(stage: str) -> str:
    """What the toy of a stage writes: its node, `evaluate-<node>`, `judge-<name>`, or its own name."""
    return names.short(stage).replace(" ", "-")


def only(project: Project, state: str) -> list[str]:
    return sorted(stage for stage, found in states(project).items() if found == state)


def test_each_stage_runs_once_and_then_none(toy: Project):
    structured = ["s0--math", "s0--math--qa", "s0--math--qa--creative"]
    nodes = ["s0", *structured, "s0--creative", "s0--qa", "s0--ties"]
    log = (toy.root / "log").read_text().split()
    assert sorted(log) == sorted(
        [
            "build_data",
            "judge-reward",
            "judge-evaluation",
            "measure_bwt",
            "report",
            "metrics",
            "mirror",
            *nodes,
        ]
        + [f"evaluate-{node}" for node in nodes]
    )
    assert set(states(toy).values()) == {"cached"}
    toy.dvc("repro")
    assert (toy.root / "log").read_text().split() == log
    assert json.loads(toy.dvc("status", "--json").stdout) == {"fingerprint": ["always changed"]}


OLD, NEW = "structured_first: [math, qa, creative]", "structured_first: [math, creative, qa]"
TRIED = "structured_first: [qa, math, creative]"
SUFFIX = ["s0--math--creative", "s0--math--creative--qa"]


def test_a_reorder_trains_the_changed_suffix_and_undoing_it_nothing(copy: Project):
    evaluations = [f"evaluate-{node}" for node in SUFFIX]
    copy.edit("params.yaml", OLD, NEW)
    assert only(copy, "stale") == sorted([*SUFFIX, *evaluations, "measure_bwt", "report"])
    assert ran(copy) == sorted([*SUFFIX, *evaluations, "measure_bwt", "report"])
    assert set(states(copy).values()) == {"cached"}
    left = "s0--math--qa"  # gone from the plan: gone from the table
    assert left not in (copy.root / paths.BWT).read_text()
    copy.edit("params.yaml", NEW, OLD)
    assert only(copy, "restorable") == ["measure_bwt", "report"]  # those of nodes are up to date
    assert only(copy, "stale") == []
    assert ran(copy) == []
    assert (
        "mirror" in (copy.root / "log").read_text()
    )  # MLflow shows the orders that are measured now
    assert set(states(copy).values()) == {"cached"}


OWN = """
  mine:  # a stage of the user's
    cmd: ls evaluations > mine.txt
    params: [evaluation.samples]
    deps: [evaluations]
    outs: [mine.txt]
"""


def test_everything_lost_but_the_cache_is_restorable_and_restored(copy: Project):
    copy.edit("dvc.yaml", "\n  mirror:", f"{OWN}\n  mirror:")
    assert only(copy, "stale") == ["mine"]
    copy.dvc("repro", "mine")
    assert set(states(copy).values()) == {"cached"}
    (copy.root / "mine.txt").unlink()
    for name in ("checkpoints", "runs", "evaluations", "reports", "data", ".fingerprints"):
        shutil.rmtree(copy.root / name)
    (copy.root / "dvc.lock").unlink()
    for lock in copy.root.glob("plan/**/dvc.lock"):
        lock.unlink()
    assert set(states(copy).values()) == {"restorable"}
    assert ran(copy) == []
    assert set(states(copy).values()) == {"cached"}


def test_what_a_killed_dvc_left_half_written_is_repaired(copy: Project):
    lock, table = copy.root / "plan/s0--math/dvc.lock", copy.root / ".dvc/tmp/rwlock"
    text = lock.read_text()
    lock.write_text(text[: text.index("md5:", len(text) // 2) + 2])  # inside the name of a key
    table.write_text('{"read": {"/a')
    refused = copy.dvc("repro", ok=False)
    assert refused.returncode != 0
    said = copy.cli("plan").stderr
    assert said.count("half-written by a killed dvc") == 2
    assert only(copy, "stale") == []
    assert ran(copy) == []
    assert "half written" not in copy.cli("plan").stderr


def test_a_checkpoint_lost_from_folder_and_cache_is_stale_with_all_that_grew_from_it(copy: Project):
    shutil.rmtree(copy.root / "checkpoints" / "s0--math--qa")
    lost = copy.root / "plan/s0--math--qa/dvc.lock"
    out = next(
        o for o in read_yaml(lost)["stages"]["train"]["outs"] if o["path"].startswith("check")
    )
    (copy.root / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]).unlink()
    assert only(copy, "stale") == [
        "evaluate-s0--math--qa",
        "evaluate-s0--math--qa--creative",
        "measure_bwt",
        "report",
        "s0--math--qa",
        "s0--math--qa--creative",
    ]
    # its bytes come back equal, so that nothing above them runs
    assert ran(copy) == ["s0--math--qa"]


def test_a_changed_phase_is_stale_wherever_it_stands_and_below(copy: Project):
    copy.edit(
        "params.yaml", "tasks: {qa: 1}, steps: 2}", "tasks: {qa: 1}, steps: 2, rl: {lr: 1.0e-5}}"
    )
    nodes = [stage for stage in only(copy, "stale") if stage.startswith("s0--")]
    assert nodes == ["s0--math--qa", "s0--math--qa--creative", "s0--qa", "s0--ties"]


def test_a_variant_shares_the_base_and_follows_its_own_settings_only(copy: Project):
    copy.edit("params.yaml", OLD, "structured_first: [math, qa]")
    copy.edit("params.yaml", "  ties: {method: ties, density: 0.2}\n", "")
    copy.edit("params.yaml", "merges:\n", "")
    copy.edit("params.yaml", "seeds: [0]", "variants: {slow: {rl: {lr: 1.0e-5}}}\nseeds: [0]")
    branch = ["math", "math--qa", "qa"]
    copy.cli("plan")
    log = ran(copy)
    assert [s for s in log if s.startswith("s0")] == sorted(f"s0--slow--{p}" for p in branch)
    assert [s for s in log if s.startswith(("judge", "build"))] == []
    copy.edit("params.yaml", "lr: 1.0e-5", "lr: 2.0e-5")
    stale = [s for s in only(copy, "stale") if s.startswith("s0--")]
    assert sorted(stale) == sorted(f"s0--slow--{p}" for p in branch)
    copy.edit("params.yaml", "{qa: 1}, steps: 2}", "{qa: 1}, steps: 2, rl: {temperature: 0.9}}")
    stale = [s for s in only(copy, "stale") if s.startswith("s0--")]
    assert "s0--math--qa" in stale
    assert "s0--math" not in stale


def test_more_test_problems_retrain_nothing_and_reevaluate_everything(copy: Project):
    copy.edit(
        "params.yaml",
        "qa:       {train: 64, dev: 16, test: 16,",
        "qa:       {train: 64, dev: 16, test: 17,",
    )
    log = ran(copy)
    assert [stage for stage in log if stage.startswith(("s0", "judge"))] == []
    assert len([stage for stage in log if stage.startswith("evaluate")]) == 7


def test_changed_code_is_stale_where_it_runs_and_below_and_a_comment_nowhere(copy: Project):
    stage = copy.root / "stages" / "rl.py"
    stage.write_text(stage.read_text() + "# a comment\n")
    assert set(states(copy).values()) == {"cached"}
    copy.edit("stages/rl.py", "toy.main", "1 + 1\ntoy.main")
    current = ["build_data", "evaluate-s0", "judge-evaluation", "judge-reward", "s0"]
    assert only(copy, "cached") == current
    assert set(states(copy).values()) == {"cached", "stale"}


def test_a_plan_of_other_params_stops_dvc_repro_before_anything_runs(copy: Project):
    copy.edit("params.yaml", OLD, NEW)
    stopped = copy.dvc("repro", ok=False)
    assert stopped.returncode != 0
    assert (
        "plan.yaml does not match params.yaml; run `trainorder plan`"
        in stopped.stdout + stopped.stderr
    )
    assert (copy.root / "log").read_text() == ""
    copy.edit("params.yaml", NEW, OLD)
    assert ran(copy) == []


def test_the_plan_estimates_from_what_the_same_phase_took(copy: Project):
    # 60 s for 2 steps; math now takes 4 steps: 2 min
    copy.edit("params.yaml", "tasks: {math: 1}, steps: 2}", "tasks: {math: 1}, steps: 4}")
    copy.edit("params.yaml", "seeds: [0]", "seeds: [0]\nallow_unequal_budgets: true")
    out = copy.cli("plan").stdout
    assert "math  structured  to train  2 min" in out
    assert "qa  structured  cached" in out


def test_metrics_and_plots_are_shown_and_compared_with_a_commit(copy: Project):
    git(copy, "add", ".")
    commit(copy)
    copy.edit("params.yaml", OLD, NEW)
    copy.cli("plan")
    ran(copy)
    shown = json.loads(copy.dvc("metrics", "show", "--json").stdout)[""]["data"]
    arms = {Path(file).stem: found["data"] for file, found in shown.items()}
    assert arms["s0--math--creative--qa"] == {"mean": 0.42, "math": 0.5}
    changed = json.loads(copy.dvc("metrics", "diff", "--json").stdout)
    gone = changed["reports/metrics/s0--math--qa--creative.json"]["mean"]
    assert (gone["old"], gone.get("new")) == (0.42, None)
    asked = json.loads(copy.dvc("params", "diff", "--json").stdout)
    assert asked["params.yaml"]["orders.structured_first"]["new"] == "['math', 'creative', 'qa']"
    assert list(asked) == ["params.yaml"]  # neither plan.yaml nor .fingerprints
    drawn = json.loads(copy.dvc("plots", "diff", "HEAD", "--json").stdout)["data"]
    assert drawn.keys() == {
        "score along each order",
        "entropy along each order",
        "reward while training",
        "what each phase does to each task",
    }
    (score,) = drawn["score along each order"]
    assert set(score["revisions"]) == {"HEAD", "workspace"}
    assert '"field": "order"' in json.dumps(score["content"])
    table = copy.dvc("exp", "show", "--csv").stdout.splitlines()
    head = table[0].split(",")
    assert {"rl.warmup_steps", "phases.math.steps"} <= set(head)
    assert any("s0--creative.json:mean" in column for column in head)
    assert "!" not in table[1].split(",")


def test_exp_run_changes_values_and_refuses_an_order_in_one_line(copy: Project):
    git(copy, "add", ".")
    commit(copy)
    done = copy.dvc("exp", "run", "-S", "rl.warmup_steps=2", "-n", "warm")
    assert "warm" in done.stdout
    assert "s0--math" in (copy.root / "log").read_text().split()
    refused = copy.dvc("exp", "run", "-S", "orders.structured_first=[math,creative,qa]", ok=False)
    assert refused.returncode != 0
    (line,) = [x for x in (refused.stdout + refused.stderr).splitlines() if "-S changes which" in x]
    assert "`trainorder run --set KEY=VALUE --exp NAME` can" in line


def test_a_clone_that_pulls_makes_nothing_again(copy: Project, tmp_path: Path):
    commit(copy)
    git(copy, "add", ".")
    git(copy, "commit", "-q", "-m", "all")
    copy.dvc("remote", "add", "-q", "-d", "shelf", str(tmp_path / "shelf"))
    git(copy, "commit", "-q", "-am", "a remote")
    copy.dvc("push", "-q", "--run-cache")
    git(copy, "clone", "-q", str(copy.root), str(tmp_path / "second"))
    second = replace(copy, root=tmp_path / "second")
    (second.root / "log").write_text("")
    second.dvc("repro", "--pull")
    assert (second.root / "log").read_text().split() in ([], ["metrics", "mirror"])
    assert json.loads(second.dvc("status", "--json").stdout) == {"fingerprint": ["always changed"]}
    assert set(states(second).values()) == {"cached"}
    second.edit("params.yaml", OLD, NEW)
    second.cli("plan")
    trained = ran(second)
    assert [name for name in trained if name.startswith("s0")] == SUFFIX


def git(project: Project, *arguments: str) -> str:
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return project.run("git", *name, *arguments).stdout


def commit(project: Project) -> None:
    git(project, "add", "params.yaml", "plan.yaml", "plan", "dvc.lock", "reports")
    git(project, "commit", "-q", "-m", "a plan")


def test_gc_shows_first_and_never_breaks_the_undo_of_a_reorder(copy: Project):
    commit(copy)
    copy.edit("params.yaml", OLD, NEW)
    copy.cli("plan")
    trained = ran(copy)
    assert "s0--math--creative" in trained
    copy.edit("params.yaml", NEW, OLD)
    copy.cli("plan")
    ran(copy)
    (copy.root / "checkpoints" / ".s0.tmp").mkdir()
    (copy.root / "checkpoints" / ".s0.tmp" / "half").write_text("of a checkpoint")
    cache = copy.root / ".dvc" / "cache"
    before = sorted(p for p in cache.rglob("*") if p.is_file())
    shown = copy.cli("gc").stdout
    assert "checkpoints/s0--math--creative: not in the plan, restored from DVC's cache" in shown
    assert "10 evaluations and records of nodes that left the plan" in shown
    assert "1 half-written files of killed runs" in shown
    assert "2 dvc.lock of nodes that left the plan" in shown
    assert "would be freed; add --yes" in shown
    assert (copy.root / "checkpoints" / ".s0.tmp").exists()
    assert "freed" in copy.cli("gc", "--yes").stdout
    assert not (copy.root / "checkpoints" / ".s0.tmp").exists()
    assert not (copy.root / "checkpoints" / "s0--math--creative").exists()
    assert sorted(p for p in cache.rglob("*") if p.is_file()) == before
    assert ran(copy) == []  # the plan is untouched
    copy.edit("params.yaml", OLD, NEW)
    copy.cli("plan")
    assert ran(copy) == []  # and so is the reorder, though it was never committed


def used_by_dvc(project: Project) -> set[str]:
    """Objects of the cache that DVC's own `gc` would keep for the work tree, all commits and all experiments."""
    with Repo(str(project.root)) as repo:
        found = repo.used_objs(all_commits=True, all_experiments=True).values()
        odb = repo.cache.local
        return {h.value for objects in found for h in objects if odb.exists(h.value)}


def test_gc_of_uncommitted_results_names_them_and_keeps_every_committed_plan(copy: Project):
    commit(copy)
    copy.edit("params.yaml", OLD, NEW)
    copy.cli("plan")
    ran(copy)
    commit(copy)
    copy.edit("params.yaml", NEW, TRIED)
    copy.cli("plan")
    tried = {line for line in ran(copy) if line.startswith("s0--")}
    assert tried == {"s0--qa--math", "s0--qa--math--creative"}
    copy.edit("params.yaml", TRIED, NEW)
    copy.cli("plan")
    ran(copy)
    git(copy, "checkout", "-q", ".")
    used = used_by_dvc(copy)
    assert len(used) > 20
    named = [
        line
        for line in copy.cli("gc", "--uncommitted", "--yes").stdout.splitlines()
        if "--node" in line
    ]
    assert {re.search(r"--node (\S+)", line)[1] for line in named} == {
        "s0--qa--math",
        "s0--qa--math--creative",
    }
    assert used_by_dvc(copy) == used
    assert ran(copy) == []  # the last commit
    git(copy, "checkout", "-q", "HEAD~1", "--", ".")
    copy.cli("plan")  # git leaves the files that the later commit added
    assert ran(copy) == []  # the one before
    copy.edit("params.yaml", OLD, TRIED)
    copy.cli("plan")
    assert {line for line in ran(copy) if line.startswith("s0--")} == tried


@pytest.mark.parametrize(
    ("lock", "does"), [(".resume/s0.lock", "makes s0"), (str(paths.FLOW_LOCK), "runs a flow")]
)
def test_gc_waits_for_nobody_and_deletes_nothing_under_a_run(copy: Project, lock: str, does: str):
    (copy.root / ".resume").mkdir(exist_ok=True)
    holder = (
        "import sys, time; from pathlib import Path; from trainorder.process import exclusive\n"
    )
    holder += f"with exclusive(Path('{lock}'), ''):\n    print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, cwd=copy.root, env=copy.env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        refused = copy.cli("gc", "--yes", ok=False)
        process.kill()
    assert refused.returncode == 1
    assert f"another process ({process.pid}) {does}" in refused.stderr


def test_uncommitted_results_are_not_freed_where_nothing_is_committed(copy: Project):
    refused = copy.cli("gc", "--uncommitted", ok=False)
    assert refused.returncode == 2
    assert "no commit holds a plan.yaml" in refused.stderr


def test_the_plans_need_is_compared_with_the_free_space(copy: Project):
    script = (
        "import json, shutil, sys; from trainorder import plan, room\n"
        "p = plan.load(); states = plan.status(p); print(json.dumps(room.need(p, states)))\n"
        "states |= {n.stage: 'stale' for n in p.nodes.values()}; print(json.dumps(room.need(p, states)))\n"
        "room.check_room(p, states)\n"
        "weights = open('checkpoints/s0/weights', 'ab'); weights.truncate(shutil.disk_usage('.').free)\n"
        "room.check_room(p, states)"
    )
    done = copy.run(sys.executable, "-c", script, ok=False)
    nothing, (here, cached) = map(json.loads, done.stdout.splitlines())
    assert nothing == [0, 0]
    assert here > cached > 0
    assert re.search(
        r"DiskError: this plan needs about .* GiB on the disk of .* are\s+free: make room",
        done.stderr,
    )
