"""What no piece of the RL step may depend on: padding, the order of rows and prompts, facts that it did not declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from rl_small import make_roll, pad_more, variants, with_facts

from trainorder.rl import facts
from trainorder.rl.method import Bound, bind
from trainorder.rl.registry import EDITS, SLOTS
from trainorder.rl.types import Live, Roll, State
from trainorder.rollout import Request
from trainorder.tasks.base import Problem

ORDER = [3, 0, 5, 2, 1, 4]


def cases(*slots: str) -> list[object]:
    found = [
        (slot, f"{name}-{i}", b)
        for slot in slots
        for name in SLOTS[slot]
        for i, b in enumerate(variants(slot, name))
    ]
    return [pytest.param(bound, id=f"{slot}-{label}") for slot, label, bound in found]


def roll_of(needs: frozenset[str], rewards: Sequence[float | None] = (1, 0, 0.25, 0, 1, None)) -> Roll:  # fmt: skip
    """Answers of several lengths in groups of three, with the facts that every roll has and those of `needs`, no other."""
    rows = len(rewards)
    roll = make_roll(rewards, group=[i // 3 for i in range(rows)], lengths=[(9, 1, 7, 5, 2, 8)[i % 6] for i in range(rows)])  # fmt: skip
    return with_facts(replace(roll, token_facts={}), needs)


def fresh(step: int = 0) -> State:
    return State(total=9, step=step, mem={"strategic_grams": {"let me check": 2}})


@pytest.mark.parametrize("piece", cases("reward", "advantage", "weight", "metric"))
def test_the_facts_that_a_piece_declares_are_all_that_it_reads(piece: Bound):
    piece(roll_of(piece.needs), fresh())


@pytest.mark.parametrize("term", cases("terms"))
def test_the_facts_that_a_term_declares_are_all_that_it_reads(term: Bound):
    roll = roll_of(facts.old(term.needs))
    live = Live(roll.old_logps, {need: roll.old_logps.abs() for need in facts.live(term.needs)})
    assert term(live, roll, fresh()).isfinite().all()


class Answers:
    """Groups of answers that earn differently, with the facts that were declared; all problems are one."""

    def __init__(self, needs: frozenset[str]) -> None:
        self.needs, self.groups = needs, 0

    def requests(self, counts: Mapping[str, int]) -> list[Request]:
        problem = Problem("sums/new", "sums", "?", "1", "1")
        return [Request(problem, samples=3) for _ in range(sum(counts.values()))]

    def sample(self, requests: Sequence[Request], *, aside: bool = False) -> Roll:
        found = roll_of(self.needs, [0, 1, 1] * len(requests))
        text = [f"new {self.groups} {i}" for i in range(len(found))]
        self.groups += len(requests)
        return replace(found, text=text, group=found.group + 100 * self.groups)

    def given(self, requests: Sequence[Request], texts: object, source: str) -> Roll:
        return self.sample(requests)

    def cut(self, roll: Roll, lengths: torch.Tensor) -> Roll:
        return roll

    def pose(self, task: str, text: str) -> None:
        return None


@pytest.mark.parametrize("name", EDITS)
def test_which_rows_an_edit_keeps_depends_neither_on_the_order_of_prompts_nor_on_undeclared_facts(
    name,
):
    edit = bind("edit", name)
    roll = roll_of(edit.needs, [1, 0, 0.5, 1, 1, 1, 0, 0.25, None, 0, 0, 1])
    prompts = [3, 0, 2, 1]
    mixed = roll.rows([3 * prompt + i for prompt in prompts for i in range(3)])
    one, other = (edit(r, fresh(), Answers(edit.needs)) for r in (roll, mixed))
    assert set(roll.text) & set(one.text) == set(roll.text) & set(other.text)


@pytest.mark.parametrize("piece", cases("reward"))
def test_rewards_are_blind_to_padding_and_to_the_order_of_rows_and_finite_at_extremes(piece: Bound):
    roll = roll_of(piece.needs)
    whole = piece(roll, fresh())
    torch.testing.assert_close(piece(pad_more(roll, 2), fresh()), whole)
    torch.testing.assert_close(piece(roll.rows(ORDER), fresh()), whole[ORDER])
    for extreme in EXTREMES:
        assert piece(at(roll, **extreme), fresh()).isfinite().all()


EXTREMES = [
    {"entropy": 0.0, "old_logps": 0.0, "hidden": 0.0},
    {"entropy": 1e-18, "old_logps": -1e-9, "hidden": 1e4},
    {"entropy": 1e-17, "old_logps": -1e4, "hidden": 1e-30},
    {"entropy": 12.5, "old_logps": -12.5, "hidden": 1.0},  # a uniform policy of 268 thousand tokens
]


def at(roll: Roll, **values: float) -> Roll:
    known = {
        name: torch.full_like(known, values[name]) if name in values else known
        for name, known in roll.token_facts.items()
    }
    return replace(roll, token_facts=known, text=list(roll.text))


@pytest.mark.parametrize("piece", cases("metric"))
def test_metrics_are_blind_to_the_order_of_rows_and_finite_at_extremes_from_step_to_step(
    piece: Bound,
):
    roll = roll_of(piece.needs)
    assert piece(roll.rows(ORDER), fresh()) == pytest.approx(piece(roll, fresh()))
    state = fresh()
    for step, extreme in enumerate(EXTREMES):
        state.step = step
        found = piece(at(roll, **extreme), state)
        assert all(torch.tensor(value).isfinite() for value in found.values()), (extreme, found)


@pytest.mark.parametrize("plan", cases("plan"))
def test_plans_ask_the_same_each_time_and_for_as_many_answers_as_before(plan: Bound):
    meta = {"answer": 7, "passages": ["a", "b"]}
    gold = "3 + 4 = 7\nthen 7 it is\n<answer> 7 </answer>"
    asked = [
        Request(Problem(f"sums/{i}", "sums", f"Anna has {i}?", gold, gold, meta), samples=4, max_new_tokens=99)
        for i in range(5)
    ]  # fmt: skip
    for step in (0, 3, 8):
        one, other = (plan(list(asked), fresh(step)) for _ in range(2))
        assert one == other
        assert sum(request.samples for request in one) == 20
        assert {r.problem.task for r in one if r.problem} == {"sums"}
