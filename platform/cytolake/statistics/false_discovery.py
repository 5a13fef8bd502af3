"""q-values: how many false findings a list of findings holds, where many things were tested."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def benjamini_hochberg(p_values: NDArray[np.floating] | Sequence[float]) -> Floats:
    """q-values of Benjamini and Hochberg: of the tests with q up to 0.05, at most 5 % are expected to be false.

    The expectation holds for independent tests, and for tests that depend on each other positively.

    Args:
        p_values: (T,), 0..1, one for each test. NaN where a test is undefined: it is not counted as one.

    Returns:
        (T,), 0..1, never below its p-value; NaN where the p-value is.

    Raises:
        ValueError: Not one dimension, or a p-value outside 0..1.

    Source: Benjamini and Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    p = np.asarray(p_values, np.float64)
    is_defined = ~np.isnan(p)
    if p.ndim != 1 or ((p[is_defined] < 0) | (p[is_defined] > 1)).any():
        raise ValueError(
            f"p-values of shape {p.shape} with values {p[is_defined][:5].tolist()}, expected one dimension and 0 to 1. "
            "Give the p-values of one family of tests, NaN where a test is undefined."
        )
    order = np.flatnonzero(is_defined)[np.argsort(p[is_defined], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q = np.full(len(p), np.nan)
    # A test passes wherever one with a greater p does: from the end, the least so far.
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q
