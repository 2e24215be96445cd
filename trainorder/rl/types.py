"""The records of the RL step: `Roll` (rollouts), `Live` (training forward), `State` (saved).

Axes: `row` = one rollout, `token` = its response positions (padded right). Log-probabilities are
taken at the temperature a row was sampled at, so old and live ones describe the policy that sampled.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainorder.config import SOURCES
from trainorder.rollout import Request
from trainorder.streams import torch_stream
from trainorder.tasks.base import Problem, Prompt

T = TypeVar("T")
ROW_DEFAULTS = {
    "finished": 1.0,
    "source": 0.0,
    "age": 0.0,
    "given": 0.0,
    "temperature": 1.0,
    "limit": math.inf,
    "strict": math.nan,
}
"""Facts per row that `Roll.cat` fills in for rows that lack them."""
ASKED_PROMPT = "asked_prompt"
"""Key in the meta of a row's problem: what was asked instead of its prompt (Request.prompt)."""
ASKED = "asked/"
"""Begins the names of facts per row that a request brought; nan for rows whose request did not."""
TOKEN_DEFAULTS = {"sampler_logps": "old_logps"}
"""Facts per token that it fills in, by the rows' own fact of another name."""


@dataclass(frozen=True)
class Roll:
    """One step's rollouts. Nothing in it has grad; pieces of the step return a changed copy.

    Two rollouts of one prompt, the first two tokens long, the second one token:

        prompt_ids    [[1, 7], [1, 7]]   group      [0, 0]
        response_ids  [[5, 3], [3, 0]]   loss_mask  [[1, 1], [1, 0]]
        rewards       [1, 0]             scored     [True, True]     advantages  [[.7, .7], [-.7, 0]]
    """

    prompt_ids: list[list[int]]
    """Prompt tokens of each row."""
    response_ids: Int[Tensor, "row token"]
    """Response tokens, pad after the end."""
    loss_mask: Float[Tensor, "row token"]
    """1 = allowed to learn; 0 = a prefix that was given, or padding."""
    group: Int[Tensor, " row"]
    """Which prompt a row answers; groups need not be adjacent, their numbers not dense."""
    rewards: Float[Tensor, " row"]
    """What credit is computed from; 0 where not `scored`."""
    scored: Bool[Tensor, " row"]
    """False = ungradable: advantage 0, outside all group statistics."""
    advantages: Float[Tensor, "row token"]
    """Filled by the advantage pieces."""
    weights: Float[Tensor, "row token"]
    """Non-negative token weights, filled by the weight pieces."""
    problem: list[Problem]
    text: list[str]
    row_facts: dict[str, Tensor] = field(default_factory=dict)
    """Per row: `graded` (by verifier or judge), `strict` (the grade if only the form that the prompt asks for counts, nan where the
    grader does not tell), `finished` (1 = ended within its limit), `source` (place in SOURCES),
    `age` (steps since it was sampled), `given` (leading tokens that were not sampled), `temperature`, `limit` (tokens that
    the answer might have), and what its request brought (`asked`)."""
    token_facts: dict[str, Tensor] = field(default_factory=dict)
    """Per token: `old_logps` (trainer, before the update), `sampler_logps` (as the engine reported), `entropy` (old, nats),
    and what pieces need (facts.py), under the name they need it by."""
    informed_ids: list[list[int]] = field(default_factory=list)
    """Prompt tokens of each row with the problem's gold text, where a piece compares with a model that reads it."""

    def __len__(self) -> int:
        return len(self.text)

    @property
    def old_logps(self) -> Float[Tensor, "row token"]:
        """Log-probabilities of the trainer's weights before the update."""
        return self.token_facts["old_logps"]

    @property
    def sampler_logps(self) -> Float[Tensor, "row token"]:
        """Log-probabilities as the engine reported them."""
        return self.token_facts["sampler_logps"]

    @property
    def ref_logps(self) -> Float[Tensor, "row token"]:
        """Log-probabilities of the phase's parent, where a piece needs `ref_logps`."""
        return self.token_facts["ref_logps"]

    @property
    def entropy(self) -> Float[Tensor, "row token"]:
        """Entropy of the policy before the update, nats."""
        return self.token_facts["entropy"]

    def is_from(self, source: str) -> Bool[Tensor, " row"]:
        """Rows of this source, one of SOURCES; without the fact all rows are the policy's own."""
        known = self.row_facts.get("source")
        number = SOURCES.index(source)
        return (
            self.scored.new_full(self.scored.shape, number == 0)
            if known is None
            else known == number
        )

    def asked(self, name: str) -> Float[Tensor, " row"]:
        """The fact `name` of each row's request (Request.facts); nan where it had none."""
        known = self.row_facts.get(f"{ASKED}{name}")
        return torch.full_like(self.rewards, math.nan) if known is None else known

    def prompt(self, row: int) -> Prompt:
        """What the row was asked: the problem's prompt, or what a plan piece made of it."""
        problem = self.problem[row]
        return problem.meta.get(ASKED_PROMPT, problem.prompt)

    def rows(self, index: Sequence[int]) -> Roll:
        """The rows `index`, in that order."""
        at = torch.tensor(list(index), dtype=torch.long)
        return replace(
            self,
            **{name: getattr(self, name)[at] for name in TENSORS},
            **{
                name: [items[i] for i in index] if (items := getattr(self, name)) else []
                for name in _LISTS
            },
            **{name: {k: v[at] for k, v in getattr(self, name).items()} for name in _DICTS},
        )

    def lengths(self) -> Int[Tensor, " row"]:
        """Tokens up to and including the last one that may learn."""
        places = torch.arange(1, self.loss_mask.shape[1] + 1)
        return (
            (places * (self.loss_mask > 0)).amax(1) if self.loss_mask.shape[1] else self.group * 0
        )

    @staticmethod
    def cat(rolls: Sequence[Roll]) -> Roll:
        """The rows of several rolls; the caller has given them disjoint groups.

        A fact that only some of them have is filled in by ROW_DEFAULTS and TOKEN_DEFAULTS.

        Raises:
            ValueError: such a fact without a default.
        """
        width = max(roll.response_ids.shape[1] for roll in rolls)

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat([_widened(part, width) if part.dim() > 1 else part for part in parts])

        merged: dict[str, Any] = {
            **{name: joined([getattr(r, name) for r in rolls]) for name in TENSORS},
            **{name: [item for r in rolls for item in getattr(r, name)] for name in _LISTS},
            **{
                name: {
                    key: joined([_fact(getattr(r, name), key, r) for r in rolls])
                    for key in dict.fromkeys(key for r in rolls for key in getattr(r, name))
                }
                for name in _DICTS
            },
        }
        return replace(rolls[0], **merged)


TENSORS = ("response_ids", "loss_mask", "group", "rewards", "scored", "advantages", "weights")
_LISTS = ("prompt_ids", "problem", "text", "informed_ids")
_DICTS = ("row_facts", "token_facts")


def _widened(values: Float[Tensor, "row token ..."], width: int) -> Float[Tensor, "row token ..."]:
    """Padded with zeros after the tokens, up to `width`."""
    return F.pad(values, (0, 0) * (values.dim() - 2) + (0, width - values.shape[1]))


def _fact(facts: Mapping[str, Tensor], name: str, roll: Roll) -> Tensor:
    if name in facts:
        return facts[name]
    if name.startswith(ASKED):
        return torch.full_like(roll.rewards, math.nan)
    if name in ROW_DEFAULTS:
        return roll.rewards.new_full(roll.rewards.shape, ROW_DEFAULTS[name])
    if TOKEN_DEFAULTS.get(name) in facts:
        return facts[TOKEN_DEFAULTS[name]]
    raise ValueError(
        f"some of the rows to join have no fact {name!r}, which has no default: give them one, or let the engine make "
        "the rows (Rollouts.sample, Rollouts.given)"
    )


class Rollouts(Protocol):
    """What an edit samples more with (rollouts.py). All ranks call it alike and get the same rows."""

    def requests(self, counts: Mapping[str, int]) -> list[Request]:
        """The next problems of each task, `counts` many, as the method's plan pieces ask them."""
        ...

    def sample(self, requests: Sequence[Request], *, aside: bool = False) -> Roll:
        """Answers to the requests, with rewards.

        The engine seeds each request by its place in the step, and gives it a group of its own unless it names one.
        `aside`: the rows are no answers to their problems. They are not graded (`scored` False), and samplers see none of them.
        """
        ...

    def pose(self, task: str, text: str) -> Problem | None:
        """The problem of a task that a text poses, with its answer (tasks/posing.py); None where it poses none.

        Raises:
            ParamsError: no program can verify written problems of the task.
        """
        ...

    def cut(self, roll: Roll, lengths: Int[Tensor, " row"]) -> Roll:
        """The roll with answers of at most `lengths` tokens; those that lose some are unfinished and graded again.

        Rewards are made again, of all rows.
        """
        ...

    def given(self, requests: Sequence[Request], texts: Sequence[str] | None, source: str) -> Roll:
        """Rows of answers that the policy does not sample now, one text per request, with rewards.

        Without `texts` a request's `prefix_ids` are the whole answer. They are graded as others are; `old_logps` are what
        the policy gives them now. `source` is one of SOURCES.

        Raises:
            ParamsError: a prompt and its answer are longer than the model's context.
        """
        ...


@dataclass(frozen=True)
class Live:
    """The training forward of one micro-batch, the only place with grad.

    Its rows are those of the `Roll` that a term gets with it.
    """

    logps: Float[Tensor, "row token"]
    """log p(token) under the weights being trained; 0 at masked positions."""
    facts: dict[str, Tensor] = field(default_factory=dict)
    """What terms need of this forward (facts.py), with grad, under the name they need it by."""
    log: dict[str, Tensor] = field(default_factory=dict)
    """Per-token quantities a term wants logged, as `rl/<name>`: the mean over forwarded tokens."""

    @property
    def entropy(self) -> Float[Tensor, "row token"]:
        """Entropy with grad in nats, where a term needs `entropy`."""
        return self.facts["entropy"]


@dataclass
class State:
    """What outlives a step: plain data and tensors, so that saving and restoring them resumes a run exactly.

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
    key: tuple[str | int, ...] = ()
    """Seed and phase, from which the streams are named."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that pieces keep (replay buffers, ...), the same on all ranks; saved beside the weights."""

    def __post_init__(self) -> None:
        self._streams: dict[tuple[str, int], torch.Generator] = {}
        self._made: dict[tuple[Any, ...], tuple[list[str], Any]] = {}
        self._made_at = self.step

    def ema(self, key: str, value: float, *, beta: float, init: float | None = None) -> float:
        """Moving average kept in `mem`: beta * old + (1 - beta) * value, from init or value on."""
        old = self.mem.get(key, value if init is None else init)
        self.mem[key] = beta * old + (1 - beta) * value
        return self.mem[key]

    def stream(self, name: str) -> torch.Generator:
        """The random stream `name` of this step: what pieces draw from, the same on all ranks.

        It starts over with each step from (seed, phase, step, name), so a resumed run draws what an uninterrupted one does.
        """
        place = name, self.step
        if place not in self._streams:
            self._streams = {at: s for at, s in self._streams.items() if at[1] == self.step}
            self._streams[place] = torch_stream("piece", *self.key, self.step, name)
        return self._streams[place]

    def once(self, roll: Roll, make: Callable[..., T], *options: Hashable) -> T:
        """make(roll, *options), computed once for all pieces of a step that see the same rows.

        Of what depends on answers and facts of the tokens, not on rewards, advantages or weights, which change between pieces.
        """
        if self._made_at != self.step:
            self._made, self._made_at = {}, self.step
        known = self._made.get((make, *options))
        if (
            known is None or known[0] is not roll.text
        ):  # a step's rolls of the same rows share their list of texts
            known = self._made[(make, *options)] = roll.text, make(roll, *options)
        return known[1]

    def state_dict(self) -> dict[str, Any]:
        """Plain data for `from_state_dict`, detached from this object; without `tensors`."""
        return {
            "total": self.total,
            "step": self.step,
            "updates": self.updates,
            "mem": copy.deepcopy(self.mem),
            "key": list(self.key),
        }

    @classmethod
    def from_state_dict(
        cls, data: dict[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> State:
        """The state that `state_dict` wrote, with its tensors."""
        fields: dict[str, Any] = {**data, "key": tuple(data["key"])}
        return cls(**fields, tensors=dict(tensors or {}))
