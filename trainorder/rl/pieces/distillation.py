"""Learning from a teacher's whole distribution: whose prefixes, which divergence, which tokens.

Four cells (arXiv:2605.16826): answers of the teacher (plan `ask_teacher`) or of the policy, times forward or reverse KL.

| answers | KL(teacher || policy), `reverse: 0` | KL(policy || teacher), `reverse: 1` |
|---|---|---|
| teacher's | supervised learning on soft targets | offline distillation |
| policy's | DAgger | on-policy distillation |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trainorder.rl.registry import plan, term, weight
from trainorder.rl.tokens import most_important, quantile
from trainorder.rl.types import Live, Roll, State
from trainorder.rollout import Request

GATE = "entropy_gated_length"


@plan(needs=frozenset({"answers:teacher"}))
def ask_teacher(requests: list[Request], state: State, *, share: float = 1.0) -> list[Request]:
    """Have the teacher (`rl.teacher`) answer this share of the problems, drawn anew in every step.

    Its rows are of source `teacher`; they are graded, and terms with `source: teacher` learn from them: `nll` on the tokens
    that it drew, `distillation` on its whole distribution (arXiv:2605.16826). share 1 is the paper's cells; a part of the problems is ours.
    """
    count = round(share * len(requests))
    order = torch.randperm(len(requests), generator=state.stream("ask_teacher")).tolist()
    asked = set(order[:count])
    return [replace(request, teacher=i in asked) for i, request in enumerate(requests)]


def _sides(options: Mapping[str, Any]) -> frozenset[str]:
    reverse, model = options["reverse"], options["model"]
    sides = {f"reverse_kl:{model}": reverse != 0, f"forward_kl:{model}": reverse != 1}
    return frozenset(need for need, used in sides.items() if used)


@term(needs=_sides)
def distillation(
    live: Live, roll: Roll, state: State, *, reverse: float = 0.2, model: str = "teacher"
) -> Float[Tensor, "row token"]:
    """Mixed divergence r KL(policy || teacher) + (1 - r) KL(teacher || policy), r = `reverse` (arXiv:2605.16826).

    Both at every token over the whole vocabulary, with the row's prefix as it is; the teacher has no gradient. A little of the reverse
    KL keeps its accuracy without the collapse of entropy that it has alone; the paper's grid was not read, .2 is ours. 0
    and 1 compute one of the two only. `model` is `teacher`, `reference` or `ema`, or one of these with `+gold`, which reads the
    gold text (`rl.informed_prompt`). Logs `teacher_kl`.
    """
    theirs, ours = live.facts.get(f"forward_kl:{model}"), live.facts.get(f"reverse_kl:{model}")
    if theirs is None or ours is None:
        loss = ours if theirs is None else theirs
        assert loss is not None
    else:
        loss = reverse * ours + (1 - reverse) * theirs
    live.log["teacher_kl"] = loss.detach()
    return torch.where(roll.loss_mask > 0, loss, 0.0)


@term(needs=lambda options: frozenset({f"capped_forward_kl:{options['model']}:{options['cap']}"}))
def capped_distillation(
    live: Live, roll: Roll, state: State, *, cap: float = 0.05, model: str = "reference+gold"
) -> Float[Tensor, "row token"]:
    """KL(teacher || policy) with each vocabulary entry's part bounded by `cap` before the sum (PW-OPSD, arXiv:2605.21606).

    Self-distillation on the policy's own answers: the teacher is the same model given the gold text (`rl.informed_prompt`;
    the paper's words were not read), here the phase's parent, frozen. The bound keeps single style tokens from filling
    the loss. Goes with the weight `position_weight` and `reduction: sequence`. cap .05 is that of the authors' code.
    """
    loss = live.facts[f"capped_forward_kl:{model}:{cap}"]
    live.log["teacher_kl"] = loss.detach()
    return torch.where(roll.loss_mask > 0, loss, 0.0)


@weight
def position_weight(
    roll: Roll, state: State, *, least: float = 0.25, middle: float = 0.3, width: float = 0.1
) -> Float[Tensor, "row token"]:
    """Weight w = l + (1 - l) sigmoid((f - middle) / width), f = (place - 1/2) / tokens of the row (PW-OPSD, arXiv:2605.21606).

    l is `least`. Early tokens count less, as there the teacher, who knows the answer, differs in style rather than in substance. The
    defaults are the authors' "moderate" setting; `least: 1` weighs all alike.
    """
    places = torch.arange(roll.loss_mask.shape[1]) + 0.5
    share = places.to(roll.loss_mask.dtype) / roll.lengths()[:, None].clamp(min=1)
    return least + (1 - least) * ((share - middle) / width).sigmoid()


def _importance(options: Mapping[str, Any]) -> frozenset[str]:
    side = "reverse_kl" if options["kind"] == "union" else "forward_kl"
    return frozenset({"entropy", f"{side}:{options['model']}"})


@weight(scope="batch", needs=_importance)
def teacher_importance(
    roll: Roll,
    state: State,
    *,
    keep: float = 0.5,
    kind: Literal["union", "confident"] = "union",
    model: str = "teacher",
) -> Float[Tensor, "row token"]:
    """1 for the `keep` most important tokens of each row, else 0: TIP (arXiv:2604.14084).

    With h the policy's entropy, clipped at the batch's 98th percentile and scaled to [0, 1] over the batch, and d the scaled
    KL(policy || teacher): s = h + d - h d, high where the policy is unsure or the teacher disagrees. `confident` is the
    paper's diagnostic third quadrant, s = KL(teacher || policy) (1 - h): sure, and wrong in the teacher's eyes. keep is .5 or .2
    in the paper; goes with `distillation: {reverse: 1}` and `denominator: weight`. The authors' repository draws tokens by
    h^alpha (JSD / ln 2)^gamma instead, which is not offered.
    """
    mask = roll.loss_mask > 0
    side = "reverse_kl" if kind == "union" else "forward_kl"
    unsure = roll.entropy
    if mask.any():
        unsure = unsure.clamp(max=quantile(unsure[mask], 0.98))
    h, d = _scaled(unsure, mask), _scaled(roll.token_facts[f"{side}:{model}"], mask)
    return most_important(h + d - h * d if kind == "union" else d * (1 - h), mask, keep)


def _scaled(values: Tensor, mask: Tensor) -> Tensor:
    """To [0, 1] over the masked tokens; 0 where all are equal."""
    if not mask.any():
        return torch.zeros_like(values)
    low, high = values[mask].min(), values[mask].max()
    return torch.where(mask & (high > low), (values - low) / (high - low), 0.0)


@plan
def entropy_gated_length(
    requests: list[Request],
    state: State,
    *,
    start: int = 128,
    factor: float = 2.0,
    longest: int = 4096,
    least_entropy: float = 0.25,
    every: int = 10,
) -> list[Request]:
    """Lengthen answers only while the policy is still unsure enough to use the room (arXiv:2605.16826).

    Answers have at most `start` tokens (and never more than their task allows). Every `every` steps the bound is multiplied
    by `factor`, up to `longest`, if the mean entropy per token of the step before was at least `least_entropy` nats; else it
    stays. start and longest are the paper's; its ladder and bound were not read, and it measures entropy on held-out
    problems, where this takes the training answers, for nothing.
    """
    gate = state.mem.setdefault(GATE, {"length": float(start), "step": 0})
    if state.step - gate["step"] >= every:
        gate["step"] = state.step
        seen = list(state.mem.get("seen", {}).values())
        count = sum(task["rollouts"] for task in seen)
        mean = sum(task["rollouts"] * task["entropy"] for task in seen) / max(1, count)
        if count and mean >= least_entropy:
            gate["length"] = min(float(longest), gate["length"] * factor)
    bound = max(1, int(gate["length"]))
    return [replace(r, max_new_tokens=min(r.max_new_tokens, bound)) for r in requests]
