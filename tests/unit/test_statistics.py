"""Intervals cover what they claim; small formulas against numbers worked by hand."""

import numpy as np
import pytest

from trainorder.metrics.statistics import (
    FEW_SEEDS,
    Interval,
    draw_problems,
    draw_seeds,
    mcnemar,
    over_seeds,
    paired_bootstrap,
    pass_at_k,
    pearson,
    spearman,
    t_interval,
)

WORLDS = 300


def coverage(simulate, count=600):
    """Share of simulated worlds (true difference 0.1) whose interval holds the truth, and the intervals."""
    rng = np.random.default_rng(0)
    intervals = [paired_bootstrap(simulate(rng), count=count, rng=rng) for _ in range(WORLDS)]
    return np.mean([x.low <= 0.1 <= x.high for x in intervals]), intervals


def test_a_95_percent_interval_over_problems_covers_the_truth_in_95_percent_of_worlds():
    # 300 worlds: standard error of the share is .0126, so 0.95 +- 3 of them
    share, _ = coverage(lambda rng: rng.normal(0.1, 0.5, size=(1, 100)))
    assert 0.912 <= share <= 0.988


def test_with_one_seed_the_interval_says_that_it_covers_problems_only():
    rng = np.random.default_rng(0)
    one = paired_bootstrap(rng.normal(size=(1, 40)), count=100, rng=rng)
    many = paired_bootstrap(rng.normal(size=(2, 40)), count=100, rng=rng)
    assert (one.covers, one.t) == ("problems", None)
    assert many.covers == "seeds and problems"
    assert many.t is not None


def test_with_few_seeds_the_interval_covers_runs_of_other_seeds_where_the_bootstrap_alone_does_not():
    def simulate(rng):
        return 0.1 + rng.normal(0, 0.1, size=(3, 1)) + rng.normal(0, 0.2, size=(3, 60))

    share, intervals = coverage(simulate)
    bootstrap_share = np.mean([x.bootstrap[0] <= 0.1 <= x.bootstrap[1] for x in intervals])
    assert share >= 0.93
    assert bootstrap_share < 0.91


def test_seeds_that_share_their_problems_do_not_average_the_choice_of_problems_away():
    # the same problem effect in all six seeds: the noise of the mean is 0.5 / sqrt(60), not 0.5 / sqrt(360)
    def simulate(rng):
        return 0.1 + rng.normal(0, 0.5, size=(1, 60)) + rng.normal(0, 0.01, size=(6, 60))

    share, intervals = coverage(simulate)
    assert share >= 0.91
    width = np.mean([x.high - x.low for x in intervals])
    assert width == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(60), rel=0.1)


def test_with_five_seeds_the_interval_is_the_bootstrap():
    rng = np.random.default_rng(0)
    found = paired_bootstrap(rng.normal(size=(FEW_SEEDS, 30)), count=200, rng=rng)
    assert (found.low, found.high) == found.bootstrap


def test_resampled_seeds_show_the_whole_variance_of_the_mean_over_two_seeds():
    # values -1 and 1: the unbiased variance of their mean is 2 / 2 = 1; a plain bootstrap gives 0.5
    weights = draw_seeds(2, 20_000, np.random.default_rng(0))
    means = over_seeds(np.array([[-1.0], [1.0]]).repeat(len(weights), axis=1), weights)
    assert means[0] == pytest.approx(0.0)
    assert means[1:].var() == pytest.approx(1.0, abs=0.03)


def test_draw_0_is_the_data_and_every_draw_is_a_weighting():
    draws = draw_problems(7, 50, np.random.default_rng(0))
    np.testing.assert_allclose(draws[0], np.full(7, 1 / 7))
    np.testing.assert_allclose(draws.sum(1), np.ones(51))
    assert (draws >= 0).all()


def test_an_interval_that_only_touches_zero_up_to_rounding_does_not_exclude_it():
    def ending_at(low):
        return Interval(0.1, low, 0.2, (0.1,), (low, 0.2), None)

    assert not ending_at(1e-17).excludes(0.0)
    assert ending_at(1e-3).excludes(0.0)


def test_a_t_interval_needs_two_values():
    with pytest.raises(ValueError, match="2 or more values, got 1: add seeds"):
        t_interval(np.array([0.5]))


def test_arms_that_never_disagree_are_not_told_apart():
    assert mcnemar(0, 0) == (0.0, 1.0)
    assert mcnemar(10, 30) == mcnemar(30, 10)


def test_pass_at_k_averages_over_all_choices_of_k_samples():
    # 5 samples, 2 right: of the 10 triples only 1 holds no right one
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)
    assert pass_at_k(5, 0, 3) == 0.0
    with pytest.raises(ValueError, match="k=6, samples=5"):
        pass_at_k(5, 2, 6)


def test_correlations_of_ties_and_constants():
    x = np.array([1.0, 1.0, 2.0, 3.0])
    # ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    assert spearman(x, np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(4.5 / np.sqrt(22.5))
    assert np.isnan(pearson(x, np.full(4, 0.3)))
