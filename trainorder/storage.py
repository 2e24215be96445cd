"""Disk space that can be freed without breaking what was committed.

DVC's own `gc -w` deletes what the run cache needs, so that undoing a reorder trains again. Here an object stays as long as
any dvc.lock or .dvc file names it, in a work tree or anywhere in git (commits, stashes, experiments, the reflog), and,
unless told otherwise, as long as the run cache can restore it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainorder import paths, plan
from trainorder.config import load_params, params_file
from trainorder.files import size_of
from trainorder.gguf_model import folder_of
from trainorder.plan.compile import Plan
from trainorder.plan.pipeline import RECORDS
from trainorder.process import Busy, exclusive, is_held
from trainorder.reading import ParamsError
from trainorder.sources import find
from trainorder.verify import folder_md5
from trainorder.verify import md5 as file_md5

_MD5 = re.compile(r"\b([0-9a-f]{32}(?:\.dir)?)\b")
_IN_PLAN = re.compile(rf"^  ({paths.NODE.pattern}):", re.MULTILINE)
_OF_NODE = re.compile(r"--node (\S+)")
_IN_GIT = tuple(
    f":(top,glob)**/{name}" for name in ("*.dvc", "dvc.lock", paths.PLAN, paths.PIPELINE.name)
)
_CHANGE = re.compile(rb":\d+ \d+ [0-9a-f]+ ([0-9a-f]{40,}) [A-Z]\d*\0([^\0]+)")
_STAGED = re.compile(rb"\d+ ([0-9a-f]{40,}) \d\t([^\0]+)")


@dataclass(frozen=True)
class Item:
    """Something that can be freed."""

    what: str
    files: tuple[Path, ...]
    size: int


@contextmanager
def nothing_running() -> Iterator[None]:
    """Hold the locks of the flow, of every node and of DVC, so that nothing is deleted under a run or a `dvc add`.

    Raises:
        Busy: a flow, a stage or dvc runs here.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.lock import LockError
    from dvc.repo import Repo

    with ExitStack() as locks:
        try:
            locks.enter_context(locks.enter_context(Repo(".")).lock)
        except LockError:
            raise Busy(
                "another dvc command runs in this folder; wait for it, then run again"
            ) from None
        except NotDvcRepoError:
            pass  # `candidates` refuses
        locks.enter_context(exclusive(paths.FLOW_LOCK, "runs a flow in this folder"))
        for file in sorted(paths.RESUME.glob("*.lock")):
            locks.enter_context(exclusive(file, f"makes {file.stem}"))
        yield


def candidates(*, uncommitted: bool = False) -> list[Item]:
    """What nothing needs: remains of killed runs, copies of nodes that left the plan, objects that nothing refers to.

    `uncommitted` adds results of the run cache whose node is in no committed plan and whose files are in no committed
    dvc.lock; asking for such a node again would train it again.

    Raises:
        ParamsError: no DVC project, its cache may be used by other projects, git cannot be read, or (with `uncommitted`)
            there is no git history.
    """
    current = plan.load()
    cache, runs, top = _cache_folders()
    used = _used(top)
    if uncommitted and not used.nodes:
        raise ParamsError(
            "no commit holds a plan.yaml, so every result would count as uncommitted: "
            "`git add params.yaml plan.yaml plan dvc.lock` and commit what you want to keep first"
        )
    items = list(_remains(current))
    kept, nodes = set(used.objects), used.nodes | set(current.nodes)
    dropped: list[tuple[Path, str, set[str]]] = []
    for entry in sorted(runs.glob("??/*/*")):
        text = entry.read_text(encoding="utf-8")
        made = set(_MD5.findall(text.partition("outs:")[2]))
        node = _OF_NODE.search(text)
        known = made <= kept or (node is not None and node.group(1) in nodes)
        if uncommitted and not known:
            dropped.append((entry, text, made))
        else:
            kept |= made
    kept = _with_members(kept, cache)
    restorable = kept.union(*(made for _, _, made in dropped))
    items += _left_the_plan(set(current.nodes), restorable, cache)
    taken: set[Path] = set()
    for entry, text, made in dropped:
        gone = {_object(cache, md5) for md5 in _with_members(made, cache) - kept}
        files = [file for file in sorted(gone - taken) if file.is_file()]
        taken |= set(files)
        command = re.search(r"cmd: (.*)", text)
        what = command.group(1).strip() if command else entry.name
        items.append(_item(f"never committed: result of `{what}`", [entry, *files]))
    loose = [
        file
        for file in sorted(cache.glob("??/*"))
        if file not in taken and file.parent.name + file.name not in kept
    ]
    unlisted = {md5 for md5 in used.folders if not _object(cache, md5).is_file()}
    if loose and unlisted:
        items.append(
            Item(
                f"{len(loose)} objects of DVC's cache left alone: {len(unlisted)} folders that .dvc files name are not in "
                f"the cache, so these may be their files (`dvc fetch -A` brings the folders)",
                (),
                0,
            )
        )
    elif loose:
        items.append(_item(f"{len(loose)} objects of DVC's cache that nothing refers to", loose))
    return items


def free(items: Iterable[Item]) -> None:
    """Delete what `candidates` found."""
    for item in items:
        for path in item.files:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            with suppress(OSError):  # DVC stumbles over an empty folder of its run cache
                path.parent.rmdir()


def _cache_folders() -> tuple[Path, Path, Path]:
    """DVC's objects, its run cache, and the folder of the git repository (of the project, where there is none)."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            cache, runs = Path(repo.cache.local.path), Path(repo.stage_cache.cache_dir)
            root = Path(repo.root_dir)
            shared = "shared" in repo.config["cache"]
    except NotDvcRepoError:
        raise ParamsError(f"{Path.cwd()} is no DVC project: go to where dvc.yaml lies") from None
    if shared or not cache.resolve().is_relative_to((root / ".dvc").resolve()):
        raise ParamsError(
            f"DVC's cache {cache} may be shared with other projects, whose files cannot be seen from here: free it with "
            f"`dvc gc -A -p ...`"
        )
    above = (folder for folder in (root, *root.parents) if (folder / ".git").exists())
    return cache, runs, next(above, root)


def _remains(current: Plan) -> Iterator[Item]:
    nodes = {*current.nodes, *map(paths.judge_work, current.judges)}
    for folder in sorted(paths.RESUME.glob("*")):
        name = folder.name.removeprefix("evaluate--")
        if folder.is_dir() and name not in nodes:
            yield _item(f"step checkpoints of {folder.name}, which is not in the plan", [folder])
    yield from _conversions()
    locks = [lock for lock in paths.locks() if _left_behind(lock)]
    if locks:
        yield _item(f"{len(locks)} dvc.lock of nodes that left the plan", locks)
    for folder in sorted(paths.DUMPS.glob("*")):
        yield _item(f"dumps of refused updates of {folder.name}", [folder])
    homes = [paths.checkpoint("x").parent, paths.JUDGE, paths.evaluation("x").parent]
    homes += [paths.BWT.parent, *sorted(paths.run("x").parent.glob("*/"))]
    broken = [f for home in homes for f in sorted(home.glob(".*.tmp"))]
    compiled = (paths.PLAN, paths.PIPELINE, *map(paths.pipeline, current.nodes))
    ours = [file.with_name(f".{file.name}.tmp") for file in (*compiled, params_file())]
    broken += [file for file in ours if file.exists()]
    if broken:
        yield _item(f"{len(broken)} half-written files of killed runs", broken)


def _left_behind(lock: Path) -> bool:
    """Whether a dvc.lock is that of a node that left the plan: its pipeline file is gone."""
    home = lock.parent
    ours = paths.NODE.fullmatch(home.name) and home.parent.name == paths.PIPELINE.parent.name
    return bool(ours) and not lock.with_name(paths.PIPELINE.name).exists()


def _conversions() -> Iterator[Item]:
    """Models that were converted and are not the one that params.yaml names; each can be made again from its file."""
    path = load_params().policy.path
    source = find(path) if path else None
    kept = folder_of(source.path) if source is not None and source.kind == "gguf" else None
    for folder in sorted(paths.MODELS.glob("*/")):
        if folder != kept and not is_held(folder.with_suffix(".lock")):
            yield _item(f"{folder}: a converted model that params.yaml does not name", [folder])


def _left_the_plan(nodes: set[str], restorable: set[str], cache: Path) -> Iterator[Item]:
    for folder in sorted(paths.checkpoint("x").parent.glob("*")):
        if not folder.is_dir() or folder.name in nodes or not paths.NODE.fullmatch(folder.name):
            continue
        md5 = folder_md5(folder)
        if md5 in restorable and _object(cache, md5).is_file():
            yield _item(
                f"{folder}: not in the plan, restored from DVC's cache when it is again", [folder]
            )
    records = [file for file in _records(nodes) if file_md5(file) in restorable]
    kept = [file for file in records if _object(cache, file_md5(file)).is_file()]
    if kept:
        yield _item(f"{len(kept)} evaluations and records of nodes that left the plan", kept)


def _records(nodes: set[str]) -> Iterator[Path]:
    """Files where evaluations and records of nodes lie that are not among these."""
    for file in sorted(paths.evaluation("x").parent.glob("*.parquet")):
        if paths.NODE.fullmatch(file.stem) and file.stem not in nodes:
            yield file
    for record in RECORDS:
        for file in sorted(paths.run("x").parent.glob(f"*/{record}")):
            if paths.NODE.fullmatch(file.parent.name) and file.parent.name not in nodes:
                yield file


@dataclass
class _Used:
    """What the files of DVC and the plans name."""

    objects: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    """Those of `objects` that are folders under a .dvc file."""
    nodes: set[str] = field(default_factory=set)
    """Nodes of committed plans."""

    def read(self, name: str, text: str) -> None:
        """Note what one file names; more than it means is harmless, less is not, so any hash in it counts."""
        if name in (paths.PLAN.name, paths.PIPELINE.name):
            named = _IN_PLAN if name == paths.PLAN.name else _OF_NODE
            self.nodes |= set(named.findall(text))
            return
        self.objects |= set(_MD5.findall(text))
        if name.endswith(".dvc"):
            outs = _MD5.findall(text.partition("outs:")[2])
            self.folders |= {md5 for md5 in outs if md5.endswith(".dir")}


def _used(top: Path) -> _Used:
    """What is named below `top`, in the other work trees of its repositories, and anywhere in their git.

    Raises:
        ParamsError: a repository cannot be read.
    """
    used, folders, seen = _Used(), [top], set[Path]()
    while folders:
        folder = folders.pop().resolve()
        if folder in seen or not folder.is_dir():
            continue
        seen.add(folder)
        if (folder / ".git").exists():
            _read_git(folder, used)
            listed = os.fsdecode(_git(folder, "worktree", "list", "--porcelain")).splitlines()
            folders += [Path(line[9:]) for line in listed if line.startswith("worktree ")]
        for home, inside, files in os.walk(folder):
            here = Path(home)
            if ".git" in {*inside, *files}:
                folders.append(here)
            skipped = {".git", ".venv", "cache" if here.name == ".dvc" else ".venv"}
            inside[:] = [name for name in inside if name not in skipped]
            for name in files:
                added = name.endswith(".dvc") and name != ".dvc"
                made = name.startswith(paths.DVC_LOCK.name) and not _left_behind(here / name)
                if added or made:
                    text = (here / name).read_text(encoding="utf-8", errors="replace")
                    used.read(name, text)
    return used


def _read_git(top: Path, used: _Used) -> None:
    """Every version of these files in the index, in any commit that a ref leads to, and in the reflog (stashes)."""
    commits = _git(top, "rev-list", "--all", "--reflog")
    command = ("diff-tree", "--stdin", "-r", "-m", "--root", "--no-commit-id", "--no-renames", "-z")
    changes = _git(top, *command, "--", *_IN_GIT, given=commits)
    staged = _git(top, "ls-files", "-s", "-z", "--", *_IN_GIT)
    names: dict[bytes, set[str]] = {}
    for blob, path in [*_CHANGE.findall(changes), *_STAGED.findall(staged)]:
        if blob.strip(b"0"):
            names.setdefault(blob, set()).add(Path(os.fsdecode(path)).name)
    rest = _git(top, "cat-file", "--batch", given=b"\n".join(names))
    for blob in names:
        head, _, rest = rest.partition(b"\n")  # "<blob> blob <size>"
        size = int(head.split()[2])
        for name in names[blob]:
            used.read(name, rest[:size].decode(errors="replace"))
        rest = rest[size + 1 :]


def _git(top: Path, *arguments: str, given: bytes = b"") -> bytes:
    """The output of a git command in `top`.

    Raises:
        ParamsError: it fails; without the history nobody knows what commits need.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(top), *arguments],
            input=given,
            capture_output=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise ParamsError(
            f"{top} is a git repository but git is not installed, so what its commits need is not known: install git"
        ) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ParamsError(
            f"git cannot read {top}, so what its commits need is not known: {said[0] if said else done.returncode}"
        )
    return done.stdout


def _with_members(hashes: set[str], cache: Path) -> set[str]:
    """The hashes, and those of the files inside the folders among them."""
    found = set(hashes)
    for md5 in hashes:
        listing = _object(cache, md5)
        if md5.endswith(".dir") and listing.is_file():
            found |= {entry["md5"] for entry in json.loads(listing.read_text(encoding="utf-8"))}
    return found


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _item(what: str, files: Iterable[Path]) -> Item:
    listed = tuple(files)
    return Item(what, listed, sum(map(size_of, listed)))
