"""Minibatches of crops: raw counts, padded to one number of channels, and their scaling.

How an encoder scales counts is part of its config (`ModelConfig.input_scaling`, `noise_floor`), so its callers pass the
source's counts and the range of its pixel type, and scale nothing. See decisions/0012.

Shapes: B crops, C channels, S side of a crop in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cytolake.models.config import InputScaling
from cytolake.models.runs import to_device

REFERENCE_NOISE_FLOOR = 255 * 1e-5**0.5
"""Counts, 0.8: the `ModelConfig.noise_floor` of Kraus et al. 2024, whose encoders pass 8-bit counts / 255 through an
instance norm with an epsilon of 1e-5."""


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
    full_scale: tuple[float, ...] = ()
    """(B,) the largest intensity that each crop's source can hold: 255 and 65,535 where it has 8 and 16 bits, 1 where
    it has fractions; NaN, or nothing at all, where that is not known."""

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> CropBatch:
        """The same minibatch with its pixels on another device."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> CropBatch:
        """The same minibatch in page-locked memory, from where a GPU copies without blocking."""
        return replace(self, pixels=self.pixels.pin_memory())


def collate(
    images: Sequence[np.ndarray], channel_indices: Sequence[Sequence[int]], full_scale: Sequence[float] | None = None
) -> CropBatch:
    """Stack crops of any channel counts into one padded minibatch.

    Args:
        images: One (C_i, S, S) array for each crop, any numeric dtype, raw intensities; S is the same for all.
        channel_indices: C_i identities for each crop, see `ModelConfig.channel_indices`.
        full_scale: As in `CropBatch`, where the arrays have another type than their source. None, and NaN of a crop,
            take it from their type: 1 for fractions that all lie in [0, 1], not known for other fractions; and None the
            largest integer of a type of integers.

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
            "Expected finite counts; exclude the site in catalog/curation/ or repair its file."
        )
    if full_scale is None:
        ranges = [range_of(image) for image in images]
    else:  # integers may be a pack's, in a wider type than their source's
        ranges = [
            range_of(image) if math.isnan(each) and image.dtype.kind == "f" else each
            for image, each in zip(images, full_scale, strict=True)
        ]
    return CropBatch(pixels, channel_index, tuple(n_channels), tuple(ranges))


def range_of(image: np.ndarray) -> float:
    """The full scale of an array's type, see `CropBatch`; NaN where its type does not say."""
    if image.dtype.kind == "b":
        return 1.0
    if image.dtype.kind in "iu":
        return float(np.iinfo(image.dtype).max)
    return 1.0 if image.min() >= 0 and image.max() <= 1 else math.nan


def scaled(batch: CropBatch, scaling: InputScaling) -> Tensor:
    """(B, C, S, S) raw crops scaled as an encoder takes them, before any standardisation.

    Raises:
        ValueError: As `check_ranges`.
    """
    if scaling == "standardise":
        return batch.pixels
    check_ranges(batch.full_scale or (math.nan,) * len(batch), scaling)
    if scaling == "as_is":
        return batch.pixels
    return batch.pixels.float() / _column(batch.full_scale, batch.pixels)


def check_ranges(full_scale: Sequence[float], scaling: InputScaling) -> None:
    """Refuse crops whose range an encoder's scaling does not allow.

    Args:
        full_scale: (B,) as `range_of` has them.
        scaling: Of the encoder's config.

    Raises:
        ValueError: A crop whose range is not known, where it is needed; counts, for an encoder that scales nothing.
    """
    if scaling == "standardise":
        return
    for i, found in enumerate(full_scale):
        if math.isnan(found) or (scaling == "as_is" and found != 1.0):
            what = "numbers of unknown range" if math.isnan(found) else f"counts of up to {found:g}"
            raise ValueError(
                f"crop {i} of {len(full_scale)}: found {what}; an encoder with input_scaling={scaling!r} takes "
                f"{'' if scaling == 'as_is' else 'the counts of 8 or 16 bits that its source has, or '}fractions in "
                "[0, 1]. If the crops are of a pack of an earlier version, delete its folder and make it again "
                "(`cytolake curate`). If the encoder is a ChAda-ViT that an earlier version saved, load the published "
                "weights again with load_published_chada and save them."
            )


def floor_of(batch: CropBatch, counts: float) -> Tensor | None:
    """(B, 1, 1, 1) a noise floor in the unit of each crop's pixels; None where it is 0. A count of fractions in [0, 1]
    is 1 / 255."""
    if counts == 0:
        return None
    ranges = batch.full_scale or (math.nan,) * len(batch)
    return _column([counts / 255 if each == 1.0 else counts for each in ranges], batch.pixels)


def _column(of_crops: Sequence[float], pixels: Tensor) -> Tensor:
    return to_device(torch.tensor(of_crops, dtype=torch.float32), pixels.device)[:, None, None, None]


def standardise(pixels: Tensor, floor: Tensor | None = None) -> Tensor:
    """Give each channel of each crop mean 0 and standard deviation 1, whatever its unit; a constant channel becomes 0.

    No data-set statistics: adding a background or changing the gain of a channel changes nothing.

    Args:
        pixels: (..., S, S) finite intensities.
        floor: Broadcasts with them, intensities: a channel of sd s is divided by sqrt(s^2 + floor^2) instead, so that
            one that holds little but the noise of its camera stays small: torch.nn.InstanceNorm2d, eps = floor^2.

    Returns:
        (..., S, S) float32, unitless.
    """
    pixels = pixels.float()
    low = pixels.amin(dim=(-2, -1), keepdim=True)
    span = pixels.amax(dim=(-2, -1), keepdim=True) - low
    is_constant = span == 0  # exact, so that a channel of one count of contrast is not taken for a constant one
    unit = (pixels - low) / torch.where(is_constant, torch.ones_like(span), span)
    unit = unit - unit.mean(dim=(-2, -1), keepdim=True)
    variance = unit.square().mean(dim=(-2, -1), keepdim=True)
    if floor is not None:
        variance = variance + (floor / torch.where(is_constant, torch.ones_like(span), span)).square()
    sd = variance.sqrt()
    return unit / torch.where(is_constant, torch.ones_like(sd), sd)
