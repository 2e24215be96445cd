"""Every item sampler that is listed: what it draws is exact, resumed exactly and defined everywhere, and by hand."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from rl_small import make_roll

from trainorder.plan.check import pieces
from trainorder.reading import ParamsError
from trainorder.rl import method
from trainorder.rl.choosers import NEUTRAL
from trainorder.rl.items import ITEMS, Picker, Pool
from trainorder.rl.problems import TaskSet
from trainorder.rl.samplers import Seen
from trainorder.rl.types import State
from trainorder.streams import stream
from trainorder.tasks.base import Problem

assert method  # fills the registries
# options under which a sampler shows all that it does on a small pool, and does not go by place
OPTIONS: dict[str, dict[str, Any]] = {
    "in_order": {"by": "length"},
    "blocked": {"topic": "level"},
    "blocked_curriculum": {"topic": "level", "by": "length"},
    "interleaved": {"topic": "level"},
    "interleaved_curriculum": {"topic": "level", "by": "length"},
    "cures": {"cold_start": True},
    "frontier": {"cold_start": True},
    "alp_gmm": {"episodes": 6, "most": 3},
}
BY_PLACE = {"shuffled"}


def problems(count: int = 12) -> list[Problem]:
    return [
        Problem(
            f"a/{i}", "a", "x y " * (1 + i) + str(i % 5), "1", "1", {"level": i % 3, "steps": [1] * i}
        )
        for i in range(count)
    ]  # fmt: skip


def scripted(name: str, asked: Sequence[Problem]) -> list[float]:
    """What a look finds, by the problem alone."""
    return [stream("look", name, problem.id).random() for problem in asked]


def task_set(name: str, own: Sequence[Problem] | None = None) -> TaskSet:
    picker = Picker.of({name: OPTIONS.get(name, {})})
    return TaskSet({"a": 1.0}, {}, {"a": own or problems()}, {"a": 8}, picker=picker)


def observed(tasks: TaskSet, drawn: list[Problem], state: State) -> None:
    """A made-up step: two answers to each problem, right with a chance of its own."""
    draws = [stream("grade", state.step, i, p.id).random() for p in drawn for i in range(2)]
    grades = [
        float(d < 0.1 * int(p.id[2:]))
        for d, p in zip(draws, [p for p in drawn for _ in range(2)], strict=True)
    ]
    groups = [i for i in range(len(drawn)) for _ in range(2)]
    roll = make_roll(grades, groups)
    roll = replace(roll, problem=[p for p in drawn for _ in range(2)])
    credited = replace(roll, advantages=torch.where(roll.rewards > 0, 0.5, -0.5)[:, None])
    tasks.observe([roll], credited, state)


def run(
    tasks: TaskSet, state: State, steps: int, count: int = 5, look: Any = scripted
) -> list[str]:
    ids: list[str] = []
    for _ in range(steps):
        drawn = tasks.draw({"a": count}, state, 0, look)
        observed(tasks, drawn, state)
        ids += [problem.id for problem in drawn]
        state.step += 1
    return ids


@pytest.mark.parametrize("name", ITEMS)
def test_the_same_hundred_draws_after_save_and_resume(name: str):
    whole = run(task_set(name), State(total=20), 20)
    assert len(whole) == 100
    state = State(total=20)
    head = run(task_set(name), state, 7)
    resumed = State.from_state_dict(json.loads(json.dumps(state.state_dict())))
    assert head + run(task_set(name), resumed, 13) == whole


@pytest.mark.parametrize("name", [name for name in ITEMS if name not in BY_PLACE])
def test_what_is_drawn_does_not_depend_on_the_place_in_the_file(name: str):
    forward = run(task_set(name), State(total=20), 12)
    mixed = [problems()[i] for i in (7, 3, 11, 0, 5, 1, 10, 8, 2, 6, 4, 9)]
    backward = run(task_set(name, mixed), State(total=20), 12)
    assert forward == backward


@pytest.mark.parametrize("name", ITEMS)
def test_a_batch_larger_than_the_pool_is_whole_and_what_was_drawn_is_logged(name: str):
    tasks, state = task_set(name, problems(3)), State(total=4)
    first = tasks.draw({"a": 8, "b": 0}, state, 0, scripted)
    tasks.draw({"a": 1}, state, 0, scripted)
    assert len(first) == 8
    log = tasks.realised()
    assert log["task/a/drawn"] == 9
    assert tasks.realised() == {}
    if name != "shuffled":
        visits = [
            known["visits"] for known in state.mem["known"]["a"].values() if "visits" in known
        ]
        assert sum(visits) == 9
        assert log["task/a/drawn_new"] == len(visits) / 9


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("name", ITEMS)
def test_scores_are_numbers_where_all_or_nothing_is_solved(name: str, rate: float):
    own = problems(4)
    known = {
        p.id: {"rollouts": 800.0, "solved": 800 * rate, "last": rate, "visits": 100.0} for p in own
    }
    seen = {p.id: Seen(rollouts=8, absadv=0.0, reward=rate, entropy=0.0) for p in own}
    for some in ({}, known):
        pool = Pool(
            "a", own, 3, 9, dict(some), seen if some else {}, lambda _, asked: [rate] * len(asked)
        )
        scores = ITEMS[name](pool, {}, **OPTIONS.get(name, {}))
        assert len(scores) == 4
        assert not any(math.isnan(score) or score == math.inf for score in scores)
        assert any(score > -math.inf for score in scores)


@pytest.mark.parametrize("name", ITEMS)
def test_it_measures_only_what_it_declares(name: str):
    asked: set[str] = set()

    def look(wanted: str, own: Sequence[Problem]) -> list[float]:
        asked.add(wanted)
        return scripted(wanted, own)

    run(task_set(name), State(total=10), 10, look=look)
    assert asked <= ITEMS[name].looks
    assert ITEMS[name].function.__doc__


def test_the_list_read_from_the_source_is_the_list():
    found = pieces()["items"]
    assert set(found) == set(ITEMS)
    for name, listed in ITEMS.items():
        parameters = inspect.signature(listed.function).parameters.values()
        assert set(found[name]) == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def scores(name: str, known: dict[str, Any] | None = None, **options: Any) -> list[float]:
    own, facts = problems(3), known or {}
    look = options.pop("look", scripted)
    at = {key: options.pop(key) for key in ("step", "total", "seen") if key in options}
    mem = options.pop("mem", {})
    return ITEMS[name](Pool("a", own, known=facts, look=look, **at), mem, **options)


def shares(values: list[float]) -> list[float]:
    raised = [math.exp(value) for value in values]
    return [value / sum(raised) for value in raised]


def at(**rates: float) -> dict[str, Any]:
    """Problems that were asked so often that the prior does not count, at these pass rates."""
    return {f"a/{k[1:]}": {"rollouts": 1e9, "solved": 1e9 * rate} for k, rate in rates.items()}


def test_cures_by_hand():
    found = shares(scores("cures", at(_0=0.5, _1=0.1, _2=0.9)))
    assert found == pytest.approx([0.3792, 0.3104, 0.3104], abs=5e-5)


def test_frontier_prefers_one_half_and_keeps_a_share_for_all():
    # utilities 1, 0, 0: .9 of the mass goes to the first, .1 to all
    found = shares(scores("frontier", at(_0=0.5, _1=0.0, _2=1.0), utility="variance"))
    assert found == pytest.approx([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3], abs=1e-6)


def test_edco_takes_the_most_uncertain_first_and_what_it_had_in_this_round_last():
    values = {"a/0": 1.0, "a/1": 3.0, "a/2": 2.0}
    tasks = TaskSet({"a": 1.0}, {}, {"a": problems(3)}, {"a": 8}, picker=Picker.of("edco"))
    state = State(total=10)
    ids = [p.id for p in tasks.draw({"a": 2}, state, 0, lambda _, own: [values[p.id] for p in own])]
    assert ids == ["a/1", "a/2"]
    state.step = 1  # the same of five rounds
    again = tasks.draw({"a": 2}, state, 0, scripted)
    assert [p.id for p in again] == ["a/0", "a/1"]
    # the next round measures again
    state.step = 2
    values = {"a/0": 1.0, "a/1": 0.0, "a/2": 9.0}
    fresh = tasks.draw({"a": 1}, state, 0, lambda _, own: [values[p.id] for p in own])
    assert [p.id for p in fresh] == ["a/2"]


def test_gain_rl_begins_with_the_most_concentrated_and_moves_on_with_success():
    angles, mem = {"a/0": 0.1, "a/1": 0.9, "a/2": 0.5}, dict[str, Any]()
    same: dict[str, Any] = {"total": 10, "mem": mem, "sigma": 1.0, "scaled": False}
    first = scores("gain_rl", look=lambda _, own: [angles[p.id] for p in own], **same)
    assert first == [-2.0, 0.0, -0.5]  # ranks 2, 0, 1
    seen = {"a/0": Seen(rollouts=8, absadv=0.0, reward=1.0, entropy=1.0)}
    known = {"a/0": {"last": 1.0}}
    later = scores(
        "gain_rl", known, step=1, seen=seen, look=lambda _, own: [0.5] * len(own), **same
    )
    # all solved, mean angle .5: 500 (tanh 1 + tanh 1) ranks further
    assert mem["mu"] == pytest.approx(1000 * math.tanh(1.0))
    assert later[0] > later[2] > later[1]


def test_orders_by_topic_and_difficulty_by_hand():
    def drawn(name: str, **options: Any) -> list[str]:
        tasks = TaskSet({"a": 1.0}, {}, {"a": own}, {"a": 8}, picker=Picker.of({name: options}))
        return [p.id for p in tasks.draw({"a": 6}, State(total=1), 0, scripted)]

    def asked(key: str, topic: str, hard: int) -> Problem:
        return Problem(key, "a", key, "1", "1", {"topic": topic, "hard": hard})

    own = [asked(f"{t}{n}", t, hard) for t in "qp" for n, hard in ((1, 5), (2, 5), (3, 1))]
    topic: dict[str, Any] = {"topic": "topic", "by": "hard"}
    easy_first = drawn("blocked_curriculum", **topic)
    assert [easy_first[0], easy_first[3]] == ["p3", "q3"]
    assert [key[0] for key in easy_first] == list("pppqqq")
    assert [key[0] for key in drawn("blocked", topic="topic")] == list("pppqqq")
    # equally hard ones take turns too
    assert [key[0] for key in drawn("interleaved_curriculum", **topic)] == list("pqpqpq")
    assert drawn("interleaved_curriculum", **topic)[:2] == ["p3", "q3"]
    assert [key[0] for key in drawn("interleaved", topic="topic")] == list("pqpqpq")
    assert drawn("interleaved_curriculum", **topic, descending=True)[-2:] == ["p3", "q3"]


def test_pudf_opens_what_the_policy_is_able_to():
    own = problems(3)  # difficulty by the number of steps: 0, 1, 2
    seen = {"a/0": Seen(rollouts=8, absadv=0.0, reward=1.0, entropy=1.0)}
    pool = Pool("a", own, 1, 9, {"a/0": {"last": 1.0}}, seen)
    mem: dict[str, Any] = {}
    # one item of difficulty 0 right: theta = 1 / (1 + e^theta), .4016
    assert ITEMS["pudf"](pool, mem, by="steps") == [0.0, -math.inf, -math.inf]
    assert mem["theta"] == pytest.approx(0.4011, abs=1e-3)
    assert ITEMS["pudf"](pool, mem, by="steps", above=0.6) == [0.0, 0.0, -math.inf]


def test_sec_over_buckets_is_sec_over_tasks():
    # levels 0, 1, 2 of one problem each; the first showed .8: Q = (.4, 0, 0)
    seen = {"a/0": Seen(rollouts=8, absadv=0.8, reward=0.0, entropy=1.0)}
    found = shares(scores("sec_buckets", seen=seen, by="level", alpha=0.5))
    top = math.exp(0.4)
    assert found == pytest.approx([top / (top + 2), 1 / (top + 2), 1 / (top + 2)])
    # a bucket of two problems has its share, half for each
    mem: dict[str, Any] = {}
    pool = Pool("a", problems(4), 1, 9, {}, seen)
    wide = shares(ITEMS["sec_buckets"](pool, mem, by="level", alpha=0.5))
    assert wide[0] == wide[3] == pytest.approx(found[0] / 2)


def test_the_next_level_opens_when_the_newest_has_levelled_off():
    own, mem, found = problems(3), dict[str, Any](), []
    for step, reward in enumerate([0.1, 0.2, 0.2, 0.2, 0.2]):
        seen = {p.id: Seen(rollouts=8, absadv=0.0, reward=reward, entropy=1.0) for p in own}
        pool = Pool("a", own, step, 9, {}, seen)
        shown = ITEMS["open_levels"](pool, mem, by="level", window=2, replay=0.25)
        found.append([round(share, 4) for share in shares(shown)])
    # .1, .2 rises; .2, .2 has levelled off; two steps later the next one
    assert found == [[1, 0, 0]] * 2 + [[0.25, 0.75, 0]] * 2 + [[0.125, 0.125, 0.75]]


def test_dump_and_progress_over_buckets_begin_even():
    for name in ("dump_buckets", "alp_buckets"):
        assert shares(scores(name, by="level")) == pytest.approx([1 / 3] * 3)


def test_alp_gmm_goes_where_grades_move():
    own = problems(12)
    tasks = TaskSet(
        {"a": 1.0},
        {},
        {"a": own},
        {"a": 8},
        picker=Picker.of({"alp_gmm": {"episodes": 24, "most": 3}}),
    )
    state = State(total=40)
    draw = stream("alp")
    for _ in range(8):  # the long half flips between right and wrong, the short one is always wrong
        seen = {
            p.id: Seen(rollouts=8, absadv=0.0, reward=float(i >= 6 and draw.random() < 0.5), entropy=1.0)
            for i, p in enumerate(own)
        }  # fmt: skip
        pool = Pool("a", own, state.step, 40, {}, seen)
        mem = state.mem.setdefault("items", {}).setdefault("a", {})
        found = shares(tasks.picker.item(pool, mem, episodes=24, most=3))
        state.step += 1
    assert sum(found[6:]) > 0.6
    assert min(found) >= 0.2 / 12 * 0.99


def test_wiki_r1_carries_what_was_seen_to_like_problems():
    texts = ["red apple", "red apple pie", "blue car"]
    own = [Problem(f"a/{i}", "a", text, "1", "1") for i, text in enumerate(texts)]
    known = {"a/0": {"rollouts": 4.0, "solved": 4.0}, "a/2": {"rollouts": 4.0, "solved": 2.0}}
    found = ITEMS["wiki_r1"](Pool("a", own, known=known), {})
    assert found[2] == 0.0  # one half
    assert found[0] == pytest.approx(-(0.5**2) / (2 * 0.2**2))
    # .8 of its solved neighbour, .2 of the mean .75: .95
    assert found[1] == pytest.approx(-(0.45**2) / (2 * 0.2**2))


def test_orders_by_hand():
    assert scores("in_order") == [0, -1, -2]
    assert scores("in_order", by="length", descending=True) == [-2, -1, 0]
    assert scores("in_order", {"a/0": {"visits": 1.0}}) == [-3, -1, -2]  # once per pass
    rates = {"a/0": 0.2, "a/1": 0.9, "a/2": 0.5}
    easy = scores("in_order", by="rate", look=lambda _, own: [rates[p.id] for p in own])
    assert easy == [-2, 0, -1]
    assert scores("paced", by="length", start=0.34, step=0, total=9) == [0.0, 0.0, -math.inf]
    assert scores("tarot", by="length", policy="forward", step=0, total=9) == [
        0.0,
        -math.inf,
        -math.inf,
    ]
    assert scores("learnability_gap", at(_0=0.2, _1=0.8, _2=0.1), look=lambda name, own: [0.9, 0.9, 0.1] if name == "teacher_rate" else [0.0] * 3, temperature=1.0) == pytest.approx([0.7, 0.1, 0.0], abs=1e-6)  # fmt: skip


def test_cyclical_draws_an_epoch_without_a_problem_twice():
    tasks = TaskSet({"a": 1.0}, {}, {"a": problems(8)}, {"a": 8}, picker=Picker.of("cyclical"))
    state = State(total=20)
    sizes = [2, 4, 8, 4, 2]  # .25, .5, 1, .5, .25 of 8
    for size in sizes:
        epoch = [p.id for _ in range(size // 2) for p in tasks.draw({"a": 2}, state, 0, scripted)]
        assert len(set(epoch)) == size


def test_a_cycle_begins_anew_in_a_phase_that_inherits_visits():
    known = {p.id: {"visits": 3.0} for p in problems(3)}
    open_ = [score > -math.inf for score in scores("cyclical", known, low=0.34, high=1.0)]
    assert open_ == [True] * 3
    mem: dict[str, Any] = {}
    scores("cyclical", known, mem=mem)
    assert mem["share"] == 0.25  # the first epoch is not over before it began


def test_what_a_key_of_the_meta_is_not():
    with pytest.raises(
        ParamsError,
        match=r"no 'levl'; there are file, length, level, rate, steps \(did you mean 'level'",
    ):
        scores("in_order", by="levl")
    with pytest.raises(ParamsError, match=r"no items 'cure'; .* \(did you mean 'cures'"):
        Picker.of("cure")


@pytest.mark.parametrize("name", sorted(set(NEUTRAL) & set(ITEMS)))
def test_with_its_neutral_options_every_problem_is_as_likely(name: str):
    own = problems()
    known = {f"a/{i}": {"rollouts": 8.0, "solved": float(i % 9)} for i in range(12)}
    pool = Pool("a", own, step=3, total=9, known=known, look=scripted)
    found = ITEMS[name](pool, {}, **NEUTRAL[name])
    assert found == pytest.approx([found[0]] * 12, abs=1e-6)
    assert math.isfinite(found[0])
