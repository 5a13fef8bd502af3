"""Energy distance and shares against independent oracles."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from cytolake.benchmark.perturbation_signal import energy
from cytolake.benchmark.perturbation_signal.energy import energy_distance, mean_distance_of_rows, mean_distance_within
from cytolake.benchmark.perturbation_signal.shares import share_of


def by_loops(x, y) -> float:
    """The definition, word for word."""

    def mean(a, b):
        return sum(math.dist(p, q) for p in a for q in b) / (len(a) * len(b))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


@pytest.fixture
def two_sets():
    random = np.random.default_rng(3)
    return random.normal(size=(23, 6)), random.normal(size=(31, 6)) + 0.5


def test_it_is_the_definition(two_sets):
    assert energy_distance(*two_sets) == pytest.approx(by_loops(*two_sets), abs=1e-12)


def test_in_one_dimension_it_is_the_square_of_scipys(two_sets):
    """Scipy returns sqrt(2 integral (F - G)^2), which is the square root of the energy distance."""
    x, y = two_sets[0][:, 0], two_sets[1][:, 0]
    expected = stats.energy_distance(x, y) ** 2
    assert energy_distance(x[:, None], y[:, None]) == pytest.approx(expected, abs=1e-12)


def test_blocks_change_nothing(two_sets, monkeypatch):
    whole = energy_distance(*two_sets)
    monkeypatch.setattr(energy, "BLOCK_ROWS", 5)
    monkeypatch.setattr(energy, "BLOCK_COLUMNS", 7)
    assert energy_distance(*two_sets) == pytest.approx(whole, abs=1e-12)


@pytest.mark.real_data
def test_the_published_values_of_efaar(real_data):
    known = json.loads((real_data / "oracles" / "efaar_published.json").read_text())["pert_signal_magnitude_metric"]
    a, b = np.asarray(known["a"]), np.asarray(known["b"])
    assert round(energy_distance(a, b)) == known["out_rounded"]
    assert energy_distance(a, a) == known["a_a"]


def test_a_shift_by_5_in_5_dimensions_of_equal_rows_is_twice_its_length():
    """2 sqrt(5 x 25) = 22.36, with integers as they come."""
    a = np.tile(np.arange(1, 6), (5, 1))
    assert energy_distance(a, a + 5) == pytest.approx(2 * math.sqrt(125), abs=1e-12)


def test_equal_sets_far_from_the_origin_are_at_exactly_zero():
    rows = np.full((9, 4), 1e8) + np.arange(4)
    assert energy_distance(rows, rows) == 0


def test_each_row_has_its_own_mean(two_sets):
    x, y = two_sets
    np.testing.assert_allclose(mean_distance_of_rows(x, y)[4], np.mean([math.dist(x[4], row) for row in y]), rtol=1e-12)
    np.testing.assert_allclose(mean_distance_of_rows(x, x).mean(), mean_distance_within(x), rtol=1e-12)


@pytest.mark.parametrize("y", [np.zeros((0, 3)), np.zeros((4, 2)), np.zeros(3)])
def test_sets_that_cannot_be_compared_are_refused_with_their_shapes(y):
    with pytest.raises(ValueError, match=r"sets of shapes \(4, 3\) and"):
        energy_distance(np.zeros((4, 3)), y)


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
