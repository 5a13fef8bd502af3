"""The pixel baseline against scipy, and what it must not see."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats

from cytolake.embed.pixel_statistics import (
    PERCENTILES,
    STATISTICS,
    PixelStatistics,
    channel_correlations,
    channel_statistics,
)

CHANNELS = ("DNA", "ER", "Mito")


@pytest.fixture
def crops() -> np.ndarray:
    random = np.random.default_rng(0)
    return random.gamma(2.0, 500.0, size=(4, 3, 16, 16)).astype(np.uint16)


def test_each_statistic_is_that_of_scipy(crops):
    found = channel_statistics(crops.astype(np.float32))
    channel = crops[1, 2].astype(np.float64)
    inner = np.s_[1:-1, 1:-1]
    laplacian = ndimage.laplace(channel)[inner]
    down, right = (ndimage.correlate1d(channel, [-0.5, 0, 0.5], axis=axis)[inner] for axis in (0, 1))
    expected = {
        "mean": channel.mean(), "sd": channel.std(), "skewness": stats.skew(channel, axis=None),
        "kurtosis": stats.kurtosis(channel, axis=None), "laplacian_variance": laplacian.var(),
        "gradient_energy": (down**2 + right**2).mean(),
        **{f"p{q:02d}": np.percentile(channel, q) for q in PERCENTILES},
    }  # fmt: skip
    assert set(expected) == set(STATISTICS)
    np.testing.assert_allclose(found[1, 2], [expected[name] for name in STATISTICS], rtol=1e-4)


def test_correlations_are_those_of_numpy(crops):
    expected = np.corrcoef(crops[0].reshape(3, -1).astype(np.float64))[np.triu_indices(3, k=1)]
    np.testing.assert_allclose(channel_correlations(crops.astype(np.float32))[0], expected, atol=1e-5)


def test_a_constant_channel_gives_finite_numbers():
    crops = np.full((1, 2, 8, 8), 1000, dtype=np.float32)
    assert np.isfinite(channel_statistics(crops)).all()
    assert (channel_correlations(crops) == 0).all()


def test_the_order_of_channels_in_the_file_does_not_matter(crops):
    statistics = PixelStatistics([CHANNELS, CHANNELS[::-1]])
    one = statistics.measure([crops[0]], [CHANNELS])
    other = statistics.measure([crops[0][::-1]], [CHANNELS[::-1]])
    np.testing.assert_allclose(one, other, rtol=1e-6)
    assert one.shape == (1, statistics.dim) == (1, 3 * len(STATISTICS) + 3)


def test_crops_of_any_channel_count_get_vectors_of_one_length(crops):
    statistics = PixelStatistics([CHANNELS, CHANNELS[:1]])
    vectors = statistics.measure([crops[0], crops[1][:1], crops[2]], [CHANNELS, CHANNELS[:1], CHANNELS])
    assert vectors.shape == (3, statistics.dim) == (3, 2 * len(STATISTICS) + 3)
    assert np.isfinite(vectors).all()
    alone = statistics.measure([crops[1][:1]], [CHANNELS[:1]])
    np.testing.assert_array_equal(vectors[1:2], alone)


def test_a_mixed_pack_is_blind_to_the_number_of_channels(crops):
    statistics = PixelStatistics([CHANNELS, CHANNELS[:1]])
    one = statistics.measure([crops[0][:1]], [CHANNELS[:1]])
    thrice = statistics.measure([np.repeat(crops[0][:1], 3, axis=0)], [CHANNELS])
    n = 2 * len(STATISTICS)
    np.testing.assert_allclose(one[:, :n], thrice[:, :n], rtol=1e-5)


def test_every_number_has_a_name():
    for sets in ([CHANNELS], [CHANNELS, CHANNELS[:2]], [CHANNELS[:1]]):
        names = PixelStatistics(sets).names
        assert len(set(names)) == len(names)


def test_no_channel_at_all_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        PixelStatistics([])
