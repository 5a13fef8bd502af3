"""p-values from things that are known to do nothing, such as knockouts of genes that are not expressed.

Shapes: P perturbations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TIE = 1e-9  # equal but for rounding, as a share of the largest null value


def p_values_against(values: Floats, is_null: NDArray[np.bool_]) -> Floats:
    """(P,) p = (1 + null perturbations as high or higher) / (1 + null perturbations); NaN where the value is.

    A null perturbation is not compared with itself. EFAAR_benchmarking's p-value is the same without the two 1s, by
    which it can be 0, and takes an equal magnitude, unlike an equal consistency, for a lower one. Null perturbations
    with other numbers of rows than the tested ones have another spread: name some that are replicated alike.

    Args:
        values: (P,) any statistic that is high where there is an effect; NaN where undefined.
        is_null: (P,) perturbations without an effect.

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
