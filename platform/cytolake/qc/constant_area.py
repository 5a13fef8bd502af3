"""The largest block of an image with exactly one value, as in a file that was not written to its end.

Shapes: H by W pixels, M by N cells.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

CELL_PX = 8
"""Smallest edge of a cell: 64 pixels with noise of one level are equal by chance once in 10**30."""
CELLS_MAX = 64
"""Largest number of cells along the longer side."""
_LEVELS = 2  # integers: values within this distance count as neighbours of the block's value
_NEAR_SHARE = 0.02  # of the other pixels; with more neighbours the value is common in the image
_BAND_SHARE = 0.9  # of the cells of the value
_APART_SHARE = 0.1  # of the image
_TAIL = (0.1, 1.0)  # percentiles of the darkest of the other pixels


def constant_area(channel: NDArray[Any]) -> float:
    """Share of the image in the largest rectangle of cells of one value that is foreign to the image.

    The value is the most frequent one of constant cells. The result is 0 for values that are not foreign:

    - the image's largest value: these pixels are saturated;
    - the floor of a dark image, where the values next to it are common: few photons, or a background subtracted. A
      camera with an offset leaves a gap between 0 and its darkest pixels;
    - a value between others that is as common as its neighbours: a smooth image of few levels.

    A band over the whole width or height that holds nearly all cells of the value is foreign also without such a gap,
    where the rest of the image hardly takes the value: the dark background of a culture has no straight edge.

    A round field of view leaves corners of one value; their rectangles are smaller than half an image or a tile.

    Args:
        channel: (H, W), counts, finite.

    Returns:
        0 to 1; 1 where all pixels are alike.
    """
    low, high = channel.min(), channel.max()
    if low == high:
        return 1.0
    edge = max(CELL_PX, -(-max(channel.shape) // CELLS_MAX))
    rows, columns = (n // edge for n in channel.shape)
    if not rows or not columns:
        return 0.0
    values_MN, is_constant_MN = _constant_cells(channel[: rows * edge, : columns * edge], edge)
    is_constant_MN &= values_MN != high
    if not is_constant_MN.any():
        return 0.0
    values, counts = np.unique(values_MN[is_constant_MN], return_counts=True)
    value = values[counts.argmax()]
    has_value_MN = is_constant_MN & (values_MN == value)
    height, width = _largest_rectangle(has_value_MN)
    is_band = height == rows or width == columns
    if not _is_foreign(value, channel[channel != value]) and not (
        is_band
        and height * width >= _BAND_SHARE * np.count_nonzero(has_value_MN)
        and _share_elsewhere(channel, value, has_value_MN, edge) <= _NEAR_SHARE
    ):
        return 0.0
    return float(height * width / (rows * columns))


def _constant_cells(channel: NDArray[Any], edge: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(M, N) first pixel of each cell, and whether all its pixels are equal to it."""
    rows, columns = (n // edge for n in channel.shape)
    cells = channel.reshape(rows, edge, columns, edge)
    first = cells[:, 0, :, 0]
    is_constant = np.ones((rows, columns), np.bool_)
    for y, x in ((-1, -1), (0, -1), (-1, 0), (edge // 2, edge // 2)):  # few cells of a noisy image pass these four
        is_constant &= cells[:, y, :, x] == first
    for row, column in zip(*np.nonzero(is_constant), strict=True):
        is_constant[row, column] = bool((cells[row, :, column] == first[row, column]).all())
    return first, is_constant


def _is_foreign(value: Any, others: NDArray[Any]) -> bool:
    """Whether few other pixels of the image have a value near this one."""
    is_whole = others.dtype.kind in "iu"
    floats = others.astype(np.float64)
    gap = float(floats.min()) - float(value)
    if gap < 0:
        return not is_whole or float((np.abs(floats - float(value)) <= _LEVELS).mean()) <= _NEAR_SHARE
    darkest, dark = np.percentile(floats, _TAIL).tolist()
    if is_whole and darkest - float(value) <= _LEVELS:
        return False
    return bool(darkest - float(value) > dark - darkest)


def _share_elsewhere(channel: NDArray[Any], value: Any, has_value_MN: NDArray[np.bool_], edge: int) -> float:
    """Share of pixels with the value in cells away from constant cells of it; 1 if there are few such cells."""
    apart_MN = ~ndimage.binary_dilation(has_value_MN, np.ones((3, 3)))
    if apart_MN.mean() < _APART_SHARE:
        return 1.0
    rows, columns = has_value_MN.shape
    is_value = channel[: rows * edge, : columns * edge] == value
    return float(is_value.reshape(rows, edge, columns, edge).mean(axis=(1, 3))[apart_MN].mean())


def _largest_rectangle(mask_MN: NDArray[np.bool_]) -> tuple[int, int]:
    """Height and width of the largest rectangle of True: for each row the largest under the columns above it."""
    best = (0, 0)
    heights = np.zeros(mask_MN.shape[1], np.int64)
    for row in mask_MN:
        heights = np.where(row, heights + 1, 0)
        open_columns: list[tuple[int, int]] = []  # first column, height; heights rise
        for column, height in enumerate([*heights.tolist(), 0]):
            first = column
            while open_columns and open_columns[-1][1] >= height:
                first, above = open_columns.pop()
                best = max(best, (above, column - first), key=math.prod)
            if height:
                open_columns.append((first, height))
    return best
