"""T5, perturbation signal: do the rows of a perturbation resemble each other, and differ from the controls?

Both are permutation tests within batches, so neither the size of a perturbation nor its batches can make a signal:
those of `statistics.consistency` and `statistics.magnitude`. The published test compares with perturbations of genes
that are not expressed; `statistics.named_null` does that where the caller can name them.

Shapes: N rows, D dimensions, P perturbations, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.screen import Screen
from cytolake.statistics.consistency import consistency_tests
from cytolake.statistics.magnitude import magnitude_tests

Floats = NDArray[np.float64]
MAX_ROWS = 500
"""Rows of a perturbation that are tested; a seeded sample where it has more."""


def consistency(screen: Screen, vectors: NDArray[np.floating], n_draws: int, seed: int) -> tuple[Floats, Floats]:
    """Mean cosine of all pairs of rows of each perturbation, against as many perturbed rows of each batch.

    Returns:
        (P,) values, and (P,) p = (1 + draws as high or higher) / (1 + draws); both NaN below 2 rows.
    """
    perturbed = np.flatnonzero(screen.perturbation_of_row >= 0)
    values, p_values = (np.full(len(screen.perturbations), np.nan) for _ in range(2))
    for test in consistency_tests(
        vectors[perturbed],
        screen.perturbation_of_row[perturbed].astype(np.int64),
        screen.batch_of_row[perturbed].astype(np.int64),
        n_draws,
        seed,
        max_rows=MAX_ROWS,
    ):
        values[test.group], p_values[test.group] = test.cosine, test.p_value
    return values, p_values


def magnitude(
    screen: Screen,
    vectors: NDArray[np.floating],
    n_draws: int,
    seed: int,
    *,
    is_compared: NDArray[np.bool_] | None = None,
) -> tuple[Floats, Floats]:
    """Energy distance between the rows of each perturbation and the controls, against exchanged labels in each batch.

    Rows and controls of batches that lack the other are left out.

    Args:
        screen: With perturbations and batches.
        vectors: (N, D)
        n_draws: R.
        seed: Of draws and samples.
        is_compared: (N,) control rows to compare with, on which the vectors were not aligned; all where None.

    Returns:
        (P,) values, and (P,) p = (1 + draws as high or higher) / (1 + draws); both NaN below 5 rows, or where fewer
        than 20 exchanges differ.
    """
    values, p_values = (np.full(len(screen.perturbations), np.nan) for _ in range(2))
    for test in magnitude_tests(
        vectors,
        screen.perturbation_of_row.astype(np.int64),
        screen.is_control if is_compared is None else is_compared,
        screen.batch_of_row.astype(np.int64),
        n_draws,
        seed,
        MAX_ROWS,
    ):
        values[test.group], p_values[test.group] = test.energy_distance, test.p_value
    return values, p_values


def unexpressed(screen: Screen, below: float) -> tuple[str, ...]:
    """Perturbations named as a feature whose mean over all rows is below a limit, which the caller must choose.

    The published limits, 0.15 raw counts and 0.43 log-normalised, belong to two data sets.
    """
    means = np.asarray(screen.features.mean(axis=0)).ravel()
    low = {name for name, mean in zip(screen.feature_names, means.tolist(), strict=True) if mean < below}
    return tuple(name for name in screen.perturbations if name in low)


def are_null(screen: Screen, names: Sequence[str]) -> NDArray[np.bool_]:
    """(P,) whether a perturbation is named.

    Raises:
        ValueError: A name that is no perturbation.
    """
    missing = sorted(set(names) - set(screen.perturbations))
    if missing:
        raise ValueError(
            f"null perturbations {', '.join(missing[:5])} are not among the {len(screen.perturbations)} perturbations. "
            "Correct config.null_perturbations."
        )
    return np.isin(screen.perturbations, list(names))
