"""`trainorder gc` frees what nothing names, and never a file that DVC can be asked for."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Project, make_project
from dvc.repo import Repo
from order_worlds import World

from stages import fingerprint as fingerprint_stage
from trainorder import data, paths, plan, storage
from trainorder.config import MeasureConfig, parse_params
from trainorder.files import write_text
from trainorder.measure import measure
from trainorder.plan.check import check
from trainorder.plan.design import from_plan
from trainorder.reading import ParamsError, read_yaml
from trainorder.results import to_json

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # pygtrie in dvc
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *IDENTITY, *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, text=True, capture_output=True
    ).stdout.strip()


def commit(folder: Path, *arguments: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "data", *arguments)


def add(name: str, folder: Path = Path()) -> Path:
    """`dvc add` of a file whose content is its own name."""
    file = folder / "mine" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"only in {name}\n")
    with Repo(str(folder)) as repo:
        repo.add(str(file))
    return file.with_name(f"{name}.dvc")


def gc() -> list[str]:
    """As `trainorder gc --yes`; what it says it freed."""
    with storage.nothing_running():
        found = storage.candidates()
        storage.free(found)
    return [item.what for item in found]


def committed() -> None:
    add("committed")
    commit(Path())


def overwritten_later() -> None:
    added = add("overwritten_later")
    commit(Path())
    added.unlink()
    commit(Path())


def on_another_branch() -> None:
    git(Path(), "switch", "-qc", "other")
    add("on_another_branch")
    commit(Path())
    git(Path(), "switch", "-q", "-")


def only_a_tag() -> None:
    git(Path(), "switch", "-q", "--detach")
    add("only_a_tag")
    commit(Path())
    git(Path(), "tag", "release")
    git(Path(), "switch", "-q", "-")


def amended_away() -> None:
    added = add("amended_away")
    commit(Path())
    added.unlink()
    (Path("mine") / "amended").write_text("x")
    commit(Path(), "--amend")


def in_the_older_of_two_stashes() -> None:
    add("in_the_older_of_two_stashes")
    git(Path(), "stash", "-qu")
    (Path("mine") / "more").write_text("x")
    git(Path(), "stash", "-qu")


def of_an_experiment() -> None:
    added = add("of_an_experiment")
    git(Path(), "add", "-A")
    made = git(Path(), "stash", "create")
    git(Path(), "update-ref", f"refs/exps/{made[:2]}/{made[2:]}/kept", made)  # as `dvc exp` does
    git(Path(), "reset", "-q", "--hard")
    assert not added.exists()


def of_an_imported_folder() -> None:
    source = Path("..", "source")
    source.mkdir()
    (source / "of_an_imported_folder").write_text("only in of_an_imported_folder\n")
    with Repo(".") as repo:
        repo.imp_url(str(source.resolve()), "mine/imported")
    commit(Path())
    Path("mine/imported.dvc").unlink()


def staged_only() -> None:
    added = add("staged_only")
    git(Path(), "add", str(added))
    added.unlink()


def of_a_project_in_a_folder() -> None:
    below = Path("below")
    below.mkdir()
    with Repo.init(str(below), subdir=True) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = str(Path(".dvc/cache").resolve())
    add("of_a_project_in_a_folder", below)


def of_another_work_tree() -> None:
    place = Path("..", "tree").resolve()
    git(Path(), "worktree", "add", "-q", "--detach", str(place))
    with Repo(str(place)) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = str(Path(".dvc/cache").resolve())
    add("of_another_work_tree", place)


def not_committed_yet() -> None:
    add("not_committed_yet")


WAYS: dict[str, Callable[[], None]] = {
    way.__name__: way
    for way in (
        committed,
        overwritten_later,
        on_another_branch,
        only_a_tag,
        amended_away,
        of_an_experiment,
        of_an_imported_folder,
        of_another_work_tree,
        in_the_older_of_two_stashes,
        staged_only,
        of_a_project_in_a_folder,
        not_committed_yet,
    )
}


@pytest.fixture(scope="module")
def freed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with data of a user in each of these ways, after `trainorder gc --yes`."""
    project = make_project(tmp_path_factory.mktemp("storage").resolve() / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        plan.write(plan.load())  # dvc.yaml unrolls over it
        commit(project.root)
        for way in WAYS.values():
            way()
        add("unused").unlink()
        for kept in ("committed", "not_committed_yet"):
            (project.root / "mine" / kept).unlink()
        gc()
    return project


def contents(project: Project) -> set[str]:
    """Texts of all objects in DVC's cache."""
    return {file.read_text() for file in project.root.glob(".dvc/cache/files/md5/??/*")}


@pytest.mark.long("DVC goes through all commits")
@pytest.mark.parametrize("way", WAYS)
def test_gc_keeps_a_file_that_dvc_can_be_asked_for(freed: Project, way: str):
    assert f"only in {way}\n" in contents(freed)


def test_gc_frees_what_no_file_of_dvc_names_any_more(freed: Project):
    assert "only in unused\n" not in contents(freed)


def test_dvc_checks_out_what_was_committed_before_gc(freed: Project):
    freed.dvc("checkout", "mine/committed.dvc", "mine/not_committed_yet.dvc")
    assert (freed.root / "mine" / "committed").read_text() == "only in committed\n"


def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.root)
    plan.write(plan.load())
    commit(project.root)
    add("file")
    commit(project.root)
    shutil.rmtree(project.root / "mine")
    return project


def test_gc_refuses_where_git_cannot_say_what_commits_need(tmp_path, monkeypatch):
    project = small(tmp_path, monkeypatch)
    (project.root / ".git" / "index").write_text("damaged")
    with pytest.raises(ParamsError, match="git cannot read"):
        gc()
    assert contents(project) == {"only in file\n"}


def test_gc_leaves_a_shared_cache_alone(tmp_path, monkeypatch):
    project = small(tmp_path, monkeypatch)
    with Repo(".") as repo, repo.config.edit("local") as config:
        config["cache"]["shared"] = "group"
    with pytest.raises(ParamsError, match="may be shared with other projects"):
        gc()
    assert contents(project) == {"only in file\n"}


def test_gc_leaves_loose_objects_alone_while_the_listing_of_a_folder_is_missing(
    tmp_path, monkeypatch
):
    project = small(tmp_path, monkeypatch)
    (project.root / "many").mkdir()
    (project.root / "many" / "one").write_text("one of many\n")
    with Repo(".") as repo:
        repo.add("many")
    commit(project.root)
    for listing in project.root.glob(".dvc/cache/files/md5/??/*.dir"):
        listing.unlink()
    (said,) = gc()
    assert "left alone" in said
    assert "one of many\n" in contents(project)


def test_gc_takes_nothing_of_a_users_own_from_the_folders_it_looks_into(tmp_path, monkeypatch):
    small(tmp_path, monkeypatch)
    mine = [Path(".notes.tmp"), Path("mine/model/weights"), Path("checkpoints/mine/weights")]
    for file in mine:
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text("mine\n")
    with Repo(".") as repo:
        repo.add("mine/model")
    gc()
    assert all(file.exists() for file in mine)


def test_no_stage_and_no_gc_take_a_file_of_a_users_own_from_the_folders_they_tidy(
    tmp_path, monkeypatch
):
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.root)
    plan.write(plan.load())
    left = [Path("evaluations/s0--left.parquet"), Path("runs/s0--left/run.json")]
    mine = [
        "evaluations/notes.parquet",
        "evaluations/s0.copy.parquet",
        "evaluations/s0--mine.parquet",
        "runs/mine/metrics.jsonl",
        "runs/s0--mine/run.json",
        "runs/s0--left/notes.txt",
        ".fingerprints/notes/a",
        ".fingerprints/rl",
        "data/tasks/mine/rows.jsonl",
        "data/tasks/rows.jsonl",
    ]
    for name in (*left, *map(Path, mine)):
        name.parent.mkdir(exist_ok=True, parents=True)
        name.write_text(f"of {name}\n")
    for name in left:
        digest = hashlib.md5(name.read_bytes()).hexdigest()
        kept = Path(".dvc/cache/files/md5", digest[:2], digest[2:])
        kept.parent.mkdir(parents=True)
        shutil.copy(name, kept)
    fingerprint_stage.main(argparse.Namespace())
    storage.free(storage.candidates())
    data._remove_others(paths.TASK_DATA, {"math"})
    assert [name for name in mine if not (project.root / name).is_file()] == []
    assert all(file.exists() for file in left)  # no result of the run cache holds them


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("rows", "data/tasks/mine/rows.jsonl"),
        ("rows", "../project/data/sft/rows.jsonl"),
        ("rows", "runs/s0--math/rows.jsonl"),
        ("rows", "linked/rows.jsonl"),
        ("model", "checkpoints/s0"),
        ("model", "checkpoints/judge/reward"),
        ("", "data/rows.jsonl"),
        ("", "checkpoints/mine/rows.jsonl"),
        ("", "runs/rows.jsonl"),
    ],
)
def test_what_a_run_removes_and_writes_again_holds_nothing_of_a_users_own(
    tmp_path, monkeypatch, key: str, place: str
):
    (tmp_path / "project" / "data" / "tasks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    Path("linked").symlink_to("data/tasks")
    files = {"train": place, "dev": "dev.jsonl", "test": "test.jsonl"}
    task = {"kind": "jsonl", "options": files}
    path = Path(place) / "config.json" if key == "model" else Path(place)
    for file in (path, Path("dev.jsonl"), Path("test.jsonl")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    given = read_yaml(ROOT / "params.yaml")
    given["policy" if key == "model" else "tasks"] |= (
        {"path": place} if key == "model" else {"own": task}
    )
    said = ""
    try:
        check(parse_params(given))
    except ParamsError as error:
        said = str(error)
    assert ("where a run removes and writes files" in said) == bool(key), said


# A folder that cannot be written, a disk that is full


def refused(project: Project, *arguments: str, code: int, file_size: int | None = None) -> str:
    """The one line that a command prints where it may write nothing, or no file larger than `file_size` bytes."""

    def restrict() -> None:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        ctypes.CDLL(None).prctl(24, 1)  # root without CAP_DAC_OVERRIDE minds the modes of files

    command = [sys.executable, "-m", "trainorder.cli", *arguments]
    done = subprocess.run(
        command,
        cwd=project.root,
        env=project.env,
        text=True,
        capture_output=True,
        check=False,
        preexec_fn=restrict,
    )
    said = (done.stdout + done.stderr).strip()
    assert (done.returncode, said.count("\n")) == (code, 0), said
    return said


@pytest.mark.long("starts the command in processes")
@pytest.mark.parametrize("arguments", [("plan",), ("run",), ("gc",), ("gc", "--yes"), ("report",)])
def test_a_folder_that_cannot_be_written_costs_one_line(project: Project, arguments):
    if arguments == ("report",):
        world = World(tasks=("a",), phases={"a": ("a",)}, orders={"x": ("a",)}, problems=8)
        found = measure(world.table(), from_plan(world.plan()), MeasureConfig(bootstrap=100))
        write_text(project.root / "reports" / "bwt.json", to_json(found))
    for path in (project.root, *project.root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        line = refused(project, *arguments, code=2)
    finally:
        for path in (project.root, *project.root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert line.startswith("error: ")
    assert "Permission denied; check the path and its permissions" in line or (
        "cannot be written by this user" in line
    )


@pytest.mark.long("starts the command in processes")
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_full_disk_costs_one_line(project: Project, command: str):
    line = refused(project, command, code=1, file_size=100)
    assert line.startswith("error: no space left on the disk")
    assert not (project.root / "plan.yaml").exists()
