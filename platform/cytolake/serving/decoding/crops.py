"""Decoded crops of a request, and the limits of their size.

Shapes: B crops, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.serving.problems import ServingError


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingBudget:
    """Limits of one request. Checked against the declared sizes, before memory is allocated."""

    max_crops: int = 1024
    """Most crops in one request."""
    max_decoded_bytes: int = 256 * 2**20
    """Most bytes of all crops as 32-bit floats, which the encoder computes with."""
    max_channels: int = 64
    """Most channels of one crop."""

    def __post_init__(self) -> None:
        if min(self.max_crops, self.max_decoded_bytes, self.max_channels) < 1:
            raise ValueError("max_crops, max_decoded_bytes and max_channels must be positive")

    def check_values(self, n_values: int, name: str, shape: Sequence[int], itemsize: int = 4) -> None:
        """Refuse more pixels than may be decoded.

        Args:
            n_values: Number of pixels of all crops together.
            name: Name of the array, for the message.
            shape: Declared shape.
            itemsize: Bytes of a decoded pixel; at least 4 are counted.

        Raises:
            ServingError: 413.
        """
        n_bytes = n_values * max(4, itemsize)
        if n_bytes > self.max_decoded_bytes:
            raise ServingError(
                status=413,
                detail=f"{name} of shape {tuple(shape)} takes {n_bytes:,} bytes as "
                f"{max(32, 8 * itemsize)}-bit floats, at most {self.max_decoded_bytes:,} are allowed. Send fewer crops "
                "in each request.",
            )

    def check_counts(self, n_crops: int, n_channels: int) -> None:
        """Refuse too many crops or channels.

        Raises:
            ServingError: 413, crops; 422, channels.
        """
        if n_crops > self.max_crops:
            raise ServingError(status=413, detail=f"{n_crops:,} crops, at most {self.max_crops:,} in each request.")
        if n_channels > self.max_channels:
            raise ServingError(status=422, detail=f"{n_channels:,} channels in each crop, at most {self.max_channels}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedCrops:
    """Crops of a request, and the channel names in its body."""

    images: tuple[NDArray[Any], ...]
    """B crops, each (C, H, W), any unsigned, signed or floating type; intensities on any scale. C, H, W and the type
    are the same for all, except in an Arrow stream."""
    channels: tuple[tuple[str, ...], ...]
    """C names of each crop in the order of its pixels; () where the body has none."""


def crops_of_array(array: NDArray[Any], channels: tuple[str, ...], budget: DecodingBudget) -> DecodedCrops:
    """The crops of an array in memory.

    Args:
        array: (B, C, H, W) or (C, H, W).
        channels: Channel names of each crop; () for none.
        budget: Limits of crops and channels.

    Raises:
        ServingError: 422, another shape, no crops, or pixels that are not finite; 413, too many crops.
    """
    if array.ndim not in (3, 4):
        raise ServingError(
            status=422, detail=f"the array has shape {array.shape}, expected (B, C, H, W), or (C, H, W) for one crop."
        )
    pixels_BCHW = array[None] if array.ndim == 3 else array
    if min(pixels_BCHW.shape) < 1:
        raise ServingError(status=422, detail=f"the array has shape {array.shape}, which holds no crop.")
    budget.check_counts(*pixels_BCHW.shape[:2])
    pixels_BCHW = np.ascontiguousarray(pixels_BCHW, dtype=pixels_BCHW.dtype.newbyteorder("="))
    images = tuple(pixels_BCHW)
    check_finite(images)
    return DecodedCrops(images=images, channels=(channels,) * len(images))


def check_finite(images: Sequence[NDArray[Any]]) -> None:
    """Refuse NaN and infinity.

    Raises:
        ServingError: 422; the message names the first such crop.
    """
    for number, image_CHW in enumerate(images):
        if image_CHW.dtype.kind == "f" and not np.isfinite(image_CHW).all():
            raise ServingError(
                status=422, detail=f"crop {number} holds NaN or infinite pixels. Send finite intensities."
            )


def n_values_of(shape: Sequence[int]) -> int:
    """Product of the edges, without overflow."""
    return math.prod(int(edge) for edge in shape)
