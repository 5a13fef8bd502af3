"""Energy distance between two sets of vectors, in bounded memory.

Shapes: N and M rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

Floats = NDArray[np.float64]

BLOCK_ROWS, BLOCK_COLUMNS = 1024, 4096  # distances held at a time: 34 MB


def energy_distance(x_ND: NDArray[np.generic], y_MD: NDArray[np.generic]) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over all pairs, a row with itself too (the V-statistic); Euclidean.

    Never negative but for rounding, and 0 where both sets hold the same rows equally often. Rows drawn from one
    distribution give more than 0, the more the fewer they are: compare values of equal N and M only.

    Args:
        x_ND: (N, D), of any numeric type.
        y_MD: (M, D)

    Raises:
        ValueError: A set without rows, or sets of different D.

    Source: Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018; the same number as EFAAR_benchmarking's magnitude.
    """
    return 2 * float(mean_distance_of_rows(x_ND, y_MD).mean()) - mean_distance_within(x_ND) - mean_distance_within(y_MD)


def mean_distance_within(x_ND: NDArray[np.generic]) -> float:
    """Mean Euclidean distance over all N N pairs of rows; raises as `energy_distance`."""
    x_ND = _checked(x_ND, x_ND)[0]
    total = 0.0
    for rows in _blocks(len(x_ND), BLOCK_ROWS):
        total += float(cdist(x_ND[rows], x_ND[rows]).sum())
        for columns in _blocks(len(x_ND), BLOCK_COLUMNS, start=rows.stop):
            total += 2 * float(cdist(x_ND[rows], x_ND[columns]).sum())  # and the other way round
    return total / len(x_ND) ** 2


def mean_distance_of_rows(x_ND: NDArray[np.generic], y_MD: NDArray[np.generic]) -> Floats:
    """(N,) mean Euclidean distance of each row of x to all rows of y; raises as `energy_distance`."""
    x_ND, y_MD = _checked(x_ND, y_MD)
    total_N = np.zeros(len(x_ND))
    for rows in _blocks(len(x_ND), BLOCK_ROWS):
        for columns in _blocks(len(y_MD), BLOCK_COLUMNS):
            # Differences, not the products of matrices: equal rows are then at exactly 0.
            total_N[rows] += cdist(x_ND[rows], y_MD[columns]).sum(axis=1)
    return total_N / len(y_MD)


def _checked(x_ND: NDArray[np.generic], y_MD: NDArray[np.generic]) -> tuple[Floats, Floats]:
    x, y = np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1:] != y.shape[1:] or not len(x) or not len(y):
        raise ValueError(
            f"sets of shapes {x.shape} and {y.shape}, expected (N, D) and (M, D) with N and M of 1 or more. "
            "Leave out perturbations without rows, and compare vectors of one representation."
        )
    return x, y


def _blocks(n: int, size: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, n, size):
        yield slice(first, min(first + size, n))
