"""p-values from null values: of permutations, of perturbations without an effect, and several combined into one.

Shapes: B null values, P perturbations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TIE = 1e-9  # equal but for rounding, as a share of the largest null value


def permutation_p_value(value: float, null: NDArray[np.floating], tie: float = 0.0) -> float:
    """(1 + null values as high or higher) / (1 + null values): never 0, and exact for exchangeable draws.

    Args:
        null: (B,) the statistic of each random draw.
        tie: Null values lower by up to this count as equal, such as a rounding error.

    Source: Phipson and Smyth 2010, doi:10.2202/1544-6115.1585.
    """
    return (1 + int(np.count_nonzero(null >= value - tie))) / (1 + len(null))


def p_values_against(values: Floats, is_null: NDArray[np.bool_]) -> Floats:
    """(P,) p = (1 + null perturbations as high or higher) / (1 + null perturbations); NaN where the value is.

    A null perturbation is not compared with itself. EFAAR_benchmarking computes the same without the two 1s, so its
    p-value can be 0, and counts an equal magnitude, but not an equal consistency, as lower. Null perturbations with
    other numbers of rows than the tested ones have another spread: name some with as many replicates.

    Args:
        values: (P,) any statistic that is high where there is an effect; NaN where undefined.
        is_null: (P,) perturbations without an effect, such as knock-outs of genes that are not expressed.

    Raises:
        ValueError: No null perturbation has a value.

    Source: Celik et al. 2024, doi:10.1371/journal.pcbi.1012463, perturbation signal.
    """
    null = np.sort(values[is_null & ~np.isnan(values)])
    if not len(null):
        raise ValueError(
            f"none of {int(is_null.sum())} null perturbations has enough finite rows. Expected at least one: correct "
            "null_perturbations to names of the plate map, or leave them out."
        )
    tie = TIE * max(float(np.abs(null).max()), np.finfo(np.float64).tiny)
    n_null = len(null) - is_null
    n_above = len(null) - np.searchsorted(null, values - tie, "left") - is_null
    return np.where(np.isnan(values), np.nan, (1 + n_above) / (1 + n_null))


def cauchy_combination(p_values: Floats | Sequence[float], weights: Floats | None = None) -> float:
    """One p-value of several that may depend on each other: T = sum w tan((0.5 - p) pi), p = 0.5 - atan(T) / pi.

    Args:
        p_values: (E,), 0..1.
        weights: (E,), summing to 1; equal where None.

    Source: Liu and Xie 2020, doi:10.1080/01621459.2018.1554485.
    """
    p = np.clip(np.asarray(p_values, np.float64), 1e-15, 1 - 1e-15)
    w = np.full(len(p), 1 / len(p)) if weights is None else weights
    return float(0.5 - np.arctan(w @ np.tan((0.5 - p) * np.pi)) / np.pi)
