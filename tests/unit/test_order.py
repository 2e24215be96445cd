"""The best order of a gain matrix, and when the data do not identify it."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainorder.order import (
    EXACT,
    PREDICTORS,
    RULES,
    TEXT_RULES,
    Measured,
    Misfit,
    Reason,
    Step,
    additive,
    best_order,
    exact_orders,
    extrapolate,
    gains,
    heuristic_order,
    optimality_gap,
    order_value,
    recommend,
    slopes,
    upper_bound,
)
from trainorder.order.misfit import drawn
from trainorder.order.search import all_values, row_of

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
    assert found.reasons == ()
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
    assert np.mean([not x.reasons for x in found]) <= 0.08


def test_without_the_correction_for_choosing_noise_would_often_pass_for_an_order():
    # why p_no_order exists: the order was chosen for its gap, so the plain interval excludes 0 too often
    zero = np.zeros((4, 4))
    rng = np.random.default_rng(0)
    found = [recommend(noisy(zero, 0.02, seed, draws=200), rng=rng) for seed in range(200)]
    assert np.mean([x.gap_low > 0 for x in found]) > 0.2


def test_phases_without_any_effect_give_no_order_and_ties_are_split():
    found = recommend(np.zeros((401, 3, 3)), rng=np.random.default_rng(0))
    assert found.reasons
    assert found.p_no_order == 1.0
    assert found.p_most_probable < 0.3
    assert found.before[0, 1] == pytest.approx(0.5, abs=0.1)
    assert found.order == (0, 1, 2)


def test_one_phase_has_one_order():
    found = recommend(np.zeros((11, 1, 1)), rng=np.random.default_rng(0))
    assert found.order == (0,)
    assert found.reasons == (Reason.ONE_PHASE,)


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
        additive(Measured(base, trained, columns), [names[i] for i in order]).mean()
        - order_value(gain, order)
        for order in permutations(range(4))
    ]
    np.testing.assert_allclose(rest, np.full(24, np.diagonal(after).mean()))


def test_the_heuristic_tells_how_far_it_may_be_off():
    rng = np.random.default_rng(6)
    gain = rng.normal(size=(16, 16))
    found = best_order(gain)
    assert order_value(gain, found) <= upper_bound(gain)
    gap = optimality_gap(gain, found)
    assert gap == pytest.approx(upper_bound(gain) - order_value(gain, found))
    # on 7 phases the truth is known: the exact order has no gap, a bad one has the true loss, below the bound's
    small = rng.normal(size=(7, 7))
    assert optimality_gap(small, best_order(small)) == 0.0
    loss = float(order_value(small, best_order(small)) - order_value(small, tuple(range(7))))
    assert optimality_gap(small, tuple(range(7))) == pytest.approx(loss)
    assert upper_bound(small) >= order_value(small, best_order(small)) - 1e-12


# what training k (row) does to j (column); 2 harms nobody and is harmed by all, 0 harms all
CHANGE = np.array([[0.9, -0.10, -0.20], [-0.01, 0.9, -0.10], [0.02, 0.01, 0.9]])


def test_every_rule_orders_the_hand_matrix_as_worked_out():
    # exact: W[j, k] = CHANGE[k, j]; 0,1,2 collects W01 + W02 + W12 = -.01 + .02 + .01, the most of all six
    # borda: columns .01, -.09, -.3 minus rows -.3, -.11, .03: .31, .02, -.33
    # least forgettable: column means .005, -.045, -.15
    # omni: means over the others of 0, 1, 2: -.15, -.055, .015 -> 2; then 0 does -.1 to 1, 1 does -.01 to 0 -> 1, 0
    # likeness, the mean of both directions: 01 -.055, 02 -.09, 12 -.045; sums -.145, -.1, -.135
    expected = {
        "near_first": (1, 2, 0),
        "far_first": (0, 2, 1),
        "exact": (0, 1, 2),
        "becker": (0, 1, 2),
        "borda": (0, 1, 2),
        "least_forgettable_first": (0, 1, 2),
        "most_forgettable_first": (2, 1, 0),
        "omni_greedy": (2, 1, 0),
    }
    assert {name: RULES[name](CHANGE) for name in expected} == expected


@pytest.mark.parametrize("name", [*RULES, *TEXT_RULES])
def test_a_rule_gives_a_permutation_and_ignores_what_a_phase_does_to_itself(name):
    rule = {**RULES, **TEXT_RULES}[name]
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 14):
        change = rng.normal(size=(n, n))
        found = rule(change)
        assert sorted(found) == list(range(n))
        assert rule(change + np.diag(rng.normal(size=n))) == found


def test_stage_delta_extrapolation_reproduces_the_worked_quadratic():
    # loss (theta - c)^2 / 2, step 1/2: one pass halves the distance to c. Reference order c = 1, 3 from 0: .5, 1.75.
    # The other order, from the reference's steps: 1.5, then 1.5 + .5 - .5 (1.5 - 0) = 1.25, which is the true value
    base = np.array([0.0])
    m = Measured(
        base, {"one": np.array([0.5]), "three": np.array([1.5])}, {"one": [0], "three": [0]}
    )
    assert extrapolate(m, ["three", "one"], -0.5, 0.0)[0] == pytest.approx(1.25)
    assert extrapolate(m, ["one", "three"], -0.5, 0.0)[0] == pytest.approx(1.75)


def planted(own, other, rng, steps=12):
    """Scores whose change depends on the start with these slopes, and steps that show it."""
    base = np.array([0.4, 0.5, 0.3])
    deltas = {
        "a": np.array([0.4, -0.05, 0.02]),
        "b": np.array([-0.1, 0.4, 0.03]),
        "c": np.array([0.0, 0.05, 0.5]),
    }
    tasks = {"a": [0], "b": [1], "c": [2]}
    m = Measured(base, {p: base + d for p, d in deltas.items()}, tasks)
    found = []
    for i in range(steps):
        phase = "abc"[i % 3]
        start = base + rng.normal(0, 0.1, 3)
        slope = np.where(np.arange(3) == tasks[phase][0], own, other)
        found.append(Step(phase, start, start + deltas[phase] + slope * (start - base), f"n{i}"))
    return Measured(base, m.after, tasks, steps=found)


def test_slopes_are_recovered_and_leave_out_the_order_that_is_predicted():
    m = planted(-0.6, 0.2, np.random.default_rng(0))
    own, other = slopes(m)
    assert own == pytest.approx(-0.6, abs=0.03)
    assert other == pytest.approx(0.2, abs=0.03)
    everything = frozenset(step.node for step in m.steps)
    assert slopes(m, everything) == (-1.0, 0.0)


def test_without_other_steps_stage_delta_is_the_additive_model():
    m = planted(-0.6, 0.2, np.random.default_rng(0), steps=0)
    for order in permutations("abc"):
        np.testing.assert_allclose(
            PREDICTORS["stage_delta"](m, order, frozenset()), additive(m, order)
        )


def test_the_multiplicative_model_keeps_shares_and_stays_a_score():
    # b takes 1/2 of task 0 from the base (.4 -> .19 with the floor of .02); of .8 it leaves .41 - .02 = .39
    m = Measured(
        np.array([0.4, 0.5]),
        {"a": np.array([0.8, 1.0]), "b": np.array([0.19, 0.9])},
        {"a": [0], "b": [1]},
    )
    np.testing.assert_allclose(PREDICTORS["multiplicative"](m, "ab", frozenset()), [0.39, 0.9])
    assert PREDICTORS["multiplicative"](m, "ba", frozenset())[1] == 1.0  # .9 x 2 is no score
    assert additive(m, "ab")[0] == pytest.approx(0.59)


def test_two_stage_uses_what_happens_to_a_trained_task_and_needs_every_pair():
    base = np.array([0.4, 0.5])
    after = {
        "a": np.array([0.8, 0.55]),
        "b": np.array([0.45, 0.9]),
    }  # from the base both help each other
    tasks = {"a": [0], "b": [1]}
    pairs = {("a", "b"): np.array([-0.2, 0.0])}  # once a is trained, b costs it .2
    m = Measured(base, after, tasks, pairs)
    np.testing.assert_allclose(PREDICTORS["two_stage"](m, "ab", frozenset()), [0.6, 0.9])
    assert PREDICTORS["two_stage"](m, "ba", frozenset()) is None


ORDERS = ((0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1))


def misfit(errors, noise=0.0005, draws=300, orders=ORDERS):
    """These errors, measured with independent noise."""
    data = np.array(errors)
    around = data + noise * np.random.default_rng(2).normal(size=(draws, len(data)))
    return Misfit(orders[: len(data)], np.vstack([data, around]))


def sd(found, typical=0.02):
    """Expected standard deviation of the model's own error where orders differ by `typical`."""
    return found.scale(typical).expected


def test_a_misfit_widens_what_the_matrix_alone_would_identify():
    sharp = noisy(HAND / 100, 0.001, 0)
    alone = recommend(sharp, rng=np.random.default_rng(0))
    fits = recommend(
        sharp, misfit=misfit((0.01, 0.0102, 0.0099, 0.0101)), rng=np.random.default_rng(0)
    )
    off = recommend(sharp, misfit=misfit((0.08, -0.05, 0.03, -0.06)), rng=np.random.default_rng(0))
    assert (alone.reasons, fits.reasons) == ((), ())
    assert Reason.NOT_PROBABLE in off.reasons
    assert off.p_optimal < fits.p_optimal <= alone.p_optimal
    assert off.regret > fits.regret
    assert off.gap_sd["misfit"] > off.gap_sd["sampling"]


def test_an_error_that_all_orders_share_is_no_misfit():
    found = misfit((0.07, 0.07, 0.07))
    assert found.bias == pytest.approx(0.07)
    assert sd(found) < 0.0005
    assert (
        recommend(noisy(HAND / 100, 0.001, 0), misfit=found, rng=np.random.default_rng(0)).reasons
        == ()
    )


def test_errors_that_are_no_larger_than_their_noise_are_not_the_models():
    # spread .01 throughout: all of it is noise of what was measured, or nearly none
    errors = (0.01, -0.01, 0.01, -0.01)
    assert sd(misfit(errors, noise=0.01)) < 0.3 * sd(misfit(errors, noise=0.0005))


def test_two_reverse_pairs_count_as_fewer_errors_than_four_unrelated_orders():
    # of a reverse pair the second error follows from the first: the same spread leaves more doubt
    errors = (0.01, -0.01, 0.012, -0.012)
    pairs = misfit(errors)
    unrelated = misfit(errors, orders=((0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)))
    assert sd(pairs) != pytest.approx(sd(unrelated), rel=0.02)


def test_below_three_measured_orders_nothing_is_identified():
    sharp = noisy(HAND / 100, 0.001, 0)
    found = recommend(sharp, misfit=misfit((0.01, 0.011)), rng=np.random.default_rng(0))
    assert found.reasons == (Reason.FEW_ORDERS,)


def test_probability_above_one_half_identifies_nothing():
    # two orders, one of them the best in about 3 of 4 draws
    rng = np.random.default_rng(0)
    gain = np.zeros((2001, 2, 2))
    gain[:, 0, 1] = 0.0067 + 0.01 * np.concatenate([[0.0], rng.normal(size=2000)])
    found = recommend(gain, rng=rng)
    assert 0.7 < found.p_optimal < 0.8
    assert Reason.NOT_PROBABLE in found.reasons


def test_the_scale_of_the_models_error_is_found_from_many_orders():
    # all 24 orders of four phases, each off by itself with .02, measured with .002
    rng = np.random.default_rng(0)
    orders = tuple(permutations(range(4)))
    found = misfit(rng.normal(0, 0.02, 24), noise=0.002, orders=orders)
    assert sd(found) == pytest.approx(0.02, rel=0.3)


def test_an_order_is_judged_by_its_own_measurement_too():
    # three phases that the matrix cannot order; measured, its order is .05 better than the three others, or worse
    rng = np.random.default_rng(0)
    gain = 0.01 * rng.normal(size=(1001, 3, 3))
    gain -= gain[:1] - HAND / 1000
    around = np.stack([np.asarray(order_value(gain, o)) for o in ORDERS], axis=-1)
    around[1:] += 0.001 * rng.normal(size=around[1:].shape)

    def judged(predicted_minus_measured):
        errors = around + np.array([predicted_minus_measured, 0, 0, 0])
        return recommend(gain, misfit=Misfit(ORDERS, errors), rng=np.random.default_rng(0))

    alone = recommend(gain, rng=np.random.default_rng(0))
    better, worse = judged(-0.05), judged(0.05)
    assert alone.order == better.order == worse.order == (0, 1, 2)
    assert worse.p_optimal < 0.05 < alone.p_optimal < 0.6 < 0.7 < better.p_optimal
    assert worse.regret > 0.04 > 0.01 > better.regret


def test_what_was_measured_exactly_is_what_every_draw_of_the_update_says():
    # errors without noise: prior draws of the model's error agree with them at the measured orders, up to a constant
    rng = np.random.default_rng(0)
    orders = tuple(permutations(range(4)))[::5]
    seen = rng.normal(0, 0.02, len(orders))
    found = Misfit(
        orders, seen + 1e-7 * rng.normal(size=(300, len(orders))) * np.sign(np.arange(300))[:, None]
    )
    scale = np.full(299, 0.02)
    gain, own = found.update(*drawn(scale, 4, rng), np.zeros((299, 4, 4)), scale)
    rows = [row_of(order) for order in orders]
    at = all_values(gain)[:, rows] + own[:, rows]
    missed = -(at - at.mean(1, keepdims=True)) - (seen - seen.mean())
    assert np.abs(missed).max() < 1e-4
    # the other orders keep some of their doubt
    rest = np.delete(all_values(gain) + own, rows, axis=1)
    assert 0.003 < rest.std(0).mean() < 0.03
