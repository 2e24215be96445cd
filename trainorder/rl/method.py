"""A method of params.yaml (names and options) as bound pieces, checked."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from trainorder.config import MethodConfig, Piece
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rl import pieces as _pieces  # noqa: F401  fills the registries
from trainorder.rl.reduce import Denominator, Reduction
from trainorder.rl.registry import SLOTS, Entry

WITH_COEF = ("reward", "terms")
"""Slots whose pieces are added up; each takes the engine's own option `coef`."""


@dataclass(frozen=True)
class Bound:
    """A piece with its options: `clipped_surrogate` with clip_high 0.28, times coef."""

    entry: Entry
    options: dict[str, Any]
    coef: float = 1.0

    def __call__(self, *args: Any) -> Any:
        """Run the piece; `coef` is for the engine to apply."""
        return self.entry(*args, **self.options)

    @property
    def needs(self) -> frozenset[str]:
        """Entries of the vocabulary this piece needs with these options."""
        return self.entry.needs(self.options)


@dataclass(frozen=True)
class Method:
    """What the engine runs in one step."""

    reward: tuple[Bound, ...]
    edit: tuple[Bound, ...]
    advantage: tuple[Bound, ...]
    weight: tuple[Bound, ...]
    metric: tuple[Bound, ...]
    terms: tuple[Bound, ...]
    reduction: Reduction
    denominator: Denominator

    @classmethod
    def from_config(cls, config: MethodConfig) -> Method:
        """Look the pieces up and check their options.

        Raises:
            ParamsError: unknown piece, unknown option, or a bad option value.
        """
        slots = {slot: tuple(bind(slot, p) for p in getattr(config, slot)) for slot in SLOTS}
        return cls(**slots, reduction=config.reduction, denominator=config.denominator)

    @property
    def needs(self) -> frozenset[str]:
        """Union of what the terms need."""
        return frozenset().union(*(term.needs for term in self.terms))

    @property
    def skips_rows_without_credit(self) -> bool:
        """True: rows of zero advantage cost no forward, which changes nothing."""
        return all(term.entry.scales_with_advantage for term in self.terms)


def bind(slot: str, piece: Piece) -> Bound:
    """`grpo`, or `{clipped_surrogate: {clip_high: 0.28}}`, as a piece with checked options."""
    name, given = (piece, {}) if isinstance(piece, str) else _single(slot, piece)
    listed = SLOTS[slot]
    if name not in listed:
        names = sorted(listed)
        raise ParamsError(
            f"method.{slot}: no piece {name!r}; there are {', '.join(names)}"
            f"{did_you_mean(name, names)}"
        )
    entry = listed[name]
    hints = get_type_hints(entry.function)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(entry.function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    if slot in WITH_COEF:
        hints["coef"], defaults["coef"] = float, 1.0
    options = {
        **defaults,
        **{key: _checked(slot, name, key, v, hints, defaults) for key, v in given.items()},
    }
    coef = options.pop("coef", 1.0)
    return Bound(entry, options, coef)


def _single(slot: str, piece: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    if len(piece) != 1:
        raise ParamsError(
            f"method.{slot}: a piece is one name with its options, got {sorted(piece)}; "
            "make each a list item of its own"
        )
    return next(iter(piece.items()))


def _checked(
    slot: str, name: str, key: str, value: Any, hints: dict[str, Any], defaults: dict[str, Any]
) -> Any:
    where = f"method.{slot}.{name}"
    if key not in defaults:
        allowed = sorted(defaults)
        takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
        raise ParamsError(f"{where}: no option {key!r}; {takes}{did_you_mean(key, allowed)}")
    try:
        return TypeAdapter(hints[key]).validate_python(value, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ParamsError(
            f"{where}.{key}: {message[0].lower()}{message[1:]}, got {value!r}"
        ) from None
