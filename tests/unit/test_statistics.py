"""Intervals cover what they claim; small formulas against numbers worked by hand."""

import numpy as np
import pytest

from benchmarks import planted_arms
from trainorder.metrics.correlation import correlations, pearson, spearman
from trainorder.metrics.statistics import (
    Interval,
    draw_problems,
    draw_seeds,
    holm,
    interval,
    intervals,
    mean_error,
    pass_at_k,
    run_error,
    simultaneous,
    t_interval,
    verdict,
)

WORLDS = 300


def paired_bootstrap(differences, *, count, rng):
    """Intervals of the means of paired differences, [world, seed, problem]; the worlds share their draws."""
    _, num_seeds, num_problems = differences.shape
    draws = draw_problems(num_problems, count, rng)
    return intervals(differences @ draws.T, draw_seeds(num_seeds, count, rng))


def coverage(simulate, count=600):
    """Share of simulated worlds (true difference 0.1) whose interval holds the truth, and the intervals."""
    rng = np.random.default_rng(0)
    found = paired_bootstrap(simulate(rng), count=count, rng=rng)
    return np.mean([x.low <= 0.1 <= x.high for x in found]), found


def test_intervals_of_many_values_are_those_of_each():
    rng = np.random.default_rng(0)
    for num_seeds in (1, 2, 3, 5):
        seeds = draw_seeds(num_seeds, 60, rng)
        values = rng.normal(size=(5, num_seeds, 61))
        values[1] = 0.3  # nothing varies
        values[2] = values[2, :1]  # equal seeds
        for together, alone in zip(intervals(values, seeds), values, strict=True):
            one = interval(alone, seeds)
            for key in ("value", "low", "high", "p"):
                assert getattr(together, key) == pytest.approx(getattr(one, key), abs=1e-12)
    assert intervals(np.zeros((0, 2, 61)), draw_seeds(2, 60, rng)) == []


def test_a_95_percent_interval_over_problems_covers_the_truth_in_95_percent_of_worlds():
    # 300 worlds: standard error of the share is .0126, so 0.95 +- 3 of them
    share, _ = coverage(lambda rng: rng.normal(0.1, 0.5, size=(WORLDS, 1, 100)))
    assert 0.912 <= share <= 0.988


def test_with_one_seed_the_interval_says_that_it_covers_problems_only():
    rng = np.random.default_rng(0)
    (one,) = paired_bootstrap(rng.normal(size=(1, 1, 40)), count=100, rng=rng)
    (many,) = paired_bootstrap(rng.normal(size=(1, 2, 40)), count=100, rng=rng)
    assert (one.covers, one.t) == ("problems", None)
    assert many.covers == "seeds and problems"
    assert many.t is not None


def test_with_few_seeds_the_interval_covers_runs_of_other_seeds_where_the_bootstrap_alone_does_not():
    def simulate(rng):
        runs = 0.1 + rng.normal(0, 0.1, size=(WORLDS, 3, 1))
        return runs + rng.normal(0, 0.2, size=(WORLDS, 3, 60))

    share, found = coverage(simulate)
    bootstrap_share = np.mean([x.bootstrap[0] <= 0.1 <= x.bootstrap[1] for x in found])
    assert share >= 0.93
    assert bootstrap_share < 0.91


def test_seeds_that_share_their_problems_do_not_average_the_choice_of_problems_away():
    # the same problem effect in all six seeds: the noise of the mean is 0.5 / sqrt(60), not 0.5 / sqrt(360)
    def simulate(rng):
        shared = 0.1 + rng.normal(0, 0.5, size=(WORLDS, 1, 60))
        return shared + rng.normal(0, 0.01, size=(WORLDS, 6, 60))

    share, found = coverage(simulate)
    assert share >= 0.91
    width = np.mean([x.high - x.low for x in found])
    assert width == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(60), rel=0.1)


MIXES = {
    # seeds: (sd between runs, sd of problems, sd of a run on a problem)
    1: [(0.0, 0.3, 0.3)],
    3: [(0.0, 0.3, 0.3), (0.02, 0.3, 0.3), (0.06, 0.2, 0.2)],
    5: [(0.0, 0.3, 0.3), (0.06, 0.2, 0.2)],
    8: [(0.02, 0.3, 0.3), (0.06, 0.2, 0.2)],
}


@pytest.mark.parametrize("num_seeds", MIXES)
def test_95_percent_intervals_cover_93_to_97_percent_whatever_the_noise_is_made_of(num_seeds):
    # 1,500 worlds a mix: standard error of a share .0056; the bounds leave 2 of them around 93 and 97 percent
    rng = np.random.default_rng(num_seeds)
    problems = draw_problems(64, 150, rng).T
    seeds = draw_seeds(num_seeds, 150, rng)
    for run, problem, both in MIXES[num_seeds]:
        noise = run * rng.normal(size=(1500, num_seeds, 1)) + problem * rng.normal(
            size=(1500, 1, 64)
        )
        noise = noise + both * rng.normal(size=(1500, num_seeds, 64))
        found = intervals(noise @ problems, seeds)
        covered = np.mean([x.low <= 0.0 <= x.high for x in found])
        assert 0.93 - 0.011 <= covered <= 0.97 + 0.011, (run, problem, both)


def test_two_seeds_are_answered_with_a_wider_interval_never_a_narrower_one():
    rng = np.random.default_rng(0)
    worlds = 0.05 * rng.normal(size=(400, 2, 1)) + 0.2 * rng.normal(size=(400, 2, 60))
    found = paired_bootstrap(worlds, count=150, rng=rng)
    assert np.mean([x.low <= 0 <= x.high for x in found]) >= 0.93
    assert all(x.t is not None and x.low <= x.t[0] and x.high >= x.t[1] for x in found)


def test_the_standard_error_of_seeds_counts_shared_noise_once():
    # means -1 and 1 of two seeds that do not vary over draws: se = sd / sqrt(2) = 1 with 1 degree of freedom
    values = np.array([[-1.0], [1.0]]).repeat(50, axis=1)
    assert mean_error(values) == pytest.approx((1.0, 1.0))
    # equal seeds that move together over draws: the seeds add nothing and leave many degrees of freedom
    together = np.tile(np.random.default_rng(0).normal(size=200), (2, 1))
    together[:, 0] = 0.0
    error, freedom = mean_error(together)
    assert error == pytest.approx(together[0, 1:].std())
    assert freedom > 1e6


def test_a_p_value_is_below_005_where_the_interval_excludes_zero():
    rng = np.random.default_rng(3)
    for num_seeds in (1, 3, 6):
        worlds = rng.normal(0.06, 0.3, size=(60, num_seeds, 80))
        for x in paired_bootstrap(worlds, count=400, rng=rng):
            if not 0.03 < x.p < 0.08:  # percentiles and the normal p-value may differ at the edge
                assert x.excludes(0.0) == (x.p < 0.05)


def test_holm_keeps_families_of_true_hypotheses_below_5_percent():
    rng = np.random.default_rng(0)
    false = [min(holm(dict(enumerate(rng.random(5)))).values()) < 0.05 for _ in range(4000)]
    assert np.mean(false) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 4000)


def test_a_correlation_has_an_interval_from_eight_items_on():
    rng = np.random.default_rng(0)
    four = correlations(np.arange(4.0), np.array([0.0, 2, 1, 3]), rng=rng)
    assert four["spearman"].value == pytest.approx(0.8)
    # percentiles over 5 to 7 items cover a true .95 in 65 to 80 percent
    for items, known in ((4, False), (5, False), (7, False), (8, True), (12, True)):
        found = correlations(np.arange(float(items)), rng.normal(size=items), rng=rng)
        assert np.isfinite([found["spearman"].low, found["pearson"].high]).all() == known
    flat = correlations(np.arange(6.0), np.full(6, 0.5), rng=rng)
    assert np.isnan(flat["pearson"].value)


def test_the_interval_of_a_correlation_covers_it():
    # 24 items, true Pearson correlation .8; percentile intervals run a few points below their level
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        x = rng.normal(size=24)
        y = 0.8 * x + 0.6 * rng.normal(size=24)
        found = correlations(x, y, count=200, rng=rng)["pearson"]
        covered += found.low <= 0.8 <= found.high
    assert 0.88 <= covered / 300 <= 0.98


def test_draw_0_is_the_data_and_every_draw_is_a_weighting():
    draws = draw_problems(7, 50, np.random.default_rng(0))
    np.testing.assert_allclose(draws[0], np.full(7, 1 / 7))
    np.testing.assert_allclose(draws.sum(1), np.ones(51))
    assert (draws >= 0).all()


def test_an_interval_that_only_touches_zero_up_to_rounding_does_not_exclude_it():
    def ending_at(low):
        return Interval(0.1, low, 0.2, (0.1,), (low, 0.2), None, 0.01)

    assert not ending_at(1e-17).excludes(0.0)
    assert ending_at(1e-3).excludes(0.0)


def test_a_t_interval_needs_two_values():
    with pytest.raises(ValueError, match="2 or more values, got 1: add seeds"):
        t_interval(np.array([0.5]))


@pytest.mark.long("simulates thousands of experiments")
@pytest.mark.parametrize(
    ("num_arms", "num_seeds", "run", "noisier"),
    [
        (10, 1, 0.0, 1),
        (2, 1, 0.0, 1),
        (10, 2, 0.03, 1),
        (10, 3, 0.02, 1),
        (10, 3, 0.05, 4),
        (4, 3, 0.05, 4),
        (10, 5, 0.05, 1),
        (10, 5, 0.05, 4),
    ],
)
def test_the_best_arms_set_misses_an_equal_arm_in_at_most_5_percent(
    num_arms, num_seeds, run, noisier
):
    # 400 worlds: 2 standard errors around 5 percent are .022; one arm's runs vary `noisier` times as much
    worlds = 400
    rng = np.random.default_rng(num_arms + num_seeds)
    draws, seeds = draw_problems(128, 150, rng).T, draw_seeds(num_seeds, 150, rng)
    spread = run * np.where(np.arange(num_arms) == 0, noisier, 1.0)[:, None, None]
    scores = spread * rng.normal(size=(worlds, num_arms, num_seeds, 1))
    scores = scores + 0.3 * rng.normal(size=(worlds, 1, 1, 128))
    scores = (scores + 0.3 * rng.normal(size=(worlds, num_arms, num_seeds, 128))) @ draws
    best, at = scores[..., 0].mean(-1).argmax(1), np.arange(worlds)
    half = simultaneous(scores, num_problems=128, rng=rng)[at, best]
    behind = intervals(
        (scores[at, best][:, None] - scores).reshape(worlds * num_arms, num_seeds, -1), seeds
    )
    told = [x.widened(h).excludes() for x, h in zip(behind, half.ravel(), strict=True)]
    assert np.reshape(told, (worlds, num_arms)).any(1).mean() <= 0.05 + 0.022


@pytest.mark.long("simulates a thousand experiments")
def test_arms_that_share_most_of_their_training_are_claimed_to_differ_in_at_most_5_percent():
    # merges of the same checkpoints, orders with one beginning; 1,000 worlds: 2 standard errors are .014
    found = planted_arms.run(
        planted_arms.World(run=0.06, shared=0.95), arms=10, seeds=5, count=1000
    )
    assert found["false"] <= 0.05 + 0.014
    assert found["power"] >= 0.85


def test_simultaneous_intervals_leave_out_a_clearly_worse_arm_and_know_equal_ones():
    rng = np.random.default_rng(0)
    draws = draw_problems(128, 150, rng).T
    noise = rng.normal(size=128) + rng.normal(size=(6, 3, 128))
    level = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.2])
    scores = (level[:, None, None] + 0.2 * noise + 0.01 * rng.normal(size=(6, 3, 1))) @ draws
    scores[1] = scores[0]
    half = simultaneous(scores, num_problems=128, rng=rng)
    means = scores[:, :, 0].mean(1)
    assert half[0, 1] == half[0, 0] == 0.0
    assert means[0] - means[5] > half[0, 5]
    assert abs(means[0] - means[2]) < half[0, 2]
    np.testing.assert_array_equal(half, half.T)


@pytest.mark.parametrize("run", [0.0, 0.05])
def test_the_error_by_runs_holds_no_noise_of_problems(run):
    # three seeds of 200 values; the error of their mean by runs alone is run / sqrt(3)
    rng = np.random.default_rng(0)
    values = run * rng.normal(size=(3, 1, 200)) + np.moveaxis(
        0.3 * rng.normal(size=(3, 200, 64)) @ draw_problems(64, 200, rng).T, -1, 1
    )
    assert run_error(values) == pytest.approx(run / np.sqrt(3), abs=0.006)
    assert run_error(values[:1]) == 0.0


def test_one_seed_never_settles_anything():
    assert [verdict(True, n).value for n in (1, 2, 9)] == [
        "on these problems only",
        "settled",
        "settled",
    ]
    assert {verdict(False, n).value for n in (1, 2, 9)} == {"open"}


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


def test_a_base_that_seeds_share_is_an_arm_like_any_other():
    # arms 0 to 2 are trained, arm 3 is one checkpoint of all seeds: no spread between seeds, one set of answers
    worlds, num_seeds = 500, 3
    rng = np.random.default_rng(5)
    draws = draw_problems(64, 120, rng).T
    noise = 0.2 * rng.normal(size=(worlds, 4, num_seeds, 64))
    run = 0.03 * rng.normal(size=(worlds, 4, num_seeds, 1))
    run[:, 3] = 0.0
    scores = (0.2 * rng.normal(size=(worlds, 1, 1, 64)) + noise + run) @ draws
    scores[:, 3] = scores[:, 3, :1]  # to the last bit
    half = simultaneous(scores, num_problems=64, rng=rng)
    seeds = draw_seeds(num_seeds, 120, rng)
    for first, second in ((0, 3), (0, 1)):
        found = intervals(scores[:, first] - scores[:, second], seeds)
        # 500 worlds: 2 standard errors around 93 and 97 percent are .02
        assert 0.91 <= np.mean([x.low <= 0 <= x.high for x in found]) <= 0.99
        assert all(np.isfinite([x.low, x.high, x.p]).all() for x in found)
    own = intervals(scores[:, 3], seeds)  # the base's own score: its interval is that of problems
    assert 0.91 <= np.mean([x.low <= 0 <= x.high for x in own]) <= 0.99
    first, second = np.triu_indices(4, k=1)
    pairs = scores[:, first] - scores[:, second]
    alone = intervals(pairs.reshape(-1, num_seeds, 121), seeds)
    wide = half[:, first, second].ravel()
    told = [x.widened(h).excludes() for x, h in zip(alone, wide.tolist(), strict=True)]
    assert np.reshape(told, (worlds, -1)).any(1).mean() <= 0.05 + 0.03
