"""Disk space: what a plan will need before it starts, and what can be freed without breaking what was committed.

DVC's own `gc -w` deletes what the run cache needs, so that undoing a reorder trains again. Here a result stays as long as
any commit's dvc.lock or plan.yaml names it, and, unless told otherwise, as long as the run cache can restore it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainorder import paths, plan
from trainorder.config import PolicyConfig
from trainorder.plan.compile import Plan
from trainorder.plan.state import State
from trainorder.process import StageError, exclusive
from trainorder.reading import ParamsError
from trainorder.resume import KEPT
from trainorder.verify import folder_md5

RECORDS_BYTES = 64 << 20
"""What evaluations, metrics, MLflow and Prefect may take beside the checkpoints."""
OPTIMIZER_COPIES = 3
"""A step checkpoint holds the weights and AdamW's two moments."""
_MD5 = re.compile(r"md5: '?([0-9a-f]{32}(?:\.dir)?)")
_NODE = re.compile(r"^  (s\d+(?:--[a-z0-9_]+)*):", re.MULTILINE)
_OF_NODE = re.compile(r"--node (\S+)")


class DiskError(StageError):
    """The disk has less room than the plan needs."""


# Before a run


def check_room(current: Plan, states: Mapping[str, State]) -> None:
    """Compare what the plan needs with the free space, per file system.

    Raises:
        DiskError: too little; says how much is missing where, and what to do.
    """
    from dvc.repo import Repo

    with Repo(".") as repo:
        cache = Path(repo.cache.local.path)
    cache.mkdir(parents=True, exist_ok=True)
    here, cached = need(current, states)
    wanted: dict[int, tuple[Path, int]] = {}
    for place, size in ((Path(), here), (cache, cached)):
        device = place.stat().st_dev
        first, before = wanted.get(device, (place, 0))
        wanted[device] = (first, before + size)
    for place, size in wanted.values():
        free = shutil.disk_usage(place).free
        if size > free:
            raise DiskError(
                f"this plan needs about {size_text(size)} on the disk of {place.absolute()}, and {size_text(free)} are "
                f"free: make room (`trainorder gc` says what can go), or train fewer nodes"
            )


def need(current: Plan, states: Mapping[str, State]) -> tuple[int, int]:
    """Bytes that bringing the plan up to date takes: in this folder, and in DVC's cache.

    A node that trains is written twice, one that is restored once; each worker keeps step checkpoints meanwhile.
    """
    of_nodes = [states.get(node.stage, "stale") for node in current.nodes.values()]
    trained, restored = of_nodes.count("stale"), of_nodes.count("restorable")
    if not trained and not restored:
        return 0, 0
    size = _checkpoint_bytes(current)
    steps = current.params.flow.workers * (KEPT + 1) * OPTIMIZER_COPIES * size if trained else 0
    return (trained + restored) * size + steps + RECORDS_BYTES, trained * size


def _checkpoint_bytes(current: Plan) -> int:
    """Size of one checkpoint: of one that is here, or as params.yaml lets expect."""
    known = [_size(paths.checkpoint(node)) for node in current.nodes]
    if any(known):
        return max(known)
    path = current.params.policy.path
    if path is None:
        return _tiny_bytes(current.params.policy)
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))


def _tiny_bytes(policy: PolicyConfig, vocabulary: int = 1000) -> int:
    """Float32 weights of the tiny Llama, with some room for its tokenizer."""
    h = policy.hidden_size
    weights = vocabulary * h + policy.num_layers * (4 * h * h + 3 * h * policy.mlp_size + 2 * h)
    return 4 * weights + (1 << 20)


# What can go


@dataclass(frozen=True)
class Item:
    """Something that can be freed."""

    what: str
    files: tuple[Path, ...]
    size: int


@contextmanager
def nothing_running() -> Iterator[None]:
    """Hold the locks of the flow and of every node, so that nothing is deleted under a run.

    Raises:
        Busy: a flow or a stage runs here.
    """
    with ExitStack() as locks:
        locks.enter_context(exclusive(paths.FLOW_LOCK, "runs a flow in this folder"))
        for file in sorted(paths.RESUME.glob("*.lock")):
            locks.enter_context(exclusive(file, f"makes {file.stem}"))
        yield


def candidates(*, uncommitted: bool = False) -> list[Item]:
    """What nothing needs: remains of killed runs, copies of nodes that left the plan, objects that nothing refers to.

    `uncommitted` adds results of the run cache whose node is in no committed plan and whose files are in no committed
    dvc.lock; asking for such a node again would train it again.

    Raises:
        ParamsError: no DVC project, DVC's cache lies outside of it, or (with `uncommitted`) there is no git history.
    """
    current = plan.load()
    cache, runs = _cache_folders()
    items = [*_remains(set(current.nodes)), *_left_the_plan(set(current.nodes), cache)]
    committed, nodes = _history()
    if uncommitted and not nodes:
        raise ParamsError(
            "no commit holds a plan.yaml, so every result would count as uncommitted: "
            "`git add params.yaml plan.yaml dvc.lock` and commit what you want to keep first"
        )
    lock = paths.DVC_LOCK.read_text(encoding="utf-8") if paths.DVC_LOCK.is_file() else ""
    kept = set(_MD5.findall(lock)) | committed
    nodes |= set(current.nodes)
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
    if loose:
        items.append(_item(f"{len(loose)} objects of DVC's cache that nothing refers to", loose))
    return items


def free(items: Iterable[Item]) -> None:
    """Delete what `candidates` found."""
    for item in items:
        for path in item.files:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            with suppress(OSError):  # DVC stumbles over an empty folder of its run cache
                path.parent.rmdir()


def size_text(size: int) -> str:
    """Bytes for people.

    >>> size_text(512), size_text(3 << 20), size_text(5 << 30)
    ('0.5 KiB', '3.0 MiB', '5.0 GiB')
    """
    for unit, exponent in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << exponent:
            return f"{size / (1 << exponent):.1f} {unit}"
    return f"{size / 1024:.1f} KiB"


def _cache_folders() -> tuple[Path, Path]:
    """DVC's objects and its run cache."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            cache, runs = Path(repo.cache.local.path), Path(repo.stage_cache.cache_dir)
            root = Path(repo.root_dir)
    except NotDvcRepoError:
        raise ParamsError(f"{Path.cwd()} is no DVC project: go to where dvc.yaml lies") from None
    if not cache.resolve().is_relative_to(root.resolve()):
        raise ParamsError(
            f"DVC's cache {cache} lies outside this project and others may use it: free it with `dvc gc -A -p ...`"
        )
    return cache, runs


def _remains(nodes: set[str]) -> Iterator[Item]:
    for folder in sorted(paths.RESUME.glob("*")):
        name = folder.name.removeprefix("evaluate--")
        if folder.is_dir() and name not in nodes and name != "judge":
            yield _item(f"step checkpoints of {folder.name}, which is not in the plan", [folder])
    for folder in sorted(paths.DUMPS.glob("*")):
        yield _item(f"dumps of refused updates of {folder.name}", [folder])
    homes = [paths.checkpoint("x").parent, paths.JUDGE, paths.evaluation("x").parent]
    homes += [Path(), paths.BWT.parent, *sorted(paths.run("x").parent.glob("*/"))]
    broken = [f for home in homes for f in sorted(home.glob(".*.tmp"))]
    if broken:
        yield _item(f"{len(broken)} half-written files of killed runs", broken)


def _left_the_plan(nodes: set[str], cache: Path) -> Iterator[Item]:
    for folder in sorted(paths.checkpoint("x").parent.glob("*")):
        if (
            not folder.is_dir()
            or folder.name in nodes
            or folder.name.startswith(".")
            or folder == paths.JUDGE
        ):
            continue
        if _object(cache, folder_md5(folder)).is_file():
            yield _item(
                f"{folder}: not in the plan, restored from DVC's cache when it is again", [folder]
            )


def _history() -> tuple[set[str], set[str]]:
    """Of all commits: the hashes in dvc.lock, and the nodes of plan.yaml."""
    hashes, nodes = set[str](), set[str]()
    for file, found, pattern in ((paths.DVC_LOCK, hashes, _MD5), (paths.PLAN, nodes, _NODE)):
        for commit in _git("log", "--all", "--format=%H", "--", str(file)).split():
            found |= set(pattern.findall(_git("show", f"{commit}:./{file}")))
    return hashes, nodes


def _git(*arguments: str) -> str:
    """The output of a git command; nothing where it fails (no repository, no such file in that commit)."""
    done = subprocess.run(
        ["git", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.stdout if done.returncode == 0 else ""


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
    return Item(what, listed, sum(map(_size, listed)))


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0
