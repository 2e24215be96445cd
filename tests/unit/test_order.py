"""The best order of a gain matrix, and when the data do not identify it."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainorder.order import (
    EXACT,
    best_order,
    exact_orders,
    gains,
    heuristic_order,
    order_value,
    predict,
    recommend,
)

HAND = np.array([[0.0, 5, 2], [1, 0, 4], [3, 1, 0]])


def brute_force(gain):
    return max(permutations(range(len(gain))), key=lambda order: order_value(gain, order))


def noisy(gain, noise, seed, draws=300):
    """One measurement of `gain` with this error, then resamples around the measurement."""
    rng = np.random.default_rng(seed)
    measured = gain + rng.normal(0, noise, gain.shape)
    return np.concatenate([measured[None], measured + rng.normal(0, noise, (draws, *gain.shape))])


def test_the_hand_matrix_has_these_six_values():
    values = sorted((float(order_value(HAND, p)) for p in permutations(range(3))), reverse=True)
    assert values == [11, 9, 8, 8, 7, 5]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_dynamic_programming_finds_the_order_that_trying_all_finds(n, seed):
    gain = np.random.default_rng(seed).normal(size=(n, n))
    best = order_value(gain, brute_force(gain))
    assert order_value(gain, best_order(gain)) == pytest.approx(best)


def test_many_matrices_at_once_give_what_one_at_a_time_gives():
    gain = np.random.default_rng(1).normal(size=(40, 5, 5))
    together = exact_orders(gain)
    assert [tuple(row) for row in together.tolist()] == [best_order(one) for one in gain]


def test_twelve_phases_are_ordered_exactly():
    # a planted order: each phase gains 1 from every phase that should come later, up to small noise
    rng = np.random.default_rng(2)
    planted = rng.permutation(EXACT)
    rank = np.argsort(planted)
    gain = (rank[:, None] < rank[None, :]) + 0.1 * rng.random((EXACT, EXACT))
    assert best_order(gain) == tuple(planted)


def test_beyond_twelve_phases_the_planted_order_is_found_by_local_search():
    rng = np.random.default_rng(3)
    planted = rng.permutation(16)
    rank = np.argsort(planted)
    gain = (rank[:, None] < rank[None, :]) + 0.3 * rng.random((16, 16))
    assert best_order(gain) == tuple(planted)


def test_the_heuristic_reaches_the_exact_value_on_small_matrices():
    # insertion with restarts; 20 random matrices of 7 phases
    rng = np.random.default_rng(4)
    for gain in rng.normal(size=(20, 7, 7)):
        found = heuristic_order(gain, restarts=20)
        assert order_value(gain, found) == pytest.approx(order_value(gain, best_order(gain)))


def test_a_constant_added_to_all_gains_leaves_the_order():
    assert best_order(HAND + 7) == best_order(HAND - 7) == (0, 1, 2)


def test_the_reverse_of_the_best_order_is_the_worst():
    found = recommend(noisy(HAND, 0.01, 0), rng=np.random.default_rng(0))
    worst = min(float(order_value(HAND, p)) for p in permutations(range(3)))
    assert found.reverse_value == pytest.approx(worst, abs=0.1)
    assert found.random_value == pytest.approx(8.0, abs=0.1)
    assert found.gap == pytest.approx(6.0, abs=0.2)


def test_a_clear_order_is_identified_with_certainty():
    found = recommend(noisy(HAND, 0.1, 0), rng=np.random.default_rng(0))
    assert found.order == (0, 1, 2)
    assert found.identified
    assert found.p_optimal > 0.99
    assert found.before[0, 2] > 0.99
    assert found.before[2, 0] < 0.01
    assert found.regret < 0.01
    assert found.p_no_order < 0.01


def test_a_world_without_order_effects_is_identified_in_fewer_than_one_of_twenty():
    # 200 worlds of pure noise: 0.05 + 2 standard errors of the share = 0.08
    zero = np.zeros((4, 4))
    rng = np.random.default_rng(0)
    found = [recommend(noisy(zero, 0.02, seed, draws=200), rng=rng) for seed in range(200)]
    assert np.mean([x.identified for x in found]) <= 0.08


def test_without_the_correction_for_choosing_noise_would_often_pass_for_an_order():
    # why p_no_order exists: the order was chosen for its gap, so the plain interval excludes 0 too often
    zero = np.zeros((4, 4))
    rng = np.random.default_rng(0)
    found = [recommend(noisy(zero, 0.02, seed, draws=200), rng=rng) for seed in range(200)]
    assert np.mean([x.gap_low > 0 for x in found]) > 0.2


def test_phases_without_any_effect_give_no_order_and_ties_are_split():
    found = recommend(np.zeros((401, 3, 3)), rng=np.random.default_rng(0))
    assert not found.identified
    assert found.p_no_order == 1.0
    assert found.p_most_probable < 0.3
    assert found.before[0, 1] == pytest.approx(0.5, abs=0.1)
    assert found.order == (0, 1, 2)


def test_one_phase_has_one_order():
    found = recommend(np.zeros((11, 1, 1)), rng=np.random.default_rng(0))
    assert found.order == (0,)
    assert found.reasons == ("one phase has only one order",)


def test_a_gain_is_what_the_later_phase_does_to_the_earlier_ones_tasks():
    # two tasks in phase 0; phase 1 trains task 2 and moves task 0 by -.1 and task 1 by +.04: (-.1 + .04) / 3 tasks
    base = np.array([0.4, 0.4, 0.4])
    after = np.array([[0.8, 0.8, 0.5], [0.3, 0.44, 0.9]])
    np.testing.assert_allclose(gains(base, after, [[0, 1], [2]]), [[0, -0.02], [0.1 / 3, 0]])


def test_a_task_that_both_phases_train_gains_nothing_from_their_order():
    base, after = np.array([0.4]), np.array([[0.8], [0.9]])
    np.testing.assert_allclose(gains(base, after, [[0], [0]]), np.zeros((2, 2)))


def test_the_value_of_an_order_is_its_predicted_mean_up_to_a_constant():
    rng = np.random.default_rng(5)
    base, after = rng.random(4), rng.random((4, 4))
    names = "abcd"
    gain = gains(base, after, [[i] for i in range(4)])
    trained = {name: after[i] for i, name in enumerate(names)}
    columns = {name: [i] for i, name in enumerate(names)}
    rest = [
        predict(base, trained, [names[i] for i in order], columns).mean() - order_value(gain, order)
        for order in permutations(range(4))
    ]
    np.testing.assert_allclose(rest, np.full(24, np.diagonal(after).mean()))
