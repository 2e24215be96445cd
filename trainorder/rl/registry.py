"""Where pieces are listed: one dictionary per slot of the RL step, filled by the decorators below.

A piece is a pure function; its keyword-only parameters are its options and their defaults the paper's. Slots, in the order
the engine runs them (methods are rows of piece names in params.yaml):

| slot | signature | what the engine does with the result |
|---|---|---|
| plan | (list[Request], State) -> list[Request] | samples these instead; runs on every batch of newly drawn problems |
| reward | (Roll, State) -> [row] | adds them up, each times its `coef`, into roll.rewards |
| edit | (Roll, State, Rollouts) -> Roll | continues with these rows; Rollouts samples more, cuts answers, or takes given ones |
| advantage | (Roll, State) -> [row] or [row, token] | replaces roll.advantages; the first estimates, later ones reshape |
| weight | (Roll, State) -> [row] or [row, token] | multiplies it into roll.weights |
| metric | (Roll, State) -> {name: number} | logs it as rl/<name> |
| term | (Live, Roll, State) -> [row, token] | sums it up as the loss; the only one that sees grad |

All but terms see the whole step batch at once: whatever is computed over more than one row is computed there, so that
micro-batches never change a result. Whatever facts of tokens a piece reads beside `old_logps` and `sampler_logps` it declares
as `needs`, a set of names or a function of its options (facts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

Function = TypeVar("Function", bound=Callable[..., Any])
Scope = Literal["group", "batch"]
Needs = Callable[[Mapping[str, Any]], frozenset[str]] | frozenset[str]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Entry:
    """A listed piece. Calling it calls the function."""

    slot: str
    name: str
    function: Callable[..., Any]
    needs: Needs = frozenset()
    """Names of facts.py, or a function that gives them for options."""
    scales_with_advantage: bool = False
    """True: a row of zero advantage has zero loss and gradient, so its forward may be left out."""
    scope: Scope = "group"
    """Of an advantage or weight: what a row's value depends on, its own group or the whole step batch."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function."""
        return self.function(*args, **options)

    def needed(self, options: Mapping[str, Any]) -> frozenset[str]:
        """What it needs with these options."""
        return self.needs if isinstance(self.needs, frozenset) else self.needs(options)


PLANS: dict[str, Entry] = {}
REWARDS: dict[str, Entry] = {}
EDITS: dict[str, Entry] = {}
ADVANTAGES: dict[str, Entry] = {}
WEIGHTS: dict[str, Entry] = {}
METRICS: dict[str, Entry] = {}
TERMS: dict[str, Entry] = {}
SLOTS = {
    "plan": PLANS,
    "reward": REWARDS,
    "edit": EDITS,
    "advantage": ADVANTAGES,
    "weight": WEIGHTS,
    "metric": METRICS,
    "terms": TERMS,
}
"""Key of `method:` in params.yaml -> its pieces."""


@overload
def plan(function: Function) -> Function: ...
@overload
def plan(*, needs: Needs) -> Decorator: ...
def plan(function: Any = None, *, needs: Needs = frozenset()) -> Any:
    """List a change of what is asked."""
    return _lister("plan", function, needs=needs)


@overload
def reward(function: Function) -> Function: ...
@overload
def reward(*, needs: Needs) -> Decorator: ...
def reward(function: Any = None, *, needs: Needs = frozenset()) -> Any:
    """List a reward channel."""
    return _lister("reward", function, needs=needs)


@overload
def edit(function: Function) -> Function: ...
@overload
def edit(*, needs: Needs) -> Decorator: ...
def edit(function: Any = None, *, needs: Needs = frozenset()) -> Any:
    """List an edit of the step's rows."""
    return _lister("edit", function, needs=needs)


@overload
def advantage(function: Function) -> Function: ...
@overload
def advantage(*, scope: Scope = ..., needs: Needs = ...) -> Decorator: ...
def advantage(function: Any = None, *, scope: Scope = "group", needs: Needs = frozenset()) -> Any:
    """List an advantage estimator or shaper; `batch` if a row's credit depends on other groups."""
    return _lister("advantage", function, scope=scope, needs=needs)


@overload
def weight(function: Function) -> Function: ...
@overload
def weight(*, scope: Scope = ..., needs: Needs = ...) -> Decorator: ...
def weight(function: Any = None, *, scope: Scope = "group", needs: Needs = frozenset()) -> Any:
    """List a token weight; `batch` if a row's weight depends on other groups."""
    return _lister("weight", function, scope=scope, needs=needs)


@overload
def metric(function: Function) -> Function: ...
@overload
def metric(*, needs: Needs) -> Decorator: ...
def metric(function: Any = None, *, needs: Needs = frozenset()) -> Any:
    """List a logged quantity."""
    return _lister("metric", function, needs=needs)


@overload
def term(function: Function) -> Function: ...
@overload
def term(*, needs: Needs = ..., scales_with_advantage: bool = ...) -> Decorator: ...
def term(
    function: Any = None, *, needs: Needs = frozenset(), scales_with_advantage: bool = False
) -> Any:
    """List a loss term."""
    return _lister("terms", function, needs=needs, scales_with_advantage=scales_with_advantage)


def _lister(slot: str, function: Callable[..., Any] | None, **facts: Any) -> Any:
    """The function, listed; or, where only options were given, the decorator that lists it."""
    if function is None:
        return lambda later: _lister(slot, later, **facts)
    name = function.__name__
    assert name not in SLOTS[slot], f"{slot} {name!r} is listed twice"
    SLOTS[slot][name] = Entry(slot, name, function, **facts)
    return function
