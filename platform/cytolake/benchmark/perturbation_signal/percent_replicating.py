"""Percent replicating: the share of perturbations whose replicates correlate more than wells of different
perturbations.

A perturbation's score is the median Pearson correlation of all pairs of its replicates. The null distribution is the
same score of equally many wells, each of another perturbation. The perturbation replicates where its score is above the
null's 95th percentile, so 5 % of perturbations without an effect do.

Wells of one plate correlate because of the plate. Where plates are given, the null's wells come from the same plates as
the replicates, with equal numbers from each plate.

Source: Way et al. 2022, doi:10.1016/j.cels.2022.10.001, and the pilots of JUMP (Chandrasekaran et al. 2024,
doi:10.1038/s41592-024-02241-6). The null by plates is ours.

Shapes: N wells, D features, B draws, n replicates of one perturbation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.perturbation_signal.correlations import Codes, Floats, correlated_rows, rows_of_perturbations
from cytolake.catalog.ids import content_id
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.intervals import Share, share_of
from cytolake.statistics.p_values import permutation_p_value

TIE = 1e-9
ATTEMPTS = 10
"""Most attempts to draw the sets of a null, since a set can fail on plates of few perturbations."""
TRIES = 500
"""Most redraws of a perturbation that the set already holds: enough where one of ten is left."""
CELLS_AT_ONCE = 4_000_000  # 32 MB of features

SCHEMA = pa.schema(
    [
        pa.field("perturbation", pa.string(), nullable=False),
        pa.field("n_wells", pa.int64(), nullable=False),
        pa.field("median_correlation", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("q_value", pa.float64()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Replicating:
    """Result: which perturbations replicate."""

    share: Share
    """Perturbations above their null's percentile among those with a null."""
    table: pa.Table
    """One row for each perturbation, sorted by name; columns as `SCHEMA`. `threshold` is the null's percentile,
    `p_value` the share of the null at or above the score. Empty where undefined, and `reason` then says why."""
    n_left_out: int
    """Wells with a value that is not finite, or constant over features."""


def percent_replicating(
    vectors: NDArray[np.generic],
    perturbations: Sequence[str],
    *,
    plates: Sequence[str] | None = None,
    n_draws: int = 1000,
    percentile: float = 95.0,
    max_wells: int = 64,
    seed: int = 0,
) -> Replicating:
    """Compare the replicates of each perturbation with equally many wells of different perturbations.

    Args:
        vectors: (N, D) treated wells of any numeric type, aligned, without controls.
        perturbations: (N,)
        plates: (N,) the null has as many wells of each plate as the replicates; wells of all plates where None, as
            published.
        percentile: Percentile of the null that replicates must exceed.
        max_wells: Most replicates that are compared; a seeded sample of more.
        seed: Seed of every draw.

    Raises:
        ValueError: Arguments of different lengths, fewer than 2 features, a setting out of range, or no perturbation
            with a null.
    """
    if n_draws < 19 or not 0 < percentile < 100 or max_wells < 2:
        raise ValueError(
            f"n_draws is {n_draws}, percentile {percentile} and max_wells {max_wells}, expected 19 or more, a number "
            "between 0 and 100, and 2 or more."
        )
    if plates is not None and len(plates) != len(perturbations):
        raise ValueError(f"{len(plates)} plates for {len(perturbations)} wells, expected one for each.")
    rows = correlated_rows(vectors, perturbations)
    plate_names = np.asarray(["" if plates is None else str(plates[row]) for row in rows.used.tolist()])
    _, plate = np.unique(plate_names, return_inverse=True)
    nulls = _Nulls(rows.unit, rows.perturbation, plate, n_draws, seed)
    score_P, threshold_P, p_P = (np.full(len(rows.names), np.nan) for _ in range(3))
    reasons = [""] * len(rows.names)
    of_perturbation = rows_of_perturbations(rows)
    for i, (name, own) in enumerate(zip(rows.names, of_perturbation, strict=True)):
        if len(own) < 2:
            reasons[i] = f"{len(own)} usable wells, expected 2 or more"
            continue
        compared = own
        if len(own) > max_wells:
            rng = np.random.default_rng(int(content_id("replicates", seed, name), 16))
            compared = np.sort(rng.choice(own, max_wells, replace=False))
        null_B = nulls.of(plate[compared])
        if null_B is None:
            reasons[i] = (
                f"fewer than {len(compared)} perturbations to draw wells of{'' if plates is None else ' on its plates'}"
            )
            continue
        score_P[i] = median_correlations(rows.unit[None, compared])[0]
        threshold_P[i] = np.percentile(null_B, percentile)
        p_P[i] = permutation_p_value(score_P[i], null_B, TIE)
    tested = ~np.isnan(p_P)
    if not tested.any():
        raise ValueError(
            f"none of {len(reasons)} perturbations has replicates and a null ({'; '.join(sorted(set(reasons))[:2])}). "
            "Expected perturbations of 2 wells or more, and others to compare them with."
        )
    columns = {
        "perturbation": pa.array(rows.names),
        "n_wells": pa.array([len(own) for own in of_perturbation]),
        "median_correlation": pa.array(score_P, mask=~tested),
        "threshold": pa.array(threshold_P, mask=~tested),
        "p_value": pa.array(p_P, mask=~tested),
        "q_value": pa.array(benjamini_hochberg(p_P), mask=~tested),
        "reason": pa.array(reasons),
    }
    n_above = int(np.sum(score_P[tested] > threshold_P[tested] + TIE))
    table = pa.Table.from_pydict(columns, schema=SCHEMA)
    return Replicating(share_of(n_above, int(tested.sum())), table, rows.n_left_out)


def median_correlations(unit_BnD: Floats) -> Floats:
    """(B,) median over all pairs of each set of n rows.

    Args:
        unit_BnD: Rows of length 1, centred over their features.
    """
    first, second = np.triu_indices(unit_BnD.shape[1], k=1)
    cosine_Bnn = unit_BnD @ unit_BnD.transpose(0, 2, 1)
    return np.asarray(np.median(cosine_Bnn[:, first, second], axis=1))


class _Nulls:
    """Null distributions, one for each multiset of plates."""

    def __init__(self, unit: Floats, perturbation: Codes, plate: Codes, n_draws: int, seed: int) -> None:
        self.unit, self.n_draws, self.seed = unit, n_draws, seed
        self.plates = [_Plate.of(np.flatnonzero(plate == number), perturbation) for number in np.unique(plate).tolist()]
        self.found: dict[tuple[int, ...], Floats | None] = {}

    def of(self, plates_n: Codes) -> Floats | None:
        """(B,) medians of random sets of wells; None where the plates hold too few perturbations for one."""
        key = tuple(sorted(plates_n.tolist()))
        if key not in self.found:
            self.found[key] = self._draw(key)
        return self.found[key]

    def _draw(self, plates: tuple[int, ...]) -> Floats | None:
        rng = np.random.default_rng(int(content_id("percent replicating", self.seed, str(plates)), 16))
        at_once = max(1, CELLS_AT_ONCE // (len(plates) * self.unit.shape[1]))
        medians: list[Floats] = []
        n_left = self.n_draws
        for _ in range(ATTEMPTS * -(-self.n_draws // at_once)):
            sets = self._random_sets(plates, min(at_once, n_left), rng)
            medians.append(median_correlations(self.unit[sets]))
            n_left -= len(sets)
            if not n_left:
                return np.concatenate(medians)
        return None

    def _random_sets(self, plates: tuple[int, ...], n_sets: int, rng: np.random.Generator) -> Codes:
        """(sets, n) wells of these plates, each of another perturbation; all perturbations are equally likely.

        A set without a further perturbation on a plate is left out, so there may be fewer sets.
        """
        wells, taken = np.empty((n_sets, 0), np.intp), np.empty((n_sets, 0), np.intp)
        for plate in map(self.plates.__getitem__, plates):
            place = rng.integers(0, len(plate.perturbations), len(wells))
            again = np.flatnonzero((taken == plate.perturbations[place, None]).any(axis=1))
            for _ in range(TRIES):
                if not len(again):
                    break
                place[again] = rng.integers(0, len(plate.perturbations), len(again))
                again = again[(taken[again] == plate.perturbations[place[again], None]).any(axis=1)]
            drawn = plate.wells[plate.starts[place] + (rng.random(len(place)) * plate.counts[place]).astype(np.intp)]
            is_complete = np.ones(len(place), dtype=bool)
            is_complete[again] = False
            wells = np.column_stack([wells, drawn])[is_complete]
            taken = np.column_stack([taken, plate.perturbations[place]])[is_complete]
        return wells


@dataclass(frozen=True, slots=True)
class _Plate:
    """Wells of a plate, ordered by perturbation."""

    perturbations: Codes
    starts: Codes
    counts: Codes
    wells: Codes

    @classmethod
    def of(cls, wells: Codes, perturbation: Codes) -> _Plate:
        ordered = wells[np.argsort(perturbation[wells], kind="stable")]
        names, starts, counts = np.unique(perturbation[ordered], return_index=True, return_counts=True)
        return cls(names, starts, counts, ordered)
