"""Measures of a reward matrix against hand-made matrices; the doctests carry the worked 3 x 3 example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainorder.metrics import transfer

ALL = [
    transfer.accuracy,
    transfer.backward_transfer,
    transfer.backward_transfer_all,
    transfer.average_accuracy,
    transfer.remembering,
    transfer.positive_backward_transfer,
    transfer.forward_transfer_all,
    transfer.forgetting,
]


def test_the_two_backward_transfers_differ_when_a_middle_stage_hurts_and_a_later_one_repairs():
    # task 0: .8 -> .2 -> .8; task 1: .5 -> .5
    # Lopez-Paz: only the end counts, 0; Diaz-Rodriguez: (-.6 + 0 + 0) / 3 = -.2
    scores = np.array([[0.8, 0.0, 0.0], [0.2, 0.5, 0.0], [0.8, 0.5, 0.9]])
    assert transfer.backward_transfer(scores) == pytest.approx(0.0)
    assert transfer.backward_transfer_all(scores) == pytest.approx(-0.2)


def test_forgetting_counts_from_the_best_score_after_the_own_stage():
    # task 0 peaks at .9 after stage 1, ends at .6: .3; before its own stage (.95) task 1 does not count: .5 - .5
    scores = np.array([[0.8, 0.95, 0.1], [0.9, 0.5, 0.1], [0.6, 0.5, 0.7]])
    assert transfer.forgetting(scores) == pytest.approx((0.3 + 0.0) / 2)


def test_a_task_that_improves_later_is_forgotten_negatively():
    scores = np.array([[0.5, 0.1], [0.7, 0.6]])
    assert transfer.forgetting(scores) == pytest.approx(-0.2)
    assert transfer.backward_transfer(scores) == pytest.approx(0.2)
    assert transfer.remembering(scores) == pytest.approx(1.0)


def test_one_stage_has_an_accuracy_but_no_transfer_and_no_forgetting():
    scores, base = np.array([[0.6]]), np.array([0.2])
    assert transfer.accuracy(scores) == pytest.approx(0.6)
    undefined = [
        transfer.backward_transfer(scores),
        transfer.forward_transfer(scores, base),
        transfer.forgetting(scores),
        transfer.backward_transfer_all(scores),
        transfer.forward_transfer_all(scores),
    ]
    assert np.isnan(undefined).all()


@pytest.mark.parametrize("measure", ALL)
def test_leading_axes_are_measured_one_by_one(measure):
    scores = np.random.default_rng(0).random((4, 2, 3, 3))
    together = measure(scores)
    assert together.shape == (4, 2)
    np.testing.assert_allclose(together[2, 1], measure(scores[2, 1]))


@given(st.floats(-0.5, 0.5))
def test_transfer_and_forgetting_ignore_a_constant_added_to_all_scores(shift):
    scores, base = transfer.EXAMPLE, transfer.EXAMPLE_BASE
    for measure in (
        transfer.backward_transfer,
        transfer.backward_transfer_all,
        transfer.forgetting,
    ):
        np.testing.assert_allclose(measure(scores + shift), measure(scores), atol=1e-12)
    moved = transfer.forward_transfer(scores + shift, base + shift)
    np.testing.assert_allclose(moved, transfer.forward_transfer(scores, base), atol=1e-12)
