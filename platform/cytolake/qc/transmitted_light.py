"""Foreground of transmitted light: pixels darker, brighter or rougher than a bright, smooth background.

Shapes: H by W pixels, G coarse cells along each side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]

TEXTURE_PX = 9
QUIET_PERCENTILE = 10
QUIET_FACTOR = 2.0
"""Texture counts above this multiple of the smoothest tenth's: correlated grain is no object."""
SURFACE_ROUNDS = 6


def transmitted_foreground(
    smooth: Image, coarse_GG: NDArray[np.float64], floor: float
) -> tuple[NDArray[np.bool_], Image]:
    """Pixels that differ from the background, and the difference.

    The background is a quadratic surface fitted to the coarse cells; cells far from it are left out and the fit is
    repeated. It starts with the brighter half of the cells, because objects absorb more light than they add.

    Args:
        smooth: (H, W), the image after a mean of 3 x 3, any scale.
        coarse_GG: (G, G), means of a tiling.
        floor: Largest difference and texture of noise.

    Returns:
        (H, W) True where there is an object, and (H, W) absolute difference from the background.
    """
    spread = ndimage.uniform_filter(smooth**2, TEXTURE_PX, mode="nearest")
    spread -= ndimage.uniform_filter(smooth, TEXTURE_PX, mode="nearest") ** 2
    texture = np.sqrt(np.maximum(spread, 0))
    quiet = float(np.percentile(texture, QUIET_PERCENTILE))
    difference = np.abs(smooth - _background(coarse_GG, smooth.shape))
    mask = (texture > max(floor, QUIET_FACTOR * quiet)) | (difference > 2 * max(floor, quiet))
    return mask, difference


def _background(coarse_GG: NDArray[np.float64], shape: tuple[int, ...]) -> Image:
    """(H, W) the surface."""
    values = coarse_GG.ravel()
    y, x = (np.linspace(-1, 1, n) for n in coarse_GG.shape)
    terms = np.stack(_terms(*(axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))), axis=1)
    kept = values >= np.median(values)
    for _ in range(SURFACE_ROUNDS):
        coefficients = np.linalg.lstsq(terms[kept], values[kept], rcond=None)[0]
        distance = np.abs(values - terms @ coefficients)
        near = distance <= 3 * 1.4826 * float(np.median(distance[kept])) + 1e-6
        if near.sum() < 2 * terms.shape[1] or (near == kept).all():
            break
        kept = near
    rows, columns = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None, :]
    surface = sum(c * term for c, term in zip(coefficients.tolist(), _terms(rows, columns), strict=True))
    return np.asarray(np.broadcast_to(surface, shape), np.float32)


def _terms(y: NDArray[np.float64], x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [np.ones_like(y), y, x, y * y, x * x, x * y]
