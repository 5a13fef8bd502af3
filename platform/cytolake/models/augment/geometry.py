"""Geometric augmentations: exact flips and quarter turns, and one resampling for all others.

Shapes: B crops, C channels, S side of a crop in pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cytolake.models.augment.config import AugmentConfig
from cytolake.models.augment.draws import Draw, Draws


def turn(pixels_BCSS: Tensor, choices: np.ndarray) -> Tensor:
    """Turn by `choice % 4` quarter turns, counter-clockwise, and then mirror left to right where `choice >= 4`."""
    turned = torch.empty_like(pixels_BCSS)
    for choice in np.unique(choices):
        chosen = torch.from_numpy(np.flatnonzero(choices == choice)).to(pixels_BCSS.device)
        some = torch.rot90(pixels_BCSS[chosen], int(choice) % 4, (-2, -1))
        turned[chosen] = some.flip(-1) if choice >= 4 else some
    return turned


def move(pixels_BCSS: Tensor, config: AugmentConfig, draws: Draws) -> Tensor:
    """Shear, magnify, rotate, shift and crop, in this order, by one interpolation; crops that stay put are copied."""
    side = pixels_BCSS.shape[-1]
    size = side if config.size is None else config.size
    matrices = sources(config, draws)
    moves = np.ones(len(matrices), dtype=bool)
    if size == side:
        moves = (matrices != np.eye(2, 3)).any(axis=(1, 2))
    if not moves.any():
        return pixels_BCSS
    # Where the result is coarser than its source, finer samples are averaged: no aliasing. A function of the config,
    # not of the draws, so that crops do not depend on each other.
    finer = max(1, round(side * math.sqrt(config.crop_scale[1]) * config.magnification / size))
    if moves.all():
        return resample(pixels_BCSS, matrices, size, config.interpolation, finer)
    chosen = torch.from_numpy(np.flatnonzero(moves)).to(pixels_BCSS.device)
    moved = pixels_BCSS.clone()
    moved[chosen] = resample(pixels_BCSS[chosen], matrices[moves], size, config.interpolation, finer)
    return moved


def sources(config: AugmentConfig, draws: Draws) -> np.ndarray:
    """(B, 2, 3) affine maps from places (x, y, 1) in the result to those in the source, both in [-1, 1], y downwards.

    Exactly the identity for a crop where nothing is drawn.
    """
    n = len(draws)
    linear = np.tile(np.eye(2), (n, 1, 1))
    if config.shear_deg > 0:
        slope = np.tan(np.deg2rad(draws.uniform(Draw.SHEAR, 2, -config.shear_deg, config.shear_deg)))
        along_x, along_y = np.tile(np.eye(2), (n, 1, 1)), np.tile(np.eye(2), (n, 1, 1))
        along_x[:, 0, 1], along_y[:, 1, 0] = slope.T
        linear = along_x @ along_y
    if config.magnification > 1:
        linear = linear * draws.factor(Draw.MAGNIFICATION, 1, config.magnification)[:, :, None]
    if config.rotation_deg > 0:
        angle = draws.uniform(Draw.ROTATION, 1, -config.rotation_deg, config.rotation_deg)[:, 0]
        angle = np.where(draws.happens(Draw.ROTATION, 1, config.rotation_probability)[:, 0], angle, 0.0)
        linear = rotations(angle) @ linear
    back = np.linalg.inv(linear)  # exact for the identity
    window = np.ones((n, 1))
    centre = np.zeros((n, 2))
    if config.translate > 0:
        centre = centre - 2 * draws.uniform(Draw.TRANSLATE, 2, -config.translate, config.translate)
    if config.crop_scale != (1.0, 1.0):
        window = np.sqrt(draws.uniform(Draw.CROP_SCALE, 1, *config.crop_scale))
        centre = centre + (1 - window) * draws.uniform(Draw.CROP_PLACE, 2, -1, 1)
    return np.concatenate([back * window[:, :, None], back @ centre[:, :, None]], axis=2)


def rotations(angles_deg: np.ndarray) -> np.ndarray:
    """(B, 2, 2) matrices that turn (x, y), y downwards, counter-clockwise as seen."""
    radians = np.deg2rad(angles_deg)
    cos, sin = np.cos(radians), np.sin(radians)
    return np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)], axis=-2)


def resample(pixels_BCSS: Tensor, sources_B23: np.ndarray, size: int, interpolation: str, finer: int = 1) -> Tensor:
    """(B, C, size, size) float32: each pixel is read at its source, mirrored at the border.

    `finer` > 1 averages finer x finer samples for each pixel.
    """
    theta = torch.from_numpy(sources_B23).to(pixels_BCSS.device, torch.float32)
    grid = functional.affine_grid(theta, [len(theta), 1, finer * size, finer * size], align_corners=False)
    read = functional.grid_sample(pixels_BCSS, grid, mode=interpolation, padding_mode="reflection", align_corners=False)
    return functional.avg_pool2d(read, finer) if finer > 1 else read
