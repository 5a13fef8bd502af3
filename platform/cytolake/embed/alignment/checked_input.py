"""Checks the vectors, batches and controls that users pass to an alignment.

Shapes: N wells (or crops), D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
Batches = Sequence[str] | Sequence[int] | NDArray[Any]


def checked_vectors(vectors: ArrayLike, n_features: int | None = None) -> NDArray[Any]:
    """The (N, D) vectors as they are, of any integer or float type; users cast to float64.

    Raises:
        ValueError: Another shape or type, another number of features than expected, or a row that is not finite.
    """
    vectors_ND = np.asarray(vectors)
    if vectors_ND.ndim != 2 or not (n_features or vectors_ND.shape[1]):
        raise ValueError(f"vectors have shape {vectors_ND.shape}, expected (rows, features). Give one row per well.")
    if not (np.issubdtype(vectors_ND.dtype, np.integer) or np.issubdtype(vectors_ND.dtype, np.floating)):
        raise ValueError(f"vectors are of type {vectors_ND.dtype}, expected integers or floats. Convert them first.")
    if n_features is not None and vectors_ND.shape[1] != n_features:
        raise ValueError(
            f"vectors have {vectors_ND.shape[1]} features, the alignment was fitted on {n_features}. Use vectors of "
            "the same representation, or fit again."
        )
    is_bad_N = ~np.isfinite(vectors_ND).all(axis=1)
    if is_bad_N.any():
        rows = np.flatnonzero(is_bad_N)
        raise ValueError(
            f"{len(rows)} of {len(vectors_ND)} vectors are not finite: rows {listed(rows.tolist())}. Expected finite "
            "numbers: leave these rows out with a reason, or embed them again."
        )
    return vectors_ND


def batch_codes(batches: Batches, n_rows: int) -> tuple[list[str], Codes]:
    """Names of the batches, sorted, and the (N,) index of each row's.

    Raises:
        ValueError: Not one batch for each row, or a row without a batch.
    """
    # As objects: of a list with a missing name, NumPy would make the name "nan".
    values = np.asarray(batches, dtype=None if isinstance(batches, np.ndarray) else object)
    if values.shape != (n_rows,):
        raise ValueError(f"batches have shape {values.shape}, expected ({n_rows},): one for each row of the vectors.")
    codes_N, found = pd.factorize(values)
    codes_N[np.isin(codes_N, [i for i, each in enumerate(found) if str(each) == ""])] = -1
    if (codes_N < 0).any():
        rows = np.flatnonzero(codes_N < 0)
        raise ValueError(f"{len(rows)} rows have no batch: rows {listed(rows.tolist())}. Name their batch.")
    names, position = np.unique(np.asarray([str(each) for each in found], dtype=object), return_inverse=True)
    return [str(name) for name in names], np.asarray(position, np.intp)[codes_N] if n_rows else codes_N.astype(np.intp)


def rows_of_each(codes_N: Codes, n_batches: int) -> list[Codes]:
    """For each batch the indices of its rows, ascending; one sort however many batches there are."""
    order_N = np.argsort(codes_N, kind="stable")
    return np.split(order_N, np.searchsorted(codes_N[order_N], np.arange(1, n_batches)))[:n_batches]


def checked_controls(is_control: ArrayLike, n_rows: int) -> NDArray[np.bool_]:
    """(N,) True where the row is a negative control.

    Raises:
        ValueError: Not one boolean for each row.
    """
    mask_N = np.asarray(is_control)
    if mask_N.shape != (n_rows,) or mask_N.dtype != np.bool_:
        raise ValueError(
            f"is_control has shape {mask_N.shape} and type {mask_N.dtype}, expected ({n_rows},) booleans: one for each "
            "row of the vectors."
        )
    return mask_N


def listed(values: Sequence[object], limit: int = 5) -> str:
    """The first few, for an error text."""
    return ", ".join(map(str, values[:limit])) + (f" and {len(values) - limit} more" if len(values) > limit else "")
