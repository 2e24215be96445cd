"""Two ranks compute what one process does, whatever piece or reduction is named: the same loss, gradient, logs and state."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from ranks_in_process import Meeting, RankBackend
from rl_small import exact, off_policy_roll, tiny_llama, variants, with_facts
from torch import Tensor

from trainorder.config import Denominator, MethodConfig, Reduction, RlConfig
from trainorder.rl.method import MODELS, Bound, Method, bind
from trainorder.rl.registry import SLOTS
from trainorder.rl.rollouts import add_rewards
from trainorder.rl.step import accumulate, give_credit
from trainorder.rl.types import Roll, State

GRADES = [1, 0, 0.5, 0, 0.25, 0.25, 0.25, 1, None, 0]
"""Of the rows of `off_policy_roll`."""
GRPO = Method.from_config(MethodConfig())


def with_piece(slot: str, bound: Bound) -> Method:
    """GRPO with a piece beside what learns anyway: a reward beside the grade, a weight of a term of its own."""
    if slot == "weight":
        return replace(GRPO, terms=(*GRPO.terms, replace(bind("terms", "nll"), weight=(bound,))))
    return replace(GRPO, **{slot: (*(() if slot == "terms" else getattr(GRPO, slot)), bound)})


METHODS = {
    f"{slot}-{name}-{number}": with_piece(slot, bound)
    for slot in ("reward", "advantage", "weight", "metric", "terms")
    for name in SLOTS[slot]
    for number, bound in enumerate(variants(slot, name))
} | {
    f"{how}-{denominator}": replace(
        GRPO, reduction=how, denominator=denominator, weight=(bind("weight", "finished_only"),)
    )
    for how in get_args(Reduction)
    for denominator in get_args(Denominator)
}


@pytest.fixture(scope="module")
def copies() -> list[Any]:
    """A rank's own model each."""
    model = exact(tiny_llama(layers=1))
    return [model, copy.deepcopy(model)]


@pytest.fixture(scope="module")
def other() -> Any:
    return tiny_llama(seed=1).double()


@pytest.fixture(scope="module")
def rows(copies: list[Any]) -> Roll:
    return off_policy_roll(copies[0])


Found = tuple[dict[str, float], list[Tensor], dict[str, Any]]


def of_ranks(world: int, copies: list[Any], other: Any, rows: Roll, method: Method) -> list[Found]:
    """What each rank logs of an update, the gradient of all, and the rank's state afterwards."""
    budget = 10_000 if world == 1 else 20  # all rows at once, or about two by two
    meeting, needs = Meeting(world), method.needs | method.live_needs
    models = dict.fromkeys(MODELS, other)

    def work(rank: int) -> Found:
        model, state = copies[rank], State(total=9, step=3)
        state.mem |= {"strategic_grams": {"let me check": 2}, "siren/gap": 0.3}
        backend = RankBackend(model, meeting, rank, RlConfig())
        roll = with_facts(rows, needs)
        with torch.no_grad():
            roll = give_credit(add_rewards(roll, GRADES, method, state), method, state)
            log = {k: v for metric in method.metric for k, v in metric(roll, state).items()}
            log |= accumulate(model, roll, method, state, budget=budget, max_length={"sums": 8}, backend=backend, models=models)  # fmt: skip
        backend.add_up()
        return log, [p.grad for p in model.parameters()], state.state_dict()

    return meeting.run(work)


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_have_the_loss_the_gradient_and_the_state_of_one(name, copies, other, rows):
    ((log, gradient, state),) = of_ranks(1, copies, other, rows, METHODS[name])
    assert any(part.abs().max() > 1e-5 for part in gradient)
    for found in of_ranks(2, copies, other, rows, METHODS[name]):
        assert found[0] == pytest.approx(log, rel=1e-10, abs=1e-10)
        for ours, whole in zip(found[1], gradient, strict=True):
            torch.testing.assert_close(ours, whole, rtol=0, atol=1e-10)
        assert found[2] == state
