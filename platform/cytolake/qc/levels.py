"""Statistics of QC on plates: deviations, means of wells, edge effects, separation of controls, position effects.

Letters: N wells or sites, C channels. A missing value is NaN and counts in no median.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.screens.plate_format import plate_format

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Positions of the sites of one plate, and controls of its wells."""

    well_of_site: dict[str, str]
    """Site id to well id."""
    wells: tuple[str, ...]
    """Well ids, in order; every array below has one value per well."""
    row: NDArray[np.int64]
    """0 is A."""
    column: NDArray[np.int64]
    """0 is the first column."""
    control: tuple[str, ...]
    """`negative`, `positive` or empty."""

    @property
    def is_edge(self) -> Flags:
        """(N,), True for wells of the outer rows and columns of the smallest standard plate that holds all wells.

        No well is an edge well on plates under 24 wells, which have no inner wells.
        """
        if not len(self.wells):
            return np.zeros(0, bool)
        height, width = plate_format(int(self.row.max()), int(self.column.max()))
        if height < 4:
            return np.zeros(len(self.wells), bool)
        return np.asarray(
            (self.row == 0) | (self.row == height - 1) | (self.column == 0) | (self.column == width - 1), bool
        )

    def is_control(self, kind: str) -> Flags:
        """(N,), True for the wells of this control."""
        return np.array([control == kind for control in self.control], bool)


def places(rows: pa.Table) -> Places:
    """Positions of one plate's sites.

    Args:
        rows: One row for each site, columns site_id, well_id, row, column and control. Sites of wells without a row
            or column (null) have a well and no place: they are left out of everything that is judged by well.
    """
    well_of_site: dict[str, str] = {}
    of_well: dict[str, tuple[int, int, str]] = {}
    for row in rows.to_pylist():
        well_of_site[row["site_id"]] = row["well_id"]
        if row["row"] is not None and row["column"] is not None:
            of_well[row["well_id"]] = (row["row"], row["column"], row["control"] or "")
    wells = tuple(sorted(of_well))
    return Places(
        well_of_site=well_of_site,
        wells=wells,
        row=np.array([of_well[well][0] for well in wells], np.int64),
        column=np.array([of_well[well][1] for well in wells], np.int64),
        control=tuple(of_well[well][2] for well in wells),
    )


def robust_deviations(values: Floats, reference: Floats, least_sd: float = 0.0) -> Floats:
    """(N,), distance of values from the reference's median, in robust standard deviations of the reference.

    Args:
        values: (N,).
        reference: (M,), reference values.
        least_sd: Smallest standard deviation to divide by, in the unit of the values.
    """
    median, sd = median_and_sd(reference)
    return np.asarray((values - median) / max(sd, least_sd, 1e-12), np.float64)


def median_and_sd(values: Floats) -> tuple[float, float]:
    """Median, and 1.4826 times the median absolute deviation (a normal's standard deviation); NaN for no value."""
    known = values[np.isfinite(values)]
    if not len(known):
        return math.nan, math.nan
    median = float(np.median(known))
    return median, 1.4826 * float(np.median(np.abs(known - median)))


def well_means(values: Floats, wells: list[str], order: tuple[str, ...]) -> Floats:
    """(N,), mean of the sites' values in each well of `order`; NaN without values."""
    place = {well: index for index, well in enumerate(order)}
    sums, counts = np.zeros(len(order)), np.zeros(len(order))
    for value, well in zip(values.tolist(), wells, strict=True):
        if well in place and math.isfinite(value):
            sums[place[well]] += value
            counts[place[well]] += 1
    means: Floats = np.divide(sums, counts, out=np.full(len(order), math.nan), where=counts > 0)
    return means


def separation(values_KN: Floats, is_positive: Flags, is_negative: Flags) -> Floats:
    """(K,), strictly standardised mean difference of positive and negative controls in each of K metrics.

    Both kinds share one standard deviation, pooled: the two or three positive controls that plates often have say
    nothing of their own. NaN where neither kind varies. 1 is a moderate control, 2 a strong one, 3 a very strong one.

    Args:
        values_KN: (K, N), no NaN among the controls.
        is_positive: (N,).
        is_negative: (N,).

    Source: Zhang 2007, doi:10.1016/j.ygeno.2007.01.014, its equal-variance case.
    """
    positive, negative = values_KN[:, is_positive], values_KN[:, is_negative]
    means = positive.mean(axis=1), negative.mean(axis=1)
    squares = ((positive - means[0][:, None]) ** 2).sum(axis=1) + ((negative - means[1][:, None]) ** 2).sum(axis=1)
    spread = np.sqrt(2 * squares / (positive.shape[1] + negative.shape[1] - 2))
    found: Floats = np.divide(means[0] - means[1], spread, out=np.full(len(spread), math.nan), where=spread > 0)
    return found


def separation_by_chance(values_KN: Floats, is_positive: Flags, is_negative: Flags) -> float:
    """Separation of the best of K metrics by chance: the 0.95 quantile over randomly labelled controls.

    Few wells and many metrics separate anything: with 2 wells against 8 and 30 metrics this is about 2.5.
    """
    controls = np.flatnonzero(is_positive | is_negative)
    n_positive = int(is_positive.sum())
    rng = np.random.default_rng(0)
    best = []
    for _ in range(200):
        drawn = np.zeros(len(is_positive), bool)
        drawn[rng.choice(controls, n_positive, replace=False)] = True
        found = np.abs(separation(values_KN, drawn, (is_positive | is_negative) & ~drawn))
        if np.isfinite(found).any():
            best.append(float(np.nanmax(found)))
    return float(np.quantile(best, 0.95)) if best else math.nan


def edge_shift(values: Floats, is_edge: Flags) -> float:
    """Median of the edge wells minus that of the inner wells, in robust standard deviations of the inner wells."""
    inner, sd = median_and_sd(values[~is_edge])
    edge, _ = median_and_sd(values[is_edge])
    return (edge - inner) / sd if sd > 0 else math.nan


def position_share(values: Floats, row: NDArray[np.int64], column: NDArray[np.int64]) -> float:
    """Share of the wells' variance that rows and columns explain together, adjusted for their number.

    Values are ranked first, so that a few hits cannot cause a trend. 0 is the average of wells in random order
    (values may be negative); 1 is a plate of stripes. NaN with fewer than two wells per row and column.

    Args:
        values: (N,), one value for each well.
        row: (N,).
        column: (N,).

    Source: the additive model of two-way median polish (Tukey 1977; B score, Brideau et al. 2003,
    doi:10.1177/1087057103258285) fitted by least squares to ranks; adjusted R squared.
    """
    is_known = np.isfinite(values)
    known, row, column = values[is_known], row[is_known], column[is_known]
    rows, columns = np.unique(row), np.unique(column)
    n, n_terms = len(known), len(rows) + len(columns) - 1
    if n < 2 * (len(rows) + len(columns)):
        return math.nan
    _, inverse, counts = np.unique(known, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    total = float(np.sum((ranks - ranks.mean()) ** 2))
    if total == 0:
        return math.nan
    design = np.concatenate([row[:, None] == rows, column[:, None] == columns[1:]], axis=1).astype(np.float64)
    residual = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    return 1 - float(residual @ residual) / total * (n - 1) / (n - n_terms)
