"""What `dvc repro` would do with every stage, without running anything.

Stages are walked parents first, and a stage whose parents are in the cache is judged by the hashes these parents will
have once restored. So a node deep in a tree whose files are all gone is found restorable too.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from trainorder import paths
from trainorder.reading import ParamsError

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.repo import Repo
    from dvc.stage import Stage
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta

    from trainorder.plan.compile import Plan

State = Literal["cached", "restorable", "stale"]
"""cached: up to date; restorable: DVC's cache has it; stale: its command must run."""


def status(plan: Plan) -> dict[str, State]:
    """DVC stage -> its state, parents first; the always-run `fingerprint` is left out. plan.yaml must be this plan's.

    A stage under a stale one is stale: what its parent will produce is not known before it ran.

    Raises:
        ParamsError: this folder is no DVC project.
    """
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError
    from networkx import dfs_postorder_nodes

    texts = plan.fingerprints()
    quiet_dvc()
    try:
        with Repo(".") as repo:
            world = _World(repo, texts)
            stages = dfs_postorder_nodes(repo.index.graph)
            return {s.addressing: world.judge(s) for s in stages if not s.always_changed}
    except NotDvcRepoError:
        raise ParamsError(
            f"{Path.cwd()} is no DVC project: run `dvc init` here, or go to where dvc.yaml lies"
        ) from None
    except SCMError as error:
        raise ParamsError(
            f"{error}: run `git init`, or let DVC do without it: `dvc config --local core.no_scm true`"
        ) from None
    except DvcException as error:
        raise ParamsError(f"dvc cannot read the project: {' '.join(str(error).split())}") from None


def quiet_dvc() -> None:
    """Switch off DVC's progress bars and hints in this process: in a terminal they are thousands of lines."""
    import dvc  # sets the level when it is first imported

    logging.getLogger(dvc.__name__).setLevel(logging.CRITICAL)


class _World:
    """The hash that every file will have once all that need not run was restored."""

    def __init__(self, repo: Repo, fingerprints: Mapping[str, str]) -> None:
        self.repo = repo
        self.outs: dict[str, tuple[HashInfo, Meta] | None] = {}
        """Output path -> its hash; None: its stage must run first."""
        self.fingerprints = {
            str(paths.FINGERPRINTS / name): text for name, text in fingerprints.items()
        }

    def judge(self, stage: Stage) -> State:
        """The state of a stage whose parents were judged before; its outputs' hashes are noted."""
        state, made = self._judge(stage)
        for out in stage.outs:
            self.outs[out.def_path] = None
        for out in made.outs if made else ():
            if out.hash_info and out.meta is not None:
                self.outs[out.def_path] = (out.hash_info, out.meta)
        return state

    def _judge(self, stage: Stage) -> tuple[State, Stage | None]:
        """The state, and a stage that carries the outputs' hashes."""
        from dvc.dependency import ParamsDependency

        matches_lock = not stage.changed_stage()
        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                now = dep.get_hash()
                matches_lock &= dep.hash_info.value == now.value
                dep.hash_info = now
                continue
            known = self._expected(dep)
            if known is None:
                return "stale", None
            matches_lock &= dep.hash_info == known[0]
            dep.hash_info, dep.meta = known
            dep.hash_name = "md5"
        if matches_lock and all(out.hash_info for out in stage.outs):
            if not any(out.status() for out in stage.outs):
                return "cached", stage
            if stage.outs_cached():
                return "restorable", stage
        return self._from_run_cache(stage)

    def _from_run_cache(self, stage: Stage) -> tuple[State, Stage | None]:
        """As `StageCache.restore`: the newest entry for this command, deps and params, if its files are there."""
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.serialize import to_single_stage_lockfile

        cache = self.repo.stage_cache
        key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)  # type: ignore[arg-type]
        folder = Path(cache._get_cache_dir(key))
        if folder.is_dir():
            newest = max(folder.iterdir(), key=lambda file: file.stat().st_mtime, default=None)
            entry = cache._load_cache(key, newest.name) if newest else None
            if entry:
                made = cache._create_stage(entry, wdir=stage.wdir)
                if made.outs_cached():
                    return "restorable", made
        return "stale", None

    def _expected(self, dep: Dependency) -> tuple[HashInfo, Meta] | None:
        """The hash a dependency will have; None: not known before another stage ran, or missing."""
        path = dep.def_path
        if path in self.fingerprints:
            return self._of_text(self.fingerprints[path])
        if path in self.outs:
            return self.outs[path]
        inside = [out for out in self.outs if PurePosixPath(out).is_relative_to(path)]
        if inside:
            return self._of_folder(path, inside)
        above = [out for out in self.outs if PurePosixPath(path).is_relative_to(out)]
        if above:
            return self._of_member(path, above[0])
        return (dep.get_hash(), dep.get_meta()) if dep.exists else None

    @staticmethod
    def _of_text(text: str) -> tuple[HashInfo, Meta]:
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        return HashInfo("md5", hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()), Meta(
            size=len(text.encode())
        )

    def _of_folder(self, folder: str, inside: list[str]) -> tuple[HashInfo, Meta] | None:
        """A folder that holds the outputs (files) of several stages and nothing else: what a stage of the user's may read."""
        from dvc_data.hashfile.meta import Meta
        from dvc_data.hashfile.tree import Tree

        tree = Tree()
        for path in inside:
            known = self.outs[path]
            if known is None:
                return None
            tree.add(PurePosixPath(path).relative_to(folder).parts, known[1], known[0])
        tree.digest()
        assert tree.hash_info is not None
        return tree.hash_info, Meta(isdir=True)

    def _of_member(self, path: str, folder: str) -> tuple[HashInfo, Meta] | None:
        """A file inside another stage's output folder, looked up in the folder's listing in the cache."""
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        known = self.outs[folder]
        if known is None:
            return None
        listing: list[dict[str, Any]] = json.loads(
            self.repo.cache.local.fs.read_text(self._oid_path(known[0]))
        )
        name = PurePosixPath(path).relative_to(folder).as_posix()
        entry = next((e for e in listing if e["relpath"] == name), None)
        return None if entry is None else (HashInfo("md5", entry["md5"]), Meta())

    def _oid_path(self, hash_info: HashInfo) -> str:
        return self.repo.cache.local.oid_to_path(hash_info.value)
