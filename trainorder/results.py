"""Reads and writes reports/bwt.json; every reader of a measurement goes through here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trainorder import paths
from trainorder.reading import ParamsError, did_you_mean, read_json

VERSION = 10
"""Of the schema of reports/bwt.json (trainorder/measure/__init__.py)."""
REPAIR = "run `dvc repro plan/dvc.yaml:measure_bwt`"


def to_json(document: Mapping[str, Any]) -> str:
    """The text of reports/bwt.json: sorted keys, and a hash of the content, so that no reader takes a damaged one.

    >>> print(to_json({"b": 1, "a": None}).replace(_hash({"b": 1, "a": None}), "..."), end="")
    {
     "a": null,
     "b": 1,
     "hash": "..."
    }
    """
    content = {**document, "hash": _hash(document)}
    return json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n"


def load() -> dict[str, Any]:
    """The content of reports/bwt.json.

    Raises:
        ParamsError: nothing was measured yet, the file is damaged, or another version of the program wrote it.
    """
    if not paths.BWT.is_file():
        raise ParamsError(f"{paths.BWT} not found: nothing is measured yet; run `trainorder run`")
    bwt = read_json(paths.BWT, dict[str, Any], REPAIR)
    if bwt.get("version") != VERSION:
        raise ParamsError(
            f"{paths.BWT} is of version {bwt.get('version')}, this program reads {VERSION}: {REPAIR}"
        )
    if "hash" not in bwt:
        raise ParamsError(f"{paths.BWT} is damaged: its key `hash` is missing; {REPAIR}")
    if bwt.pop("hash") != _hash(bwt):
        raise ParamsError(
            f"{paths.BWT} is damaged: something in it was changed or removed after it was measured; {REPAIR}"
        )
    return bwt


def of_variant(name: str) -> dict[str, Any]:
    """What was measured under a variant of the params.

    Raises:
        ParamsError: as `load`, or no such variant was measured.
    """
    bwt = load()
    known = {bwt["variant"]: bwt, **bwt["variants"]}
    if name not in known:
        raise ParamsError(
            f"no variant {name!r} was measured; there are {', '.join(known)}{did_you_mean(name, list(known))}"
        )
    return known[name]


def _hash(document: Mapping[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
