"""`trainorder init`: the files that make a folder a project.

They are those of trainorder's own repository, which is such a project: an installed wheel carries copies that setup.py makes
when it is built, a checkout has the files themselves. So nothing can differ.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

CARRIED = "template"
"""Folder beside this file in an installed wheel, with the files by their names in a project."""
FILES = (
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
    ".dvc/config",
    ".dvc/plots/*.json",
    "stages/*.py",
    "flows/*.py",
    "data/README.md",
    "configs/controls.yaml",
)
"""What every project begins with, beside params.yaml and README.md."""
PRESETS = {
    "tiny": "params.yaml",
    "smollm2": "configs/smollm2.yaml",
    "one-gpu": "configs/one-gpu.yaml",
    "multi-gpu": "configs/multi-gpu.yaml",
    "multi-node": "configs/multi-node.yaml",
}
"""Preset -> the file that becomes params.yaml."""
ROWS = {"smollm2": "configs/smollm2/*.jsonl"}
"""Preset -> the rows that its tasks read, copied with it."""
README = """\
# {name}

A [trainorder](https://arxiv.org/abs/2507.14783) experiment from the preset `{preset}`: in which order should a model be trained?

- `trainorder check` says within seconds whether params.yaml can work here; `trainorder plan` what a run would train.
- `trainorder run` trains, measures and compares the orders of params.yaml; run it again after an edit: only what is new trains.
- Change `orders`, `tasks` (own rows: data/README.md) and `policy.path` (own model) in params.yaml; `stages/` and `flows/` are yours too.
- `trainorder ui` opens MLflow and Prefect; the report is reports/report.html. `dvc repro` does the same work without Prefect.
- Commit everything after a run: plan.yaml and dvc.lock name the results, and `dvc push` brings them to a remote.
- `trainorder init --diff` shows what a newer version of trainorder would write here.
"""


def files(root: Path) -> dict[str, Path]:
    """Name in a project -> the file under `root`, of all FILES, PRESETS and ROWS.

    Raises:
        FileNotFoundError: there is none of a pattern, so this is no whole trainorder.
    """
    found = list[Path]()
    for pattern in (*FILES, *PRESETS.values(), *ROWS.values()):
        matching = sorted(root.glob(pattern))
        if not matching:
            raise FileNotFoundError(f"no file {pattern} in {root}: install trainorder again")
        found += matching
    return {path.relative_to(root).as_posix(): path for path in found}


def template() -> dict[str, Path]:
    """The files of this version of trainorder: the wheel's copies, or those of the checkout."""
    carried = Path(__file__).parent / CARRIED
    return files(carried if carried.is_dir() else Path(__file__).parents[1])


def wanted() -> dict[str, str]:
    """Name -> content of every file that a project has whatever its preset."""
    presets = set(PRESETS.values())
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in template().items()
        if name not in presets and not any(fnmatch(name, rows) for rows in ROWS.values())
    }


def create(folder: Path, preset: str) -> list[str]:
    """Make an empty or new folder a project under git and DVC; returns the names of its files.

    Raises:
        ParamsError: no such preset, the folder holds something, or git is missing; nothing was written.
    """
    from trainorder.files import write_text
    from trainorder.reading import ParamsError, did_you_mean, listed

    if preset not in PRESETS:
        raise ParamsError(
            f"no preset {preset!r}{did_you_mean(preset, list(PRESETS))}; there are {', '.join(PRESETS)}"
        )
    if folder.exists() and not folder.is_dir():
        raise ParamsError(f"{folder} is a file: name a folder that is empty or does not exist")
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if "params.yaml" in there:
        raise ParamsError(
            f"{folder.absolute()} has a params.yaml, nothing was written: `trainorder init --diff` shows what this "
            f"version would write, `trainorder init NAME` makes another project"
        )
    if set(there) - {".git"}:
        raise ParamsError(
            f"{folder.absolute()} is not empty ({listed(there)}), nothing was written: name a folder that is empty or "
            f"does not exist"
        )
    if shutil.which("git") is None:
        raise ParamsError("git is not installed or not on PATH: DVC keeps what it knows in git")
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _initialise(folder)
        name = folder.resolve().name
        contents = wanted() | {"README.md": README.format(name=name, preset=preset)}
        carried = template()
        contents["params.yaml"] = carried[PRESETS[preset]].read_text(encoding="utf-8")
        contents |= {
            file: path.read_text(encoding="utf-8")
            for file, path in carried.items()
            if fnmatch(file, ROWS.get(preset, ""))
        }
        for file, text in contents.items():
            write_text(folder / file, text)
    except BaseException:  # as it was before
        for path in folder.iterdir():
            if path.name not in there:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not existed:
            folder.rmdir()
        raise
    return sorted(contents)


def _initialise(folder: Path) -> None:
    """`git init` where no work tree is around the folder or the one around ignores it, then `dvc init`.

    Raises:
        ParamsError: one of them failed; with its words.
    """
    from trainorder.reading import ParamsError

    around = any((path / ".git").exists() for path in (folder.resolve(), *folder.resolve().parents))
    # DVC refuses a folder that git ignores
    ignored = around and not _call(folder, "git", "check-ignore", ".").returncode
    commands = [["git", "init", "-q"]] if ignored or not around else []
    subdir = [] if commands or (folder / ".git").exists() else ["--subdir"]
    for command in (*commands, [sys.executable, "-m", "dvc", "init", *subdir]):
        done = _call(folder, *command)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
            words = " ".join(command).removeprefix(f"{sys.executable} -m ")
            raise ParamsError(f"`{words}` failed in {folder.absolute()}: {said[-1]}")


def _call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run it in the folder and keep what it says."""
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def diff(folder: Path) -> Iterator[str]:
    """Lines of a unified diff from the project's files to those that this version writes; params.yaml is the user's.

    Raises:
        ParamsError: the folder is no project.
    """
    from trainorder.reading import ParamsError

    if not (folder / "params.yaml").is_file():
        raise ParamsError(
            f"{folder.absolute()} has no params.yaml: `trainorder init` makes a project there"
        )
    for name, text in wanted().items():
        file = folder / name
        own = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        before, after = own.splitlines(), text.splitlines()
        yield from difflib.unified_diff(before, after, name, f"{name} (this version)", lineterm="")
