"""Sites of transmitted light: a bright, uneven background, and objects that absorb and scatter."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

LEVEL = 30_000.0
"""Counts of the bare background at its brightest."""


def background(size: int, vignette: float = 0.15) -> np.ndarray:
    """(size, size) counts, brightest near the middle."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    return LEVEL * (1 - vignette * ((x - 0.2) ** 2 + (y + 0.1) ** 2))


def organoid(rng: np.random.Generator, size: int, radius: float, absorption: float = 0.6) -> tuple[np.ndarray, float]:
    """Counts with one dark, textured object, and the share of the field that it covers."""
    y, x = np.mgrid[:size, :size]
    middle = rng.uniform(0.4, 0.6, 2) * size
    distance = np.hypot(y - middle[0], x - middle[1])
    texture = ndimage.gaussian_filter(rng.standard_normal((size, size)), 3)
    body = 1 / (1 + np.exp((distance - radius) / 2))
    image = background(size) * (1 - absorption * body * (1 + 0.15 * texture / texture.std()))
    return image, float((distance < radius).mean())


def cells(rng: np.random.Generator, size: int, n: int) -> tuple[np.ndarray, float]:
    """Counts with faint cells of dark middle and bright rim, and the share of the field that they cover."""
    y, x = np.mgrid[:size, :size]
    image, is_covered = np.ones((size, size)), np.zeros((size, size), bool)
    for middle in rng.uniform(0, size, (n, 2)):
        distance = np.hypot(y - middle[0], x - middle[1])
        is_covered |= distance < 10
        image += 0.12 * np.exp(-(((distance - 8) / 2) ** 2)) - 0.15 * np.exp(-((distance / 5) ** 2))
    return background(size) * image, float(is_covered.mean())


def camera(rng: np.random.Generator, light: np.ndarray, grain_px: float = 0.0) -> np.ndarray:
    """Counts with noise of 2 sqrt(counts), correlated over some pixels where a file was resampled."""
    noise = rng.standard_normal(light.shape)
    if grain_px:
        noise = ndimage.gaussian_filter(noise, grain_px) * 2 * np.sqrt(np.pi) * grain_px
    return np.clip(np.rint(light + 2 * np.sqrt(light) * noise), 0, 65_535).astype(np.uint16)
