"""Intensity augmentations of stain, light and detector, drawn for each channel.

Shapes: B crops, C channels, S side of a crop in pixels.

A padded channel is constant 0 and stays so: its sd, its range and what lies above its mean are 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cytolake.models.augment.config import AugmentConfig
from cytolake.models.augment.draws import Draw, Draws


def change_intensity(pixels_BCSS: Tensor, n_channels: np.ndarray, config: AugmentConfig, draws: Draws) -> Tensor:
    """Bleed-through, gamma, contrast, offset, gain and noise, in this order."""
    n = pixels_BCSS.shape[1]
    per_crop = 1 if config.shared_intensity else n
    device = pixels_BCSS.device
    if config.bleed_through > 0:
        share = draws.uniform(Draw.BLEED_THROUGH, n, 0, config.bleed_through)
        share *= draws.happens(Draw.BLEED_THROUGH, n, config.bleed_through_probability)
        others = np.maximum(n_channels - 1, 1)[:, None]
        step = 1 + np.floor(draws.uniform(Draw.BLEED_THROUGH_SOURCE, n) * others).astype(int)
        place = np.arange(n)[None, :]
        is_alone = (place >= n_channels[:, None]) | (n_channels[:, None] == 1)
        source = np.where(is_alone, place, (place + step) % n_channels[:, None])
        share = np.where(is_alone, 0.0, share)
        pixels_BCSS = bleed_through(pixels_BCSS, torch.from_numpy(source).to(device), _there(share, device))
    if config.gamma > 1:
        power = draws.factor(Draw.GAMMA, per_crop, config.gamma)
        power = np.where(draws.happens(Draw.GAMMA, per_crop, config.gamma_probability), power, 1.0)
        pixels_BCSS = change_gamma(pixels_BCSS, _there(power, device))
    if config.contrast > 1:
        factor = draws.factor(Draw.CONTRAST, per_crop, config.contrast)
        factor = np.where(draws.happens(Draw.CONTRAST, per_crop, config.contrast_probability), factor, 1.0)
        pixels_BCSS = change_contrast(pixels_BCSS, _there(factor, device))
    if config.offset > 0:
        offset = draws.uniform(Draw.OFFSET, per_crop, -config.offset, config.offset)
        offset *= draws.happens(Draw.OFFSET, per_crop, config.offset_probability)
        pixels_BCSS = pixels_BCSS + _there(offset, device) * _sd(pixels_BCSS)
    if config.gain > 1:
        factor = draws.factor(Draw.GAIN, per_crop, config.gain)
        factor = np.where(draws.happens(Draw.GAIN, per_crop, config.gain_probability), factor, 1.0)
        pixels_BCSS = pixels_BCSS * _there(factor, device)
    if config.noise > 0:
        sd = draws.uniform(Draw.NOISE, n, 0, config.noise)
        sd *= draws.happens(Draw.NOISE, n, config.noise_probability)
        # Channel after channel: a crop's pixels keep their noise however many padded channels follow.
        noise = draws.normal(Draw.NOISE_PIXELS, pixels_BCSS[0].numel()).reshape(pixels_BCSS.shape)
        amplitude = _there(sd, device) * _sd(pixels_BCSS)
        pixels_BCSS = torch.addcmul(pixels_BCSS, torch.from_numpy(noise).to(device), amplitude)
    return pixels_BCSS


def bleed_through(pixels_BCSS: Tensor, source_BC: Tensor, share_BC11: Tensor) -> Tensor:
    """Add to each channel its share of the source channel, which is centred and scaled to the sd of the receiver."""
    centred, sd = pixels_BCSS - pixels_BCSS.mean(dim=(-2, -1), keepdim=True), _sd(pixels_BCSS)
    crop = torch.arange(len(pixels_BCSS), device=pixels_BCSS.device)[:, None]
    sd_source = sd[crop, source_BC]
    amplitude = share_BC11 * sd / torch.where(sd_source > 0, sd_source, torch.ones_like(sd))
    return torch.addcmul(pixels_BCSS, amplitude, centred[crop, source_BC])


def change_gamma(pixels_BCSS: Tensor, power_BC11: Tensor) -> Tensor:
    """Raise intensities, scaled to [0, 1] by the channel's own range, to a power; 1 changes no bit."""
    low = pixels_BCSS.amin(dim=(-2, -1), keepdim=True)
    span = pixels_BCSS.amax(dim=(-2, -1), keepdim=True) - low
    unit = (pixels_BCSS - low) / torch.where(span > 0, span, torch.ones_like(span))
    return torch.where(power_BC11 == 1, pixels_BCSS, low + span * unit.pow(power_BC11))


def change_contrast(pixels_BCSS: Tensor, factor_BC11: Tensor) -> Tensor:
    """Multiply what lies above each channel's mean; 1 changes no bit."""
    excess = (pixels_BCSS - pixels_BCSS.mean(dim=(-2, -1), keepdim=True)).clamp_(min=0)
    return torch.addcmul(pixels_BCSS, excess, factor_BC11 - 1)


def _sd(pixels_BCSS: Tensor) -> Tensor:
    """(B, C, 1, 1) population sd of each channel of each crop."""
    centred = pixels_BCSS - pixels_BCSS.mean(dim=(-2, -1), keepdim=True)
    # A fifth of the time of torch.std over two axes on a CPU.
    norm: Tensor = torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True)
    return norm / centred.shape[-1]


def _there(values_BC: np.ndarray, device: torch.device) -> Tensor:
    """(B, C, 1, 1) float32 on the device."""
    return torch.from_numpy(values_BC).to(device, torch.float32)[:, :, None, None]
