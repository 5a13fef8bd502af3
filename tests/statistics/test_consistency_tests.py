"""The consistency test against its definition, all subsets listed, and its null hypothesis."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cosine

from cytolake.statistics import consistency
from cytolake.statistics.consistency import NOT_TESTED, consistency_tests, mean_pairwise_cosine
from cytolake.statistics.random_subsets import AT_ONCE_UP_TO, can_reach_significance, random_subsets


def run(vectors, groups, *, strata=None, n_draws=999, seed=0, name="E", max_rows=None):
    strata = np.zeros(len(groups)) if strata is None else strata
    return consistency_tests(
        np.asarray(vectors, np.float64),
        np.asarray(groups, np.int64),
        np.asarray(strata, np.int64),
        n_draws,
        seed,
        name,
        max_rows,
    )


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pairs_loop(vectors) -> float:
    """The definition, word for word."""
    return float(np.mean([1 - cosine(a, b) for a, b in combinations(vectors, 2)]))


def noise(seed: int, n_groups: int, n_rows: int, dim: int = 24):
    groups = np.repeat(np.arange(n_groups), n_rows)
    return np.random.default_rng(seed).standard_normal((len(groups), dim)), groups


@pytest.mark.parametrize("n", [2, 3, 17])
def test_the_statistic_is_the_mean_cosine_of_all_pairs(n):
    vectors = np.random.default_rng(n).standard_normal((n, 9))
    assert mean_pairwise_cosine(unit(vectors)) == pytest.approx(pairs_loop(vectors), abs=1e-12)


def test_p_is_the_share_of_all_sets_of_rows_that_are_as_alike():
    """Against every subset of 12 rows, listed; 20,000 draws leave 3 standard errors of 0.0035 at most."""
    vectors = np.random.default_rng(1).standard_normal((12, 4))
    groups = np.repeat(np.arange(4), 3)
    every = np.array([pairs_loop(vectors[list(chosen)]) for chosen in combinations(range(12), 3)])
    for test in run(vectors, groups, n_draws=20_000):
        own = pairs_loop(vectors[groups == test.group])
        expected = np.mean(every >= own - 1e-9)
        assert test.cosine == pytest.approx(own)
        assert test.n_rows == 3
        assert abs(test.p_value - expected) < 3 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-4


def test_draws_hold_as_many_rows_of_each_stratum_as_the_group():
    vectors = np.random.default_rng(2).standard_normal((12, 3))
    vectors[:5] += 3  # plates differ, which a draw over both would take for an effect
    strata = np.repeat([0, 1], [5, 7])
    groups = np.array([0, 0, 1, 1, 2, 0, 3, 3, 1, 2, 2, 4])
    found = {test.group: test for test in run(vectors, groups, strata=strata, n_draws=20_000)}
    own = vectors[groups == 0]
    every = np.array(
        [pairs_loop(vectors[[*first, second]]) for first, second in product(combinations(range(5), 2), range(5, 12))]
    )
    expected = np.mean(every >= pairs_loop(own) - 1e-9)
    assert abs(found[0].p_value - expected) < 3 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-4
    assert 4 not in found, "one row cannot be like itself"


@pytest.mark.parametrize("n_strata", [1, 3])
def test_adding_cosines_and_adding_vectors_give_the_same_p_values(monkeypatch, n_strata):
    vectors, groups = noise(3, 20, 5)
    strata = np.random.default_rng(3).integers(0, n_strata, len(groups))
    of_cosines = run(vectors, groups, strata=strata, n_draws=2_500)
    monkeypatch.setattr(consistency, "COSINES_UP_TO", 0)
    assert run(vectors, groups, strata=strata, n_draws=2_500) == of_cosines


def test_rows_that_are_not_tested_are_drawn():
    """Two alike rows among 20 others: with the others in the pool they stand out, and alone they cannot be tested."""
    vectors = np.random.default_rng(4).standard_normal((22, 8))
    vectors[1] = vectors[0]
    groups = np.array([0, 0, *[NOT_TESTED] * 20])
    (test,) = run(vectors, groups)
    assert test.p_value < 0.02
    (alone,) = run(vectors[:2], groups[:2])
    assert alone.cosine == pytest.approx(1.0)
    assert np.isnan(alone.p_value)


def test_p_values_are_uniform_without_an_effect():
    """One group of each of 400 screens, so that no two p-values share their draws."""
    p_values = [run(*noise(100 + number, 8, 4), name=f"E{number}")[number % 8].p_value for number in range(400)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_an_effect_that_all_rows_share_is_not_consistency():
    vectors, groups = noise(5, 60, 5, 10)
    p_values = [test.p_value for test in run(vectors + 3.0, groups)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_a_sample_of_a_large_group_is_tested():
    vectors, groups = noise(6, 3, 30)
    found = run(vectors, groups, max_rows=10)
    assert [test.n_rows for test in found] == [10, 10, 10]
    assert run(vectors, groups, max_rows=10) == found


def test_the_same_rows_give_the_same_p_values_and_another_seed_others():
    vectors, groups = noise(5, 30, 3)
    first = run(vectors, groups)
    assert run(vectors, groups) == first
    assert run(vectors, groups, seed=1) != first
    assert run(vectors, groups, name="F") != first


def test_only_the_directions_of_rows_count():
    vectors, groups = noise(6, 20, 3)
    longer = vectors * np.random.default_rng(0).uniform(0.1, 10, len(vectors))[:, None]
    first, second = (run(some, groups) for some in (vectors, longer))
    assert [test.p_value for test in first] == [test.p_value for test in second]


def test_no_p_value_is_below_what_the_draws_can_resolve():
    vectors = np.concatenate([np.eye(20), np.full((3, 20), [1.0] + [0.0] * 19)])
    (test,) = run(vectors, [*range(20), 30, 30, 30], n_draws=99)
    assert 1 / 100 <= test.p_value < 0.05


@pytest.mark.parametrize("n", [3, AT_ONCE_UP_TO + 1])
def test_every_row_is_drawn_as_often_and_never_twice(n):
    n_all = n + 3
    drawn = np.sort(random_subsets(np.random.default_rng(0), n_all, n, 5_000), axis=1)
    assert (np.diff(drawn, axis=1) > 0).all()
    left_out = np.bincount(drawn.ravel(), minlength=n_all)
    # Each row is left out with probability 3 / n_all: a chi-square with n_all - 1 degrees of freedom, less dependence.
    assert stats.chisquare(left_out).pvalue > 0.001


def test_every_set_of_rows_is_drawn_as_often():
    drawn = np.sort(random_subsets(np.random.default_rng(0), 6, 3, 20_000), axis=1)
    sets, counts = np.unique(drawn, axis=0, return_counts=True)
    assert [tuple(row) for row in sets.tolist()] == list(combinations(range(6), 3))
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_p_value_of_a_twentieth_takes_twenty_placements():
    assert not can_reach_significance([6], [2])  # 15
    assert can_reach_significance([7], [2])  # 21
    assert not can_reach_significance([2, 2, 2, 2], [1, 1, 1, 1])  # 16
    assert can_reach_significance([2, 2, 2, 2, 2], [1, 1, 1, 1, 1])
    assert not can_reach_significance([50, 1000], [50, 0])
