from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from cytolake.qc.levels import (
    edge_shift,
    median_and_sd,
    places,
    position_share,
    robust_deviations,
    separation,
    separation_by_chance,
    well_means,
)


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    row, column = np.divmod(np.arange(height * width), width)
    return row, column


def plate_of(height: int, width: int, *, first_row: int = 0, first_column: int = 0, controls: int = 0) -> pa.Table:
    """One site in each well of a rectangle; first come the negative controls, then as many positive ones."""
    row, column = grid(height, width)
    n = len(row)
    control = ["negative"] * controls + ["positive"] * controls + [""] * (n - 2 * controls)
    return pa.table(
        {
            "site_id": [f"s{i:04}" for i in range(n)],
            "well_id": [f"w{i:04}" for i in range(n)],
            "row": row + first_row,
            "column": column + first_column,
            "control": control,
        }
    )


def test_median_and_sd_are_scipys_and_skip_what_is_missing():
    values = np.random.default_rng(0).gamma(2, 3, 50)
    median, sd = median_and_sd(np.append(values, [np.nan, np.inf]))
    assert median == np.median(values)
    assert sd == pytest.approx(stats.median_abs_deviation(values, scale="normal"), rel=1e-4)
    assert np.isnan(median_and_sd(np.array([np.nan]))).all()


def test_deviations_do_not_move_with_unit_or_offset_of_the_values():
    rng = np.random.default_rng(0)
    values, reference = rng.normal(5, 2, 10), rng.normal(4, 2, 30)
    once = robust_deviations(values, reference)
    np.testing.assert_allclose(robust_deviations(3 * values - 8, 3 * reference - 8), once)
    assert np.abs(robust_deviations(values, np.full(30, 4.0), least_sd=2.0)).max() < 5


def test_the_edge_is_the_rim_of_the_plate_and_not_of_the_wells_in_use():
    assert places(plate_of(8, 12)).is_edge.sum() == 2 * 12 + 2 * 6
    assert places(plate_of(16, 24)).is_edge.sum() == 2 * 24 + 2 * 14
    assert not places(plate_of(6, 10, first_row=1, first_column=1)).is_edge.any()
    assert not places(plate_of(2, 3)).is_edge.any()  # six wells have no inside


def test_a_well_without_a_place_is_left_out_and_its_sites_keep_it():
    table = plate_of(1, 3).to_pylist()
    table[1] |= {"row": None, "column": None}
    found = places(pa.Table.from_pylist(table))
    assert found.wells == ("w0000", "w0002")
    assert found.well_of_site["s0001"] == "w0001"


def test_wells_are_the_means_of_their_sites():
    means = well_means(np.array([1.0, 3, np.nan, 7]), ["a", "a", "b", "elsewhere"], ("b", "a"))
    np.testing.assert_array_equal(means, [np.nan, 2])


def test_separation_is_students_t_without_its_dependence_on_the_number_of_wells():
    rng = np.random.default_rng(1)
    values_KN = rng.normal(0, 1, (4, 30)) + np.linspace(0, 3, 4)[:, None] * (np.arange(30) < 9)
    positive = np.arange(30) < 9
    negative = (np.arange(30) >= 9) & (np.arange(30) < 25)
    t = stats.ttest_ind(values_KN[:, positive], values_KN[:, negative], axis=1).statistic
    expected = t * np.sqrt(1 / 9 + 1 / 16) / np.sqrt(2)
    np.testing.assert_allclose(separation(values_KN, positive, negative), expected)


def test_controls_that_do_not_vary_have_no_separation():
    positive = np.arange(6) < 3
    assert np.isnan(separation(np.ones((1, 6)), positive, ~positive)).all()
    assert np.isnan(separation_by_chance(np.ones((1, 6)), positive, ~positive))


def test_noise_rarely_separates_controls_more_than_chance():
    """The limit is a 95 % quantile, so about one plate of noise in twenty passes it."""
    positive = np.arange(10) < 2
    passed = []
    for seed in range(60):
        noise_KN = np.random.default_rng(seed).normal(0, 1, (30, 10))
        limit = separation_by_chance(noise_KN, positive, ~positive)
        passed.append(np.nanmax(np.abs(separation(noise_KN, positive, ~positive))) > limit)
    assert np.mean(passed) <= 0.12


def test_an_edge_shift_is_read_in_deviations_of_the_inside():
    table = places(plate_of(16, 24))
    values = np.random.default_rng(0).normal(100, 5, 384)
    shifted = values + 20 * table.is_edge
    assert abs(edge_shift(values, table.is_edge)) < 0.5
    assert edge_shift(shifted, table.is_edge) == pytest.approx(4, abs=0.7)
    assert edge_shift(7 * shifted - 3, table.is_edge) == pytest.approx(edge_shift(shifted, table.is_edge))
    assert np.isnan(edge_shift(np.where(table.is_edge, 1.0, 0.0), table.is_edge))  # an inside without any spread


def test_wells_in_random_order_have_no_position_effect():
    row, column = grid(16, 24)
    shares = [position_share(np.random.default_rng(seed).gamma(1, 2, 384), row, column) for seed in range(40)]
    assert abs(np.mean(shares)) < 0.02
    assert max(shares) < 0.15


def test_stripes_are_a_position_effect_of_one_and_a_gradient_is_nearly_so():
    row, column = grid(8, 12)
    assert position_share(row.astype(float), row, column) == pytest.approx(1)
    assert position_share(10.0 * row + column, row, column) > 0.99


def test_the_position_effect_sees_ranks_only_so_that_a_few_hits_make_no_trend():
    row, column = grid(8, 12)
    values = np.random.default_rng(3).normal(0, 1, 96) + 0.3 * row
    share = position_share(values, row, column)
    assert position_share(np.exp(values), row, column) == pytest.approx(share)
    hits = values.copy()
    hits[np.argmax(values)] += 1e6
    assert position_share(hits, row, column) == pytest.approx(share)


def test_the_position_effect_is_the_adjusted_r_squared_of_rows_and_columns():
    row, column = grid(6, 9)
    values = np.random.default_rng(5).normal(0, 1, 54) + 0.4 * column
    ranks = stats.rankdata(values)
    both = ranks.reshape(6, 9)
    fitted = both.mean(axis=1, keepdims=True) + both.mean(axis=0, keepdims=True) - both.mean()  # a full grid: no solver
    r_squared = 1 - ((both - fitted) ** 2).sum() / ((both - both.mean()) ** 2).sum()
    expected = 1 - (1 - r_squared) * 53 / (54 - (6 + 9 - 1))
    assert position_share(values, row, column) == pytest.approx(expected)


def test_too_few_wells_for_their_rows_and_columns_have_no_position_effect():
    row, column = grid(3, 4)
    assert np.isnan(position_share(np.arange(12.0), row, column))
    assert np.isnan(position_share(np.full(96, 2.0), *grid(8, 12)))
