from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from cytolake.performance_prediction.correlations import (
    PREDICTION_METRICS,
    correlation,
    score_predictions,
    within_generators,
)


@pytest.fixture
def pairs():
    random = np.random.default_rng(0)
    truth = random.integers(0, 12, 300).astype(float)  # ties, as human scores have
    return truth, truth + random.normal(scale=4, size=300)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "kendall"])
def test_correlations_are_those_of_scipy(pairs, metric):
    oracle = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau}
    assert correlation(metric, *pairs) == pytest.approx(oracle[metric](*pairs).statistic, abs=1e-12)


def test_a_constant_side_has_no_correlation_but_an_error(pairs):
    truth, _ = pairs
    for metric in PREDICTION_METRICS[:3]:
        assert np.isnan(correlation(metric, truth, np.full(300, 2.0)))
        rounded = np.random.default_rng(0).choice([0.1 + 0.2, 0.3], 300)  # equal but for the last digit
        assert np.isnan(correlation(metric, truth, rounded))
    assert correlation("rmse", truth, np.full(300, truth.mean())) == pytest.approx(truth.std())


def test_how_generators_differ_is_not_how_prompts_do():
    random = np.random.default_rng(1)
    generator = ["weak"] * 200 + ["strong"] * 200
    truth = random.normal(size=400) + np.repeat([0, 20], 200)
    predicted = random.normal(size=400) + np.repeat([0, 20], 200)  # knows the generator and nothing else
    assert correlation("pearson", truth, predicted) > 0.95
    assert abs(within_generators("pearson", truth, predicted, generator)) < 0.15


def test_generators_are_averaged_by_fishers_z(pairs):
    truth, predicted = pairs
    generator = ["a"] * 100 + ["b"] * 200
    r = [scipy.stats.pearsonr(truth[i], predicted[i]).statistic for i in (slice(0, 100), slice(100, 300))]
    expected = np.tanh((97 * np.arctanh(r[0]) + 197 * np.arctanh(r[1])) / (97 + 197))
    assert within_generators("pearson", truth, predicted, generator) == pytest.approx(expected)


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(2)
    rho, hits = 0.6, 0
    for _ in range(100):
        x, noise = random.normal(size=(2, 80))
        y = rho * x + np.sqrt(1 - rho**2) * noise
        found = score_predictions(y, x, n_draws=200, metrics=["pearson"])["pearson"]
        hits += found.low <= rho <= found.high
    assert 86 <= hits <= 100


def test_rows_of_a_group_are_drawn_together():
    random = np.random.default_rng(3)
    truth, predicted = random.normal(size=(2, 30))
    predicted = truth + predicted
    repeated = np.repeat(np.arange(30), 10)
    many = np.repeat(truth, 10), np.repeat(predicted, 10)
    alone = score_predictions(*many, metrics=["pearson"])["pearson"]
    together = score_predictions(*many, group=repeated, metrics=["pearson"])["pearson"]
    once = score_predictions(truth, predicted, metrics=["pearson"])["pearson"]
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.15)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_predictions_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="1 of 3 predictions are not finite"):
        score_predictions(np.arange(3.0), np.array([0, np.nan, 1]))
