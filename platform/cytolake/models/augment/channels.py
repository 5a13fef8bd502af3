"""Drop channels, forget their stains and shuffle them.

Shapes: B crops, C channels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cytolake.models.augment.config import AugmentConfig
from cytolake.models.augment.draws import Draw, Draws
from cytolake.models.crops import CropBatch


def change_channels(crops: CropBatch, config: AugmentConfig, draws: Draws) -> CropBatch:
    """Drop channels, forget identities and change places, in this order; padding stays behind the channels."""
    if config.channel_drop == config.identity_drop == config.channel_shuffle == 0:
        return crops
    n = crops.pixels.shape[1]
    n_channels = np.asarray(crops.n_channels)
    is_channel = np.arange(n)[None, :] < n_channels[:, None]
    if config.identity_drop > 0:
        is_unknown = torch.from_numpy(draws.uniform(Draw.IDENTITY_DROP, n) < config.identity_drop)
        crops = replace(crops, channel_index=crops.channel_index.masked_fill(is_unknown, 0))
    is_kept = is_channel
    if config.channel_drop > 0:
        is_kept = kept_channels(draws.uniform(Draw.CHANNEL_DROP, n), is_channel, config.channel_drop)
        if config.channel_drop_mode == "blank":
            shown = torch.from_numpy(is_kept).to(crops.pixels.device)[:, :, None, None]
            # Not a product: 0 times a negative intensity would be -0.
            blank = torch.where(shown, crops.pixels, torch.zeros_like(crops.pixels[:1, :1]))
            crops, is_kept = replace(crops, pixels=blank), is_channel
    place = np.tile(np.arange(float(n)), (len(crops), 1))
    if config.channel_shuffle > 0:
        is_shuffled = draws.happens(Draw.CHANNEL_SHUFFLE, 1, config.channel_shuffle)
        place = np.where(is_shuffled, draws.uniform(Draw.CHANNEL_ORDER, n), place)
    order = np.where(is_kept, place, np.inf).argsort(axis=1, kind="stable")
    return _reorder(crops, order, is_kept.sum(axis=1))


def kept_channels(draws_BC: np.ndarray, is_channel_BC: np.ndarray, probability: float) -> np.ndarray:
    """(B, C) True for the channels of each crop whose draw is not below the probability, or the one nearest to it."""
    draws_BC = np.where(is_channel_BC, draws_BC, -1.0)
    is_best = np.arange(draws_BC.shape[1])[None, :] == draws_BC.argmax(axis=1)[:, None]
    kept: np.ndarray = is_channel_BC & ((draws_BC >= probability) | is_best)
    return kept


def _reorder(crops: CropBatch, order_BC: np.ndarray, n_channels: np.ndarray) -> CropBatch:
    """Each crop's channels in the given order, the first `n_channels` of them; the rest becomes padding, or goes."""
    if tuple(n_channels.tolist()) == crops.n_channels and (order_BC == np.arange(order_BC.shape[1])).all():
        return crops
    most = int(n_channels.max())
    order = torch.from_numpy(order_BC[:, :most])
    device = crops.pixels.device
    is_padding = torch.from_numpy(np.arange(most)[None, :] >= n_channels[:, None])
    crop = torch.arange(len(crops), device=device)[:, None]
    pixels = crops.pixels[crop, order.to(device)]
    pixels.masked_fill_(is_padding.to(device)[:, :, None, None], 0)
    channel_index = crops.channel_index.take_along_dim(order, dim=1).masked_fill(is_padding, 0)
    return replace(crops, pixels=pixels, channel_index=channel_index, n_channels=tuple(n_channels.tolist()))
