"""Looks: what item samplers measure of problems under the policy as it is, without training on it.

A look is a function (Looker, problems) -> one number per problem. Its rollouts count as sampled tokens of the step that
asks for it (`rollout/tokens`, `perf/look_seconds`); seeds of its rows are apart from those of the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.backend import in_order
from trainorder.rl.items import LOOKED
from trainorder.rl.learner import Learner
from trainorder.rl.rollouts import StepRollouts, foreign, score
from trainorder.rl.speed import timed
from trainorder.rl.types import Roll
from trainorder.rollout import Request
from trainorder.tasks.base import Problem, reworded

FIRST = 1 << 20
"""Place of the first request of a look in its step: behind all that the step itself may ask."""
QUICK = (
    "{prompt}\nAnswer at once, in at most three sentences, with as little reasoning as possible."
)
"""EDCO's instruction, in our words."""
PREFIX, WARMTH, TOP = 128, 0.7, 0.2
"""Of EDCO: tokens of the probe's answer at most, its temperature, and the share of its tokens that count."""
PREAMBLE = 8.0
"""GAIN-RL's weight of the angles between question and preamble."""


@dataclass
class Looker:
    """Asks the policy outside of the step's own rollouts."""

    learner: Learner
    rollouts: StepRollouts

    def chunks(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Requests of about as many rows as a step has at a time."""
        config = self.learner.config
        rows = max(1, requests[0].samples)
        size = max(1, config.prompts_per_step * config.group_size // rows)
        for first in range(0, len(requests), size):
            yield list(requests[first : first + size])

    def sampled(self, requests: Sequence[Request], *, graded: bool) -> Iterator[Roll]:
        """Answers, graded or not; no reward, and no step sees them."""
        for asked in self.chunks(requests):
            mine = self.rollouts.share(asked)
            part = self.rollouts.answered(mine) if mine else None
            roll = self._joined(part, graded=graded)
            self.rollouts.tokens += float(roll.loss_mask.sum())
            yield roll

    def read(self, requests: Sequence[Request]) -> Iterator[Roll]:
        """Rows whose answers are the requests' prefixes."""
        decode = self.learner.policy.decode_batch
        for asked in self.chunks(requests):
            mine = self.rollouts.share(asked)
            yield self._joined(foreign(mine, decode, "expert") if mine else None, graded=False)

    def _joined(self, part: Roll | None, *, graded: bool) -> Roll:
        grade, backend = self.learner.task_set.grade, self.learner.backend
        found: list[float | None] = []
        if part is not None:
            rewards = grade(part.problem, part.text) if graded else []
            found = [reward.value for reward in rewards] if graded else [None] * len(part)
        parts, shares = zip(*backend.gather((part, found)), strict=True)
        grades = [value for share in shares for value in share]
        roll = in_order(parts)
        values = roll.rewards.new_tensor([0.0 if value is None else value for value in grades])
        scored = torch.tensor([value is not None for value in grades])
        return replace(roll, scored=scored, row_facts={**roll.row_facts, "graded": values})


LOOKS: dict[str, Callable[[Looker, Sequence[Problem]], list[float]]] = {}


def look(function: Callable[[Looker, Sequence[Problem]], list[float]]) -> Any:
    """List a look."""
    LOOKS[function.__name__] = function
    return function


def looking(learner: Learner, rollouts: StepRollouts) -> Callable[..., list[float]]:
    """What a step hands to the item samplers; see Pool.look."""

    def measure(name: str, problems: Sequence[Problem]) -> list[float]:
        own = StepRollouts(learner, rollouts.state, rollouts.clock, asked=FIRST + rollouts.looked)
        with timed(rollouts.clock, "look"):
            found = LOOKS[name](Looker(learner, own), problems)
        rollouts.looked = own.asked - FIRST
        rollouts.tokens += own.tokens
        return found

    return measure


@look
def rate(looker: Looker, problems: Sequence[Problem]) -> list[float]:
    """Mean grade of LOOKED answers; .5 where none could be graded."""
    return _rates(looker, problems, teacher=False)


@look
def teacher_rate(looker: Looker, problems: Sequence[Problem]) -> list[float]:
    """The same of the phase's teacher."""
    return _rates(looker, problems, teacher=True)


def _rates(looker: Looker, problems: Sequence[Problem], *, teacher: bool) -> list[float]:
    limits, config = looker.learner.task_set.max_new_tokens, looker.learner.config
    requests = [
        Request(
            problem,
            samples=LOOKED,
            temperature=config.temperature,
            max_new_tokens=limits[problem.task],
            teacher=teacher,
        )
        for problem in problems
    ]
    found: list[float] = []
    for roll in looker.sampled(requests, graded=True):
        values, counts = roll.row_facts["graded"].tolist(), roll.scored.tolist()
        for first in range(0, len(roll), LOOKED):
            own = [values[i] for i in range(first, first + LOOKED) if counts[i]]
            found.append(math.fsum(own) / len(own) if own else 0.5)
    return found


@look
def prefix_entropy(looker: Looker, problems: Sequence[Problem]) -> list[float]:
    """Mean entropy, bits, of the most uncertain fifth of the tokens of a quick answer (EDCO, arXiv:2601.03725).

    The answer has at most PREFIX tokens, at temperature .7. Entropies are of the whole vocabulary; the authors' are of the
    20 likeliest tokens, which is what their engine returns.
    """
    limits = looker.learner.task_set.max_new_tokens
    requests = [
        Request(
            problem,
            prompt=reworded(problem.prompt, partial(QUICK.replace, "{prompt}")),
            temperature=WARMTH,
            max_new_tokens=min(PREFIX, limits[problem.task]),
        )
        for problem in problems
    ]
    found: list[float] = []
    for roll in looker.sampled(requests, graded=False):
        entropy = score(looker.learner.policy.model, roll, looker.learner, {"entropy"})["entropy"]
        for nats, mask in zip(entropy, roll.loss_mask, strict=True):
            found.append(most_uncertain((nats[mask > 0] / math.log(2)).tolist()))
    return found


def most_uncertain(entropies: Sequence[float], share: float = TOP) -> float:
    """Mean of the largest `share` of the values, of one at least; 0 of none.

    >>> most_uncertain([float(i) for i in range(10)])
    8.5
    """
    count = max(1, int(share * len(entropies)))
    top = sorted(entropies, reverse=True)[:count]
    return math.fsum(top) / len(top) if top else 0.0


@look
def angle(looker: Looker, problems: Sequence[Problem]) -> list[float]:
    """How alike the directions of a question's hidden states are: mean cosine inside it + 8 times that with its preamble.

    GAIN-RL (arXiv:2506.02281), whose code takes the inputs of the last layer's MLP; here the states after the last norm
    (`hidden`). The preamble is what all prompts of these problems begin with (system prompt, template), the suffix what all
    end with, which is left out; of prompts without a common beginning the second term is 0.
    """
    policy = looker.learner.policy
    prompts = policy.encode_prompts([problem.prompt for problem in problems])
    first, last = common(prompts), common([ids[::-1] for ids in prompts])
    requests = [
        Request(problem, prompt_ids=ids[:1], prefix_ids=ids[1:])
        for problem, ids in zip(problems, prompts, strict=True)
    ]
    found: list[float] = []
    for roll in looker.read(requests):
        states = score(policy.model, roll, looker.learner, {"hidden"})["hidden"]
        for own, mask in zip(states, roll.loss_mask, strict=True):
            length = int(
                mask.sum()
            )  # the state of token i predicts token i + 1: the last one's is not there
            end = max(first, min(length, length + 1 - last))
            found.append(concentration(own[first:end], own[:first]))
    return found


def common(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all of several rows begin with, one less than the shortest has at most; 0 of one row.

    >>> common([[1, 2, 3], [1, 2, 4, 5]]), common([[1, 2]])
    (2, 0)
    """
    if len(rows) < 2:
        return 0
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return min(sum(1 for _ in columns), min(map(len, rows)) - 1)


def concentration(
    question: Float[Tensor, "token size"], preamble: Float[Tensor, "other size"]
) -> float:
    """Mean cosine of different tokens of the question, and PREAMBLE times that of question and preamble.

    >>> states = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> round(concentration(states, states[:0]), 4), round(concentration(states, states[:1]), 4)
    (0.3333, 5.6667)
    """
    unit = torch.nn.functional.normalize(question.double(), dim=-1)
    other = torch.nn.functional.normalize(preamble.double(), dim=-1)
    count, cosines = len(unit), unit @ unit.T
    inside = float((cosines.sum() - count) / (count * (count - 1))) if count > 1 else 0.0
    return inside + (PREAMBLE * float((unit @ other.T).mean()) if count and len(other) else 0.0)


@look
def loss(looker: Looker, problems: Sequence[Problem]) -> list[float]:
    """Mean negative log-likelihood, nats per token, of the problem's gold text, or of its reference."""
    policy = looker.learner.policy
    answers = policy.encode_completions([p.gold or p.reference or "" for p in problems])
    requests = [
        Request(problem, prefix_ids=ids) for problem, ids in zip(problems, answers, strict=True)
    ]
    found: list[float] = []
    for roll in looker.read(requests):
        logps = score(policy.model, roll, looker.learner)["logps"]
        sums, counts = -(logps * roll.loss_mask).sum(1), roll.loss_mask.sum(1).clamp(min=1)
        found += (sums / counts).tolist()
    return found
