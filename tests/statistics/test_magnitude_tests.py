"""The magnitude test against its definition, all exchanges listed, and its null hypothesis."""

from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from cytolake.statistics import magnitude
from cytolake.statistics.magnitude import euclidean_distances, magnitude_tests


def run(vectors, groups, *, strata=None, n_draws=199, seed=0, **limits):
    """Groups below 0 are controls."""
    groups = np.asarray(groups, np.int64)
    strata = np.zeros(len(groups), np.int64) if strata is None else np.asarray(strata, np.int64)
    return magnitude_tests(np.asarray(vectors, np.float64), groups, groups < 0, strata, n_draws, seed, **limits)


def by_loops(x, y) -> float:
    """The definition, word for word."""

    def mean(a, b):
        return sum(math.dist(p, q) for p in a for q in b) / (len(a) * len(b))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def noise(seed: int, n_groups: int, n_rows: int = 6, n_controls: int = 40, dim: int = 6):
    groups = np.concatenate([np.repeat(np.arange(n_groups), n_rows), np.full(n_controls, -1)])
    return np.random.default_rng(seed).standard_normal((len(groups), dim)), groups


def test_the_statistic_is_the_energy_distance():
    vectors, groups = noise(0, 2)
    for test in run(vectors + 1e4, groups):  # far from the origin too
        expected = by_loops(vectors[groups == test.group], vectors[groups < 0])
        assert test.energy_distance == pytest.approx(expected, abs=1e-7)
        assert (test.n_rows, test.n_controls) == (6, 40)


def test_in_one_dimension_it_is_the_square_of_scipys():
    """SciPy returns sqrt(2 integral (F - G)^2), which is the square root of the energy distance."""
    vectors, groups = noise(1, 1, dim=1)
    expected = stats.energy_distance(vectors[groups == 0, 0], vectors[groups < 0, 0]) ** 2
    assert run(vectors, groups)[0].energy_distance == pytest.approx(expected, abs=1e-12)


def test_a_shift_by_5_in_5_dimensions_of_equal_rows_is_twice_its_length():
    """2 sqrt(5 x 25) = 22.36, the value that EFAAR_benchmarking's tests expect."""
    vectors = np.concatenate([np.zeros((5, 5)), np.full((6, 5), 5.0)])
    (test,) = run(vectors, [0] * 5 + [-1] * 6)
    assert test.energy_distance == pytest.approx(2 * math.sqrt(125), abs=1e-12)


@pytest.mark.real_data
def test_the_published_values_of_efaar(real_data):
    known = json.loads((real_data / "oracles" / "efaar_published.json").read_text())["pert_signal_magnitude_metric"]
    a, b = np.asarray(known["a"], float), np.asarray(known["b"], float)
    for other, expected in ((b, known["out_rounded"]), (a, known["a_a"])):
        (test,) = run(np.concatenate([a, other]), [0] * len(a) + [-1] * len(other))
        assert round(test.energy_distance) == expected


def test_p_is_the_share_of_all_exchanges_that_are_as_far():
    """Against all 462 sets of 5 of 11 rows; 20,000 draws leave 3 standard errors of 0.0035 at most."""
    vectors, groups = noise(2, 1, 5, 6, 3)
    vectors[groups == 0] += 0.6
    every = []
    for chosen in combinations(range(11), 5):
        is_own = np.isin(np.arange(11), chosen)
        every.append(by_loops(vectors[is_own], vectors[~is_own]))
    (test,) = run(vectors, groups, n_draws=20_000)
    expected = np.mean(np.asarray(every) >= test.energy_distance - 1e-9)
    assert 0.001 < expected < 0.5
    assert abs(test.p_value - expected) < 3 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-4


@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_p_values_are_uniform_without_an_effect_also_where_batches_differ(shift):
    rng = np.random.default_rng(3)
    p_values = []
    for seed in range(150):  # groups of one screen share its controls: few of each
        vectors, groups = noise(seed, 3, 6, 30)
        strata = rng.integers(0, 3, len(groups))
        vectors += shift * rng.standard_normal((3, 6))[strata]
        p_values += [test.p_value for test in run(vectors, groups, strata=strata, seed=seed)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("share_of_controls", [0.3, 0.6])
def test_groups_far_from_the_controls_in_one_direction_are_distinct(share_of_controls):
    """Against other treated rows, which lie as far, none is."""
    n_controls = round(300 * share_of_controls / (1 - share_of_controls))
    vectors, groups = noise(4, 50, 6, n_controls, 10)
    vectors[groups >= 0, 0] += 9
    strata = np.random.default_rng(4).integers(0, 3, len(groups))
    found = run(vectors, groups, strata=strata)
    assert len(found) == 50
    assert max(test.p_value for test in found) == 1 / 200


def test_rows_and_controls_of_strata_that_lack_the_other_are_left_out():
    vectors, groups = noise(5, 2, 6, 12)
    strata = np.zeros(len(groups), np.int64)
    strata[[0, 6, 7]] = 1  # a row of the first group, two of the second, and no control
    strata[-2:] = 2  # two controls alone
    (test,) = run(vectors, groups, strata=strata)
    assert (test.group, test.n_rows, test.n_controls) == (0, 5, 10)
    expected = by_loops(vectors[1:6], vectors[12:22])
    assert test.energy_distance == pytest.approx(expected)


def test_labels_that_can_hardly_be_exchanged_are_not_tested():
    vectors, groups = noise(6, 1, 6, 2)
    assert len(run(vectors, groups)) == 1  # 28 placements
    assert run(vectors, groups, strata=[0] * 6 + [0, 1]) == []  # 7


def test_picking_distances_and_multiplying_matrices_give_the_same_p_values(monkeypatch):
    vectors, groups = noise(7, 5)
    first = run(vectors, groups)
    monkeypatch.setattr(magnitude, "GATHERED_UP_TO", 0)
    second = run(vectors, groups)
    assert [test.p_value for test in second] == [test.p_value for test in first]


def test_many_rows_and_controls_are_sampled_the_same_way_each_time():
    vectors, groups = noise(8, 2, 30, 300)
    first, again = (run(vectors, groups, max_rows=10, max_controls=50) for _ in range(2))
    assert first == again
    assert [(test.n_rows, test.n_controls) for test in first] == [(10, 50), (10, 50)]
    whole = run(vectors + 3 * (groups == 0)[:, None], groups)
    sampled = run(vectors + 3 * (groups == 0)[:, None], groups, max_rows=10, max_controls=50)
    assert sampled[0].energy_distance == pytest.approx(whole[0].energy_distance, rel=0.3)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_equal_vectors_have_no_magnitude_and_no_significance(value):
    _, groups = noise(9, 3)
    for test in run(np.full((len(groups), 6), value), groups):
        assert test.energy_distance == 0
        assert test.p_value == 1


def test_distances_are_scipys_and_equal_rows_are_at_exactly_zero():
    x = np.random.default_rng(10).standard_normal((20, 300))
    y = np.concatenate([x[:5], np.random.default_rng(11).standard_normal((8, 300))])
    distances = euclidean_distances(x, y)
    np.testing.assert_allclose(distances, cdist(x, y), atol=1e-6)
    assert (distances[np.arange(5), np.arange(5)] == 0).all()
