"""Reads reports/bwt.json; every reader of a measurement goes through here."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

from trainorder import paths
from trainorder.reading import ParamsError, read_json, shaped

VERSION = 4
"""Of the schema of reports/bwt.json (trainorder/measure/__init__.py)."""


def load() -> dict[str, Any]:
    """The content of reports/bwt.json.

    Raises:
        ParamsError: nothing was measured yet, the file is damaged, or another version of the program wrote it.
    """
    if not paths.BWT.is_file():
        raise ParamsError(f"{paths.BWT} not found: nothing is measured yet; run `trainorder run`")
    repair = "`trainorder run` measures it again once it is deleted"
    bwt = read_json(paths.BWT, dict[str, Any], repair)
    if bwt.get("version") != VERSION:
        raise ParamsError(
            f"{paths.BWT} is of version {bwt.get('version')}, this program reads {VERSION}: run `dvc repro measure_bwt`"
        )
    return dict(shaped(bwt, _Bwt, paths.BWT, repair))


class _Rule(TypedDict):
    order: NotRequired[list[str] | None]


class _Recommended(_Rule):
    rules: NotRequired[dict[str, _Rule]]


class _Variant(TypedDict):
    recommended: _Recommended | None
    recommended_two_stage: _Recommended | None


class _Bwt(_Variant):
    variants: dict[str, _Variant]
    settings: dict[str, Any]
    intervals: dict[str, Any]
    orders: dict[str, Any]
