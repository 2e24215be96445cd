"""Where methods that add rows, clip higher or follow a teacher take the entropy of a two-armed bandit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from rl_small import make_roll
from test_rl_entropy import SEEDS, mean_last, tensor, terms
from torch import Tensor

from trainorder.rl.facts import forward_kl, reverse_kl
from trainorder.rl.method import Method, bind
from trainorder.rl.step import give_credit
from trainorder.rl.types import Live, Roll, State
from trainorder.rollout import Request


def test_clip_higher_lets_the_unlikely_arm_that_pays_rise_and_keeps_entropy_above():
    def after(high: float) -> float:
        clip = {"clipped_surrogate": {"clip_low": 0.2, "clip_high": high}}
        return mean_last(terms(clip), start=2.0, pays=(0.2, 0.8), updates=20, steps=3)

    assert after(0.28) > after(0.2) + 0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_a_little_reverse_kl_keeps_the_entropy_that_it_would_take_alone(seed: int):
    # one policy, two teachers of (.98, .02) and (.4, .6): forward KL ends at their mean (.69, .31), H .62,
    # reverse KL at their geometric mean (.85, .15), H .42
    teachers = tensor(0.98, 0.02, 0.4, 0.6).view(2, 2).log()

    def after(reverse: float) -> float:
        noise = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, generator=noise, dtype=torch.float64).requires_grad_(True)
        term = bind("terms", {"distillation": {"reverse": reverse}})
        for _ in range(200):
            met = torch.randint(2, (64,), generator=noise)
            ours, theirs = logits.expand(64, 2), teachers[met]
            known = {
                "forward_kl:teacher": forward_kl(ours, met, theirs)[:, None],
                "reverse_kl:teacher": reverse_kl(ours, met, theirs)[:, None],
            }
            live = Live(torch.zeros(64, 1, dtype=torch.float64), {n: known[n] for n in term.needs})
            loss = term(live, make_roll([0.0] * 64), State(total=1)).mean()
            (slope,) = torch.autograd.grad(loss, logits)
            with torch.no_grad():
                logits -= 0.5 * slope
        return float(torch.distributions.Categorical(logits=logits.detach()).entropy())

    assert after(1.0) < 0.5
    assert after(0.2) > after(1.0) + 0.1


@dataclass
class Arms:
    """Draws arms of a policy of two; both pay half of the time."""

    logits: Tensor
    noise: torch.Generator

    def sample(self, requests: Sequence[Request], *, aside: bool = False) -> Roll:
        return self.roll([(r, None) for r in requests for _ in range(r.samples)], requests)

    def given(self, requests: Sequence[Request], texts: object, source: str) -> Roll:
        return self.roll([(r, int(r.prefix_ids[0])) for r in requests], requests)

    def roll(self, rows: Sequence[tuple[Request, int | None]], requests: Sequence[Request]) -> Roll:
        logps = self.logits.log_softmax(0)
        arms = []
        for request, arm in rows:
            shares = (self.logits / request.temperature).softmax(0)
            drawn = int(torch.multinomial(shares, 1, generator=self.noise))
            arms.append(drawn if arm is None else arm)
        place = {id(request): i for i, request in enumerate(requests)}
        first = self.groups
        paid = (torch.rand(len(rows), generator=self.noise) < 0.5).double()
        roll = make_roll(paid.tolist(), group=[first + place[id(r)] for r, _ in rows])
        self.groups += len(requests)
        ids = torch.tensor(arms)[:, None]
        entropy = -(logps.exp() * logps).sum().expand(len(rows), 1).contiguous()
        asked = {
            "asked/arbitrary_entropy": tensor(
                *[r.facts.get("arbitrary_entropy", torch.nan) for r, _ in rows]
            )
        }
        return replace(
            roll,
            response_ids=ids,
            row_facts={**roll.row_facts, **asked},
            token_facts={"old_logps": logps[ids], "sampler_logps": logps[ids], "entropy": entropy},
        )

    groups: int = 0


def steered(start: float, seed: int, *, share: float) -> float:
    """Mean entropy of the last five of 40 steps of AEPO with a target of .5 nats."""
    edit: dict[str, Any] = {"target": 0.5, "hot": 3.0, "cold": 1 / 3, "share": share}
    method = terms(
        "clipped_surrogate",
        edit=[{"arbitrary_entropy": edit}],
        advantage=["grpo", {"arbitrary_entropy_credit": {"alpha": 3.0}}],
    )
    bound, logits = Method.from_config(method), tensor(start, 0.0).requires_grad_(True)
    noise, state, entropies = torch.Generator().manual_seed(seed), State(total=40), []
    for step in range(40):
        state.step = step
        arms = Arms(logits.detach().clone(), noise)
        roll = arms.sample([Request(samples=4) for _ in range(16)])
        entropies.append(float(roll.entropy[0, 0]))
        roll = give_credit(bound.edit[0](roll, state, arms), bound, state)
        live = Live(logits.log_softmax(0)[roll.response_ids])
        (slope,) = torch.autograd.grad(bound.terms[0](live, roll, state).mean(), logits)
        with torch.no_grad():
            logits -= 0.3 * slope
    return sum(entropies[-5:]) / 5


@pytest.mark.parametrize("start", [2.5, 0.4])  # H = .27 and .67 nats
def test_aepo_brings_entropy_back_towards_its_target_from_both_sides(start: float):
    # both arms pay alike, so that nothing but the rows sampled hotter or colder moves entropy
    def off(share: float) -> float:
        return sum(abs(steered(start, seed, share=share) - 0.5) for seed in SEEDS) / len(SEEDS)

    assert off(1.0) < 0.06
    assert off(0.0) > off(1.0) + 0.05
