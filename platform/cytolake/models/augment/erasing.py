"""Erase boxes of a crop.

Shapes: B crops, C channels, S side of a crop in pixels, G sets of boxes of a crop (1, or C), N boxes of a set.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cytolake.models.augment.config import AugmentConfig
from cytolake.models.augment.draws import Draw, Draws


def erase(pixels_BCSS: Tensor, config: AugmentConfig, draws: Draws) -> Tensor:
    """Set the crop's boxes to the mean of each channel."""
    if config.erasing == 0:
        return pixels_BCSS
    n_sets = pixels_BCSS.shape[1] if config.erasing_per_channel else 1
    is_erased = torch.from_numpy(boxes(pixels_BCSS.shape[-1], n_sets, config, draws)).to(pixels_BCSS.device)
    return torch.where(is_erased, pixels_BCSS.mean(dim=(-2, -1), keepdim=True), pixels_BCSS)


def boxes(side: int, n_sets: int, config: AugmentConfig, draws: Draws) -> np.ndarray:
    """(B, G, S, S) True inside of the crop's boxes, each of which lies wholly in the crop."""
    n = config.erasing_boxes
    share_BG = draws.uniform(Draw.ERASING, n_sets, 0, config.erasing)
    share_BG = share_BG * draws.happens(Draw.ERASING, n_sets, config.erasing_probability)
    area_BGN = np.broadcast_to(share_BG[:, :, None] * side**2 / n, (len(draws), n_sets, n))
    aspect_BGN = draws.factor(Draw.ERASING_ASPECT, n_sets * n, math.sqrt(2.0)).reshape(area_BGN.shape)
    root_BGN = np.sqrt(area_BGN)
    longest = side / np.maximum(root_BGN, 1e-9)
    aspect_BGN = np.clip(aspect_BGN, 1 / longest, longest)  # a large box is nearer to a square, so that it fits
    height_BGN, width_BGN = root_BGN * aspect_BGN, root_BGN / aspect_BGN
    place_BGN2 = draws.uniform(Draw.ERASING_PLACE, 2 * n_sets * n).reshape(*area_BGN.shape, 2)
    rows = _covered(height_BGN, place_BGN2[..., 0], side)
    columns = _covered(width_BGN, place_BGN2[..., 1], side)
    inside: np.ndarray = (rows[..., :, None] & columns[..., None, :]).any(axis=2)
    return inside


def _covered(length_BGN: np.ndarray, place_BGN: np.ndarray, side: int) -> np.ndarray:
    """(B, G, N, S) True for the pixels of one axis that an interval of so many pixels, rounded, covers."""
    length = np.rint(length_BGN).astype(int)[..., None]
    start = np.floor(place_BGN[..., None] * (side - length + 1)).astype(int)
    pixel = np.arange(side)
    covered: np.ndarray = (pixel >= start) & (pixel < start + length)
    return covered
