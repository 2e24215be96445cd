"""What a built wheel holds, and that a project runs on it from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from trainorder import project

BUILD = "import setuptools.build_meta as b; b.build_wheel('dist')"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built without network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", *project.template()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "trainorder", source / "trainorder", ignore=ignore)
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, check=True, capture_output=True)
    (made,) = (source / "dist").glob("*.whl")
    return made


def test_the_wheel_installs_the_package_trainorder_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"trainorder"}
    here = (ROOT / "trainorder").rglob("*")
    files = {p.relative_to(ROOT).as_posix() for p in here if p.is_file()}
    wanted = {file for file in files if "__pycache__" not in file}
    assert wanted - set(names) == set()


def test_an_installed_wheel_makes_a_project_that_plans(wheel: Path, tmp_path: Path):
    installed, folder = tmp_path / "installed", tmp_path / "mine"
    zipfile.ZipFile(wheel).extractall(installed)
    env = {**os.environ, "PYTHONPATH": str(installed)}
    pipes = {"env": env, "text": True, "capture_output": True}
    init = [sys.executable, "-m", "trainorder.cli", "init", str(folder), "--preset", "tiny"]
    said = subprocess.run(init, cwd=tmp_path, **pipes)
    assert said.stdout.startswith(f"{folder}: "), said.stderr
    for name, text in project.wanted().items():
        assert (folder / name).read_text() == text
    script = (
        "from trainorder import plan; print(*plan.load().fingerprints()['evaluate'].split()[::2])"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=folder, **pipes)
    assert "stages/evaluate.py" in found.stdout.split()
    assert "trainorder/policy.py" in found.stdout.split()
    shutil.rmtree(folder / "stages")
    refused = subprocess.run([sys.executable, "-c", script], cwd=folder, **pipes)
    assert "has no folder stages/ and is no project: `trainorder init` makes one" in refused.stderr
