"""Stages in the flow's warm process: the same outcome as alone, and ended when the process that asked has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project, make_project

from trainorder.flow.warm import warm_stages
from trainorder.warm import VARIABLE

pytestmark = pytest.mark.long("stages import torch, alone and in a warm process")
STAGE = """
import os, sys, time
from pathlib import Path

import torch

Path("pid").write_text(str(os.getpid()))
print("said", *sys.argv[1:], Path.cwd().name, os.environ.get("COLOUR"), flush=True)
print("loaded" if "transformers" in sys.modules else "cold", file=sys.stderr)
if "wait" in sys.argv:
    time.sleep(60)
sys.exit({"three": 3, "text": "a word"}.get(sys.argv[-1], 0))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("warm") / "project")
    (made.root / "stages" / "merge.py").write_text(STAGE)
    return made


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with warm_stages():
        found = os.environ[VARIABLE]
        for _ in range(200):
            if Path(found).exists():
                break
            time.sleep(0.1)
        yield found


def start(project: Project, address: str, *arguments: str) -> subprocess.Popen[str]:
    env = {**project.env, VARIABLE: address, "COLOUR": "blue"}
    command = [sys.executable, "-m", "stages.merge", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=project.root, env=env, text=True, **pipes)


def test_a_stage_says_and_returns_the_same_with_and_without_the_warm_process(
    project: Project, address: str
):
    start(project, address).communicate()  # waits for the imports
    for arguments, code in (((), 0), (("three",), 3), (("text",), 1)):
        alone, warm = (start(project, where, *arguments) for where in ("/nowhere", address))
        (out, _), (warm_out, errors) = alone.communicate(), warm.communicate()
        assert warm_out == out == " ".join(["said", *arguments, "project blue\n"])
        assert warm.returncode == alone.returncode == code
        assert errors.splitlines()[0] == "loaded"
        assert ("a word" in errors) == (arguments == ("text",))


def test_the_child_ends_with_the_process_that_asked(project: Project, address: str):
    (project.root / "pid").unlink(missing_ok=True)
    asking = start(project, address, "wait")
    assert asking.stdout is not None
    asking.stdout.readline()
    child = int((project.root / "pid").read_text())
    assert child != asking.pid
    os.kill(child, 0)
    asking.kill()
    asking.communicate()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the child outlived the process it ran for")


def test_a_killed_child_is_an_error_of_the_stage(project: Project, address: str):
    (project.root / "pid").unlink(missing_ok=True)
    asking = start(project, address, "wait")
    assert asking.stdout is not None
    asking.stdout.readline()
    os.kill(int((project.root / "pid").read_text()), 9)
    _, errors = asking.communicate()
    assert asking.returncode == 70
    assert "terminated unexpectedly: killed?" in errors
