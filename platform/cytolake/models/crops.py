"""Crops as a model takes them: raw counts in, padded to one channel count until they become tokens, standardised.

Shapes: B crops, C channels, S side of a crop in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CropBatch:
    """A minibatch of crops with any channel counts. Made by `collate`."""

    pixels: Tensor
    """(B, C, S, S) float32, raw intensities of any scale; 0 in padded channels."""
    channel_index: Tensor
    """(B, C) long, the stain's identity in the model's channels; 0 = unknown or padding. Stays on the CPU, where
    a model checks it without waiting for a GPU."""
    n_channels: tuple[int, ...]
    """(B,) how many channels of each crop are no padding: the first ones."""

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> CropBatch:
        """The same minibatch with its pixels on another device."""
        return CropBatch(
            self.pixels.to(device, non_blocking=non_blocking),
            self.channel_index,
            self.n_channels,
        )

    def pin_memory(self) -> CropBatch:
        """The same minibatch in page-locked memory, from where a GPU copies without blocking."""
        return CropBatch(self.pixels.pin_memory(), self.channel_index, self.n_channels)


def collate(images: Sequence[np.ndarray], channel_indices: Sequence[Sequence[int]]) -> CropBatch:
    """Stack crops of any channel counts into one padded minibatch.

    Args:
        images: One (C_i, S, S) array for each crop, any numeric dtype, raw intensities; S is the same for all.
        channel_indices: C_i identities for each crop, see `ModelConfig.channel_indices`.

    Raises:
        ValueError: No crops, a crop that is not (C, S, S), sizes that differ, a wrong number of identities, or
            intensities that are not finite.
    """
    if not images or len(images) != len(channel_indices):
        raise ValueError(
            f"{len(images)} crops and {len(channel_indices)} lists of channel identities: expected one list for each "
            "crop, and at least one crop."
        )
    size = images[0].shape[-1]
    n_channels = [image.shape[0] if image.ndim == 3 else 0 for image in images]
    for i, (image, indices) in enumerate(zip(images, channel_indices, strict=True)):
        if image.ndim != 3 or image.shape[0] == 0 or image.shape[1:] != (size, size):
            raise ValueError(
                f"crop {i} of the minibatch has shape {image.shape}: expected (channels, {size}, {size}). "
                "Put crops of one size, in pixels, into one minibatch."
            )
        if len(indices) != image.shape[0]:
            raise ValueError(
                f"crop {i} of the minibatch has {image.shape[0]} channels and {len(indices)} channel identities: "
                "name every channel once."
            )
    pixels = torch.zeros(len(images), max(n_channels), size, size)
    channel_index = torch.zeros(len(images), max(n_channels), dtype=torch.long)
    pixels_np = pixels.numpy()  # shares memory; numpy casts uint16, which torch barely supports
    for i, (image, indices) in enumerate(zip(images, channel_indices, strict=True)):
        pixels_np[i, : len(image)] = image
        channel_index[i, : len(image)] = torch.as_tensor(tuple(indices), dtype=torch.long)
    finite = np.isfinite(pixels_np).all(axis=(2, 3))
    if not finite.all():
        crop, channel = np.argwhere(~finite)[0]
        raise ValueError(
            f"crop {crop} of the minibatch, channel {channel}: intensities that are not finite (NaN or infinite). "
            "Expected finite counts; exclude the site in catalog/curation/ or mend its file."
        )
    return CropBatch(pixels, channel_index, tuple(n_channels))


def standardise(pixels: Tensor) -> Tensor:
    """Give each channel of each crop mean 0 and standard deviation 1, whatever its unit; a constant channel becomes 0.

    No data-set statistics: adding a background or changing the gain of a channel changes nothing.

    Args:
        pixels: (..., S, S) finite intensities.

    Returns:
        (..., S, S) float32, unitless.
    """
    pixels = pixels.float()
    low = pixels.amin(dim=(-2, -1), keepdim=True)
    span = pixels.amax(dim=(-2, -1), keepdim=True) - low
    is_constant = span == 0  # exact, so that a channel of one count of contrast is not taken for a constant one
    unit = (pixels - low) / torch.where(is_constant, torch.ones_like(span), span)
    unit = unit - unit.mean(dim=(-2, -1), keepdim=True)
    sd = unit.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    return unit / torch.where(is_constant, torch.ones_like(sd), sd)
