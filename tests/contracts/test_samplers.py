"""Every sampler and curriculum that is listed: a distribution, resumed exactly, and the numbers one gets by hand."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from trainorder.plan.check import pieces
from trainorder.rl.choosers import NEUTRAL
from trainorder.rl.curricula import CURRICULA
from trainorder.rl.samplers import SAMPLERS, Moment, Seen
from trainorder.rl.scheduler import Scheduler
from trainorder.streams import stream

SLOTS = {"sampler": SAMPLERS, "curriculum": CURRICULA}
ALL = [(slot, name) for slot, listed in SLOTS.items() for name in listed]
TASKS = {"a": 1.0, "b": 2.0, "c": 1.0}


def seen(absadv: float = 0.0, reward: float = 0.0, entropy: float = 1.0, n: int = 8) -> Seen:
    return Seen(rollouts=n, absadv=absadv, reward=reward, entropy=entropy)


Steps = list[dict[str, Seen]]
BOTH = {"a": 1.0, "b": 1.0}


def a_then(*rewards: float) -> Steps:
    return [{}, *({"a": seen(reward=r)} for r in rewards)]


# name -> options, the phase's steps, what was seen before each step asked, and the shares of a at these steps
HAND: dict[str, tuple[dict[str, Any], int, Steps, list[float]]] = {
    "weights": ({}, 9, [{}], [0.5]),
    "uniform": ({}, 9, [{}], [0.5]),
    # Q: (0, 0), (.4, 0), (.4, .5)
    "sec": ({"alpha": 0.5}, 9, [{}, {"a": seen(0.8)}, {"b": seen(1.0)}], [0.5, 0.5987, 0.4750]),
    # 0.8 against 0.4 at equal counts and temperature .1: 1 / (1 + e^-4)
    "dump": ({}, 9, [{}, {"a": seen(0.8), "b": seen(0.4)}], [0.5, 0.9820]),
    # progress .3 and .1: .8 * .75 + .1
    "alp": (
        {"window": 2},
        9,
        [{}, {"a": seen(reward=0.2), "b": seen(reward=0.5)}, {"a": seen(reward=0.5), "b": seen(reward=0.4)}],
        [0.5, 0.5, 0.7],
    ),
    # progress (.6 - .2) / .8 and 0: softmax(-1, 0) = .2689, times .8, plus .1; then a falls below its start: softmax(.5, 0)
    "worst_task": (
        {"window": 1, "temperature": 0.5},
        9,
        [{}, {"a": seen(reward=0.2), "b": seen(reward=0.5)}, {"a": seen(reward=0.6), "b": seen(reward=0.5)}, {"a": seen(reward=0.0)}],
        [0.5, 0.5, 0.3152, 0.5980],
    ),
    # drift -.01 and .005, H .2 against .3: scores .2 and .5
    "live_entropy": (
        {"target": 0.3, "beta": 0.0, "temperature": 1.0},
        9,
        [{}, {"a": seen(0.4, entropy=0.21), "b": seen(0.4, entropy=0.195)}, {"a": seen(0.4, entropy=0.2), "b": seen(0.4, entropy=0.2)}],
        [0.5, 0.5, 0.4256],
    ),
    # J = .5 of .8 and of .2, nothing gained: signal .08 and .02; Adam's first step is the learning rate
    "mt_grpo": ({}, 9, [{}, {"a": seen(reward=0.8), "b": seen(reward=0.2)}], [0.5, 0.4875]),
    # no alignment is known: |A| / 2 of .8 and .4 times alpha .1, at temperature .1: 1 / (1 + e^-.2), .9 of it and .05
    "tac": ({}, 9, [{}, {"a": seen(0.8), "b": seen(0.4)}], [0.5, 0.54485]),
    "together": ({}, 9, [{}], [0.5]),
    "in_turn": ({"cycles": 2}, 8, [{}] * 8, [1, 1, 0, 0, 1, 1, 0, 0]),
    # .5 to .51 gains less than .02
    "unlock": ({"window": 1}, 9, a_then(0.5, 0.6, 0.61), [1, 1, 1, 0.5]),
    # b's turn comes after 4 of 8 steps and ends when a falls from .9 to .8: the rest is a's
    "stop_early": (
        {"window": 1},
        8,
        [*a_then(0.5, 0.7, 0.8, 0.9), {"a": seen(reward=0.88)}, {"a": seen(reward=0.8)}, {}],
        [1, 1, 1, 1, 0.25, 0.25, 1, 1],
    ),
    # entropy falls from 1 to .4 below half: b begins a step early, both have what is left
    "entropy_turns": (
        {"window": 1},
        8,
        [{}, {"a": seen(entropy=1.0)}, {"a": seen(entropy=0.4)}, *[{"b": seen(entropy=1.0)}] * 5],
        [1, 1, 0, 0, 0, 0, 0.5, 0.5],
    ),
    # the same fall: one step for a, then b goes on
    "refresh": (
        {"window": 1, "steps": 1},
        8,
        [*a_then(0.5, 0.7, 0.8, 0.9), {"a": seen(reward=0.8)}, {"a": seen(reward=0.9)}, {}],
        [1, 1, 1, 1, 0.25, 1, 0.25, 0.25],
    ),
}  # fmt: skip


def scheduler(slot: str, name: str, options: dict[str, Any] | None = None) -> Scheduler:
    return Scheduler(**{slot: {name: options} if options else name})


def world(step: int) -> dict[str, Seen]:
    """Made-up steps in which a is learned, b is forgotten and c does nothing; now and then a task is not asked."""
    draw = stream("world", step)
    rewards = {"a": min(1.0, 0.1 * step), "b": max(0.0, 0.9 - 0.1 * step), "c": 0.3}
    found = {
        t: seen(draw.random(), r, 1 + draw.random(), draw.randrange(8, 40))
        for t, r in rewards.items()
    }
    return {t: s for t, s in found.items() if step and draw.random() < 0.8}


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_the_shares_by_hand(slot: str, name: str):
    options, total, steps, expected = HAND[name]
    mem: dict[str, Any] = {}
    for step, (before, share) in enumerate(zip(steps, expected, strict=True)):
        shares = scheduler(slot, name, options).shares(Moment(step, total, BOTH, before), mem)
        assert shares["a"] == pytest.approx(share, abs=5e-5), step


def test_sec_may_let_the_value_of_a_task_that_was_not_asked_decay():
    # Q = (.4, 0), then (.2, .5): 1 / (1 + e^.3); without the decay (.4, .5)
    for decay, share in ((True, 0.4256), (False, 0.4750)):
        sec, mem = scheduler("sampler", "sec", {"alpha": 0.5, "decay_unsampled": decay}), {}
        for step, before in enumerate(({"a": seen(0.8)}, {"b": seen(1.0)}), start=1):
            shares = sec.shares(Moment(step, 9, BOTH, before), mem)
        assert shares["a"] == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_shares_are_a_distribution_and_all_prompts_are_given_out(slot: str, name: str):
    mem: dict[str, Any] = {}
    for step in range(24):
        now = Moment(step, 24, TASKS, world(step))
        counts = scheduler(slot, name).counts(now, mem, 7, ("x", step))
        assert sum(counts.values()) == 7
        assert min(counts.values()) >= 0
    shares = scheduler(slot, name).shares(Moment(24, 25, TASKS, world(24)), mem)
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0


@pytest.mark.parametrize(("slot", "name"), ALL)
@pytest.mark.parametrize("cut", [1, 5, 13])
def test_a_run_that_is_cut_and_read_back_from_json_goes_on_the_same(slot: str, name: str, cut: int):
    def run(mem: dict[str, Any], steps: range) -> list[dict[str, int]]:
        return [
            scheduler(slot, name).counts(Moment(s, 20, TASKS, world(s)), mem, 16, (0, s))
            for s in steps
        ]

    whole, mem = run({}, range(20)), dict[str, Any]()
    assert run(mem, range(cut)) == whole[:cut]
    assert run(json.loads(json.dumps(mem)), range(cut, 20)) == whole[cut:]


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_tasks_are_told_apart_by_what_they_showed_only(slot: str, name: str):
    def shares(tasks: list[str]) -> dict[str, float]:
        mem: dict[str, Any] = {}
        for step in range(9):
            facts = world(step)
            now = Moment(
                step, 20, {t: TASKS[t] for t in tasks}, {t: facts[t] for t in tasks if t in facts}
            )
            found = chosen.shares(now, mem)
        return found

    fixed = "order" in inspect.signature(SLOTS[slot][name]).parameters
    chosen = scheduler(slot, name, {"order": ["a", "b", "c"]} if fixed else None)
    assert shares(["c", "a", "b"]) == pytest.approx(shares(["a", "b", "c"]))


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_one_task_gets_everything_and_extreme_values_stay_finite(slot: str, name: str):
    mem: dict[str, Any] = {}
    for step in range(12):
        extreme = {"a": seen(1e3 * (step % 2), float(step % 2), 20.0, 10**6)} if step else {}
        assert scheduler(slot, name).shares(Moment(step, 12, {"a": 3.0}, extreme), mem) == {
            "a": 1.0
        }


def test_the_list_read_from_the_source_is_the_list():
    found = pieces()
    for slot, listed in SLOTS.items():
        assert set(found[slot]) == set(listed)
        for name, function in listed.items():
            options = {
                p.name
                for p in inspect.signature(function).parameters.values()
                if p.kind is p.KEYWORD_ONLY
            }
            assert set(found[slot][name]) == options
            assert function.__doc__


@pytest.mark.parametrize(("slot", "name"), [pair for pair in ALL if pair[1] in NEUTRAL])
def test_with_its_neutral_options_tasks_keep_their_shares(slot: str, name: str):
    mem: dict[str, Any] = {}
    whole = sum(TASKS.values())
    for step in range(12):
        shares = scheduler(slot, name, NEUTRAL[name]).shares(
            Moment(step, 12, TASKS, world(step)), mem
        )
        assert shares == pytest.approx({t: w / whole for t, w in TASKS.items()}, abs=1e-6)
