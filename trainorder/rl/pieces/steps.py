"""Step-wise supervised RL: the policy writes the next step of an expert's solution (SRL, arXiv:2510.25992)."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config.values import Pattern, StepsText
from trainorder.rl.registry import plan, reward
from trainorder.rl.types import Roll, State
from trainorder.rollout import Request
from trainorder.tasks.base import in_template, reworded
from trainorder.tasks.transforms import TAG, steps_of

STEP = "expert_step"
"""Key in the meta of a problem that was asked for one step: that step's text."""


@plan
def expert_steps(
    requests: list[Request],
    state: State,
    *,
    separator: Pattern = r"\n+|(?<=[.;])\s+",
    text: StepsText = "{prompt}\n{steps}",
) -> list[Request]:
    """Ask for one step of the expert's solution, behind those before it (SRL, arXiv:2510.25992).

    The problem's gold text, without tags, is split at `separator` (a regular expression) into N steps. The paper makes N - 1
    prompts of it, each with the problem and the first k - 1 steps; here each visit draws one k of 1 ... N - 1, so that a
    step costs what it cost. A gold text of one step is asked for whole. The paper's optional titles of steps are left
    out. `step_similarity` rewards the step; RLVR follows as the next phase.
    """
    cut = re.compile(separator)
    stream, asked = state.stream("expert_steps"), []
    for request in requests:
        problem = request.problem
        if problem is None:
            asked.append(request)
            continue
        steps = steps_of(problem.gold or "", cut)
        count = max(1, len(steps) - 1)
        k = int(torch.randint(count, (1,), generator=stream))
        before = "\n".join(steps[:k]) if len(steps) > 1 else ""
        prompt = in_template(request.prompt or problem.prompt, text, steps=before)
        target = steps[k] if steps else ""
        told = replace(problem, meta={**problem.meta, STEP: target})
        asked.append(
            replace(
                request,
                problem=told,
                prompt=reworded(prompt, str.strip),
                facts={**request.facts, "step": float(k + 1)},
            )
        )
    return asked


@reward
def step_similarity(
    roll: Roll,
    state: State,
    *,
    thought: bool = True,
    unit: Literal["characters", "words"] = "characters",
) -> Float[Tensor, " row"]:
    """2 M / (|S1| + |S2|) of the written step and the expert's, M their matching units; -1 without the format (SRL).

    difflib's ratio (arXiv:2510.25992). What is written up to the first `</think>` is the thought, which is not scored; with
    `thought` an answer without one keeps no format and gets -1. Tags around the step are left out. Rows that
    `expert_steps` did not ask for a step compare with their whole gold text. The paper does not say what a unit is;
    difflib works on characters.
    """
    found = []
    for text, problem in zip(roll.text, roll.problem, strict=True):
        head, tag, rest = text.partition("</think>")
        if thought and not tag:
            found.append(-1.0)
            continue
        written = _plain(rest if tag else head)
        found.append(similarity(written, _plain(problem.meta.get(STEP, problem.gold or "")), unit))
    return roll.rewards.new_tensor(found)


def similarity(one: str, other: str, unit: str = "characters") -> float:
    """The ratio of difflib.

    >>> similarity("a b c d", "a b x d", "words"), round(similarity("a b c d", "a b x d"), 3)
    (0.75, 0.857)
    """
    pair = (one.split(), other.split()) if unit == "words" else (one, other)
    return difflib.SequenceMatcher(None, *pair, autojunk=False).ratio()


def _plain(text: str) -> str:
    return TAG.sub(" ", text).strip()
