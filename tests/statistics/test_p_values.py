"""p-values of permutations by hand, of named null perturbations, and combined ones against SciPy's distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cytolake.statistics.p_values import cauchy_combination, p_values_against, permutation_p_value


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


def test_a_permutation_p_value_counts_ties_and_the_value_itself():
    null = np.array([0.1, 0.5, 0.5 - 1e-12, 0.9])
    assert permutation_p_value(0.5, null) == 3 / 5
    assert permutation_p_value(0.5, null, tie=1e-9) == 4 / 5
    assert permutation_p_value(0.5, null, tie=-1e-9) == 2 / 5
    assert permutation_p_value(2.0, null) == 1 / 5


def test_named_null_perturbations_give_the_share_as_high_or_higher():
    values = np.asarray([0.1, 0.2, 0.3, 0.25, np.nan, 0.9])
    is_null = np.asarray([True, True, True, False, False, False])
    p_values = p_values_against(values, is_null)
    np.testing.assert_allclose(p_values, [3 / 3, 2 / 3, 1 / 3, 2 / 4, np.nan, 1 / 4])
    with pytest.raises(ValueError, match=r"none of 0 null perturbations has enough finite rows.*null_perturbations"):
        p_values_against(values, np.zeros(6, bool))
