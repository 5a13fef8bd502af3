"""Rows scaled to length 1, the only normalisation of rows in the package; what happens to a row of zeros is an
argument.

Shapes: N rows, D features.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ZeroRows = Literal["keep", "refuse"]


def unit_vectors(
    vectors: NDArray[Any],
    *,
    zero_rows: ZeroRows = "keep",
    least_length: float = 0.0,
    in_float64: bool = False,
    row_numbers: NDArray[np.intp] | None = None,
) -> NDArray[Any]:
    """Divide each row by its Euclidean length.

    Args:
        vectors: (N, D), or any array whose last axis is scaled.
        zero_rows: `keep` leaves a row of zeros as it is, so that its cosine with every row is 0; `refuse` raises on it.
        least_length: A shorter row is divided by this, so that a row of rounding errors stays short.
        in_float64: Divide by the length as a 64-bit float; else the result has the vectors' own type.
        row_numbers: (N,) numbers of the rows in the caller's table, for the error; 0 .. N - 1 where None.

    Raises:
        ValueError: With `zero_rows="refuse"`, not two-dimensional, or a row that is not finite or has length 0.
    """
    if zero_rows == "refuse":
        if vectors.ndim != 2:
            raise ValueError(f"vectors have the shape {vectors.shape}, expected (rows, features).")
        vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if zero_rows == "refuse":
        _check(lengths[:, 0], row_numbers)
    if in_float64:
        lengths = lengths.astype(np.float64)
    return np.asarray(
        vectors / (np.maximum(lengths, least_length) if least_length else np.where(lengths > 0, lengths, 1.0))
    )


def unit_vectors_of_any_size(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """(N, D) rows of length 1 in float64; rows of zeros stay.

    Each row is divided by its largest absolute value first: squares of very large or small values would overflow or
    vanish.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64)
    scaled = vectors / np.where(largest > 0, largest, 1.0)
    lengths = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))
    unit: NDArray[np.float64] = scaled / np.where(lengths > 0, lengths, 1.0)[:, None]
    return unit


def _check(lengths: NDArray[np.floating], row_numbers: NDArray[np.intp] | None) -> None:
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        row = int(wrong[0] if row_numbers is None else row_numbers[wrong[0]])
        found = "has the length 0" if lengths[wrong[0]] == 0 else "is not finite"
        raise ValueError(
            f"the vector of row {row} {found}, as {len(wrong)} of {len(lengths)} are not usable: it has no direction "
            "and no cosine. Embed the well again, or leave the row out and say so."
        )
