from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cytolake.tune.within_seeds import least_p_value, placements, trend


def test_p_values_are_those_of_all_placements_ties_included():
    random = np.random.default_rng(0)
    recall = random.integers(0, 4, (4, 2, 6)) / 4  # few values: many ties
    ranks = stats.rankdata(recall, axis=0)
    x = np.arange(4) - 1.5
    orders = list(itertools.permutations(x))
    found = trend(recall)
    for k in range(6):
        observed = abs(x @ ranks[..., k].sum(axis=1))
        sums = [
            abs(a @ ranks[:, 0, k] + b @ ranks[:, 1, k]) for a in map(np.array, orders) for b in map(np.array, orders)
        ]
        assert found.p_value[k] == pytest.approx(np.mean(np.array(sums) >= observed - 1e-9))


def test_without_ties_the_statistic_and_p_value_are_those_of_pages_trend_test():
    random = np.random.default_rng(1)
    for _ in range(20):
        recall = random.normal(size=(4, 3, 1)) + 0.3 * np.arange(4)[:, None, None]
        found = trend(recall)
        rising = stats.page_trend_test(recall[..., 0].T, method="exact")
        falling = stats.page_trend_test(-recall[..., 0].T, method="exact")
        assert found.p_value[0] == pytest.approx(min(1.0, 2 * min(rising.pvalue, falling.pvalue)))


def test_what_a_seed_adds_to_all_its_values_changes_nothing():
    random = np.random.default_rng(2)
    recall = random.normal(size=(5, 3, 4))
    shifted = recall + 10 * random.normal(size=(1, 3, 4))
    np.testing.assert_array_equal(trend(recall).p_value, trend(shifted).p_value)
    np.testing.assert_array_equal(trend(recall).correlation, trend(shifted).correlation)


def test_a_class_that_never_changes_has_no_p_value():
    recall = np.full((5, 3, 2), 0.5)
    recall[..., 1] += 0.1 * np.arange(5)[:, None]
    found = trend(recall)
    assert np.isnan([found.p_value[0], found.correlation[0]]).all()
    assert found.correlation[1] == pytest.approx(1)
    assert found.p_value[1] == pytest.approx(least_p_value(5, 3)) == pytest.approx(2 / 120**3)


def test_many_values_are_tested_with_random_placements_alike():
    """Nine values are too many to list; SciPy knows the exact p-values without ties."""
    random = np.random.default_rng(3)
    recall = random.normal(size=(9, 2, 40)) + 0.1 * np.arange(9)[:, None, None]
    found = trend(recall, n_permutations=4000)
    expected = [
        2 * min(stats.page_trend_test(sign * recall[..., k].T, method="exact").pvalue for sign in (1, -1))
        for k in range(40)
    ]
    error = np.sqrt(np.array(expected) / 4000)
    assert (np.abs(found.p_value - np.minimum(expected, 1)) < 5 * error + 1e-3).all()


@pytest.mark.parametrize(("n_values", "n_seeds"), [(3, 2), (4, 2), (3, 4)])
def test_few_placements_are_all_listed_once_the_observed_one_first(n_values, n_seeds):
    found = placements(n_values, n_seeds, 2000, seed=0)
    assert found.shape == (math.factorial(n_values) ** n_seeds, n_values, n_seeds)
    assert len(np.unique(found.reshape(len(found), -1), axis=0)) == len(found)
    assert (found[0] == np.arange(n_values)[:, None]).all()


def test_many_placements_are_drawn_within_each_seed():
    found = placements(5, 3, 500, seed=0)
    assert found.shape == (501, 5, 3)
    assert (found[0] == np.arange(5)[:, None]).all()
    assert (np.sort(found, axis=1) == np.arange(5)[:, None]).all()
    assert (found[1:, :, 0] != found[1:, :, 1]).any(axis=1).mean() > 0.9
