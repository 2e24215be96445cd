"""One plan on two workers of a Prefect work pool, in two clones that share a DVC remote: are the bytes those of one machine?

    python -m benchmarks.work_pool --params configs/smoke.yaml

Makes a project with the params, runs it whole in one folder, then again in a third clone whose `flow.pool` sends every
training, judge and evaluation to two workers, all over loopback. Prints what each clone made, the seconds of both, and the
files of checkpoints and evaluations that differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.kill_soak import copy_project
from trainorder import ui

POOL = "loopback"
PATIENCE = 600.0
"""Seconds for the server and the workers to start, beside other work."""
COMPARED = ("checkpoints/**/*", "evaluations/*", "reports/bwt.json")
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]


def environment(**more: str) -> dict[str, str]:
    """A user's, without settings of another Prefect or MLflow."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "DVC_NO_ANALYTICS": "1", **more}


def run(command: Sequence[str], folder: Path, **more: str) -> str:
    """What a command says on both streams; it must end well."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{command} in {folder}\n{done.stdout}"
    return done.stdout


def hashes(folder: Path) -> dict[str, str]:
    """Path -> sha256 of every file that is compared."""
    files = [f for pattern in COMPARED for f in sorted(folder.glob(pattern)) if f.is_file()]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def shared(
    project: Path, scratch: Path, names: Sequence[str] = ("a", "b")
) -> tuple[Path, dict[str, list[str]]]:
    """Run a project's plan in a clone of it with workers in others; that clone, and the stages that each worker ran."""
    run(
        [sys.executable, "-m", "dvc", "remote", "add", "-f", "-d", "store", str(scratch / "store")],
        project,
    )
    run([*GIT, "add", "-A"], project)
    run([*GIT, "commit", "-q", "--allow-empty", "-m", "a plan"], project)
    for name in ("main", *names):
        run([*GIT, "clone", "-q", str(project), str(scratch / name)], scratch)
    params = scratch / "main" / "params.yaml"
    content = YAML().load(params.read_text(encoding="utf-8"))
    content.setdefault("flow", {})["pool"] = POOL
    with params.open("w", encoding="utf-8") as stream:
        YAML().dump(content, stream)
    with server(scratch) as url:
        api = {"PREFECT_API_URL": f"{url}/api", "PREFECT_HOME": str(scratch / "home")}
        with workers(scratch, names, api):
            run([sys.executable, "-m", "trainorder.flow.run"], scratch / "main", **api)
    ran = {}
    for name in names:
        said = (scratch / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        ran[name] = [s for s in re.findall(r"Running stage '([^']+)'", said) if s != "fingerprint"]
    return scratch / "main", ran


@contextmanager
def server(scratch: Path) -> Iterator[str]:
    """A Prefect server over a folder of its own."""
    before = Path.cwd()
    os.chdir(scratch)
    ui.START_SECONDS = PATIENCE
    try:
        with ui.prefect_server() as started:
            yield started.wait_until_ready()
    finally:
        os.chdir(before)


@contextmanager
def workers(scratch: Path, names: Sequence[str], api: dict[str, str]) -> Iterator[None]:
    """A process worker in each clone, as docs/how-to/share.md says; ready when the pool is there."""
    command = ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1"]
    with ExitStack() as stack:
        started = []
        for name in names:
            env = environment(
                **api, TRAINORDER_CLONE=str(scratch / name), PREFECT_WORKER_QUERY_SECONDS="1"
            )
            log = stack.enter_context((scratch / f"{name}.log").open("w"))
            started.append(
                subprocess.Popen(
                    [*command, "--name", name],
                    cwd=scratch / name,
                    env=env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        end = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(
                    f"{api['PREFECT_API_URL']}/work_pools/{POOL}", timeout=5
                ).close()
                break
            except OSError:
                assert time.monotonic() < end, "the workers did not make their pool"
                time.sleep(0.5)
        try:
            yield
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(PATIENCE)


def main() -> None:
    """Prints one JSON object; exit code 1 where bytes differ, or a worker made nothing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("configs/smoke.yaml"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        alone = copy_project(scratch / "alone", arguments.params, 60.0)
        start = time.monotonic()
        run([sys.executable, "-m", "trainorder.flow.run"], alone)
        middle = time.monotonic()
        there, ran = shared(copy_project(scratch / "project", arguments.params, 60.0), scratch)
        end = time.monotonic()
        expected, found = hashes(alone), hashes(there)
    different = sorted(f for f in expected.keys() | found.keys() if expected.get(f) != found.get(f))
    result = {"ran": ran, "files_compared": len(expected), "different": different}
    result |= {"seconds_alone": round(middle - start), "seconds_shared": round(end - middle)}
    print(json.dumps(result, indent=1))
    sys.exit(bool(different) or not all(ran.values()))


if __name__ == "__main__":
    main()
