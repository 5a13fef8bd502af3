"""Rows scaled so that their dot products are Pearson correlations over features.

Shapes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

CONSTANT = 1e-12
"""Spread of a row's features, relative to their size, below which the row is constant but for rounding."""


@dataclass(frozen=True, slots=True)
class CorrelatedRows:
    """The rows that have a correlation, with their perturbations."""

    unit: Floats
    """(N, D) features of each row, less their mean, of length 1."""
    used: Codes
    """(N,) numbers of these rows in the input."""
    perturbation: Codes
    """(N,) number of each row's perturbation in `names`."""
    names: tuple[str, ...]
    """Perturbations of all input rows, sorted; one may have no usable row."""
    n_left_out: int
    """Rows with a value that is not finite, or constant over features."""


def correlated_rows(vectors: NDArray[np.generic], perturbations: Sequence[str]) -> CorrelatedRows:
    """Centre and scale each row over its features; leave out rows without a correlation.

    Args:
        vectors: (rows, D) of any numeric type.
        perturbations: (rows,)

    Raises:
        ValueError: Another shape, fewer than 2 features, or not one perturbation for each row.
    """
    matrix = np.asarray(vectors)
    if matrix.ndim != 2 or matrix.shape[1] < 2 or len(matrix) != len(perturbations):
        raise ValueError(
            f"vectors of shape {matrix.shape} and {len(perturbations)} perturbations, expected (N, D) and N, with 2 "
            "features or more to correlate. Take both from the same rows."
        )
    matrix = matrix.astype(np.float64)
    finite = np.isfinite(matrix).all(axis=1)
    safe = np.where(finite[:, None], matrix, 0.0)
    centred = safe - safe.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1)
    used = np.flatnonzero(finite & (length > CONSTANT * np.linalg.norm(safe, axis=1)))
    names, number = np.unique(np.asarray(perturbations, dtype=str), return_inverse=True)
    return CorrelatedRows(
        centred[used] / length[used, None], used, number[used], tuple(names.tolist()), len(matrix) - len(used)
    )


def rows_of_perturbations(rows: CorrelatedRows) -> list[Codes]:
    """Ascending rows of each of `names`."""
    order = np.argsort(rows.perturbation, kind="stable")
    ends = np.cumsum(np.bincount(rows.perturbation, minlength=len(rows.names)))
    return [np.asarray(each, np.intp) for each in np.split(order, ends[:-1])]
