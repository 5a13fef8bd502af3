"""Poisson bootstrap: intervals over held-out batches, and means over classes."""

from __future__ import annotations

import numpy as np
import pytest

from cytolake.statistics.bootstrap import (
    mean_over_seeds,
    resampled_means,
    resampled_pairs,
    resampled_ratio,
    resamples,
    widened,
)
from cytolake.statistics.intervals import percentile_interval


@pytest.mark.parametrize("n_batches", [3, 6])
def test_the_interval_over_batches_holds_the_truth_where_batches_differ(n_batches):
    """Each batch is right about its rows as often as its own effect lets it; rows and perturbations alone say less."""
    random = np.random.default_rng(n_batches)
    n, n_rows = 120, 60
    over_batches, over_rows = [], []
    for _ in range(n):
        right = 0.5 + 0.15 * random.normal(size=n_batches)
        sums = random.binomial(n_rows, right.clip(0, 1)).astype(float)
        counts, units = np.full(n_batches, float(n_rows)), np.arange(n_batches)
        value = sums.sum() / counts.sum()
        draws = resampled_means(sums[:, None], counts[:, None], units, n_batches, 200)
        low, high = percentile_interval(widened(draws, value, n_batches))
        over_batches.append(low <= 0.5 <= high)
        hits = np.concatenate([np.arange(n_rows) < each for each in sums]).astype(float)
        rows = resampled_ratio(hits, np.ones(len(hits)), np.arange(len(hits)), len(hits), 100)
        low, high = percentile_interval(rows)
        over_rows.append(low <= 0.5 <= high)
    assert np.mean(over_batches) > 0.9
    assert np.mean(over_rows) < 0.8


def test_a_mean_over_classes_weighs_them_alike_and_skips_those_that_a_draw_lacks():
    sums, counts = np.array([[1.0, 0.0], [1.0, 6.0]]), np.array([[1.0, 0.0], [1.0, 12.0]])
    draws = resampled_means(sums, counts, np.arange(2), 2, 300)
    assert {round(each, 6) for each in draws[np.isfinite(draws)].tolist()} == {0.75, 1.0}  # both classes, or the first
    assert np.isnan(draws).any()  # neither batch


def test_percentile_intervals_of_many_units_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        draws = resampled_ratio(random.normal(size=60), np.ones(60), np.arange(60), 60, 300)
        low, high = percentile_interval(draws)
        covered.append(low <= 0 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.05)


def test_groups_are_resampled_whole_and_ends_of_pairs_together():
    sums, sizes = np.asarray([10.0, 0.0]), np.asarray([10.0, 30.0])
    draws = resampled_ratio(sums, sizes, np.arange(2), 2, 500)
    possible = {10 * a / (10 * a + 30 * b) for a in range(9) for b in range(9) if a + b}
    assert np.isnan(draws).any()  # neither counts
    assert all(min(abs(draw - value) for value in possible) < 1e-12 for draw in draws[~np.isnan(draws)])
    pairs = np.asarray([[0, 1], [2, 3]])
    draws = resampled_pairs(np.asarray([1.0, 0.0]), pairs, 9, 500)
    assert np.isnan(draws).any()  # a draw may hold no whole pair
    assert np.nanmean(draws) == pytest.approx(0.5, abs=0.1)
    assert np.isnan(resampled_pairs(np.empty(0), np.empty((0, 2), int), 9, 5)).all()


def test_a_unit_counts_alike_wherever_it_is():
    values = np.random.default_rng(0).normal(size=50)
    whole = resampled_ratio(values, np.ones(50), np.arange(50), 50, 300)
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_allclose(resampled_ratio(values[order], np.ones(50), order, 50, 300), whole)
    half = resampled_ratio(values[:40], np.ones(40), np.arange(40), 50, 300)
    assert np.corrcoef(whole, half)[0, 1] > 0.7


def test_draws_in_blocks_are_those_in_one_piece(monkeypatch):
    values, units = np.random.default_rng(0).normal(size=20), np.arange(20)
    whole = resampled_ratio(values, np.ones(20), units, 20, 90)
    monkeypatch.setattr("cytolake.statistics.bootstrap.BLOCK_VALUES", 140)
    np.testing.assert_allclose(resampled_ratio(values, np.ones(20), units, 20, 90), whole)


def test_the_interval_of_a_mean_holds_the_spread_between_seeds():
    quiet = [np.full(400, mean) for mean in (0.0, 1.0, 2.0)]
    draws = mean_over_seeds(quiet)
    assert draws.mean() == pytest.approx(1, abs=0.1)
    assert draws.std() == pytest.approx(np.sqrt(2 / 3 / 3), abs=0.05)
    np.testing.assert_array_equal(mean_over_seeds([np.arange(5.0)]), np.arange(5.0))


def test_splits_of_the_same_perturbations_are_no_independent_evidence():
    same = np.random.default_rng(0).normal(size=500)
    assert mean_over_seeds([same] * 9).std() == pytest.approx(same.std())


def test_rows_of_a_group_are_drawn_together_and_equal_seeds_give_equal_draws():
    group = np.array([7, 7, 3, 7, 3])
    for rows in resamples(group, 20, 0):
        counts = np.bincount(rows, minlength=5)
        assert counts[0] == counts[1] == counts[3]
        assert counts[2] == counts[4]
        assert counts[0] + counts[2] == 2
    one, same = (resamples(np.arange(5), 3, 1) for _ in range(2))
    np.testing.assert_array_equal(one, same)
