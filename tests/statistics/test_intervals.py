"""Balanced accuracy and intervals, against scikit-learn, SciPy and known small answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from cytolake.statistics.balanced_accuracy import WellCounts, balanced_accuracy, resampled_scores
from cytolake.statistics.intervals import (
    delete_d_variance,
    jackknife_pseudo_values,
    mean_of_groups,
    mean_of_splits,
    percentile_interval,
    share_of,
    student_quantile,
)


@pytest.fixture
def answers():
    """12 wells of 3 classes with unequal crops; which of them are right."""
    random = np.random.default_rng(1)
    label_W = np.repeat([0, 1, 2], 4)
    well_N = np.repeat(np.arange(12), random.integers(1, 6, size=12))
    predicted_N = random.integers(0, 3, size=len(well_N))
    return label_W, well_N, predicted_N


def counts_of(label_W, well_N, predicted_N):
    right = predicted_N == label_W[well_N]
    return WellCounts(
        np.bincount(well_N, weights=right, minlength=len(label_W)),
        np.bincount(well_N, weights=np.ones(len(well_N)), minlength=len(label_W)),
    )


def test_it_is_the_balanced_accuracy_of_scikit_learn(answers):
    label_W, well_N, predicted_N = answers
    expected = balanced_accuracy_score(label_W[well_N], predicted_N)
    assert balanced_accuracy(counts_of(*answers), label_W) == pytest.approx(expected)


def test_a_draw_is_the_score_of_the_wells_that_were_drawn(answers):
    """With one well a class every resample is the data itself."""
    _, well_N, predicted_N = answers
    label_W = np.arange(12) % 3
    label_W[3:] = -1
    counts = counts_of(label_W, well_N, predicted_N)
    draws = resampled_scores(counts, label_W, np.arange(12), 50)
    np.testing.assert_allclose(draws, balanced_accuracy(counts, label_W))


def test_wells_of_one_plate_are_drawn_together():
    """Plates all right or all wrong: 4 plates give no score but quarters."""
    label_W, plate_W = np.tile([0, 1], 20), np.repeat(np.arange(4), 10)
    right = np.isin(plate_W, (0, 2)).astype(float)
    draws = resampled_scores(WellCounts(right, np.ones(40)), label_W, plate_W, 200)
    assert set(draws.tolist()) <= {0, 0.25, 0.5, 0.75, 1}
    by_well = resampled_scores(WellCounts(right, np.ones(40)), label_W, np.arange(40), 200)
    assert draws.std() > 2 * by_well.std()


@pytest.mark.parametrize("n_groups", [3, 12])
def test_the_interval_of_a_mean_of_few_groups_holds_the_truth_in_95_percent(n_groups):
    """Percentiles of resamples hold it in 73 % with 3 groups and 84 % with 5."""
    random = np.random.default_rng(n_groups)
    n = 200
    found = [
        mean_of_groups(random.normal(size=n_groups), np.ones(n_groups), 150, random, (-np.inf, np.inf))
        for _ in range(n)
    ]
    covered = np.mean([each.low <= 0 <= each.high for each in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.05 * 0.95 / n)


def test_all_groups_right_is_not_certain_and_two_groups_have_no_interval():
    random = np.random.default_rng(0)
    found = mean_of_groups(np.array([2.0, 1, 3, 1, 1]), np.array([2.0, 1, 3, 1, 1]), 100, random, (0.0, 1.0))
    assert (found.value, found.high) == (1, 1)
    assert 0.5 < found.low < 0.6  # Wilson: 5 of 5
    two = mean_of_groups(np.array([1.0, 0]), np.ones(2), 100, random, (0.0, 1.0))
    assert two.value == 0.5
    assert np.isnan([two.low, two.high]).all()


def test_an_interval_over_splits_needs_two_and_is_wilsons_where_all_are_alike():
    assert np.isnan(mean_of_splits(np.array([0.7]), 0.25, 20).low)
    alike = mean_of_splits(np.ones(5), 0.25, 20)
    assert (alike.value, alike.high) == (1, 1)
    assert 0.8 < alike.low < 0.9  # 20 of 20


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (0, 40), (3, 40), (40, 40), (1, 2), (712, 5000)])
def test_the_interval_of_a_share_is_scipys_wilson_interval(hits, total):
    share = share_of(hits, total)
    expected = stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert share.value == hits / total


def test_a_share_of_nothing_is_undefined_and_more_hits_than_things_are_refused():
    assert math.isnan(share_of(0, 0).value)
    with pytest.raises(ValueError, match="5 hits of 4"):
        share_of(5, 4)


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).uniform(0.4, 0.6, 6)
    without = np.array([np.delete(values, i).mean() for i in range(6)])
    pseudo = jackknife_pseudo_values(float(values.mean()), without)
    np.testing.assert_allclose(pseudo, values)
    half = student_quantile(5) * math.sqrt(delete_d_variance(without, 6, 1))
    low, high = stats.t.interval(0.95, 5, values.mean(), stats.sem(values))
    assert (values.mean() - half, values.mean() + half) == pytest.approx((low, high))


def test_percentiles_are_numpys_and_undefined_draws_do_not_count():
    draws = np.random.default_rng(0).normal(size=101)
    assert percentile_interval([*draws, np.nan]) == tuple(np.percentile(draws, [2.5, 97.5]))
    assert np.isnan(percentile_interval([np.nan])).all()
