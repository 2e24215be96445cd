"""Planning tokens and the rank of hidden states, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rl_small import make_roll, pad_more

from trainorder.rl.pieces.hidden import add_bonus, effective_rank, ranks, verl
from trainorder.rl.pieces.structure import (
    hicra,
    mine_grams,
    planning,
    planning_tokens,
    semantic_entropy,
    two_phases,
)
from trainorder.rl.types import Roll, State

STATE = State(total=9)
GRAMS = ["let us find"]


def spelled(*rows: list[str], **fields) -> Roll:
    """Rows whose tokens are these words, joined by spaces."""
    roll = make_roll([1.0] * len(rows), lengths=[len(row) for row in rows], **fields)
    start, end = torch.zeros_like(roll.response_ids), torch.zeros_like(roll.response_ids)
    for row, words in enumerate(rows):
        for place in range(end.shape[1]):
            start[row, place] = end[row, place - 1] if place else 0
            end[row, place] = len(" ".join(words[: place + 1]))
    facts = {**roll.token_facts, "char_start": start, "char_end": end}
    return replace(roll, text=[" ".join(words) for words in rows], token_facts=facts)


def test_planning_tokens_are_those_inside_a_phrase_whatever_its_case():
    roll = spelled(["So", "Let", "us", "find", "x", "=", "3"], ["let", "us", "finds"])
    assert planning_tokens(roll, *GRAMS).int().tolist() == [[0, 1, 1, 1, 0, 0, 0], [0] * 7]
    assert planning_tokens(pad_more(roll, 2), *GRAMS).sum() == 3
    both = ["so let us", *GRAMS]  # overlapping phrases
    assert planning_tokens(roll, *both)[0].int().tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_hicra_raises_the_credit_of_planning_tokens_by_a_fifth_of_its_size():
    roll = spelled(["let", "us", "find", "x"], ["x", "let", "us", "find"])
    credit = torch.tensor([[0.5], [-0.5]], dtype=torch.float64).expand(2, 4)
    roll = replace(roll, advantages=credit)
    expected = torch.tensor([[0.6, 0.6, 0.6, 0.5], [-0.5, -0.4, -0.4, -0.4]], dtype=torch.float64)
    torch.testing.assert_close(hicra(roll, STATE, grams=GRAMS), expected)
    assert torch.equal(hicra(roll, STATE, grams=[]), credit)
    assert torch.equal(hicra(roll, STATE), credit)


def test_the_most_frequent_fifth_of_the_grams_of_right_answers_is_mined():
    texts = ["let us find x. then", "let us find 3 of them", "we let us find", "wrong as can be"]
    roll = replace(make_roll([1, 1, 1, 0]), text=texts)
    state = State(total=9)
    assert mine_grams(roll, state, None) is roll
    counts = state.mem["strategic_grams"]
    # in 3 answers "let us find"; once each its two neighbours and the longer runs; a number ends a run
    assert counts == {
        "let us find": 3,
        "let us find x": 1,
        "us find x": 1,
        "we let us": 1,
        "we let us find": 1,
    }
    spoken = spelled(["let", "us", "find", "x"], advantages=torch.ones(1, 4).double())
    assert hicra(spoken, state).tolist() == [[1.2, 1.2, 1.2, 1.0]]
    mine_grams(roll, state, None, capacity=1)
    assert state.mem["strategic_grams"] == {"let us find": 6}


def test_planning_and_execution_have_entropies_of_their_own():
    roll = spelled(["let", "us", "find", "x"])
    roll.token_facts["entropy"] = torch.tensor([[3.0, 2.0, 1.0, 0.5]], dtype=torch.float64)
    roll.token_facts["old_logps"] = torch.tensor([[-9.0, -9, -9, -2]], dtype=torch.float64)
    found = planning(roll, STATE, grams=GRAMS)
    assert found["planning_share"] == 0.75
    assert (found["planning_entropy"], found["execution_entropy"]) == (2.0, 0.5)
    assert found["execution_perplexity"] == pytest.approx(7.389056)  # e^2


def test_semantic_entropy_is_that_of_the_counts_of_phrases():
    texts = ["let us find x", "first we let us find", "check each case", "try all values"]
    roll = replace(make_roll([0.0] * 4), text=texts)
    grams = [*GRAMS, "check each case", "try all values", "never said here"]
    found = semantic_entropy(roll, STATE, grams=grams)
    assert found["semantic_entropy"] == pytest.approx(1.0397, abs=1e-4)  # of [2, 1, 1]


def test_the_second_phase_begins_when_plans_become_more_varied_after_execution_is_learned():
    state, found = State(total=9), []
    for perplexity, plans in [(1, 1), (0.6, 1), (0.42, 1), (0.4, 2), (0.4, 3), (0.4, 4)]:
        rows = [["a", "b", name, "x"] for name in ("c", "d", "e", "f")[:plans]]
        roll = spelled(*rows)
        logps = torch.full_like(roll.loss_mask, -torch.tensor(perplexity).log())
        roll.token_facts["old_logps"] = logps
        grams = ["a b c", "a b d", "a b e", "a b f"]
        found.append(two_phases(roll, state, grams=grams))
    assert [step["phase_turn"] for step in found] == [0, 1, 2, 2, 2, 2]
    assert [step["learning_phase"] for step in found] == [1, 1, 1, 1, 2, 2]
    resumed = State.from_state_dict(state.state_dict())
    assert resumed.mem["two_phases"] == state.mem["two_phases"]


def test_effective_rank_counts_directions_of_the_centred_states():
    # along one line: 1; at the corners of a regular simplex in 3 dimensions: 3
    line = torch.outer(torch.arange(4.0), torch.tensor([1.0, 2, 3, 4]))
    roll = make_roll([0, 0], lengths=[4, 4])
    roll.token_facts["hidden"] = torch.stack([line, torch.eye(4)])
    found = ranks(roll, stride=2)
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, 3.0], dtype=torch.float64))
    # two tokens have one direction, so the second row's ER goes from 1 to 3
    torch.testing.assert_close(found[:, 1], torch.tensor([0.0, 2.0], dtype=torch.float64))
    logged = effective_rank(roll, STATE, stride=2)
    assert logged["effective_rank"] == pytest.approx(2.0)
    assert logged["effective_rank_velocity"] == pytest.approx(1.0)
    assert effective_rank(roll, STATE)["effective_rank_velocity"] == 0


def test_verls_bonus_is_bounded_by_half_of_the_credit_and_never_negative():
    roll = replace(make_roll([0] * 3, lengths=[2] * 3), advantages=torch.full((3, 2), 0.5).double())
    phi = torch.tensor([0.9, 0.1, -1.0], dtype=torch.float64)
    assert add_bonus(roll, phi, 2.0).tolist() == [[0.75, 0.75], [0.6, 0.6], [0.5, 0.5]]
    assert add_bonus(roll, phi, 2.0, "last").tolist() == [[0.5, 0.75], [0.5, 0.6], [0.5, 0.5]]


def test_verl_pays_rows_of_more_directions_than_the_average_so_far():
    line = torch.outer(torch.arange(4.0), torch.tensor([1.0, 2, 3, 4]))
    roll = make_roll([0, 0], lengths=[4, 4], advantages=torch.ones(2, 4).double())
    roll.token_facts["hidden"] = torch.stack([line, torch.eye(4)])
    state = State(total=9)
    credit = verl(roll, state)
    # mean 2: d = -1/2 and 1/2; no stride fits: ERV = ERA = 0, g = 1/2; phi = tanh(1/2) / 2
    assert credit[0].tolist() == [1] * 4
    assert credit[1].tolist() == pytest.approx([1 + 0.5 * torch.tensor(0.5).tanh().item()] * 4)
    assert state.mem["verl/effective_rank"] == pytest.approx(2.0)
    solved = verl(replace(roll, rewards=torch.ones(2).double()), State(total=9))
    assert (solved == 1).all()


def test_pieces_of_a_step_that_see_the_same_rows_share_what_they_compute():
    seen = list[tuple[int, int]]()

    def count(roll: Roll, size: int) -> int:
        seen.append((len(roll), size))
        return len(seen)

    roll, state = make_roll([1, 0]), State(total=2)
    credited = replace(roll, advantages=roll.advantages + 1)
    assert [state.once(r, count, n) for r, n in ((roll, 1), (credited, 1), (roll, 2))] == [1, 1, 2]
    assert state.once(roll.rows([0]), count, 1) == 3
    state.step += 1
    assert state.once(roll, count, 1) == 4
