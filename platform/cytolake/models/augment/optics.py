"""Blur by microscope and camera, drawn for each crop.

Shapes: B crops, C channels, S side of a crop in pixels, K side of a kernel.

A blur that mirrors the crop at its border is a multiplication in the crop's cosine transform (DCT-II), for any kernel
that is symmetric in both axes: one pair of matrix products blurs crops by different kernels at once, and the mean of
each channel stays exactly. Source: Martucci 1994, doi:10.1109/78.295213.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cytolake.models.augment.config import AugmentConfig
from cytolake.models.augment.draws import Draw, Draws


def change_optics(pixels_BCSS: Tensor, config: AugmentConfig, draws: Draws) -> Tensor:
    """Blur and defocus together, then resolution; crops that draw none of them are copied."""
    side = pixels_BCSS.shape[-1]
    if config.blur_sigma_px > 0 or config.defocus_radius_px > 0:
        sigma_px = _strengths(draws, Draw.BLUR, config.blur_sigma_px, config.blur_probability)
        radius_px = _strengths(draws, Draw.DEFOCUS, config.defocus_radius_px, config.defocus_probability)
        blurs = (sigma_px > 0) | (radius_px > 0)
        transfer = np.ones((int(blurs.sum()), side, side))
        if config.blur_sigma_px > 0:
            of_axis = transfer_of_blur(sigma_px[blurs], config.blur_sigma_px, side)
            transfer = transfer * (of_axis[:, :, None] * of_axis[:, None, :])
        if config.defocus_radius_px > 0:
            transfer = transfer * transfer_of_defocus(radius_px[blurs], config.defocus_radius_px, side)
        pixels_BCSS = _change(pixels_BCSS, blurs, transfer, _blur)
    if config.resolution > 1:
        factor = np.exp(_strengths(draws, Draw.RESOLUTION, math.log(config.resolution), config.resolution_probability))
        coarse = np.maximum(np.rint(side / factor).astype(int), 1)
        is_coarse = coarse < side
        if is_coarse.any():
            passes = np.stack([_down_and_up(side, int(n)) for n in coarse[is_coarse]])
            pixels_BCSS = _change(pixels_BCSS, is_coarse, passes, _pass_axes)
    return pixels_BCSS


def transfer_of_blur(sigma_px: np.ndarray, most_px: float, side: int) -> np.ndarray:
    """(B, S) what a Gaussian of each sigma leaves of each cosine of one axis; its kernel reaches 4 sigmas of the
    largest, 1 for sigma 0."""
    offset = np.arange(-math.ceil(4 * most_px), math.ceil(4 * most_px) + 1)
    kernel_BK = np.exp(-0.5 * np.square(offset / np.maximum(sigma_px, 1e-3)[:, None]))  # 1e-3 px: one pixel alone
    kernel_BK /= kernel_BK.sum(axis=1, keepdims=True)
    of_axis: np.ndarray = kernel_BK @ _cosines(offset, side)
    return of_axis


def transfer_of_defocus(radius_px: np.ndarray, most_px: float, side: int) -> np.ndarray:
    """(B, S, S) what a disk of each radius leaves of each cosine; pixels on its rim count in part."""
    offset = np.arange(-math.ceil(most_px), math.ceil(most_px) + 1)
    distance_KK = np.hypot(offset[:, None], offset[None, :])
    kernel_BKK = np.clip(radius_px[:, None, None] + 0.5 - distance_KK, 0, 1)
    kernel_BKK /= kernel_BKK.sum(axis=(1, 2), keepdims=True)
    cosines_KS = _cosines(offset, side)
    of_crop: np.ndarray = cosines_KS.T @ kernel_BKK @ cosines_KS
    return of_crop


def _strengths(draws: Draws, what: Draw, most: float, probability: float) -> np.ndarray:
    """(B,) in [0, most), 0 where it does not happen."""
    return np.where(draws.happens(what, 1, probability), draws.uniform(what, 1, 0, most), 0.0)[:, 0]


def _cosines(offset: np.ndarray, side: int) -> np.ndarray:
    """(K, S) cosine of each frequency of the DCT-II at each offset in pixels."""
    cosines: np.ndarray = np.cos(np.pi * offset[:, None] * np.arange(side)[None, :] / side)
    return cosines


def _change(
    pixels: Tensor, is_changed: np.ndarray, operators: np.ndarray, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Apply each operator to its crop, one operator for each True in `is_changed`."""
    there = torch.from_numpy(operators).to(pixels.device, torch.float32)
    if is_changed.all():
        return change(pixels, there)
    if not is_changed.any():
        return pixels
    chosen = torch.from_numpy(np.flatnonzero(is_changed)).to(pixels.device)
    changed = pixels.clone()
    changed[chosen] = change(pixels[chosen], there)
    return changed


def _blur(pixels_BCSS: Tensor, transfer_BSS: Tensor) -> Tensor:
    # Without the mean, so that a camera's pedestal costs no precision where float32 products are rounded (TF32).
    mean = pixels_BCSS.mean(dim=(-2, -1), keepdim=True)
    dct = _dct(pixels_BCSS.shape[-1]).to(pixels_BCSS.device)
    waves = dct @ (pixels_BCSS - mean) @ dct.T
    return (dct.T @ waves.mul_(transfer_BSS[:, None]) @ dct).add_(mean)


def _pass_axes(pixels_BCSS: Tensor, passes_BSS: Tensor) -> Tensor:
    mean = pixels_BCSS.mean(dim=(-2, -1), keepdim=True)  # as in `_blur`
    return (passes_BSS[:, None] @ (pixels_BCSS - mean) @ passes_BSS[:, None].mT).add_(mean)


@functools.lru_cache(maxsize=16)
def _dct(side: int) -> Tensor:
    """(S, S) orthonormal DCT-II, a cosine in each row."""
    place = np.arange(side) + 0.5
    rows = np.cos(np.pi * np.arange(side)[:, None] * place[None, :] / side) * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return torch.from_numpy(rows).float()


@functools.lru_cache(maxsize=1024)
def _down_and_up(side: int, coarse: int) -> np.ndarray:
    """(S, S) matrix that averages S pixels down to `coarse` ones by their overlap, and interpolates them back."""
    edges = np.arange(coarse + 1) * side / coarse
    pixel = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    down = np.clip(overlap, 0, None) * coarse / side
    place = np.clip((pixel + 0.5) * coarse / side - 0.5, 0, coarse - 1)  # in coarse pixels; constant beyond the last
    up = np.clip(1 - np.abs(place[:, None] - np.arange(coarse)[None, :]), 0, None)
    matrix: np.ndarray = up @ down
    return matrix
