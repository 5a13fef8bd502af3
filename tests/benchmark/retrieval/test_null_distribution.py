"""Average precision by chance: exact, sampled and closed form agree."""

import math
from itertools import combinations

import numpy as np
import pytest

from cytolake.benchmark.retrieval.null_distribution import (
    exact_null,
    expected_average_precision,
    is_exact,
    normalise,
    sampled_null,
)

SIZES = [(1, 1), (1, 2), (1, 9), (2, 7), (4, 24), (5, 8), (8, 9), (9, 9), (1, 400), (399, 400)]


@pytest.mark.parametrize(("n_positives", "n_total"), [size for size in SIZES if size[1] < 25])
def test_the_exact_null_lists_every_placement(n_positives, n_total):
    by_hand = sorted(
        np.mean([(i + 1) / (rank + 1) for i, rank in enumerate(ranks)])
        for ranks in combinations(range(n_total), n_positives)
    )
    np.testing.assert_allclose(exact_null(n_positives, n_total), by_hand, atol=1e-12)


@pytest.mark.parametrize(("n_positives", "n_total"), SIZES)
def test_the_closed_form_is_the_mean_of_the_exact_null(n_positives, n_total):
    assert expected_average_precision(n_positives, n_total) == pytest.approx(exact_null(n_positives, n_total).mean())


@pytest.mark.parametrize(("n_positives", "n_total"), [(4, 24), (3, 80), (17, 20), (2, 300)])
def test_draws_follow_the_exact_null(n_positives, n_total):
    exact, drawn = exact_null(n_positives, n_total), sampled_null(n_positives, n_total, 20_000, seed=1)
    for bound in np.quantile(exact, [0.05, 0.25, 0.5, 0.75, 0.95]):
        share = np.mean(exact >= bound - 1e-12)
        assert np.mean(drawn >= bound - 1e-12) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000))


@pytest.mark.parametrize(("n_positives", "n_total"), [(60, 5000), (400, 600), (300, 600)])
def test_draws_of_many_positives_have_the_expected_mean(n_positives, n_total):
    drawn = sampled_null(n_positives, n_total, 4000, seed=2)
    error = drawn.std() / np.sqrt(len(drawn))
    assert drawn.mean() == pytest.approx(expected_average_precision(n_positives, n_total), abs=4 * error)


def test_draws_depend_on_their_arguments_alone():
    first = sampled_null(3, 50, 100, 0).copy()
    sampled_null.cache_clear()
    sampled_null(4, 60, 100, 0)
    np.testing.assert_array_equal(sampled_null(3, 50, 100, 0), first)
    assert not np.array_equal(sampled_null(3, 50, 100, 1), first)
    of_other_sizes = np.corrcoef(sampled_null(1, 50, 2000), sampled_null(1, 51, 2000))[0, 1]
    assert abs(of_other_sizes) < 0.1  # else the mean of both would vary too much
    with pytest.raises(ValueError, match="read-only"):
        sampled_null(3, 50, 100, 0)[0] = 2


def test_few_placements_are_listed_and_many_are_not():
    for n_positives, n_total in ((1, 100_000), (4, 24), (2, 447), (3, 86)):
        assert is_exact(n_positives, n_total) == (math.comb(n_total, n_positives) <= 100_000)
    assert not is_exact(5000, 100_000)
    with pytest.raises(ValueError, match="20 of 40 ranks: too many"):
        exact_null(20, 40)


def test_normalised_is_0_for_chance_and_1_for_perfect_whatever_the_share_of_positives():
    for n_positives, n_total in ((1, 9), (4, 24), (8, 9)):
        values = normalise(exact_null(n_positives, n_total), n_positives, n_total)
        assert values.mean() == pytest.approx(0, abs=1e-12)
        assert values.max() == pytest.approx(1)


def test_sizes_that_mean_nothing_are_refused():
    for n_positives, n_total in ((0, 5), (6, 5)):
        with pytest.raises(ValueError, match="expected at least one, and no more"):
            expected_average_precision(n_positives, n_total)
    with pytest.raises(ValueError, match="without negatives"):
        normalise([1.0, 0.5], [3, 2], [3, 4])
