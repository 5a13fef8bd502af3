"""Estimate of the object diameter in images, to choose a crop size that holds a cell and its surroundings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SIGMAS = tuple(1.5 * 1.25**i for i in range(16))
"""Scales that are compared, pixels: blobs of 4 to 100 pixels across."""

DIAMETER_IN_SIGMAS = 2.45  # of discs of 6 to 60 px: all come out within 10 %


def object_diameter(images: Sequence[NDArray[np.number]]) -> float:
    """Diameter of the bright blobs whose size stands out most in some images of one channel.

    Differences of Gaussians of neighbouring scales vary most at a scale that is proportional to the diameter. Counts
    above the 99.5th percentile are cut, so that a piece of dust does not decide.

    Source: Lindeberg 1998, doi:10.1023/A:1008045108935.

    Args:
        images: (H, W) counts each.

    Returns:
        Pixels; NaN where no image varies.
    """
    from scipy import ndimage  # takes a moment, and most screens need no focus and no object sizes

    variance = np.zeros(len(SIGMAS) - 1)
    for image in images:
        low, high = np.percentile(image, (5, 99.5))
        if not high > low:
            continue
        scaled = np.clip((image.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
        blurred = [ndimage.gaussian_filter(scaled, sigma, mode="nearest", truncate=3.0) for sigma in SIGMAS]
        variance += [float((fine - coarse).var()) for fine, coarse in itertools.pairwise(blurred)]
    if not variance.any():
        return math.nan
    best = int(np.argmax(variance))
    return float(DIAMETER_IN_SIGMAS * math.sqrt(SIGMAS[best] * SIGMAS[best + 1]))
