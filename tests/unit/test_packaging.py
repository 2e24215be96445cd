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

BUILD = "import setuptools.build_meta as b; b.build_wheel('dist')"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built without network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("trainorder", "stages", "flows"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
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


def test_a_project_in_another_folder_plans_with_an_installed_wheel(wheel: Path, tmp_path: Path):
    installed, project = tmp_path / "installed", tmp_path / "project"
    zipfile.ZipFile(wheel).extractall(installed)
    project.mkdir()
    shutil.copy(ROOT / "configs" / "smoke.yaml", project / "params.yaml")
    script = (
        "from trainorder import plan; print(*plan.load().fingerprints()['evaluate'].split()[::2])"
    )
    env = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", script]
    pipes = {"cwd": project, "env": env, "text": True, "capture_output": True}
    refused = subprocess.run(command, **pipes)
    assert "has no folder stages/ and is no project: `trainorder init` makes one" in refused.stderr
    shutil.copytree(ROOT / "stages", project / "stages")
    found = subprocess.run(command, **pipes)
    assert "stages/evaluate.py" in found.stdout.split()
    assert "trainorder/policy.py" in found.stdout.split()
