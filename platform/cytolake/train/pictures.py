"""Pictures of reconstructions during the training of a masked autoencoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cytolake.models import masking_noise
from cytolake.models.objectives import MaskedAutoencoder, Objective, View
from cytolake.packs.crop_batches import crop_batch
from cytolake.packs.pack import Pack
from cytolake.screens.images.compositing import grey_levels, stretch
from cytolake.train.config import PretrainConfig
from cytolake.train.run_folder import PICTURES_FOLDER, RECONSTRUCTIONS_FILE, write_arrays

N_PICTURES = 4
"""Crops whose reconstruction is kept."""
_GAP_PX = 2
_DARKEST, _BRIGHTEST = -1.0, 4.0  # in standard deviations of the channel: background to bright stain


def draw_pictures(
    objective: Objective, pack: Pack, config: PretrainConfig, run_folder: Path, step: int, epoch: int, writes: bool
) -> None:
    """Write reconstructions of a few crops from all over the pack, the same every time, with the same masks.

    `reconstructions.npz` has the newest ones: original, masked and reconstructed, (crops, C, S, S) each, 0 beyond a
    crop's channels, and how many channels each has; `pictures/` a PNG of every time. Does nothing for an objective that
    reconstructs nothing. All workers must call it; those with `writes` write.
    """
    if not isinstance(objective, MaskedAutoencoder):
        return
    rows = np.unique(np.linspace(0, pack.n_crops - 1, N_PICTURES).astype(int))
    names = [tuple(pack.channels(int(row))) for row in rows]
    crops = crop_batch(pack, rows, config.model)
    device = next(objective.parameters()).device
    noise = masking_noise(config.seed, 0, rows, config.model.n_tokens(crops.pixels.shape[1]))
    was_training = objective.training
    objective.eval()
    with torch.random.fork_rng(devices=[]):
        pictures = objective.reconstruct(View(crops.to(device), noise.to(device)))
    objective.train(was_training)
    if not writes:
        return
    original, masked, reconstructed = (
        each.float().cpu().numpy() for each in (pictures.original, pictures.masked, pictures.reconstructed)
    )
    n_channels = np.array([len(each) for each in names])
    write_arrays(
        run_folder / RECONSTRUCTIONS_FILE,
        original=original,
        masked=masked,
        reconstruction=reconstructed,
        n_channels=n_channels,
    )
    folder = run_folder / PICTURES_FOLDER
    folder.mkdir(exist_ok=True)
    sheet = picture_sheet((original, masked, reconstructed), n_channels)
    Image.fromarray(sheet).save(folder / f"step_{step:08d}_epoch_{epoch:04d}.png")


def picture_sheet(columns: tuple[np.ndarray, ...], n_channels: np.ndarray) -> np.ndarray:
    """One grey picture, uint8: a band for each crop, in it a row for each of `columns` and a place for each channel.

    Args:
        columns: (crops, C, S, S) each, standardised intensities.
        n_channels: (crops,) channels that are real.
    """
    size = columns[0].shape[-1]
    widest = int(n_channels.max())
    bands = []
    for crop, n in enumerate(n_channels):
        band = np.full((len(columns) * (size + _GAP_PX) + _GAP_PX, widest * (size + _GAP_PX)), 255, np.uint8)
        for i, column in enumerate(columns):
            for channel in range(n):
                brightness = stretch(column[crop, channel], _DARKEST, _BRIGHTEST)
                y, x = i * (size + _GAP_PX), channel * (size + _GAP_PX)
                band[y : y + size, x : x + size] = grey_levels(brightness)
        bands.append(band)
    return np.concatenate(bands)
