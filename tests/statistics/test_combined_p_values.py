"""The Cauchy combination against the distribution it is named after."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cytolake.statistics.combined_p_values import cauchy_combination


def test_cauchy_combination_of_uniform_values_is_uniform():
    drawn = np.random.default_rng(0).uniform(size=(2_000, 5))
    assert stats.kstest([cauchy_combination(row) for row in drawn], "uniform").pvalue > 0.01


def test_cauchy_combination_agrees_with_the_quantiles_of_the_distribution():
    rng = np.random.default_rng(1)
    for _ in range(50):
        p_values, weights = rng.uniform(size=4), rng.dirichlet(np.ones(4))
        assert cauchy_combination(p_values, weights) == pytest.approx(
            stats.cauchy.sf(weights @ stats.cauchy.isf(p_values))
        )
        assert cauchy_combination(p_values) == pytest.approx(cauchy_combination(p_values[::-1]))


@pytest.mark.parametrize("p", [1e-12, 1e-4, 0.5, 0.999])
def test_cauchy_combination_of_equal_values_is_that_value(p):
    assert cauchy_combination([p, p, p]) == pytest.approx(p, rel=1e-3)
    assert cauchy_combination([p]) == pytest.approx(p, rel=1e-3)
