"""Foreground of a channel: pixels above the background, or different from it in transmitted light.

Shapes: H by W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cytolake.qc.image_statistics import noise_sd, tile_means
from cytolake.qc.transmitted_light import transmitted_foreground

Image = NDArray[np.float32]

GRID = 16  # coarse cells along each side; 34 px on a 540 px site, wider than most nuclei at 20x
NOISE_SDS = 4.0  # 3e-5 of the pixels of an empty, white-noise image pass
FLAT_CONTRAST = 0.5  # p99 - p01 over the median: 0.1 in real brightfield, above 1.5 in every stained channel examined
CONTRAST_SHARE = 0.1  # of p99 above background: keeps an uneven background from counting as cells


class Foreground(NamedTuple):
    """Foreground of one channel in 0..1."""

    mask: NDArray[np.bool_]
    """(H, W)"""
    background: float
    noise_sd: float
    difference: Image | None
    """(H, W), absolute difference from the background of transmitted light; None for fluorescence."""


def find_foreground(scaled: Image, pedestal: float, percentiles: NDArray[np.float64], is_bright: bool) -> Foreground:
    """Foreground mask, background level and noise sd of one channel in 0..1.

    Background is the 5th percentile of the cells of a coarse grid, valid while one cell in twenty is empty. If the
    range is small compared with the level below it (an empty field), foreground is texture above noise.

    Args:
        scaled: (H, W)
        pedestal: Lowest count over the range of counts.
        percentiles: (3,), 1st, 50th and 99th percentile of the scaled channel.
        is_bright: True for transmitted light.
    """
    p01, p50, p99 = percentiles.tolist()
    coarse = tile_means(scaled, GRID)
    background = float(np.percentile(coarse, 5))
    noise = noise_sd(scaled, is_sparse=True)
    smooth = ndimage.uniform_filter(scaled, 3, mode="nearest")
    floor = max(NOISE_SDS * noise / 3, CONTRAST_SHARE * (p99 - p01))  # 3: nine pixels averaged
    if is_bright:
        mask, difference = transmitted_foreground(smooth, coarse, floor)
        return Foreground(mask, background, noise, difference)
    if p99 - p01 < FLAT_CONTRAST * (p50 + pedestal):
        spread = ndimage.uniform_filter(smooth**2, 9, mode="nearest")
        spread -= ndimage.uniform_filter(smooth, 9, mode="nearest") ** 2
        return Foreground(spread > floor**2, background, noise, None)
    threshold = max(NOISE_SDS * noise / 3, CONTRAST_SHARE * (p99 - background))
    return Foreground(smooth > background + max(threshold, 1e-6), background, noise, None)


def window_shares(mask: NDArray[np.bool_], windows: Sequence[tuple[int, int, int]]) -> list[float]:
    """Share of each window (y, x, size) that the mask covers, 0 to 1."""
    summed = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    summed[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    return [(summed[y + s, x + s] - summed[y, x + s] - summed[y + s, x] + summed[y, x]) / s**2 for y, x, s in windows]
