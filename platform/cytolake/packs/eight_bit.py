"""Counts in 8 bits: an offset and a step for each plate and stain restore counts to within half a step.

count ~ offset + step * value, value 0 to 255. The range is that of the plate's crops from their 0.1 to their 99.9
percentile of the stain, and what lies beyond it is set to its end: saturated, on purpose, as single hot pixels
otherwise take the range of the cells. Inside the range a count comes back to within step / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.001, 0.999)
SAMPLE_PIXELS = 200_000
"""Pixels of a plate and stain that its range is estimated from: 200 of them lie beyond each end."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Offset and step of 8-bit values."""

    offset: float
    """Count of the value 0."""
    step: float
    """Difference in counts between neighbouring values."""


def choose_scale(values: NDArray[Any]) -> Scale:
    """The scale of one plate and stain from a sample of its pixels, in counts.

    Integer counts that span at most 255 get a step of 1 and are restored exactly, as is a constant channel.
    """
    low, high = (float(value) for value in np.quantile(values, QUANTILES))
    if values.dtype.kind in "ui":
        if values.min() >= 0 and values.max() <= 255:
            return Scale(0.0, 1.0)
        low, high = np.floor(low), np.ceil(high)
        return Scale(float(low), max(1.0, float(high - low) / 255))
    return Scale(low, (high - low) / 255 if high > low else 1.0)


def to_uint8(pixels: NDArray[Any], offsets: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Counts as values of 8 bits, saturated at both ends.

    Args:
        pixels: (N, C, S, S) finite counts.
        offsets: (N, C).
        steps: (N, C), more than 0.
    """
    shape = (*offsets.shape, 1, 1)
    scaled = (pixels - offsets.reshape(shape).astype(np.float32)) / steps.reshape(shape).astype(np.float32)
    rounded: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return rounded


def to_counts(
    values: NDArray[np.uint8], offsets: NDArray[np.float64], steps: NDArray[np.float64]
) -> NDArray[np.float32]:
    """(C, S, S) float32 counts of a crop of 8 bits; offsets and steps are (C,)."""
    shape = (*offsets.shape, 1, 1)
    return (values * steps.reshape(shape) + offsets.reshape(shape)).astype(np.float32)
