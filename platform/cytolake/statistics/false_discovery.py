"""p-values adjusted for the number of tests: false discovery rate (q-values) and family-wise error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def benjamini_hochberg(p_values: NDArray[np.floating] | Sequence[float]) -> Floats:
    """q-values of Benjamini and Hochberg: of the tests with q up to 0.05, at most 5 % are expected false discoveries.

    The expectation holds for independent tests, and for tests that depend on each other positively.

    Args:
        p_values: (T,), 0..1, one for each test. NaN where a test is undefined; such a test does not count.

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
    # q never decreases with p: from the largest p down, the minimum so far.
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm: with probability 1 - alpha no test without an effect has one up to alpha.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    adjusted, highest = list(p_values), 0.0
    for place, i in enumerate(np.argsort(adjusted, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(adjusted) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted
