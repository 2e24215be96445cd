"""The records of the RL step: `Roll` (rollouts), `Live` (training forward), `State` (saved).

Axes: `row` = one rollout, `token` = its response positions (padded right). Log-probabilities are
taken at the sampling temperature, so old and live ones describe the policy that sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainorder.tasks.base import Problem


@dataclass(frozen=True)
class Roll:
    """One step's rollouts. Nothing in it has grad; pieces of the step return a changed copy.

    Two rollouts of one prompt, the first two tokens long, the second one token:

        prompt  [[1, 7], [1, 7]]    group   [0, 0]
        ids     [[5, 3], [3, 0]]    mask    [[1, 1], [1, 0]]
        reward  [1, 0]              scored  [True, True]        a  [[.7, .7], [-.7, 0]]
    """

    prompt: list[list[int]]
    """Prompt tokens of each row."""
    ids: Int[Tensor, "row token"]
    """Response tokens, pad after the end."""
    mask: Float[Tensor, "row token"]
    """1 = sampled by the policy and allowed to learn; 0 = padding."""
    group: Int[Tensor, " row"]
    """Which prompt a row answers; groups need not be adjacent, their numbers not dense."""
    reward: Float[Tensor, " row"]
    """What credit is computed from; 0 where not `scored`."""
    scored: Bool[Tensor, " row"]
    """False = ungradable: advantage 0, outside all group statistics."""
    a: Float[Tensor, "row token"]
    """Advantages, filled by the advantage pieces."""
    w: Float[Tensor, "row token"]
    """Non-negative token weights, filled by the weight pieces."""
    problem: list[Problem]
    text: list[str]
    part: dict[str, Tensor] = field(default_factory=dict)
    """Raw facts per row: `graded` (what verifier or judge paid), `finished`, ..."""
    x: dict[str, Tensor] = field(default_factory=dict)
    """Raw facts per token: `logp` (old, as sampled), `H` (old entropy, nats), `ref`, ..."""

    def __len__(self) -> int:
        return len(self.text)

    def rows(self, index: Sequence[int]) -> Roll:
        """The rows `index`, in that order."""
        at = torch.tensor(list(index), dtype=torch.long)
        return replace(
            self,
            **{name: getattr(self, name)[at] for name in _TENSORS},
            **{name: [getattr(self, name)[i] for i in index] for name in _LISTS},
            **{name: {k: v[at] for k, v in getattr(self, name).items()} for name in _DICTS},
        )

    def lengths(self) -> Int[Tensor, " row"]:
        """Tokens up to and including the last one that may learn."""
        places = torch.arange(1, self.mask.shape[1] + 1)
        return (places * (self.mask > 0)).amax(1) if self.mask.shape[1] else self.group * 0

    @staticmethod
    def cat(rolls: Sequence[Roll]) -> Roll:
        """The rows of several rolls; the caller has given them disjoint groups."""
        width = max(roll.ids.shape[1] for roll in rolls)

        def joined(parts: list[Tensor]) -> Tensor:
            wide = [
                torch.nn.functional.pad(p, (0, width - p.shape[1])) if p.dim() > 1 else p
                for p in parts
            ]
            return torch.cat(wide)

        return replace(
            rolls[0],
            **{name: joined([getattr(r, name) for r in rolls]) for name in _TENSORS},
            **{name: [item for r in rolls for item in getattr(r, name)] for name in _LISTS},
            **{
                name: {
                    k: joined([getattr(r, name)[k] for r in rolls]) for k in getattr(rolls[0], name)
                }
                for name in _DICTS
            },
        )


_TENSORS = ("ids", "mask", "group", "reward", "scored", "a", "w")
_LISTS = ("prompt", "problem", "text")
_DICTS = ("part", "x")


@dataclass(frozen=True)
class Live:
    """The training forward of one micro-batch, the only place with grad.

    Its rows are those of the `Roll` that a term gets with it.
    """

    logp: Float[Tensor, "row token"]
    """log p(token) under the weights being trained; 0 at masked positions."""
    x: dict[str, Tensor] = field(default_factory=dict)
    """What some term declared it needs: `H` (entropy with grad, nats)."""
    log: dict[str, Tensor] = field(default_factory=dict)
    """Per-token quantities a term wants logged, as `rl/<name>`: the mean over forwarded tokens."""


@dataclass
class State:
    """What outlives a step: plain data, so that saving and restoring it resumes a run exactly.

    >>> state = State(total=10)
    >>> state.ema("pass_rate", 1.0, beta=0.5, init=0.0), state.ema("pass_rate", 1.0, beta=0.5)
    (0.5, 0.75)
    """

    total: int
    """Steps of the phase."""
    step: int = 0
    updates: int = 0
    """Updates applied so far; what the learning rate's schedule counts."""
    mem: dict[str, Any] = field(default_factory=dict)
    """JSON-able memory of the pieces (moving averages, ...) and of the problem sequence."""

    def ema(self, key: str, value: float, *, beta: float, init: float | None = None) -> float:
        """Moving average kept in `mem`: beta * old + (1 - beta) * value, from init or value on."""
        old = self.mem.get(key, value if init is None else init)
        self.mem[key] = beta * old + (1 - beta) * value
        return self.mem[key]

    def state_dict(self) -> dict[str, Any]:
        """Plain data for `from_state_dict`, detached from this object."""
        import copy

        return {
            "total": self.total,
            "step": self.step,
            "updates": self.updates,
            "mem": copy.deepcopy(self.mem),
        }

    @classmethod
    def from_state_dict(cls, data: dict[str, Any]) -> State:
        """The state that `state_dict` wrote."""
        return cls(**data)
