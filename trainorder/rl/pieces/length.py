"""Control of the length of answers."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.config.values import BudgetText
from trainorder.rewards import format
from trainorder.rl.helpers import gmean, gstd
from trainorder.rl.registry import edit, plan, reward, weight
from trainorder.rl.types import Roll, Rollouts, State
from trainorder.rollout import Request
from trainorder.tasks.base import in_template


@weight
def finished_only(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """0 for rollouts cut off at the length limit (overlong filtering of DAPO, arXiv:2503.14476)."""
    return roll.row_facts["finished"]


@reward
def overlong_penalty(
    roll: Roll, state: State, *, max_length: int = 20480, buffer: int = 4096
) -> Float[Tensor, " row"]:
    """0 up to max_length - buffer tokens, from there a line down to -1 at max_length (DAPO, arXiv:2503.14476).

    Tokens of the answer. The defaults are the paper's: set `max_length` to the longest answer that the task allows.
    """
    over = roll.lengths() - (max_length - buffer)
    return -(over / buffer).clamp(0, 1).to(roll.rewards.dtype)


@plan
def length_budget(
    requests: list[Request],
    state: State,
    *,
    start: float = 256.0,
    decay: float = 0.7,
    every: int = 150,
    text: BudgetText = "{prompt} Use exactly {budget} tokens.",
) -> list[Request]:
    """Ask for answers of B(t) = max(1, start * decay^floor(t / every)) tokens at step t (arXiv:2508.08940).

    "Train long, think short": the budget falls from 256 to 87 tokens over the paper's 600 steps. `text` is what is asked,
    with `{prompt}` and `{budget}` (rounded); the paper says "use exactly B tokens", its whole sentence was not read. Only
    asks: `length_triangle` rewards keeping to the budget. A `decay` of 1 keeps the budget.
    """
    return _asked_for(requests, text, max(1.0, start * decay ** (state.step // every)))


@plan
def falling_budget(
    requests: list[Request],
    state: State,
    *,
    start: float = 800.0,
    end: float = 0.2,
    text: BudgetText = "{prompt} Use exactly {budget} tokens.",
) -> list[Request]:
    """Ask for answers of B(t) = max(1, floor(start * end^(t / T))) tokens at step t of T (RMT, arXiv:2509.24375).

    From a detailed note on the paper, which does not give its sentence; `text` and the reward are as in `length_budget`.
    """
    share = min(1.0, state.step / max(1, state.total))
    return _asked_for(requests, text, float(max(1, int(start * end**share))))


def _asked_for(requests: list[Request], text: str, budget: float) -> list[Request]:
    """The requests with `text` around their prompts and the budget among their facts."""
    asked = []
    for request in requests:
        prompt = request.prompt or (request.problem.prompt if request.problem else "")
        said = in_template(prompt, text, budget=str(round(budget)))
        asked.append(replace(request, prompt=said, facts={**request.facts, "budget": budget}))
    return asked


@reward
def length_triangle(roll: Roll, state: State) -> Float[Tensor, " row"]:
    """Length / B up to the budget B of `length_budget`, from there 2 - length / B, 0 beyond 2 B (arXiv:2508.08940).

    The length is in tokens. 0 for rows that were asked without a budget. The paper adds .3 or .6 of it to .6 or .3 of
    the grade; its triangle beats a reward that stays at 1 up to B.
    """
    share = roll.lengths() / roll.asked("budget")
    return torch.minimum(share, 2 - share).clamp(min=0).nan_to_num(0.0).to(roll.rewards.dtype)


@reward
def surrogate_format_length(
    roll: Roll, state: State, *, max_length: int = 3072, peak: float = 0.5
) -> Float[Tensor, " row"]:
    """Format and length in place of a grade: learns without any ground truth (arXiv:2505.19439).

    With x = tokens / max_length: y = 1 - (1 - x / peak)^2 up to the peak, then 1 - 2 ((x - peak) / (1 - peak))^2. A text
    with an answer that can be read gets y + 1/2 for a closed thought + 1/2 for an answer in tags or a box; one without
    gets min(0, y). Defaults of the authors' code: `max_length` is theirs, set it to the longest answer that the task
    allows. Goes alone, in place of `graded`.
    """
    x = (roll.lengths() / max_length).double()
    y = torch.where(x <= peak, 1 - (1 - x / peak) ** 2, 1 - 2 * ((x - peak) / (1 - peak)) ** 2)
    form = torch.full_like(y, -1.0)
    for row, text in enumerate(roll.text):
        if format.answer(text):
            thought = "</think>" in text
            tagged = "</answer>" in text or "boxed{" in text
            form[row] = (thought + tagged) / 2
    return torch.where(form < 0, y.clamp(max=0), y + form).to(roll.rewards.dtype)


@edit
def truncate_outliers(
    roll: Roll,
    state: State,
    rollouts: Rollouts,
    *,
    sigmas: float = 3.0,
    min_cut: int = 32,
    success: float = 1.0,
) -> Roll:
    """Cut the longest answers of solved groups, and grade what is left (dynamic outlier truncation, arXiv:2601.03969).

    In groups whose mean grade is at least `success`, answers longer than T = floor(mean + sigmas * std of the group's
    lengths), std unbiased, lose all tokens after T where that are at least `min_cut`; the cut answer is usually wrong, so
    that the group has spread again. Defaults of the authors' code, with groups of 32: in a group of G no answer is more
    than (G - 1) / sqrt(G) std above the mean, so 3 never cuts in groups of 10 or fewer; lower it there (2 for 8). A step whose
    groups are too small warns once.
    """
    largest = int(roll.group.unique(return_counts=True)[1].max())
    reach = (largest - 1) / largest**0.5
    if reach <= sigmas and not state.mem.get("truncate_outliers"):
        state.mem["truncate_outliers"] = "warned"
        print(
            f"warning: method.edit.truncate_outliers never cuts: in groups of {largest} no answer is {sigmas:g} standard deviations "
            f"above the mean, {reach:.2f} is the most; lower sigmas or raise rl.group_size",
            flush=True,
        )
    group, scored = roll.group, torch.ones_like(roll.scored)
    lengths = roll.lengths()
    whole = lengths.double()
    limit = (gmean(whole, group, scored) + sigmas * gstd(whole, group, scored)).floor().long()
    solved = gmean(roll.row_facts["graded"], group, roll.scored) >= success - 1e-9
    cut = solved & roll.scored & (lengths - limit >= min_cut)
    return rollouts.cut(roll, torch.where(cut, limit, lengths)) if cut.any() else roll
