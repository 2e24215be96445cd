"""A project folder for tests: the real code, stages and DVC set-up, with the smoke params."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trainorder.config import PARAMS_VARIABLE, GradingConfig
from trainorder.flow.warm import warm_stages
from trainorder.rewards import grading
from trainorder.rewards.grading import Grader
from trainorder.warm import READY, VARIABLE

ROOT = Path(__file__).resolve().parents[1]
SHARED = "TRAINORDER_TESTS_WARM"
"""Environment variable: the address of the process that `warm` settings name, where all workers share one."""
SOURCES = ("trainorder", "stages", "flows", "configs", "dvc.yaml", ".dvcignore", ".gitignore")


@dataclass(frozen=True)
class Project:
    """A folder in which the pipeline runs, and the commands a user would type there."""

    root: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables besides a user's own."""
    prefix: tuple[str, ...] = ()
    """What starts every command."""

    def run(self, *command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; by default it must succeed."""
        if VARIABLE in self.settings and command[:2] == (sys.executable, "-m"):
            # stages ask for the warm process themselves
            there = () if command[2].startswith("stages.") else ("trainorder.warm",)
            command = (*command[:2], *there, *command[2:])
        done = subprocess.run(
            (*self.prefix, *command),
            cwd=self.root,
            env=self.env,
            text=True,
            capture_output=True,
            check=False,
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
        return {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "160", **self.settings}

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
        if source.is_dir():  # what is compiled too: valid for copies, which keep their times
            shutil.copytree(source, root / name)
        else:
            shutil.copy(source, root / name)
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    shutil.copytree(ROOT / ".dvc" / "plots", root / ".dvc" / "plots")
    shutil.copy(ROOT / params, root / "params.yaml")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return Project(root)


TOY_FRAME = '''
"""The real frame (frame.py) for `fingerprint`, which is real; toys start in a tenth of the time without its imports."""

from trainorder import warm

warm.borrow()


def __getattr__(name):
    import frame

    return getattr(frame, name)
'''


def make_toy_project(root: Path, stages: Mapping[str, str]) -> Project:
    """A project whose stages are these sources, all but `fingerprint`; they borrow the flow's warm process as real ones do."""
    project = make_project(root)
    folder = root / "stages"
    (folder / "__init__.py").rename(root / "frame.py")
    (folder / "__init__.py").write_text(TOY_FRAME)
    for file in folder.glob("*.py"):
        if file.stem not in ("fingerprint", "__init__"):
            file.unlink()
    for name, source in stages.items():
        (folder / f"{name}.py").write_text(source)
    warm = root / "trainorder" / "flow" / "warm.py"
    text, found = re.subn(r"(?ms)^PACKAGES = \(.*?^\)", "PACKAGES = ()", warm.read_text())
    assert found == 1
    warm.write_text(text)  # a toy needs neither torch nor MLflow
    return project


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pipeline first, then files with many long tests, so that no worker is left alone with one at the end."""
    long = Counter(item.path for item in items if item.get_closest_marker("long"))
    items.sort(key=lambda item: (item.path.parent.name != "pipeline", -long[item.path]))


@contextmanager
def _warm() -> Iterator[str]:
    """A process that has torch, transformers and MLflow imported, or is about to; its address."""
    with warm_stages():
        address = os.environ.pop(VARIABLE)  # for those who ask for it only
        try:
            yield address
        finally:
            os.environ[VARIABLE] = address


def pytest_configure(config: pytest.Config) -> None:
    """Workers share one such process, which imports while they collect."""
    workers = config.getoption("numprocesses", None)  # of the process that has workers
    if workers and "not long" not in config.getoption("markexpr"):
        shared = ExitStack()
        os.environ[SHARED] = shared.enter_context(_warm())
        config.add_cleanup(shared.close)


@pytest.fixture(scope="session")
def warm() -> Iterator[dict[str, str]]:
    """Settings under which stages run in children of one process that has torch, transformers and MLflow imported.

    Importing them takes a stage over ten CPU seconds, far longer than what it computes for the smoke params.
    """
    address = os.environ.get(SHARED)
    with nullcontext(address) if address else _warm() as found:
        while not Path(found + READY).exists():
            time.sleep(0.1)
        yield {VARIABLE: found}


@pytest.fixture(autouse=True)
def params_of_one_test() -> Iterator[None]:
    """`trainorder --params`, called in this process, names the file for all that follows: for one test only."""
    before = os.environ.get(PARAMS_VARIABLE)
    yield
    os.environ.pop(PARAMS_VARIABLE, None)
    if before is not None:
        os.environ[PARAMS_VARIABLE] = before


@pytest.fixture(autouse=True)
def grader() -> Grader:
    """Each test counts its own ungraded answers, whichever tests ran before it in this process."""
    return grading.configure(GradingConfig())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh project with the smoke params; nothing has run in it."""
    return make_project(tmp_path / "project")
