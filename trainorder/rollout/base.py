"""What is asked of an engine, what it returns, and the random numbers of a row.

A row's draws are a pure function of its seed and of the place of the token in the answer. They do not depend on which
other rows are asked, on the order in which they are sampled, on ranks, batches or threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainorder.policy import Policy
from trainorder.tasks.base import Problem, Prompt


@dataclass(frozen=True)
class Request:
    """One prompt to answer `samples` times."""

    problem: Problem | None = None
    """What the answers are graded as. Its prompt is asked unless `prompt` or `prompt_ids` is given."""
    prompt: Prompt = ""
    """What to ask instead of the problem's prompt."""
    prompt_ids: Sequence[int] = ()
    """The tokens to ask instead of either."""
    prefix_ids: Sequence[int] = ()
    """The first tokens of every answer; sampling continues after them."""
    train_prefix: bool = False
    """Whether the tokens of `prefix_ids` are trained on as if they had been sampled."""
    samples: int = 1
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token."""
    max_new_tokens: int = 1
    """Tokens of an answer at most, its prefix included."""
    seed: int = 0
    """A 63-bit integer (streams.seed_of); row i of the request draws from `row_seeds(seed, samples)[i]`."""
    group: int | None = None
    """In the RL step: the group that the rows join; None for a group of their own."""
    teacher: bool = False
    """In the RL step: the phase's teacher answers instead of the policy; a piece that asks for it needs `answers:teacher`."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """In the RL step: what the rows are to know of how they were asked (Roll.asked)."""


@dataclass(frozen=True)
class Completions:
    """Sampled answers. Rows are grouped: all samples of request 0, then those of request 1, and so on.

    With answers `a b <eos>` and `a` (cut off): response_ids [[a, b, eos], [a, pad, pad]], loss_mask
    [[1, 1, 1], [1, 0, 0]], finished [True, False].
    """

    response_ids: Int[Tensor, "row token"]
    """The answer's tokens: those of the prefix, the sampled ones with the end token, then padding."""
    loss_mask: Float[Tensor, "row token"]
    """1 on sampled tokens, the end token included, and on the prefix of requests that train on it; 0 elsewhere."""
    logps: Float[Tensor, "row token"]
    """log p of each sampled token under the distribution it was drawn from; greedy: at temperature 1. 0 elsewhere."""
    entropies: Float[Tensor, "row token"] | None
    """Entropy in nats of that whole distribution. 0 elsewhere. None from an engine that does not see it."""
    texts: list[str]
    """The answers without special tokens."""
    finished: Bool[Tensor, " row"]
    """Whether the row reached an end token within its limit."""


class Engine(Protocol):
    """Samples from the policy as it is now, or as it was at the last `push` where the engine has weights of its own."""

    def generate(self, requests: Sequence[Request]) -> Completions:
        """Sample the answers.

        Raises:
            ValueError: there is no request, or one that cannot be answered.
            ParamsError: a prompt and its answer are longer than the model's context.
        """
        ...

    def push(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sample from these weights from now on; nothing to do for an engine that shares the trainer's."""
        ...


def with_prompts(policy: Policy, requests: Sequence[Request]) -> list[Request]:
    """The requests with their prompts as tokens."""
    asked = {i: prompt for i, request in enumerate(requests) if (prompt := _prompt_of(request))}
    encoded = dict(zip(asked, policy.encode_prompts(list(asked.values())), strict=True))
    return [
        replace(request, prompt_ids=encoded[i]) if i in encoded else request
        for i, request in enumerate(requests)
    ]


def _prompt_of(request: Request) -> Prompt | None:
    """The prompt that is still to be encoded."""
    if len(request.prompt_ids):
        return None
    return request.prompt or (None if request.problem is None else request.problem.prompt)


def resolved(policy: Policy, requests: Sequence[Request]) -> list[Request]:
    """The requests with their prompts as tokens, if they can all be answered.

    Raises:
        ValueError, ParamsError: see Engine.generate.
    """
    asked = with_prompts(policy, requests)
    if not asked:
        raise ValueError("generate needs at least one request, got none")
    for i, request in enumerate(asked):
        if not len(request.prompt_ids):
            raise ValueError(f"request {i} has no prompt: give a problem or prompt_ids")
        if request.samples < 1 or request.max_new_tokens < 1 or not request.temperature >= 0:
            raise ValueError(
                f"request {i}: samples and max_new_tokens must be at least 1 and temperature at least 0, "
                f"got {request.samples}, {request.max_new_tokens} and {request.temperature}"
            )
        if len(request.prefix_ids) >= request.max_new_tokens:
            raise ValueError(
                f"request {i}: a prefix of {len(request.prefix_ids)} tokens leaves nothing to sample of "
                f"max_new_tokens {request.max_new_tokens}"
            )
    policy.check_fits(
        *max(((len(request.prompt_ids), request.max_new_tokens) for request in asked), key=sum)
    )
    return asked


def rows_of(requests: Sequence[Request]) -> list[int]:
    """The number of each row's request.

    >>> rows_of([Request(samples=2), Request(samples=1)])
    [0, 0, 1]
    """
    return [i for i, request in enumerate(requests) for _ in range(request.samples)]


def prefix_mask(requests: Sequence[Request], width: int) -> tuple[Tensor, Tensor]:
    """Of each row [row, width]: where its prefix stands, and which of those tokens are trained on."""
    rows = [requests[i] for i in rows_of(requests)]
    lengths = torch.tensor([len(request.prefix_ids) for request in rows])
    given = torch.arange(width) < lengths[:, None]
    return given, given & torch.tensor([request.train_prefix for request in rows])[:, None]


GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""The step of SplitMix64's counter (Steele et al. 2014, doi.org/10.1145/2714064.2660195), as a signed integer."""
MIXERS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def row_seeds(requests: Sequence[Request]) -> Int[Tensor, " row"]:
    """The seed of every row: number `sample` of the stream that the request's seed begins."""
    first = torch.tensor([requests[i].seed for i in rows_of(requests)], dtype=torch.long)
    sample = list(itertools.chain.from_iterable(range(request.samples) for request in requests))
    return _mixed(first + (torch.tensor(sample) + 1) * GOLDEN)


def uniforms(
    seeds: Int[Tensor, " row"], places: Int[Tensor, "row token"]
) -> Float[Tensor, "row token"]:
    """Uniform numbers in [0, 1) of 24 bits: number `place` of each seed's stream (SplitMix64).

    >>> uniforms(torch.tensor([0]), torch.tensor([[0, 1]]))  # SplitMix64 of seed 0 begins e220a839..., 6e789e6a...
    tensor([[0.8833, 0.4315]])
    """
    bits = _mixed(seeds[:, None] + (places + 1) * GOLDEN)
    return (bits >> 40 & 0xFFFFFF).float() / 2**24


def _mixed(z: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """SplitMix64's output function; torch's integers wrap around as unsigned ones do."""
    for shift, factor in MIXERS:
        z = (z ^ _shifted(z, shift)) * factor
    return z ^ _shifted(z, 31)


def _shifted(z: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """To the right, with zeros from the left."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
