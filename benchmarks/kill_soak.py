"""`python -m benchmarks.kill_soak --kills 100`: SIGKILL at random moments, then the same bytes as if nothing had happened.

Two scratch copies of the repository run the same experiment. In one nothing happens. In the other a random process of the
run (trainer, sandbox worker, dvc or the flow itself) is killed again and again, and the flow is started again whenever it
ended. At the end every checkpoint, evaluation and the measurement must have the same hash in both. If the experiment is
done before all kills are spent, it starts over. Prints JSON; exit code 1 where anything differs. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from trainorder.process import die_with_parent

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("trainorder", "stages", "flows", "configs", "dvc.yaml", ".dvcignore", ".gitignore")
COMPARED = ("data/**/*", "checkpoints/**/*", "evaluations/*", "reports/bwt.json", "plan.yaml")
KINDS = {"sandbox": "sandbox_worker", "trainer": "-m stages.", "dvc": "-m dvc"}
"""Kind of process -> what its command line holds; the flow is the process that was started."""
STAGE = re.compile(r"-m stages\.(\w+)")
SETTLE_SECONDS = 60.0
POLL_SECONDS = 0.25
ITS_START = 0.2
"""Share of kills that may fall into the start of the flow."""


def main() -> int:
    """Run both experiments and compare; 0 where every hash is equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="the experiment")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="mean time of work between two kills"
    )
    parser.add_argument("--checkpoint-seconds", type=float, default=2.0)
    parser.add_argument(
        "--reference", type=Path, help="folder where the experiment ran undisturbed"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--keep", type=Path, help="move the last project that was killed here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill_soak.") as scratch:
        result = soak(arguments, Path(scratch))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0 if result["equal"] else 1


def soak(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Kills by kind, what differs, and how long it took."""
    start = time.monotonic()
    reference = arguments.reference
    if reference is None:
        reference = copy_project(scratch / "reference", arguments.params, 60.0)
        subprocess.run(_flow(), cwd=reference, env=_environment(), check=True, stdout=sys.stderr)
    expected = hashes(reference)
    reference_seconds = time.monotonic() - start
    rng = random.Random(arguments.seed)
    kills, during = Counter[str](), Counter[str]()
    different: list[str] = []
    rounds = starts = 0
    while kills.total() < arguments.kills:
        project = copy_project(
            scratch / f"round{rounds}", arguments.params, arguments.checkpoint_seconds
        )
        starts += one_round(project, arguments, rng, kills, during)
        found = hashes(project)
        different += sorted(
            f"round {rounds}: {name}"
            for name in expected.keys() | found.keys()
            if expected.get(name) != found.get(name)
        )
        rounds += 1
        if arguments.keep is not None and kills.total() >= arguments.kills:
            shutil.move(project, arguments.keep)
        else:
            shutil.rmtree(project)
    return {
        "equal": not different,
        "kills": kills.total(),
        "killed": dict(sorted(kills.items())),
        "during": dict(sorted(during.items())),
        "rounds": rounds,
        "flows_started": starts,
        "files_compared": len(expected),
        "different": different,
        "seconds": round(time.monotonic() - start, 1),
        "undisturbed_seconds": None if arguments.reference else round(reference_seconds, 1),
        "settings": {
            "mean_seconds_between_kills": arguments.seconds,
            "checkpoint_seconds": arguments.checkpoint_seconds,
            "seed": arguments.seed,
        },
    }


def one_round(
    project: Path,
    arguments: argparse.Namespace,
    rng: random.Random,
    kills: Counter[str],
    during: Counter[str],
) -> int:
    """Run the experiment to its end under kills; returns how often the flow was started.

    `kills` counts them by kind of process, `during` by what was at work.

    Raises:
        RuntimeError: the flow fails although nothing was killed since it started.
    """
    starts = 0
    while True:
        starts += 1
        before = kills.total()
        with (project / "soak.log").open("ab") as log:
            flow = subprocess.Popen(
                _flow(),
                cwd=project,
                env=_environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        while flow.poll() is None and kills.total() < arguments.kills:
            if not _moment(flow, arguments.seconds, rng):
                break
            kind, stages = kill_one(flow.pid, rng)
            if kind is not None:
                kills[kind] += 1
                during.update(stages or {"no stage"})
                print(f"kill {kills.total()}: {kind}", file=sys.stderr, flush=True)
        flow.wait()
        if flow.returncode == 0:
            return starts
        if kills.total() == before:
            tail = (project / "soak.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the flow failed (exit code {flow.returncode}) on its own:\n{tail}")
        _wait_for_orphans(project)


def _moment(flow: subprocess.Popen[bytes], seconds: float, rng: random.Random) -> bool:
    """Wait for the next kill; False where the flow ended before.

    One wait in ITS_START runs from now on, so that start, planning and commits are hit too. The others count only time
    in which some stage works: else frequent kills would hit nothing but the start, and the run would never get on.
    """
    left, anywhere = rng.expovariate(1 / seconds), rng.random() < ITS_START
    while left > 0:
        try:
            flow.wait(timeout=POLL_SECONDS)
            return False
        except subprocess.TimeoutExpired:
            working = anywhere or any(KINDS["trainer"] in c for c in descendants(flow.pid).values())
            left -= POLL_SECONDS if working else 0.0
    return True


def kill_one(flow: int, rng: random.Random) -> tuple[str | None, set[str]]:
    """Kill a random process of a random kind among those that run.

    Returns:
        The kind, None where none was left, and the stages that were at work.
    """
    victims: dict[str, list[int]] = {"flow": [flow]}
    below = descendants(flow)
    stages = {found.group(1) for c in below.values() if (found := STAGE.search(c))}
    for pid, command in below.items():
        for kind, mark in KINDS.items():
            if mark in command:
                victims.setdefault(kind, []).append(pid)
                break
    kind = rng.choice(sorted(victims))
    try:
        os.kill(rng.choice(sorted(victims[kind])), signal.SIGKILL)
    except ProcessLookupError:
        return None, stages
    return kind, stages


def descendants(root: int) -> dict[int, str]:
    """Process -> command line, of all processes below `root`."""
    parents, commands = dict[int, int](), dict[int, str]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                command = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            commands[int(entry.name)] = command
    found, border = dict[int, str](), {root}
    while border:
        border = {pid for pid, parent in parents.items() if parent in border}
        found |= {pid: commands[pid] for pid in border}
    return found


def hashes(project: Path) -> dict[str, str]:
    """Relative path -> sha256 of everything that must be equal."""
    files = (f for pattern in COMPARED for f in project.glob(pattern) if f.is_file())
    return {
        f.relative_to(project).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(files)
        if not any(part.startswith(".") for part in f.relative_to(project).parts)
    }


def copy_project(root: Path, params: Path, checkpoint_seconds: float) -> Path:
    """The sources as a git and DVC project of their own, with these params."""
    root.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, root / name)
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    shutil.copytree(ROOT / ".dvc" / "plots", root / ".dvc" / "plots")
    yaml = YAML()
    content = yaml.load(params.read_text(encoding="utf-8"))
    content.setdefault("flow", {})["checkpoint_seconds"] = checkpoint_seconds
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        yaml.dump(content, stream)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def _flow() -> list[str]:
    return [sys.executable, "-m", "trainorder.flow.run"]


def _environment() -> dict[str, str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PREFECT_", "MLFLOW_", "PYTHONPATH"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}


def _wait_for_orphans(project: Path) -> None:
    """Until nothing of the last flow is left: what a user would see who starts it again a moment later."""
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        left = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    left += (entry / "cwd").readlink() == project
                except OSError:
                    continue
        if not left:
            return
        time.sleep(0.2)
    raise RuntimeError(f"processes in {project} outlive their flow by {SETTLE_SECONDS:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
