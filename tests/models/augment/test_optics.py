"""Blurs against scipy's filters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch.nn import functional

from cytolake.models.augment import NOTHING
from cytolake.models.augment.draws import Draw, Draws

BLUR = dataclasses.replace(NOTHING, blur_sigma_px=2.0)
DEFOCUS = dataclasses.replace(NOTHING, defocus_radius_px=4.0)


def drawn(what: Draw, most: float) -> np.ndarray:
    return Draws(0, 0, np.arange(100, 110), 0).uniform(what, 1, 0, most)[:, 0]


def test_blur_is_scipys_gaussian_filter(crops, change):
    result = change(crops, BLUR).pixels
    for i, sigma in enumerate(drawn(Draw.BLUR, 2.0)):
        image = crops.pixels[i, 0].double().numpy()
        expected = ndimage.gaussian_filter(image, sigma, mode="reflect", radius=8)
        np.testing.assert_allclose(result[i, 0], expected, atol=0.1)


def test_defocus_is_scipys_convolution_with_a_disk(crops, change):
    result = change(crops, DEFOCUS).pixels
    for i, radius in enumerate(drawn(Draw.DEFOCUS, 4.0)):
        disk = np.zeros((9, 9))
        for row in range(9):
            for column in range(9):
                disk[row, column] = min(1, max(0, radius + 0.5 - np.hypot(row - 4, column - 4)))
        expected = ndimage.convolve(crops.pixels[i, 0].double().numpy(), disk / disk.sum(), mode="reflect")
        np.testing.assert_allclose(result[i, 0], expected, atol=0.1)


def test_resolution_is_averaging_and_interpolating_back(many, change):
    crops = many(400, side=24)
    result = change(crops, dataclasses.replace(NOTHING, resolution=6.0)).pixels
    factors = np.exp(Draws(0, 0, np.arange(100, 500), 0).uniform(Draw.RESOLUTION, 1, 0, np.log(6)))[:, 0]
    coarse = np.rint(24 / factors).astype(int)
    for n in (4, 6, 8, 12, 24):  # where torch's averaging has no pixels in part
        small = functional.avg_pool2d(crops.pixels[:1], 24 // n)
        expected = functional.interpolate(small, size=24, mode="bilinear", align_corners=False)[0]
        for i in np.flatnonzero(coarse == n)[:3]:
            torch.testing.assert_close(result[i], expected, rtol=1e-4, atol=1e-2)
    assert {4, 6, 8, 12, 24} <= set(coarse.tolist())


@pytest.mark.parametrize("config", [BLUR, DEFOCUS])
def test_blurs_keep_the_mean_and_lower_the_detail(crops, change, config):
    result = change(crops, config).pixels
    torch.testing.assert_close(result.mean(dim=(2, 3)), crops.pixels.mean(dim=(2, 3)), rtol=1e-6, atol=1e-2)
    for before, after, n in zip(crops.pixels, result, crops.n_channels, strict=True):
        for channel in range(n):
            # A disk of half a pixel changes nothing.
            detail = [ndimage.laplace(image[channel].double().numpy()).var() for image in (before, after)]
            assert detail[1] <= detail[0] * (1 + 1e-6)
    strongest = change(crops, config, epochs=3).pixels
    assert strongest.std(dim=(2, 3))[:, 0].mean() < 0.8 * crops.pixels.std(dim=(2, 3))[:, 0].mean()


def test_a_dim_structure_on_a_bright_pedestal_keeps_its_detail(many, change):
    crops = many(4)
    raised = dataclasses.replace(crops, pixels=crops.pixels / 500 + 60000)
    expected = change(dataclasses.replace(crops, pixels=raised.pixels - 60000), DEFOCUS).pixels
    torch.testing.assert_close(change(raised, DEFOCUS).pixels - 60000, expected, rtol=0, atol=0.01)


def test_strengths_are_even_in_their_range():
    sigma = Draws(0, 0, range(2000), 0).uniform(Draw.BLUR, 1, 0, 2.0)[:, 0]
    assert stats.kstest(sigma / 2, "uniform").pvalue > 0.01
