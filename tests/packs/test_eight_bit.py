from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cytolake.packs.eight_bit import QUANTILES, Scale, choose_scale, to_counts, to_uint8


def there_and_back(counts: np.ndarray, scale: Scale) -> np.ndarray:
    """Through 8 bits, as one crop of one channel."""
    values = to_uint8(counts.reshape(1, 1, 1, -1), np.array([[scale.offset]]), np.array([[scale.step]]))
    return to_counts(values[0], np.array([scale.offset]), np.array([scale.step])).reshape(counts.shape)


@given(counts=arrays(np.uint16, 300), seed=st.integers(0, 9))
def test_counts_come_back_to_half_a_step_and_those_beyond_the_range_as_its_end(counts, seed):
    noise = np.random.default_rng(seed).integers(0, 5000, 300).astype(np.uint16)
    counts = np.where(counts == 0, noise, counts).astype(np.uint16)
    scale = choose_scale(counts)
    low, high = scale.offset, scale.offset + 255 * scale.step
    assert low <= np.quantile(counts, QUANTILES[0])
    assert high >= np.quantile(counts, QUANTILES[1]) * (1 - 1e-12)
    error = np.abs(there_and_back(counts, scale) - np.clip(counts.astype(float), low, high))
    assert error.max() <= scale.step / 2 + 1e-5 * high  # float32


@pytest.mark.parametrize("low", [0, 300, 65_000])
def test_counts_that_span_at_most_255_come_back_as_they_were(low):
    counts = np.arange(low, low + 256).repeat(20).astype(np.uint16)
    scale = choose_scale(counts)
    assert scale.step == 1
    np.testing.assert_array_equal(there_and_back(counts, scale), counts)


def test_counts_of_8_bits_are_kept_as_they_are():
    counts = np.random.default_rng(0).integers(3, 250, 1000).astype(np.uint8)
    assert choose_scale(counts) == Scale(0.0, 1.0)


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_a_channel_of_one_value_comes_back(value):
    counts = np.full(100, value, np.float32)
    np.testing.assert_array_equal(there_and_back(counts, choose_scale(counts)), counts)


def test_fractions_come_back_to_half_a_step():
    counts = np.random.default_rng(0).random(5000).astype(np.float32)
    scale = choose_scale(counts)
    inside = np.clip(counts, scale.offset, scale.offset + 255 * scale.step)
    assert np.abs(there_and_back(counts, scale) - inside).max() <= scale.step * 0.5001


def test_a_few_hot_pixels_do_not_take_the_range_of_the_cells():
    counts = np.random.default_rng(0).integers(100, 1000, 100_000).astype(np.uint16)
    calm = choose_scale(counts)
    counts[:20] = 65_535
    hot = choose_scale(counts)
    assert hot.step == pytest.approx(calm.step, rel=0.01)
    assert there_and_back(counts, hot)[0] <= 1000


def test_the_order_of_bright_and_dark_is_kept():
    counts = np.sort(np.random.default_rng(0).integers(0, 60_000, 5000).astype(np.uint16))
    assert (np.diff(there_and_back(counts, choose_scale(counts))) >= 0).all()
