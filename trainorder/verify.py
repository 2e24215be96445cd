"""Whether what lies here is still what the records say: hashes recomputed from the bytes alone.

    number -> evaluation -> checkpoint -> manifest -> parents, params, data, code

Two records are held against the files: a node's manifest, and dvc.lock for every output of its stages. Neither trusts
modification times, so a flipped bit on the disk is found too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from trainorder import paths, plan
from trainorder.adapters import weights_hash, weights_of
from trainorder.config import DEFAULT, Params, Section
from trainorder.lineage import content_hash, manifest_hash, read_manifest, variant_of
from trainorder.plan.names import MEASURE, METRICS, PROBE, REPORT, address, evaluation
from trainorder.reading import ParamsError, did_you_mean, found_at, read_yaml, shaped
from trainorder.sources import section

REPAIR = (
    "To repair: delete the files named as changed, then `trainorder run` restores them from DVC's cache (checked by "
    "`trainorder verify --cache`) or makes them again; where params or code differ, it trains with today's"
)
SHARED = ("build_data", address(MEASURE), address(REPORT), address(METRICS))
"""Stages that belong to no single node, the judges' aside."""


def verify(node: str | None = None) -> list[str]:
    """What differs, one sentence each; of one node, or of every node of the plan, the data, the judges and the report.

    Raises:
        ParamsError: there is no such node, or nothing was made yet.
    """
    current = plan.load()
    if node is not None and node not in current.nodes:
        names = sorted(current.nodes)
        raise ParamsError(
            f"no node {node!r} in the plan; there are {', '.join(names)}{did_you_mean(node, names)}"
        )
    if not paths.locks():
        raise ParamsError("no dvc.lock found: nothing was made here yet; run `trainorder run`")
    locked = dict(_locked())
    fingerprints = current.fingerprints()
    wanted = [node] if node is not None else list(current.nodes)
    found: list[str] = []
    for name in wanted:
        found += [f"{name}: {text}" for text in _node(name, current.params, fingerprints)]
    stages = [s for name in wanted for s in (current.nodes[name].stage, evaluation(name))]
    stages += [*SHARED, *current.judge_stages] if node is None else []
    stages += [address(PROBE)] if node is None and current.params.probes else []
    if node is None:
        found += _compiled(current, fingerprints)
    for stage in stages:
        found += [f"{stage}: {text}" for text in _outputs(stage, locked.get(stage))]
    return found


class _Path(TypedDict):
    path: str
    md5: NotRequired[str]


class _Stage(TypedDict):
    deps: NotRequired[list[_Path]]
    outs: NotRequired[list[_Path]]


class _Lock(TypedDict):
    stages: dict[str, _Stage]


def _locked() -> Iterator[tuple[str, _Stage]]:
    """Every stage that ran, as DVC is asked for it."""
    repair = (
        "`trainorder run` sets a damaged one aside and restores every result from DVC's run cache"
    )
    for lock in paths.locks():
        beside = lock.with_name(paths.PIPELINE.name).as_posix()
        prefix = "" if lock == paths.DVC_LOCK else f"{beside}:"
        try:
            stages = shaped(read_yaml(lock), _Lock, lock, repair)["stages"]
        except ParamsError as error:
            text = str(error)
            raise ParamsError(text if repair in text else f"{text}; {repair}") from None
        yield from ((f"{prefix}{name}", entry) for name, entry in stages.items())


def _compiled(current: plan.Plan, fingerprints: Mapping[str, str]) -> Iterator[str]:
    """What was compiled from params.yaml and is not what that says now."""
    values = {n: text for n, text in fingerprints.items() if n.endswith(".json")}
    texts = current.texts() | {paths.FINGERPRINTS / name: text for name, text in values.items()}
    for file, text in texts.items():
        if found_at(file) and file.read_bytes() != text.encode():
            yield f"{file} is not what params.yaml says; `trainorder run` writes it again"


def verify_cache() -> list[str]:
    """Objects of DVC's cache whose bytes are not those of their name: a restored file would be wrong."""
    from dvc.repo import Repo

    with Repo(".") as repo:
        root = Path(repo.cache.local.path)
    return [
        f"{file}: damaged in DVC's cache; delete it, what needs it is made again"
        for file in sorted(root.glob("??/*"))
        if md5(file) != file.parent.name + file.name.removesuffix(".dir")
    ]


def md5(path: Path) -> str:
    """DVC's hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, _md5).hexdigest()


def folder_md5(path: Path) -> str:
    """DVC's hash of a folder: of the JSON list of its files' hashes and relative paths."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    rows = [{"md5": md5(f), "relpath": f.relative_to(path).as_posix()} for f in files]
    rows.sort(key=lambda row: tuple(Path(row["relpath"]).parts))
    return _md5(json.dumps(rows, sort_keys=True).encode()).hexdigest() + ".dir"


def _md5(data: bytes = b"") -> Any:
    """As DVC names files; no protection, so it is allowed where FIPS forbids md5."""
    return hashlib.md5(data, usedforsecurity=False)


def _node(node: str, params: Params, fingerprints: Mapping[str, str]) -> Iterator[str]:
    file = paths.run(node) / "manifest.json"
    if not file.is_file():
        yield f"{file} is missing: the node is not made here"
        return
    try:
        manifest = read_manifest(node)
        if manifest_hash(manifest) != manifest["hash"]:
            raise ParamsError("its own hash is another")
    except ParamsError as error:
        yield f"{file} was changed: {error}"
        return
    yield from _checkpoint(node, manifest)
    try:
        weights_of(paths.checkpoint(node))
    except ParamsError as error:
        yield f"base: {error}"
    for parent, then in manifest["parents"].items():
        folder = paths.checkpoint(parent)
        if not folder.is_dir():
            yield f"parent {parent}: {folder} is missing"
        elif weights_hash(folder) != then:
            yield f"parent {parent}: the weights in {folder} are not those it was trained from"
    for path, then in manifest["data"].items():
        if not Path(path).exists():
            yield f"data: {path} is missing"
        elif content_hash(Path(path)) != then:
            yield f"data: {path} is not what it was trained on"
    yield from _params(manifest, params)
    for name, then in manifest["code"].items():
        yield from _code(name, then, fingerprints.get(name))


def _checkpoint(node: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    folder, recorded = paths.checkpoint(node), manifest["files"]
    here = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    for name, then in recorded.items():
        if name not in here:
            yield f"checkpoint: {folder / name} is missing"
        elif content_hash(here[name]) != then:
            yield f"checkpoint: {here[name]} was changed"
    for name in sorted(here.keys() - recorded.keys()):
        yield f"checkpoint: {here[name]} was added"


def _params(manifest: Mapping[str, Any], params: Params) -> Iterator[str]:
    variant = variant_of(manifest)
    if variant != DEFAULT and variant not in params.variants:
        yield f"params: params.yaml has no variant {variant} any more"
        return
    params = params.variant(variant)
    for name, then in manifest["params"].items():
        now = _section(params, name, manifest["phase"])
        if now is None:
            yield f"params: params.yaml has no {name} any more"
            continue
        old, new = dict(_flat(name, then)), dict(_flat(name, json.loads(json.dumps(now))))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                yield f"params: {key} was {old.get(key)!r} and is {new.get(key)!r} now"


def _section(params: Params, name: str, phase: str | None) -> Any:
    """The section of today's params that a manifest recorded under this name."""
    group, _, key = name.partition(".")
    if name == "policy":
        return section(params.policy)
    if group == "rl" and phase in params.phases:
        return params.phase_rl(phase).results()
    found = getattr(params, group, None)
    if key:
        found = found.get(key) if isinstance(found, dict) else getattr(found, key, None)
    return found.results() if isinstance(found, Section) else found


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from _flat(f"{name}.{key}", entry)
    else:
        yield name, value


def _code(name: str, then: str | None, text: str | None) -> Iterator[str]:
    if then is None or text is None:
        yield f"code: no fingerprint {name} to compare with"
    elif hashlib.sha256(text.encode()).hexdigest() != then:
        known = paths.FINGERPRINTS / name
        changed = "files not known any more"
        if known.is_file() and content_hash(known) == then:
            lines = set(known.read_text(encoding="utf-8").splitlines()) ^ set(text.splitlines())
            changed = ", ".join(sorted({line.partition(" ")[0] for line in lines}))
        yield f"code: {name} does something else now ({changed})"


def _outputs(stage: str, entry: _Stage | None) -> Iterator[str]:
    if entry is None:
        yield "dvc.lock has no entry: the stage did not run here"
        return
    for dep in entry.get("deps", []):
        path = Path(dep["path"])
        code = path.parent == paths.FINGERPRINTS and path.suffix != ".json"
        if code and path.is_file() and md5(path) != dep.get("md5"):
            yield f"{path} is not the code it was made with"
    for out in entry.get("outs", []):
        path = Path(out["path"])
        if not path.exists():
            yield f"{path} is missing"
        elif (folder_md5(path) if path.is_dir() else md5(path)) != out.get("md5"):
            yield f"{path} was changed"
