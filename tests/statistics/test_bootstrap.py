"""Poisson bootstrap: intervals over held-out batches, and means over classes."""

from __future__ import annotations

import numpy as np
import pytest

from cytolake.statistics.bootstrap import resampled_means, resampled_ratio, widened
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
