"""Consistency of conditions in a curation: alignment before the test, and the combination of p-values.

The wells of a condition in one experiment are compared with as many treated wells drawn from the same experiment
(`statistics.consistency`); what several experiments say of a condition is combined. A condition that passes has an
effect that its replicates share. After Celik et al. 2024, doi:10.1371/journal.pcbi.1012463, and Liu and Xie 2020
(Cauchy combination).

Shapes: N wells, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.p_values import cauchy_combination

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

SPHERING_SHRINKAGE = 0.5  # share of the mean variance added to each: division by almost 0 would amplify noise


def combined_p_value(p_values: Sequence[float], n_draws: int) -> float:
    """The p-value of one condition over its experiments.

    A test with B draws has no p below 1 / (B + 1), so p is capped at B / (B + 1): at exactly 1, one experiment
    would outweigh all others.
    """
    return cauchy_combination([min(p_value, n_draws / (n_draws + 1)) for p_value in p_values])


def align_to_controls(
    profiles: Floats, plates: Codes, is_control: NDArray[np.bool_], *, sphere: bool
) -> tuple[Floats, list[int]]:
    """Centre the wells of each plate on its negative controls, scale features alike, and decorrelate them.

    A well then points where it differs from the controls; without this all cosines are near 1.

    Args:
        profiles: (N, D) of all plates.
        plates: (N,) number of each well's plate.
        is_control: (N,) True for negative controls.
        sphere: Also divide each principal direction of the controls by their standard deviation along it, so that what
            varies between untreated wells anyway (brightness, density) counts less.

    Returns:
        (N, D), and the plates without a control: their wells are centred on the mean of all of them.
    """
    aligned = np.array(profiles, np.float64)
    without = []
    centred = is_control.copy()
    for plate in np.unique(plates).tolist():
        of_plate = plates == plate
        reference = of_plate & is_control
        if not reference.any():
            without.append(plate)
            reference = of_plate
            centred |= of_plate
        aligned[of_plate] -= aligned[reference].mean(axis=0)
    scale = aligned.std(axis=0)
    aligned /= np.where(scale > 0, scale, 1.0)
    if sphere and centred.sum() > 1:
        _, singular, directions = np.linalg.svd(aligned[centred], full_matrices=True)
        variance = np.zeros(aligned.shape[1])
        variance[: len(singular)] = singular**2 / (centred.sum() - 1)
        aligned = aligned @ directions.T / np.sqrt(variance + SPHERING_SHRINKAGE * variance.mean())
    return aligned, without
