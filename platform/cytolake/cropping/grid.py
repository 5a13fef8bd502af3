"""The grid of square crops that tile a site."""

from __future__ import annotations

from typing import Any

import numpy as np

from cytolake.screens.plate import Problem, SiteImage


def crop_grid(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """Top left corners (y, x) of the squares that tile a site, row by row, leaving the same margin on both sides."""
    top, left = height % size // 2, width % size // 2
    return [(y, x) for y in range(top, height - size + 1, size) for x in range(left, width - size + 1, size)]


def finite_crops(pixels_CHW: np.ndarray[Any, Any], size: int) -> list[tuple[int, int]]:
    """Corners of the grid, without those of crops that hold a pixel that is NaN or infinite."""
    _, height, width = pixels_CHW.shape
    corners = crop_grid(height, width, size)
    if pixels_CHW.dtype.kind != "f" or np.isfinite(pixels_CHW).all():
        return corners
    return [(y, x) for y, x in corners if np.isfinite(pixels_CHW[:, y : y + size, x : x + size]).all()]


def smaller_than_crop(site: SiteImage, height: int, width: int, size: int) -> list[Problem]:
    """The problem of a site that no crop fits into; none where one does."""
    if height >= size and width >= size:
        return []
    return [
        site.problem(
            file=site.image_paths[0] if len(site.image_paths) == 1 else "",
            problem="site_smaller_than_crop",
            found=f"{height} x {width} pixels",
            expected=f"at least {size} x {size}, the crop size",
            next_step="Lower ingest.crop_size in the recipe to have crops of this site.",
        )
    ]
