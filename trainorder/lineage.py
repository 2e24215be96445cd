"""manifest.json beside every checkpoint: what it came from, so that every number can be traced to its causes.

number -> evaluation -> checkpoint -> manifest -> parents' weights, params, data, code, versions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from trainorder import paths
from trainorder.adapters import weights_hash
from trainorder.config import DEFAULT
from trainorder.files import sha256, write_json
from trainorder.machine import chosen, processor
from trainorder.reading import ParamsError, read_json

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "peft", "dvc")
"""Packages whose version can change a checkpoint or how it is stored."""


def inputs(
    *,
    seed: int,
    params: Mapping[str, Any],
    code: str,
    parents: Sequence[str] = (),
    data: Iterable[Path | str] = (),
) -> dict[str, Any] | None:
    """Hashes of all that a node's result depends on; None where no fingerprint of the code is known.

    A parent or file that is missing is left out: the stage itself raises the clearer error.
    """
    fingerprint = _fingerprint(code)
    if fingerprint is None:
        return None
    here = [parent for parent in parents if paths.checkpoint(parent).is_dir()]
    return {
        "seed": seed,
        "params": params_hash(params),
        "code": fingerprint,
        "parents": {parent: content_hash(paths.checkpoint(parent)) for parent in here},
        "data": {str(path): content_hash(Path(path)) for path in data if Path(path).exists()},
        "versions": versions(),
    }


def write_manifest(
    node: str,
    *,
    seed: int,
    params: Mapping[str, Any],
    code: str,
    parents: Sequence[str] = (),
    data: Iterable[Path | str] = (),
    phase: str | None = None,
    steps: int | None = None,
    run_id: str | None = None,
    tokens: int = 0,
    seconds: float = 0.0,
    alarms: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    rollouts: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write runs/<node>/manifest.json, whole and then renamed; the node's checkpoint must be complete.

    `params` are the sections that were read, `data` the files and folders, `code` the name of the fingerprint
    (`merge`, `phase_math`), `tokens` what was trained on, `seconds` the wall time of the stage, `alarms` what sounded
    (trainorder/rl/guard.py), `measured` what a choice within the stage was made by (a merge's scale), `rollouts` some answers of the
    training to be read (trainorder/rl/records.py).
    """
    manifest = {
        "node": node,
        "seed": seed,
        "phase": phase,
        "steps": steps,
        "weights": weights_hash(paths.checkpoint(node)),
        "files": file_hashes(paths.checkpoint(node)),
        "parents": {parent: weights_hash(paths.checkpoint(parent)) for parent in parents},
        "params": {name: _plain(section) for name, section in params.items()},
        "params_hash": params_hash(params),
        "data": {str(path): content_hash(Path(path)) for path in data},
        "code": {code: _fingerprint(code)},
        "versions": versions(),
        "run_id": run_id,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "alarms": dict(alarms or {}),
        "measured": dict(measured or {}),
        "rollouts": [dict(row) for row in rollouts],
        "machine": _machine(),
    }
    path = paths.run(node) / "manifest.json"
    manifest = json.loads(json.dumps(manifest))
    write_json(path, {**manifest, "hash": manifest_hash(manifest)})
    return path


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Hash over a manifest without its own `hash`."""
    content = {name: value for name, value in manifest.items() if name != "hash"}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file in a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def read_manifest(node: str) -> dict[str, Any]:
    """The manifest of a node.

    Raises:
        FileNotFoundError: the node was not made here.
    """
    path = paths.run(node) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: node {node!r} is not made yet; run `dvc repro` or `trainorder run`"
        )
    repair = "delete it, and `trainorder run` restores it or makes the node again"
    return dict(read_json(path, _Manifest, repair))


def manifests() -> dict[str, dict[str, Any]]:
    """Node -> manifest, of all that lie here and are whole."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(paths.run("x").parent.glob("*/manifest.json")):
        with contextlib.suppress(ParamsError):
            found[path.parent.name] = read_manifest(path.parent.name)
    return found


def variant_of(manifest: Mapping[str, Any]) -> str:
    """The variant under which a phase was trained, by the name of its fingerprint; the default one of any other node.

    >>> variant_of({"code": {"phase_math.half_lr": "0f"}}), variant_of({"code": {"merge": "0f"}})
    ('half_lr', 'default')
    """
    return next((name.partition(".")[2] for name in manifest.get("code", {})), "") or DEFAULT


class _Manifest(TypedDict):
    """What readers of a manifest rely on."""

    node: str
    seed: int
    phase: str | None
    steps: int | None
    seconds: float
    files: dict[str, str]
    parents: dict[str, str]
    params: dict[str, Any]
    data: dict[str, str]
    code: dict[str, str | None]
    hash: str


def params_hash(params: Mapping[str, Any]) -> str:
    """sha256 of sections, independent of the order of keys.

    >>> params_hash({"a": 1, "b": 2}) == params_hash({"b": 2, "a": 1})
    True
    """
    plain = {name: _plain(section) for name, section in params.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """sha256 of a file, or of a folder's names and files."""
    if path.is_dir():
        lines = [f"{name} {digest}" for name, digest in file_hashes(path).items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return sha256(path)


def versions() -> dict[str, str]:
    """Python and the packages of PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    """Where it ran: bytes are promised per machine type only."""
    from trainorder.llama import kernels  # brings torch, which readers of manifests do not need

    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "arithmetic": {**chosen(), "kernels": kernels.load()[1]},
    }


def _fingerprint(name: str) -> str | None:
    """Hash of a fingerprint as DVC saw it; None in a folder where no stage ran."""
    path = paths.FINGERPRINTS / name
    return content_hash(path) if path.is_file() else None


def _plain(section: Any) -> Any:
    return section.results() if hasattr(section, "results") else section
