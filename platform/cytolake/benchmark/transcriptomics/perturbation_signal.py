"""T5, perturbation signal: do the rows of a perturbation resemble each other, and differ from the controls?

Both are permutation tests within batches, so neither the size of a perturbation nor its batches can make a signal. The
published test compares with perturbations of genes that are not expressed; `p_values_against` does that where the
caller can name them.

Shapes: N rows, D dimensions, P perturbations, B batches, R draws, n rows of one test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.screen import Codes, Screen, group_sums

Floats = NDArray[np.float64]
MIN_ROWS_CONSISTENCY, MIN_ROWS_MAGNITUDE = 2, 5
TIE = 1e-9  # sums in another order


def consistency(screen: Screen, vectors: NDArray[np.floating], n_draws: int, seed: int) -> tuple[Floats, Floats]:
    """Mean cosine of all pairs of rows of each perturbation, against as many perturbed rows of each batch.

    Controls are not drawn: an alignment that centres on them puts them nearer to the origin than any other row.

    Time and memory grow with R N D and R P B; no cosine of two rows is stored.

    Returns:
        (P,) values, and (P,) p = (1 + draws as high or higher) / (1 + draws); both NaN below 2 rows.
    """
    rng = np.random.default_rng((seed, 3))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float64)
    unit = vectors / np.where(norms > 0, norms, 1.0)
    squares = np.square(unit).sum(axis=1)
    n_perturbations, n_batches = len(screen.perturbations), len(screen.batches)
    perturbed = screen.perturbation_of_row >= 0
    counts_PB = np.zeros((n_perturbations, n_batches), np.intp)
    np.add.at(counts_PB, (screen.perturbation_of_row[perturbed], screen.batch_of_row[perturbed]), 1)
    n_P = counts_PB.sum(axis=1)

    def of_sums(sums_PD: Floats, squares_P: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((np.square(sums_PD).sum(axis=1) - squares_P) / (n_P * (n_P - 1)))

    own_squares = group_sums(squares[:, None], screen.perturbation_of_row, n_perturbations)[:, 0]
    values = of_sums(group_sums(unit, screen.perturbation_of_row, n_perturbations), own_squares)
    rows_of_batch = [np.flatnonzero(perturbed & (screen.batch_of_row == batch)) for batch in range(n_batches)]
    n_above = np.zeros(n_perturbations, np.intp)
    for _ in range(n_draws):
        sums_PD, squares_P = np.zeros((n_perturbations, unit.shape[1])), np.zeros(n_perturbations)
        for batch, rows in enumerate(rows_of_batch):
            # The first n of a random order are a random subset: one order serves all perturbations.
            longest = int(counts_PB[:, batch].max())
            drawn = rng.permutation(rows)[:longest]
            sums_PD += _prefix_sums(unit[drawn])[counts_PB[:, batch]]
            squares_P += _prefix_sums(squares[drawn][:, None])[counts_PB[:, batch], 0]
        n_above += of_sums(sums_PD, squares_P) >= values - TIE
    p_values = (1 + n_above) / (1 + n_draws)
    is_defined = n_P >= MIN_ROWS_CONSISTENCY
    return np.where(is_defined, values, np.nan), np.where(is_defined, p_values, np.nan)


def magnitude(
    screen: Screen,
    vectors: NDArray[np.floating],
    n_draws: int,
    seed: int,
    *,
    max_rows: int = 500,
    max_controls: int = 1000,
) -> tuple[Floats, Floats]:
    """Energy distance between the rows of each perturbation and the controls, against exchanged labels in each batch.

    Rows and controls of batches that lack the other are left out; where there are more than `max_rows` or
    `max_controls`, so many are drawn.

    Returns:
        (P,) values, and (P,) p = (1 + draws as high or higher) / (1 + draws); both NaN below 5 rows, or controls.
    """
    values, p_values = (np.full(len(screen.perturbations), np.nan) for _ in range(2))
    is_control = screen.is_control
    for place in range(len(screen.perturbations)):
        rng = np.random.default_rng((seed, 4, place))
        is_own = screen.perturbation_of_row == place
        shared = np.intersect1d(screen.batch_of_row[is_own], screen.batch_of_row[is_control])
        in_shared = np.isin(screen.batch_of_row, shared)
        own = _at_most(rng, np.flatnonzero(is_own & in_shared), max_rows)
        controls = _at_most(rng, np.flatnonzero(is_control & in_shared), max_controls)
        if min(len(own), len(controls)) < MIN_ROWS_MAGNITUDE:
            continue
        rows = np.concatenate([own, controls])
        is_own_Rn = _exchanged(rng, np.arange(len(rows)) < len(own), screen.batch_of_row[rows], n_draws)
        distances = _distances(vectors[rows].astype(np.float64))
        # With v = 1 / n on one side and -1 / m on the other, 2 E|x-y| - E|x-x'| - E|y-y'| is -v' distances v.
        signed_Rn = np.where(is_own_Rn, 1 / len(own), -1 / len(controls))
        energies = -np.einsum("rn,rn->r", signed_Rn @ distances, signed_Rn)
        values[place] = energies[0]
        n_above = int((energies[1:] >= energies[0] - TIE * max(1.0, abs(energies[0]))).sum())
        p_values[place] = (1 + n_above) / (1 + n_draws)
    return values, p_values


def p_values_against(values: Floats, is_null: NDArray[np.bool_]) -> Floats:
    """(P,) p = (1 + null perturbations as high or higher) / (1 + null perturbations); NaN where the value is.

    A null perturbation is not compared with itself.

    Args:
        values: (P,) consistency or magnitude.
        is_null: (P,) perturbations without an effect, such as those of genes that are not expressed.

    Raises:
        ValueError: No null perturbation has a value.
    """
    null = np.sort(values[is_null & ~np.isnan(values)])
    if not len(null):
        raise ValueError(
            "no null perturbation has enough rows. Expected at least one: correct config.null_perturbations."
        )
    n_null = len(null) - is_null
    n_above = len(null) - np.searchsorted(null, values, "left") - is_null
    return np.where(np.isnan(values), np.nan, (1 + n_above) / (1 + n_null))


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


def _distances(vectors_nD: Floats) -> Floats:
    """(n, n) Euclidean distances by one product of matrices, which for wide vectors takes a tenth of `cdist`."""
    centred = vectors_nD - vectors_nD.mean(axis=0)  # |x|^2 + |y|^2 - 2 xy loses digits far from the origin
    squares = np.square(centred).sum(axis=1)
    squared = squares[:, None] + squares[None, :] - 2 * centred @ centred.T
    np.fill_diagonal(squared, 0)
    return np.asarray(np.sqrt(np.maximum(squared, 0)))


def _prefix_sums(values: NDArray[np.floating]) -> Floats:
    """(n + 1, D) sums of the first 0 .. n rows."""
    sums = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


def _exchanged(rng: np.random.Generator, is_own: NDArray[np.bool_], batches: Codes, n_draws: int) -> NDArray[np.bool_]:
    """(1 + R, n) the labels as they are, then permuted within each batch."""
    drawn = np.tile(is_own, (1 + n_draws, 1))
    for batch in np.unique(batches):
        rows = np.flatnonzero(batches == batch)
        drawn[1:, rows] = rng.permuted(drawn[1:, rows], axis=1)
    return drawn


def _at_most(rng: np.random.Generator, rows: Codes, n: int) -> Codes:
    return rows if len(rows) <= n else np.sort(rng.choice(rows, n, replace=False))
