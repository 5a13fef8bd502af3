from __future__ import annotations

import numpy as np
import pytest

from cytolake.screens.images.compositing import add_colours, grey_levels, percentile_limits, stretch


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_brightness_is_linear_between_black_and_white(dtype):
    pixels = np.array([[0, 100, 150, 200, 900]], dtype)
    brightness = stretch(pixels, 100, 200)
    np.testing.assert_allclose(brightness, [[0, 0, 0.5, 1, 1]])
    assert brightness.dtype == (np.float64 if dtype == np.uint16 else dtype)


def test_a_channel_of_one_value_is_black():
    pixels = np.full((2, 2), 7, np.uint16)
    assert percentile_limits(pixels, 1, 99) == (7.0, 7.0)
    np.testing.assert_array_equal(stretch(pixels, 7, 7), 0)


def test_colours_add_up_whatever_the_order_of_the_channels():
    rng = np.random.default_rng(0)
    channels, colours = rng.random((3, 4, 5)), [(255, 0, 0), (0, 255, 0), (255, 255, 0)]
    picture = add_colours(channels, colours, (4, 5))
    np.testing.assert_allclose(picture, np.einsum("chw,cr->hwr", channels, colours))
    np.testing.assert_allclose(picture, add_colours(channels[::-1], colours[::-1], (4, 5)))
    assert add_colours([], [], (4, 5)).max() == 0


def test_grey_levels_span_a_byte():
    np.testing.assert_array_equal(grey_levels(np.array([0, 0.5, 1])), [0, 127, 255])
