"""Composites channels into a picture: a contrast and a colour for each channel, and the sum of the channels.

Shapes: C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_SPAN = 1e-10
"""Least difference of white and black that `stretch` divides by, for channels of one value."""

Floats = NDArray[np.floating[Any]]


def percentile_limits(pixels: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Intensities to show as black and as full colour: the percentiles `low` and `high`, 0..100, of all pixels."""
    black, white = np.percentile(pixels, [low, high])
    return float(black), float(white)


def stretch(pixels: NDArray[Any], black: float, white: float) -> Floats:
    """Brightness of each pixel, 0..1: 0 at `black` and below, 1 at `white` and above, linear between.

    Floating-point pixels keep their type; integers become float64.
    """
    return np.asarray(np.clip((pixels - float(black)) / max(float(white) - float(black), MIN_SPAN), 0, 1))


def add_colours(brightness: Iterable[Floats], colours: Iterable[Sequence[float]], shape: tuple[int, ...]) -> Floats:
    """Sum of the channels, each in its colour, on black.

    Args:
        brightness: C arrays (H, W), 0..1.
        colours: Red, green and blue of each channel, on any scale.
        shape: (H, W).

    Returns:
        (H, W, 3), on the scale of the colours; not clipped.
    """
    picture_HW3 = np.zeros((*shape, 3))
    for channel_HW, colour in zip(brightness, colours, strict=True):
        picture_HW3 += channel_HW[..., None] * np.array(colour)
    return picture_HW3


def grey_levels(brightness: Floats) -> NDArray[np.uint8]:
    """Brightness 0..1 as grey levels 0..255, rounded down."""
    return np.asarray(255 * brightness).astype(np.uint8)
