"""How to make the numbers of the page again: from which commit, with which program, on which machine, by which commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from trainorder.config import params_file

WRITTEN = ("plan.yaml", "plan", "reports", "*dvc.lock", ".fingerprints")
"""What a run itself writes: it says nothing about what the run was given."""
SHOWN = 6
"""So many changed files are named."""


@dataclass(frozen=True)
class Reproduce:
    """`facts` are pairs (name, value); `commands` pairs (command, what it does)."""

    facts: list[tuple[str, str]]
    commands: list[tuple[str, str]]


def reproduce(found: Mapping[str, Mapping[str, Any]]) -> Reproduce:
    """Of the project in this folder, whose nodes have the manifests `found`."""
    commit, changed = state_of_git()
    facts = [("commit", f"{commit}, {_tree(changed)}" if commit else "the project has none")]
    facts += [("trainorder", version("trainorder")), *_versions(found)]
    facts += [("machine", machine) for machine in machines(found)]
    checkout = (
        f"git checkout {commit}",
        "params.yaml, code and locks"
        + (
            "; without the changes named above: commit them to reproduce from one commit"
            if changed
            else ""
        ),
    )
    file = str(params_file())
    run = "trainorder run" if file == "params.yaml" else f"trainorder run --params {file}"
    return Reproduce(
        facts,
        [
            *([checkout] if commit else []),
            (run, "makes what is not there; nothing trains where the results are in DVC's cache"),
            ("dvc repro", "the same work without Prefect: the same bytes"),
            ("trainorder verify", "recomputes every hash and names what differs"),
        ],
    )


def state_of_git() -> tuple[str, list[str]]:
    """The commit of this folder and what was changed in it since, without WRITTEN; an empty hash where none is known."""
    commit = _git("rev-parse", "HEAD").strip()
    if not commit:
        return "", []
    without = [f":(exclude){name}" for name in WRITTEN]
    rows = _git("status", "--porcelain", "-z", "--no-renames", "--", ".", *without).split("\0")
    return commit, sorted(row[3:] for row in rows if row)


def machines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every type of machine that made a node: cores, processor, system, path of products; merges record no path."""
    records = [m["machine"] for m in found.values() if "machine" in m]
    known = list(dict.fromkeys(_machine(record) for record in records))
    return [one for one in known if not any(o != one and o.startswith(one) for o in known)]


def _machine(record: Mapping[str, Any]) -> str:
    parts = [f"{record.get('cores')} cores of {record.get('processor')}"]
    parts += [record["system"]] if record.get("system") else []
    if gemm := (record.get("arithmetic") or {}).get("gemm"):
        parts.append(f"float32 products by {gemm}")
    return ", ".join(parts)


def _versions(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Of the libraries; a run that was continued under others has several."""
    known = dict.fromkeys(
        ", ".join(f"{name} {number}" for name, number in m["versions"].items())
        for m in found.values()
        if m.get("versions")
    )
    return [("libraries", text) for text in known]


def _tree(changed: Sequence[str]) -> str:
    if not changed:
        return "nothing changed since"
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return f"changed since: {', '.join(changed[:SHOWN])}{more}"


def _git(*arguments: str) -> str:
    """What git prints; nothing where it fails or is not installed. It does not refresh the index."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
