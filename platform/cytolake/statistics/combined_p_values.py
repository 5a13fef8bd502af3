"""One p-value of several that may depend on each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cauchy_combination(p_values: Floats | Sequence[float], weights: Floats | None = None) -> float:
    """T = sum w tan((0.5 - p) pi), p = 0.5 - atan(T) / pi.

    Args:
        p_values: (E,), 0..1.
        weights: (E,), summing to 1; equal where None.

    Source: Liu and Xie 2020, doi:10.1080/01621459.2018.1554485.
    """
    p = np.clip(np.asarray(p_values, np.float64), 1e-15, 1 - 1e-15)
    w = np.full(len(p), 1 / len(p)) if weights is None else weights
    return float(0.5 - np.arctan(w @ np.tan((0.5 - p) * np.pi)) / np.pi)
