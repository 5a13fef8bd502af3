"""Statistics of one image that several metrics use: means of a tiling, and the level of white noise.

Shapes: H by W pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


def tile_means(image: Image, n: int) -> NDArray[np.float64]:
    """Means of an n by n tiling; an axis with fewer pixels than n is not averaged."""
    rows, columns = _starts(image.shape[0], n), _starts(image.shape[1], n)
    sums = np.add.reduceat(np.add.reduceat(image, rows, axis=0, dtype=np.float64), columns, axis=1)
    sizes = np.outer(np.diff([*rows, image.shape[0]]), np.diff([*columns, image.shape[1]]))
    means: NDArray[np.float64] = sums / sizes
    return means


@lru_cache(maxsize=32)
def _starts(length: int, n: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, length, n + 1)[:-1].astype(np.intp))


def noise_sd(image: Image, *, is_sparse: bool = False) -> float:
    """Standard deviation of white noise, in the unit of the image; 0 for images under 3 by 3 pixels.

    The median of a second-difference residual, in which planes and edges cancel.

    Args:
        image: (H, W)
        is_sparse: Where more than half of the residuals are 0 (few photons, few grey levels, a background clipped at
            0), use the residuals that are not 0, weighted by their share; otherwise the noise is 0 there.

    Source: Immerkaer 1996, doi:10.1006/cviu.1996.0060, with the median in place of the mean.
    """
    if min(image.shape) < 3:
        return 0.0
    across = image[:, :-2] - 2 * image[:, 1:-1] + image[:, 2:]
    residual = across[:-2] - 2 * across[1:-1] + across[2:]
    size = np.abs(residual, out=residual)
    median, share = float(np.median(size)), 1.0
    if is_sparse and median == 0 and size.any():
        median, share = float(np.median(size[size > 0])), np.count_nonzero(size) / size.size
    return math.sqrt(share) * median / (0.6745 * 6.0)  # 6: norm of the 3x3 kernel; 0.6745: median -> sd
