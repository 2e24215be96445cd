"""A method of params.yaml (names and options) as bound pieces, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from trainorder.config import (
    ENGINE_OPTIONS,
    Coef,
    Denominator,
    MethodConfig,
    Piece,
    Reduction,
    Schedule,
)
from trainorder.reading import ParamsError, did_you_mean
from trainorder.rl import facts
from trainorder.rl import pieces as _pieces  # noqa: F401  fills the registries
from trainorder.rl.registry import SLOTS, Entry
from trainorder.rl.types import State

MODELS = ("reference", "ema", "teacher")
"""Frozen models that a piece may need: the phase's parent, the average of the weights of past steps, and `rl.teacher`."""


@dataclass(frozen=True)
class Bound:
    """A piece with its options: `clipped_surrogate` with clip_high 0.28, times coef."""

    entry: Entry
    options: dict[str, Any]
    coef: Coef = 1.0
    weight: tuple[Bound, ...] = ()
    """Of a term: weight pieces of its own, which multiply those of the method."""
    reduction: Reduction | None = None
    """Of a term: instead of the method's."""
    denominator: Denominator | None = None
    source: str | None = None
    """Of a term: the rows that it is of, one of SOURCES; None: all rows."""
    layers: list[float] | None = None
    """Of a term: factors on its gradient in the first and in the last layer, a line between; None: 1 everywhere."""

    def __call__(self, *args: Any) -> Any:
        """Run the piece; `coef` and the other options of the engine are for the engine to apply."""
        return self.entry(*args, **self.options)

    def coef_at(self, state: State) -> float:
        """The coefficient at this step."""
        if isinstance(self.coef, Schedule):
            return self.coef.at(state.step, state.total)
        return self.coef

    @property
    def needs(self) -> frozenset[str]:
        """What this piece needs with these options (facts.py)."""
        return self.entry.needed(self.options)


@dataclass(frozen=True)
class Method:
    """What the engine runs in one step."""

    plan: tuple[Bound, ...]
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
        """Look the pieces up and check their options and needs.

        Raises:
            ParamsError: unknown piece, unknown option, a bad option value, or a need that the engine does not know.
        """
        slots = {slot: tuple(bind(slot, p) for p in getattr(config, slot)) for slot in SLOTS}
        method = cls(**slots, reduction=config.reduction, denominator=config.denominator)
        facts.check(method.needs | method.live_needs, MODELS)
        return method

    @property
    def needs(self) -> frozenset[str]:
        """Facts of the policy before the update, in the roll."""
        early = self.plan + self.reward + self.edit + self.advantage + self.weight + self.metric
        own = tuple(piece for term in self.terms for piece in term.weight)
        needed = [piece.needs for piece in early + own]
        return frozenset().union(*needed, *(facts.old(term.needs) for term in self.terms))

    @property
    def live_needs(self) -> frozenset[str]:
        """Facts of the forward being trained, for the terms."""
        return frozenset().union(*(facts.live(term.needs) for term in self.terms))

    @property
    def models(self) -> frozenset[str]:
        """Names of the frozen models that the pieces compare with."""
        return facts.models(self.needs | self.live_needs)


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
    entry, engine = listed[name], ENGINE_OPTIONS.get(slot, {})
    types, defaults = _options_of(entry.function)
    types = {**types, **engine}
    allowed = [*defaults, *engine]
    checked = {key: _checked(slot, name, key, v, types, allowed) for key, v in given.items()}
    own = {key: checked.pop(key) for key in engine if key in checked}
    own["weight"] = tuple(bind("weight", piece) for piece in own.get("weight", ()))
    return Bound(entry, {**defaults, **checked}, **own)


@cache
def _options_of(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Types of a piece's parameters, and its options with their defaults; not to be changed."""
    parameters = inspect.signature(function).parameters.items()
    defaults = {key: own.default for key, own in parameters if own.kind is own.KEYWORD_ONLY}
    return get_type_hints(function, include_extras=True), defaults


def _single(slot: str, piece: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    if len(piece) != 1:
        raise ParamsError(
            f"method.{slot}: a piece is one name with its options, got {sorted(piece)}; "
            "make each a list item of its own"
        )
    return next(iter(piece.items()))


def _checked(
    slot: str, name: str, key: str, value: Any, types: dict[str, Any], known: list[str]
) -> Any:
    where = f"method.{slot}.{name}"
    if key not in known:
        allowed = sorted(known)
        takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
        raise ParamsError(f"{where}: no option {key!r}; {takes}{did_you_mean(key, allowed)}")
    try:
        return TypeAdapter(types[key]).validate_python(value, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ParamsError(
            f"{where}.{key}: {message[0].lower()}{message[1:]}, got {value!r}"
        ) from None
