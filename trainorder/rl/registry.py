"""Where pieces are listed: one dictionary per slot of the RL step, filled by the decorators below.

A piece is a pure function; its keyword-only parameters are its options and their defaults the
paper's. Slots, in the order the engine runs them (methods are rows of piece names in params.yaml):

- reward: (Roll, State) -> [row]; added up, each times its `coef`, into roll.reward
- edit: (Roll, State, refill) -> Roll; drops, truncates or adds rows, refill({task: prompts}) -> Roll
- advantage: (Roll, State) -> [row] or [row, token]; replaces roll.a, the first estimates, later ones
  reshape
- weight: (Roll, State) -> [row] or [row, token]; multiplied into roll.w
- metric: (Roll, State) -> {name: number}; logged as rl/<name>
- term: (Live, Roll, State) -> [row, token]; a loss per token, the only one that sees grad

All but terms see the whole step batch at once: whatever is computed over more than one row is
computed there, so that micro-batches never change a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

Function = TypeVar("Function", bound=Callable[..., Any])
Scope = Literal["group", "batch"]
Needs = Callable[[Mapping[str, Any]], frozenset[str]]

VOCABULARY = {
    "H": "full-vocabulary entropy of the live forward, with grad (nats), in live.x",
    "ref": "log-probabilities of the phase's parent checkpoint, in roll.x",
}
"""What a term may need beside live.logp and the old `logp` and `H` that every roll holds."""


@dataclass(frozen=True)
class Entry:
    """A listed piece. Calling it calls the function."""

    slot: str
    name: str
    function: Callable[..., Any]
    needs: Needs = lambda options: frozenset()
    """Options -> entries of VOCABULARY."""
    scales_with_advantage: bool = False
    """True: a row of zero advantage has zero loss and gradient, so its forward may be left out."""
    scope: Scope = "group"
    """Of an advantage or weight: what a row's value depends on, its own group or the whole step batch."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function."""
        return self.function(*args, **options)


REWARDS: dict[str, Entry] = {}
EDITS: dict[str, Entry] = {}
ADVANTAGES: dict[str, Entry] = {}
WEIGHTS: dict[str, Entry] = {}
METRICS: dict[str, Entry] = {}
TERMS: dict[str, Entry] = {}
SLOTS = {
    "reward": REWARDS,
    "edit": EDITS,
    "advantage": ADVANTAGES,
    "weight": WEIGHTS,
    "metric": METRICS,
    "terms": TERMS,
}
"""Key of `method:` in params.yaml -> its pieces."""


def reward(function: Function) -> Function:
    """List a reward channel."""
    return _listed("reward", function)


def edit(function: Function) -> Function:
    """List an edit of the step's rows."""
    return _listed("edit", function)


@overload
def advantage(function: Function) -> Function: ...
@overload
def advantage(*, scope: Scope) -> Callable[[Function], Function]: ...
def advantage(function: Any = None, *, scope: Scope = "group") -> Any:
    """List an advantage estimator or shaper; `batch` if a row's credit depends on other groups."""
    return _lister("advantage", function, scope=scope)


@overload
def weight(function: Function) -> Function: ...
@overload
def weight(*, scope: Scope) -> Callable[[Function], Function]: ...
def weight(function: Any = None, *, scope: Scope = "group") -> Any:
    """List a token weight; `batch` if a row's weight depends on other groups."""
    return _lister("weight", function, scope=scope)


def metric(function: Function) -> Function:
    """List a logged quantity."""
    return _listed("metric", function)


@overload
def term(function: Function) -> Function: ...
@overload
def term(
    *, needs: Needs | frozenset[str] = ..., scales_with_advantage: bool = ...
) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...
def term(
    function: Callable[..., Any] | None = None,
    *,
    needs: Needs | frozenset[str] = frozenset(),
    scales_with_advantage: bool = False,
) -> Any:
    """List a loss term; `needs` is a set, or a function of the options where these decide."""
    needed = (lambda options: needs) if isinstance(needs, frozenset) else needs
    return _lister("terms", function, needs=needed, scales_with_advantage=scales_with_advantage)


def _lister(slot: str, function: Callable[..., Any] | None, **facts: Any) -> Any:
    """The function, listed; or, where only options were given, the decorator that lists it."""
    if function is None:
        return lambda later: _listed(slot, later, **facts)
    return _listed(slot, function, **facts)


def _listed(slot: str, function: Function, **facts: Any) -> Function:
    name = function.__name__
    assert name not in SLOTS[slot], f"{slot} {name!r} is listed twice"
    SLOTS[slot][name] = Entry(slot, name, function, **facts)
    return function
