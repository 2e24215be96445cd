"""manifest.json beside every checkpoint: what it came from, so that every number can be traced to its causes.

number -> evaluation -> checkpoint -> manifest -> parents' weights, params, data, code, versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainorder import paths
from trainorder.policy import weights_hash

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "peft", "dvc")
"""Packages whose version can change a checkpoint or how it is stored."""


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
) -> Path:
    """Write runs/<node>/manifest.json, whole and then renamed; the node's checkpoint must be complete.

    `params` are the sections that were read, `data` the files and folders, `code` the name of the fingerprint
    (`merge`, `phase_math`), `tokens` what was trained on, `seconds` the wall time of the stage.
    """
    manifest = {
        "node": node,
        "seed": seed,
        "phase": phase,
        "steps": steps,
        "weights": weights_hash(paths.checkpoint(node)),
        "parents": {parent: weights_hash(paths.checkpoint(parent)) for parent in parents},
        "params": {name: _plain(section) for name, section in params.items()},
        "params_hash": params_hash(params),
        "data": {str(path): content_hash(Path(path)) for path in data},
        "code": {code: _fingerprint(code)},
        "versions": versions(),
        "run_id": run_id,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "machine": machine(),
    }
    path = paths.run(node) / "manifest.json"
    _write_json(path, manifest)
    return path


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
    return json.loads(path.read_text(encoding="utf-8"))


def manifests() -> dict[str, dict[str, Any]]:
    """Node -> manifest, of all that lie here."""
    found = sorted(paths.run("x").parent.glob("*/manifest.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in found}


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
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path).as_posix()} {content_hash(file)}" for file in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Python and the packages of PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Where it ran: bytes are promised per machine type only."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _fingerprint(name: str) -> str | None:
    """Hash of a fingerprint as DVC saw it; None in a folder where no stage ran."""
    path = paths.FINGERPRINTS / name
    return content_hash(path) if path.is_file() else None


def _plain(section: Any) -> Any:
    return section.model_dump() if hasattr(section, "model_dump") else section


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(value, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
