"""Apply all augmentations in their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from cytolake.models.augment.channels import change_channels
from cytolake.models.augment.config import AugmentConfig
from cytolake.models.augment.draws import Draws
from cytolake.models.augment.erasing import erase
from cytolake.models.augment.geometry import move, turn
from cytolake.models.augment.intensity import change_intensity
from cytolake.models.augment.optics import change_optics
from cytolake.models.crops import CropBatch


@torch.no_grad()
def augment(
    crops: CropBatch,
    config: AugmentConfig,
    *,
    seed: int,
    epochs: int | np.ndarray,
    sample_index: Sequence[int] | np.ndarray,
    view: int = 0,
    crop_scale: tuple[float, float] | None = None,
    size: int | None = None,
) -> CropBatch:
    """One view of each crop, changed in the order in which imaging changes it from the plate to the file.

    The order is that of light: the sample moves (flips, quarter turns, then one resampling for all other geometry); the
    optics blur it and the camera samples it (blur, defocus, resolution); stains and detector change intensities
    (bleed-through, gamma, contrast, offset, gain); the detector adds noise. Then boxes are erased, and channels are
    dropped, lose their identity and change places.

    What a crop becomes is a function of (seed, its epoch, its global sample index, view, config) alone: neither the
    number of workers nor the rest of the minibatch changes it, and a knob does not change the draws of another.

    Args:
        crops: Raw intensities of any scale, on any device. Left as they are.
        config: Which knobs are on. A knob that is off costs nothing.
        epochs: A crop changes otherwise in each epoch; one number, or (B,).
        sample_index: (B,) global sample indices.
        view: 0 or more; another view of the same crops is drawn independently.
        crop_scale: Instead of `config.crop_scale`, for the local views of DINO.
        size: Instead of `config.size`.

    Returns:
        A new minibatch; it has fewer channels where some were dropped, and padded channels stay 0. It may share memory
        with `crops` where nothing changed.

    Raises:
        ValueError: The numbers of crops, indices and epochs differ, or `crop_scale`, `size` or `view` is impossible.
    """
    if crop_scale is not None:
        config = dataclasses.replace(config, crop_scale=crop_scale)
    if size is not None:
        config = dataclasses.replace(config, size=size)
    if len(sample_index) != len(crops) or np.size(epochs) not in (1, len(crops)):
        raise ValueError(
            f"{len(sample_index)} sample indices and {np.size(epochs)} epochs for {len(crops)} crops: expected one "
            "sample index for each crop, and one epoch for each or one for all."
        )
    if view < 0:
        raise ValueError(f"view {view}: expected 0 for the first view of a crop, 1 for the second, and so on.")
    draws = Draws(seed, epochs, sample_index, view)
    pixels = crops.pixels
    if config.flip_rotate:
        pixels = turn(pixels, draws.turns())
    pixels = move(pixels, config, draws)
    pixels = change_optics(pixels, config, draws)
    pixels = change_intensity(pixels, np.asarray(crops.n_channels), config, draws)
    pixels = erase(pixels, config, draws)
    return change_channels(dataclasses.replace(crops, pixels=pixels), config, draws)
