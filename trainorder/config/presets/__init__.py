"""Published methods by name: what `rl: {method: {preset: NAME}}` stands for, one module per family.

A module in this folder with a list PRESETS is found by being there. A preset is plain data: the rows of pieces
(trainorder/rl/pieces/) and the few other settings of `rl` that the method needs to be itself. It is replaced by what it
stands for when params.yaml is read, so that a phase depends on the expanded method and a new preset changes no phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal

from trainorder.reading import ParamsError, did_you_mean

Basis = Literal["code", "paper", "notes", "abstract", "ours"]
"""What a preset was written from: the authors' code, the paper's text, others' notes, its abstract, or no publication."""
Rows = Mapping[str, Any]
"""Keys of `rl.method`."""


PPO = ["clipped_surrogate"]
"""The terms of most methods."""
CLIP_HIGHER = {"clip_low": 0.2, "clip_high": 0.28}
"""Bounds of DAPO (arXiv:2503.14476)."""
OWN: dict[str, Any] = {"clipped_surrogate": {"source": "policy"}}
"""A term of the policy's own rows, where others learn from those of an expert or a teacher."""


@dataclass(frozen=True)
class Preset:
    """One published method as settings of `rl`."""

    name: str
    summary: str
    """One line: what it changes."""
    papers: tuple[str, ...]
    """arXiv numbers; empty where there is no paper."""
    method: Rows
    """Keys of `rl.method`; those it leaves out have their defaults."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other keys of `rl` without which the method is not itself."""
    basis: Basis = "code"
    not_grounded: str = ""
    """What no source states and was chosen here; empty: nothing."""
    not_offered: str = ""
    """Another form of the authors' code, or of others, for which there is no option; empty: none is known."""
    neutral: Rows | None = None
    """Keys beside `preset`, or of `rl`, under which it is the same update as with those of `reduces_to`: GRPO, or the method
    without its own piece. None: there are none."""
    reduces_to: Rows = field(default_factory=dict)
    no_neutral: str = ""
    """Why there are none; empty where there are."""
    tasks: int = 1
    """Tasks of a phase that shows it: 2 for what weighs tasks."""
    family: str = ""
    """The module that lists it."""

    @property
    def grounded(self) -> bool:
        """Whether a source states all of it."""
        return self.basis != "ours" and not self.not_grounded


@cache
def presets() -> dict[str, Preset]:
    """Name -> preset, family by family."""
    found: dict[str, Preset] = {}
    for module in iter_modules(__path__, f"{__name__}."):
        family = module.name.rpartition(".")[2]
        for preset in import_module(module.name).PRESETS:
            assert preset.name not in found, f"preset {preset.name!r} is listed twice"
            found[preset.name] = replace(preset, family=family)
    return found


def preset(name: Any) -> Preset:
    """The preset of that name.

    Raises:
        ParamsError: there is none.
    """
    known = presets()
    if not isinstance(name, str) or name not in known:
        raise ParamsError(
            f"method.preset: no preset {name!r}{did_you_mean(str(name), list(known))}; `trainorder methods` lists them"
        )
    return known[name]
