"""A project folder for tests: the real code, stages and DVC set-up, with the smoke params."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainorder.config import GradingConfig
from trainorder.rewards import grading
from trainorder.rewards.grading import Grader

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("trainorder", "stages", "flows", "configs", "dvc.yaml", ".dvcignore", ".gitignore")


@dataclass(frozen=True)
class Project:
    """A folder in which the pipeline runs, and the commands a user would type there."""

    root: Path

    def run(self, *command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; by default it must succeed."""
        done = subprocess.run(
            command, cwd=self.root, env=self.env, text=True, capture_output=True, check=False
        )
        assert not ok or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def cli(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """`trainorder ARGUMENTS`, with this project's copy of the code."""
        return self.run(sys.executable, "-m", "trainorder.cli", *arguments, ok=ok)

    def dvc(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """`dvc ARGUMENTS`."""
        return self.run(sys.executable, "-m", "dvc", *arguments, ok=ok)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a user who activated the environment and set nothing else."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "OMP_"))
        }
        return {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace text that must be there."""
        path = self.root / file
        text = path.read_text()
        assert old in text, f"{old!r} not in {file}"
        path.write_text(text.replace(old, new))


def make_project(root: Path, params: str = "configs/smoke.yaml") -> Project:
    """Copy the sources to `root` as a git and DVC project with these params."""
    root.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignore)
        else:
            shutil.copy(source, root / name)
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    shutil.copy(ROOT / params, root / "params.yaml")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return Project(root)


@pytest.fixture(autouse=True)
def grader() -> Grader:
    """Each test counts its own ungraded answers, whichever tests ran before it in this process."""
    return grading.configure(GradingConfig())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh project with the smoke params; nothing has run in it."""
    return make_project(tmp_path / "project")
