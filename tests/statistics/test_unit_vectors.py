"""Rows of length 1, and rows without a direction."""

from __future__ import annotations

import numpy as np
import pytest

from cytolake.statistics.unit_vectors import unit_vectors, unit_vectors_of_any_size

ROWS = np.vstack([np.random.default_rng(0).normal(size=(5, 4)), np.zeros((1, 4))])


@pytest.mark.parametrize("least_length", [0.0, 1e-12])
def test_rows_have_length_1_and_zeros_stay(least_length):
    unit = unit_vectors(ROWS, least_length=least_length)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(unit_vectors_of_any_size(ROWS), unit, rtol=1e-12)


def test_a_row_of_rounding_errors_stays_short():
    assert np.abs(unit_vectors(1e-15 * ROWS, least_length=1e-12)).max() < 0.01


def test_the_type_of_the_vectors_stays_unless_64_bits_are_wanted():
    assert unit_vectors(ROWS.astype(np.float32)).dtype == np.float32
    assert unit_vectors(ROWS.astype(np.float32), in_float64=True).dtype == np.float64


def test_very_long_and_very_short_vectors_keep_their_direction():
    lengths = 10.0 ** np.linspace(-300, 300, 5)[:, None]
    np.testing.assert_allclose(
        unit_vectors_of_any_size(ROWS[:5] * lengths), unit_vectors_of_any_size(ROWS[:5]), rtol=1e-12
    )


def test_a_row_without_a_direction_is_refused_by_its_number():
    with pytest.raises(ValueError, match="row 5 has the length 0, as 1 of 6"):
        unit_vectors(ROWS, zero_rows="refuse")
    broken = ROWS[:5].copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 12 is not finite"):
        unit_vectors(broken, zero_rows="refuse", row_numbers=np.arange(10, 15))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        unit_vectors(ROWS[0], zero_rows="refuse")
