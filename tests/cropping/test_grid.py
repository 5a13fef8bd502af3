"""The grid of crops against its definition: squares that tile a site without overlap, as many as fit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cytolake.cropping.grid import crop_grid, finite_crops


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_crops_tile_a_site_without_overlap_and_leave_less_than_a_crop_of_margin(height, width, size):
    covered = np.zeros((height, width), int)
    for y, x in crop_grid(height, width, size):
        covered[y : y + size, x : x + size] += 1
    assert covered.max() <= 1
    assert covered.sum() == (height // size) * (width // size) * size**2


def test_margins_on_both_sides_differ_by_at_most_a_pixel():
    corners = np.array(crop_grid(23, 20, 6))
    assert corners.min(axis=0).tolist() == [2, 1]
    assert (np.array([23, 20]) - corners.max(axis=0) - 6).tolist() == [3, 1]


def test_a_crop_with_an_infinite_pixel_in_any_channel_is_left_out():
    pixels = np.zeros((2, 8, 8), np.float32)
    pixels[1, 5, 2] = np.inf
    assert finite_crops(pixels, 4) == [(0, 0), (0, 4), (4, 4)]
