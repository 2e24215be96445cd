"""`trainorder init`: what it writes, and that it never writes over anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from setuptools.command.egg_info import FileList

from trainorder import project
from trainorder.cli import app
from trainorder.reading import ParamsError


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of the preset multi-node."""
    folder = tmp_path_factory.mktemp("init") / "mine"
    project.create(folder, "multi-node")
    return folder


def test_a_project_has_the_files_of_this_repository_and_the_presets_params(made: Path):
    tracked = subprocess.run(
        ["git", "ls-files", "stages", "flows", "data"], cwd=ROOT, text=True, capture_output=True
    ).stdout.split()
    assert len(tracked) > 10
    single = ["dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", "configs/controls.yaml"]
    for name in (*tracked, *single):
        assert (made / name).read_bytes() == (ROOT / name).read_bytes(), name
    preset = ROOT / "configs" / "multi-node.yaml"
    assert (made / "params.yaml").read_bytes() == preset.read_bytes()
    assert (made / "README.md").read_text().startswith("# mine\n")
    assert (made / ".dvc" / ".gitignore").is_file()


def test_the_source_distribution_has_every_file_of_a_project(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    packed = FileList()
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        packed.process_template_line(line)
    assert set(project.template()) - set(packed.files) == set()


def test_a_pattern_without_a_file_is_an_error_and_no_smaller_project(tmp_path: Path):
    for name, path in project.template().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(path.read_bytes())
    assert set(project.files(tmp_path)) == set(project.template())
    for file in (tmp_path / ".dvc" / "plots").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .dvc/plots/\*\.json"):
        project.files(tmp_path)


def test_git_keeps_the_projects_files_and_ignores_what_runs_make(made: Path):
    for name in ("checkpoints/s0/w", "data/tasks/math/train.jsonl", ".prefect/prefect.db"):
        (made / name).parent.mkdir(parents=True)
        (made / name).write_text("")
    asked = ["git", "ls-files", "--others", "--cached", "--exclude-standard"]
    kept = subprocess.run(asked, cwd=made, text=True, capture_output=True).stdout.split()
    assert set(kept) == {*project.wanted(), "README.md", "params.yaml", ".dvc/.gitignore"}


def test_every_preset_is_a_file_that_the_contract_of_shipped_params_checks():
    shipped = {"params.yaml", *(f"configs/{file.name}" for file in ROOT.glob("configs/*.yaml"))}
    assert set(project.PRESETS.values()) <= shipped


def test_diff_shows_what_this_version_would_write_and_changes_nothing(
    made: Path, capsys: pytest.CaptureFixture[str]
):
    assert list(project.diff(made)) == []
    (made / "stages" / "merge.py").write_text("mine\n")
    (made / "stages" / "report.py").unlink()
    before = tree(made)
    with pytest.raises(SystemExit) as stop:
        app(["init", str(made), "--diff"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "-mine" in shown
    assert "+++ stages/report.py (this version)" in shown
    assert "--- stages/rl.py" not in shown
    assert tree(made) == before


@pytest.mark.parametrize(
    ("content", "preset", "error"),
    [
        ({"params.yaml": "x", "y": ""}, "tiny", "has a params.yaml, nothing was written"),
        ({"b": "1", "a": "2"}, "tiny", r"is not empty \(a, b\), nothing was written"),
        ({}, "one_gpu", r"no preset 'one_gpu' \(did you mean 'one-gpu'\?\); there are tiny"),
    ],
)
def test_a_folder_that_holds_something_and_an_unknown_preset_are_refused(
    tmp_path: Path, content: dict[str, str], preset: str, error: str
):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    before = tree(tmp_path)
    with pytest.raises(ParamsError, match=error):
        project.create(tmp_path, preset)
    assert tree(tmp_path) == before


def test_a_folder_that_git_ignores_gets_a_repository_of_its_own(tmp_path: Path):
    """DVC refuses an ignored folder, and `make real` makes its project in one."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("/ignored\n")
    for name, own in (("ignored", True), ("tracked", False)):
        project.create(tmp_path / name, "tiny")
        assert (tmp_path / name / ".git").is_dir() == own
        assert (tmp_path / name / ".dvc" / ".gitignore").is_file()


def test_where_git_or_dvc_fail_the_folder_is_as_before(tmp_path: Path):
    (tmp_path / ".git").write_text("gitdir: nowhere\n")  # a work tree that was moved
    before = tree(tmp_path)
    with pytest.raises(ParamsError, match="`dvc init` failed in"):
        project.create(tmp_path, "tiny")
    assert tree(tmp_path) == before
    with pytest.raises(ParamsError, match="file: name a folder"):
        project.create(tmp_path / ".git", "tiny")
