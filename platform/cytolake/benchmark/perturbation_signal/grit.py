"""Grit: correlation between replicates, in standard deviations of the correlations with controls.

For each well, its Pearson correlations with the other replicates are standardised by the mean and the standard
deviation of its correlations with the control wells. The well's grit is the mean of these z-scores, a perturbation's
the mean over its wells: 0 where two replicates correlate as a replicate and a control do, 1 where they correlate by one
standard deviation more.

Wells of one plate correlate because of the plate, and replicates may share a plate more often than a replicate and a
control. `permuted` is the grit of the same wells with the perturbations shuffled within plates.

Source: Way et al. 2022 (CRISPR signatures), and its cytominer-eval; here with each well as a profile and the
perturbation as its group.

Shapes: N treated wells, C control wells, D features, P perturbations, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.perturbation_signal.correlations import Codes, Floats, correlated_rows
from cytolake.catalog.ids import content_id
from cytolake.statistics.intervals import Interval, mean_of_groups

ROWS_AT_ONCE = 1024
LEAST_SPREAD = 1e-9

SCHEMA = pa.schema(
    [
        pa.field("perturbation", pa.string(), nullable=False),
        pa.field("n_wells", pa.int64(), nullable=False),
        pa.field("grit", pa.float64()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Grit:
    """Grit of every perturbation."""

    mean: Interval
    """Mean over perturbations, which are resampled for the interval."""
    permuted: float
    """The same with perturbations shuffled among the treated wells of each plate, the mean over shuffles."""
    table: pa.Table
    """One row for each perturbation, sorted by name; columns as `SCHEMA`."""
    n_controls: int
    n_left_out: int
    """Wells with a value that is not finite, or constant over features, or whose correlations with all controls are
    equal."""


def grit(
    vectors: NDArray[np.generic],
    perturbations: Sequence[str],
    plates: Sequence[str],
    is_control: NDArray[np.bool_],
    *,
    n_permutations: int = 20,
    bootstrap_draws: int = 1000,
    seed: int = 0,
) -> Grit:
    """Standardise the correlations of replicates by those with controls.

    Args:
        vectors: (wells, D) treated and control wells of any numeric type, aligned.
        perturbations: (wells,); those of control wells are ignored.
        plates: (wells,) within which perturbations are shuffled for `permuted`.
        is_control: (wells,)
        seed: Seed of both.

    Raises:
        ValueError: Arguments of different lengths, fewer than 2 features or 2 usable controls, or no perturbation with
            2 usable wells.
    """
    flags = np.asarray(is_control, bool)
    if not len(perturbations) == len(plates) == len(flags):
        raise ValueError(
            f"{len(perturbations)} perturbations, {len(plates)} plates and {len(flags)} control marks, expected one of "
            "each for every well."
        )
    rows = correlated_rows(vectors, ["" if flag else name for flag, name in zip(flags, perturbations, strict=True)])
    of_control = flags[rows.used]
    control_CD = rows.unit[of_control]
    if len(control_CD) < 2:
        raise ValueError(
            f"{len(control_CD)} of {len(flags)} wells are usable negative controls, expected 2 or more: grit is in "
            "standard deviations of the correlations with them. Mark the controls in the plate map."
        )
    unit_ND, perturbation_N = rows.unit[~of_control], rows.perturbation[~of_control]
    _, plate_N = np.unique([str(plates[row]) for row in rows.used[~of_control].tolist()], return_inverse=True)
    middle_N, spread_N = _against_controls(unit_ND, control_CD)
    usable = spread_N > LEAST_SPREAD
    unit_ND, perturbation_N, plate_N = unit_ND[usable], perturbation_N[usable], plate_N[usable]
    middle_N, spread_N = middle_N[usable], spread_N[usable]
    n_names = len(rows.names)
    counts = np.bincount(perturbation_N, minlength=n_names)
    if not (counts > 1).any():
        raise ValueError(
            f"no perturbation of {n_names} has 2 usable wells, expected replicates. Check the column "
            "perturbation of the plate map."
        )
    grit_P = _of_perturbations(unit_ND, perturbation_N, n_names, middle_N, spread_N)
    rng = np.random.default_rng(int(content_id("grit", seed), 16))
    permuted = [
        np.nanmean(
            _of_perturbations(unit_ND, _shuffled_within(perturbation_N, plate_N, rng), n_names, middle_N, spread_N)
        )
        for _ in range(n_permutations)
    ]
    treated = sorted({str(name) for name, flag in zip(perturbations, flags, strict=True) if not flag})
    number = {name: i for i, name in enumerate(rows.names)}
    table = [
        {
            "perturbation": name,
            "n_wells": int(counts[number[name]]),
            "grit": None if counts[number[name]] < 2 else float(grit_P[number[name]]),
            "reason": "" if counts[number[name]] > 1 else f"{counts[number[name]]} usable wells, expected 2 or more",
        }
        for name in treated
    ]
    n_used = len(unit_ND) + len(control_CD)
    known_K = grit_P[counts > 1]
    return Grit(
        mean_of_groups(known_K, np.ones(len(known_K)), bootstrap_draws, rng, (-math.inf, math.inf)),
        float(np.mean(permuted)) if permuted else float("nan"),
        pa.Table.from_pylist(table, schema=SCHEMA),
        len(control_CD),
        len(flags) - n_used,
    )


def _against_controls(unit_ND: Floats, control_CD: Floats) -> tuple[Floats, Floats]:
    """(N,) mean and standard deviation (of a population, as scikit-learn's scaler) of correlations with controls."""
    middle_N, spread_N = np.empty(len(unit_ND)), np.empty(len(unit_ND))
    for start in range(0, len(unit_ND), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        correlation = unit_ND[block] @ control_CD.T
        middle_N[block], spread_N[block] = correlation.mean(axis=1), correlation.std(axis=1)
    return middle_N, spread_N


def _of_perturbations(
    unit_ND: Floats, perturbation_N: Codes, n_names: int, middle_N: Floats, spread_N: Floats
) -> Floats:
    """(P,) NaN below 2 wells.

    The mean correlation of a row with the others of its group is its product with the group's sum, less its own of 1.
    """
    counts = np.bincount(perturbation_N, minlength=n_names)
    order = np.argsort(perturbation_N, kind="stable")
    present = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts[present])[:-1]])
    sums = np.zeros((n_names, unit_ND.shape[1]))
    sums[present] = np.add.reduceat(unit_ND[order], starts, axis=0)
    others_N = counts[perturbation_N] - 1
    with_sum_N = np.einsum("nd,nd->n", unit_ND, sums[perturbation_N])
    z_N = ((with_sum_N - 1) / np.maximum(others_N, 1) - middle_N) / spread_N
    total_P = np.bincount(perturbation_N, z_N, minlength=n_names)
    return np.where(counts > 1, total_P / np.maximum(counts, 1), np.nan)


def _shuffled_within(perturbation_N: Codes, plate_N: Codes, rng: np.random.Generator) -> Codes:
    by_plate, shuffled = np.argsort(plate_N, kind="stable"), np.lexsort((rng.random(len(plate_N)), plate_N))
    found = np.empty_like(perturbation_N)
    found[by_plate] = perturbation_N[shuffled]
    return found
