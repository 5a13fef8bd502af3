"""Moves of a crop against scipy's interpolation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from cytolake.models import CropBatch
from cytolake.models.augment import NOTHING
from cytolake.models.augment.draws import Draws
from cytolake.models.augment.geometry import resample, rotations, sources

ALL_MOVES = dataclasses.replace(
    NOTHING, crop_scale=(0.5, 0.9), rotation_deg=180, translate=0.2, shear_deg=15, magnification=1.3
)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_a_rotation_by_90_degrees_is_a_quarter_turn(crops, interpolation, quarters):
    n = len(crops)
    matrix = np.linalg.inv(rotations(np.full(n, 90.0 * quarters)))
    turned = resample(crops.pixels, np.concatenate([matrix, np.zeros((n, 2, 1))], axis=2), 24, interpolation)
    torch.testing.assert_close(turned, torch.rot90(crops.pixels, quarters, (-2, -1)), rtol=1e-4, atol=0.5)


@pytest.mark.parametrize("size", [24, 32])
def test_all_moves_together_read_where_scipy_reads(crops, change, size):
    config = dataclasses.replace(ALL_MOVES, size=size, interpolation="bilinear")
    result = change(crops, config).pixels.numpy()
    place = (np.arange(size) + 0.5) * 2 / size - 1
    xy1 = np.stack([*np.meshgrid(place, place, indexing="xy"), np.ones((size, size))])
    matrices = sources(config, Draws(0, 0, np.arange(100, 110), 0))
    for i in range(len(crops)):
        x, y = (np.tensordot(matrices[i], xy1, axes=1) + 1) * 24 / 2 - 0.5
        expected = ndimage.map_coordinates(crops.pixels[i, 0].numpy(), [y, x], order=1, mode="reflect")
        np.testing.assert_allclose(result[i, 0], expected, atol=1)  # of up to 65,535 counts, with float32 places


def test_a_crop_that_is_kept_whole_is_kept_to_the_bit(crops, change):
    assert torch.equal(change(crops, NOTHING, crop_scale=(1.0, 1.0), size=24).pixels, crops.pixels)


def test_the_window_has_the_share_of_the_area_that_was_drawn_and_lies_inside(change):
    """On a ramp, the step between pixels is the side of the window in units of the crop's."""
    ramp = torch.arange(24.0).expand(2000, 1, 24, 24)
    crops = CropBatch(ramp, torch.ones(2000, 1, dtype=torch.long), (1,) * 2000)
    config = dataclasses.replace(NOTHING, crop_scale=(0.2, 0.7), interpolation="bilinear")
    result = change(crops, config).pixels[:, 0]
    side = (result[:, 0, 13] - result[:, 0, 10]) / 3
    assert stats.kstest((side.double().numpy() ** 2 - 0.2) / 0.5, "uniform").pvalue > 0.01
    left = result[:, 0, 11].double() + 0.5 - 11.5 * side.double()
    assert left.min() > -1e-3
    free = (24 * (1 - side.double())).numpy()
    assert stats.kstest(left.numpy() / free, "uniform").pvalue > 0.01


def test_angles_fill_the_range_evenly():
    config = dataclasses.replace(NOTHING, rotation_deg=60)
    back = sources(config, Draws(0, 0, range(2000), 0))
    angles = np.rad2deg(np.arctan2(back[:, 1, 0], back[:, 0, 0]))
    assert stats.kstest((angles + 60) / 120, "uniform").pvalue > 0.01


def test_shear_keeps_areas_and_magnification_changes_them_by_its_square():
    draws = Draws(0, 0, range(500), 0)
    shear = sources(dataclasses.replace(NOTHING, shear_deg=40), draws)[:, :, :2]
    np.testing.assert_allclose(np.linalg.det(shear), 1)
    assert np.abs(shear[:, 0, 1]).max() > 0.5
    magnified = sources(dataclasses.replace(NOTHING, magnification=2), draws)[:, :, :2]
    factors = 1 / np.sqrt(np.linalg.det(magnified))
    assert stats.kstest((np.log2(factors) + 1) / 2, "uniform").pvalue > 0.01


def test_nothing_new_is_brought_in_from_outside(crops, change):
    """No black corners, which standardisation of a channel would take for signal."""
    config = dataclasses.replace(ALL_MOVES, interpolation="bilinear", translate=1.0)
    result = change(crops, config).pixels
    for i, n in enumerate(crops.n_channels):
        assert (result[i, :n].amin(dim=(1, 2)) > crops.pixels[i, :n].amin(dim=(1, 2)) - 0.5).all()
        assert (result[i, :n].amax(dim=(1, 2)) < crops.pixels[i, :n].amax(dim=(1, 2)) + 0.5).all()


def test_a_finer_pattern_than_the_result_can_show_becomes_its_mean(change):
    """Read only at the middle of each new pixel, these stripes would all be bright."""
    stripes = torch.tensor([0.0, 100, 100, 0]).repeat(12).expand(4, 1, 48, 48).contiguous()
    crops = CropBatch(stripes, torch.ones(4, 1, dtype=torch.long), (1,) * 4)
    for interpolation in ("bilinear", "bicubic"):
        result = change(crops, dataclasses.replace(NOTHING, size=12, interpolation=interpolation)).pixels
        torch.testing.assert_close(result, torch.full_like(result, 50.0))
