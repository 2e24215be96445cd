"""Runs stages of a project in real processes that can be killed, without paying for the imports each time.

A server process imports torch, transformers and MLflow once and forks a process per stage; `python tests/stage_runner.py`
in the project's folder is that server.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Project


class StageRunner:
    """The test's side: `runner("rl", "--node", "s0--math", ..., fail_at="rl.step:2")` -> exit code (-9: killed)."""

    def __init__(self, project: Project) -> None:
        self.log = project.root / "stages.log"
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=project.root,
            env={**project.env, "PYTHONPATH": str(project.root), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, stage: str, *arguments: str, **env: str) -> int:
        """Run one stage to its end; `env` are further environment variables, `fail_at` a fail-point."""
        if "fail_at" in env:
            env["TRAINORDER_FAIL_AT"] = env.pop("fail_at")
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps([stage, list(arguments), env]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def said(self) -> str:
        """Everything the last stage wrote to stderr and stdout."""
        return self.log.read_text()

    def close(self) -> None:
        """End the server."""
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


def serve() -> None:
    """Fork a process per line of stdin, answer with its exit code."""
    from trainorder.pretrained import import_transformers

    import_transformers()
    for name in ("torch", "mlflow", "deepspeed"):
        importlib.import_module(name)
    gc.freeze()  # or every child's first collection copies all pages of what is imported
    for line in sys.stdin:
        stage, arguments, env = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(stage, arguments, env)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


def _run(stage: str, arguments: list[str], env: dict[str, str]) -> None:
    log = os.open("stages.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(env)
    if "TEST_FILE_SIZE" in env:
        size = int(env["TEST_FILE_SIZE"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.argv = [stage, *arguments]
    code = 70
    try:
        frame = importlib.import_module("stages")
        module = importlib.import_module(f"stages.{stage}")
        code = frame.run(stage, "", getattr(module, "OPTIONS", {}), module.main)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())  # the project's copy of the code, not this one
    serve()
