"""The four reductions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainorder.rl.reduce import reduction_shares

# row 1: two tokens of loss 1; row 2: four tokens of loss 3
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
LOSS = torch.tensor([[1, 1, 0, 0], [3, 3, 3, 3]], dtype=torch.float64)
TWO_PROMPTS = torch.tensor([0, 1])


def longest(rows: int, tokens: int) -> Tensor:
    return torch.full((rows,), float(tokens))


def reduced(how: str, weight: Tensor = MASK, group: Tensor = TWO_PROMPTS, **options) -> float:
    shares = reduction_shares(weight, MASK, group, how=how, max_length=longest(2, 8), **options)
    return float((shares * LOSS).sum())


@pytest.mark.parametrize(
    ("how", "expected"),
    [("token", 14 / 6), ("sequence", (1 + 3) / 2), ("constant", 14 / 16), ("prompt", (1 + 3) / 2)],
)
def test_two_rows_of_two_and_four_tokens(how, expected):
    assert reduced(how) == pytest.approx(expected)


def test_prompt_mean_pools_the_tokens_of_a_group():
    assert reduced("prompt", group=torch.tensor([7, 7])) == pytest.approx(14 / 6)


@pytest.mark.parametrize(
    ("how", "by_mask", "by_weight"),
    [
        # kept: one token of loss 1, two of loss 3
        ("token", 7 / 6, 7 / 3),
        ("sequence", (1 / 2 + 6 / 4) / 2, (1 + 3) / 2),
        ("constant", 7 / 16, 7 / 16),
        ("prompt", (1 / 2 + 6 / 4) / 2, (1 + 3) / 2),
    ],
)
def test_denominator_counts_all_tokens_or_those_that_kept_weight(how, by_mask, by_weight):
    weight = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.float64)
    assert reduced(how, weight) == pytest.approx(by_mask)
    assert reduced(how, weight, denominator="weight") == pytest.approx(by_weight)


def test_a_row_without_tokens_is_not_counted():
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    for how in ("sequence", "prompt"):
        groups = torch.tensor([0, 1])
        shares = reduction_shares(mask, mask, groups, how=how, max_length=longest(2, 2))
        assert shares.tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_an_empty_update_has_no_loss():
    empty = torch.zeros(0, 3)
    for how in ("token", "sequence", "constant", "prompt"):
        shares = reduction_shares(
            empty, empty, torch.zeros(0, dtype=torch.long), how=how, max_length=longest(0, 2)
        )
        assert float(shares.sum()) == 0


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    how=st.sampled_from(["token", "sequence", "prompt"]),
    cut=st.integers(0, 6),
)
def test_means_of_a_constant_loss_are_that_constant_however_the_rows_are_cut(lengths, how, cut):
    mask = torch.tensor([[1.0] * n + [0.0] * (5 - n) for n in lengths], dtype=torch.float64)
    group = torch.arange(len(lengths)) // 2
    shares = reduction_shares(mask, mask, group, how=how, max_length=longest(len(lengths), 5))
    parts = [(shares[:cut] * 2).sum(), (shares[cut:] * 2).sum()]
    torch.testing.assert_close(parts[0] + parts[1], torch.tensor(2.0, dtype=torch.float64))


def test_a_constant_reduction_divides_each_row_by_the_longest_answer_of_its_own_task():
    # two rows of a task of 8 tokens and two of one of 40: as much as each task's batch alone, halved
    mask = torch.ones(4, 2)
    groups, limits = torch.arange(4), torch.tensor([8.0, 8.0, 40.0, 40.0])
    joint = reduction_shares(mask, mask, groups, how="constant", max_length=limits)
    for rows in ([0, 1], [2, 3]):
        alone = reduction_shares(
            mask[rows], mask[rows], groups[rows], how="constant", max_length=limits[rows]
        )
        torch.testing.assert_close(joint[rows], alone / 2)


def test_an_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="reduction 'mean' is unknown; use token"):
        reduction_shares(MASK, MASK, TWO_PROMPTS, how="mean", max_length=longest(2, 8))
