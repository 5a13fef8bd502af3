"""Scores of held-out units (plates, batches, ...), their intervals, and nested choices between candidates.

A unit is the largest thing that a split holds out whole. Units, not wells or crops, are what was sampled: wells of one
plate share its staining and its position effects, so an interval over wells is too narrow (it covers 60 % instead of
95 % with four plates in a simulation).

U units, C candidates (such as blocks and poolings of one encoder).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.intervals import ROUNDING, Interval, share_of, student_quantile

Numbers = NDArray[np.float64]

MIN_UNITS = 3
"""Fewest units with an interval: with two, Student's t reaches 12.7 standard errors to each side."""
SELECTION_SHARPNESS = 0.5
"""Decay of a candidate's weight with each standard error behind the best candidate of the other units."""


_PLURALS = {
    "plate": "plates",
    "batch": "batches",
    "row": "rows",
    "column": "columns",
    "column_block": "blocks of columns",
}


def units_in_words(unit: str) -> str:
    """Plural of a kind of units, for sentences: `plates`, `batches`, ...; wells are held out in sets."""
    return _PLURALS.get(unit, "sets of wells")


@dataclass(frozen=True, slots=True)
class UnitScores:
    """Scores of one representation on every unit, each by probes fitted without the unit."""

    unit: str
    """Kind of the units: plate, batch, row, column, column_block, or a set of wells."""
    names: tuple[str, ...]
    """U names."""
    score: Numbers
    """(U,)"""
    n_train: float
    """Mean number of units that a probe was fitted on; infinite where nothing was fitted."""
    n_test: int
    """Number of wells behind the scores."""

    @property
    def value(self) -> float:
        """Mean over units."""
        return float(self.score.mean()) if len(self.score) else math.nan

    def interval(self) -> Interval:
        """The score and its 95 % interval over units, within 0..1."""
        if len(self.score) >= MIN_UNITS and np.ptp(self.score) <= ROUNDING:
            # Equal units, such as all correct, have no spread: the interval is that of a share of the wells.
            return Interval(self.value, *_by_wells(self), self.score)
        half = half_width(self.score, self.n_train)
        return Interval(self.value, max(self.value - half, 0.0), min(self.value + half, 1.0), self.score)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several representations to choose from."""

    scores: UnitScores
    inner: Numbers
    """(U, U) row p, column q: score on unit q by a probe fitted without p and q; NaN where there is none. Row p was
    measured without unit p, so a choice based on it can be reported on p."""

    @classmethod
    def of_details(cls, details: Mapping[str, Any]) -> Candidate | None:
        """From the `details` of a score; None for scores of versions that did not store it."""
        if "unit_scores" not in details:
            return None
        scores = UnitScores(
            details["unit"],
            tuple(details["units"]),
            np.asarray(details["unit_scores"], np.float64),
            details["n_train_units"],
            details["n_test_wells"],
        )
        n = len(scores.names)
        fold = np.asarray(details["fold_of_unit"], np.intp)
        by_fold = np.asarray(details["inner"], np.float64).reshape(-1, n)  # None becomes NaN
        return cls(scores, by_fold[fold] if len(by_fold) else np.full((n, n), np.nan))


def half_width(score_U: Numbers, n_train: float) -> float:
    """Half of a 95 % interval of the mean over units; NaN for fewer than `MIN_UNITS`.

    Student's t over units. Scores of two units are correlated, because their probes were fitted on nearly the same
    units, so the variance of the mean exceeds that of independent scores. The factor 1 + 2 / n_train gives 95 %
    coverage in simulations of logistic probes with plate effects and 3 to 16 units; that of Nadeau and Bengio 2003
    (doi:10.1023/A:1024068626366), 1 + U n_test / n_train, covers 98 to 99 % there.
    """
    n = len(score_U)
    if n < MIN_UNITS:
        return math.nan
    return float(student_quantile(n - 1) * np.sqrt(_variance_of_mean(score_U, n_train)))


def chosen_elsewhere(candidates: Sequence[Candidate]) -> UnitScores:
    """Score on every unit of the candidate that the other units choose.

    The best of C equal candidates, reported on the units that chose it, is too high by chance alone (by .076 for 8
    candidates on 4 plates in a simulation). Here the choice for a unit uses scores that were measured without it.
    Candidates that the other units cannot distinguish share the choice, with weight exp(-z / 2) at z standard errors
    behind the best, because a choice that changes with every unit would add noise.

    Raises:
        ValueError: No candidate.
    """
    if not candidates:
        raise ValueError("no candidate to choose from.")
    return replace(candidates[0].scores, score=_chosen(*_stacked(candidates)))


def gain(ours: Sequence[Candidate], theirs: Sequence[Candidate]) -> Interval:
    """Difference between the scores of the chosen candidates of two sets, on units that chose neither.

    The variance is the mean of two: that of the units' differences, and that of the jackknife, which includes the
    variance of the choice.

    Raises:
        ValueError: No candidate on a side, or sides of different units.
    """
    one, other = chosen_elsewhere(ours), chosen_elsewhere(theirs)
    if one.names != other.names:
        raise ValueError(
            f"scores of {len(one.names)} and of {len(other.names)} units ({one.unit}) cannot be compared: score both "
            "with the same wells and split."
        )
    difference_U = one.score - other.score
    value, low, high = _interval_with_choice(ours, theirs, difference_U, one.n_train)
    if len(difference_U) >= MIN_UNITS and np.ptp(difference_U) <= ROUNDING:
        # Equal differences have no spread: the interval is that of a difference of shares of wells (Newcombe 1998,
        # method 10, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, for unpaired wells).
        (a, b), (c, d) = (_by_wells(each) for each in (one, other))
        low = value - math.hypot(one.value - a, d - other.value)
        high = value + math.hypot(b - one.value, other.value - c)
    return Interval(value, low, high, difference_U)


def chosen_score(candidates: Sequence[Candidate]) -> Interval:
    """Score of a choice made on other units, with an interval that includes the variance of the choice; in 0..1."""
    found = chosen_elsewhere(candidates)
    if len(candidates) == 1:
        return found.interval()
    value, low, high = _interval_with_choice(candidates, (), found.score, found.n_train)
    return Interval(value, max(low, 0.0), min(high, 1.0), found.score)


def p_value(found: Interval, n_train: float) -> float:
    """Two-sided p-value of no gain, from the width of the interval; NaN without an interval."""
    from scipy import stats

    n = len(found.draws)
    if n < MIN_UNITS or not found.high > found.low:
        return math.nan
    error = (found.high - found.low) / 2 / student_quantile(n - 1)
    return float(2 * stats.t.sf(abs(found.value) / error, n - 1))


def _interval_with_choice(
    ours: Sequence[Candidate], theirs: Sequence[Candidate], score_U: Numbers, n_train: float
) -> tuple[float, float, float]:
    n, value = len(score_U), float(score_U.mean())
    if n < MIN_UNITS:
        return value, math.nan, math.nan
    variance = _variance_of_mean(score_U, n_train)
    if n > MIN_UNITS and len(ours) + len(theirs) > 2:  # enough units must remain to choose by
        without_U = _values_without_a_unit(ours) - (_values_without_a_unit(theirs) if theirs else 0.0)
        jackknife = (n - 1) / n * float(np.square(without_U - without_U.mean()).sum())
        variance = (variance + jackknife) / 2
    half = float(student_quantile(n - 1) * np.sqrt(variance))
    return value, value - half, value + half


def _values_without_a_unit(candidates: Sequence[Candidate]) -> Numbers:
    """(U,) mean score of the choice without each unit, which takes no part in the choice either."""
    score_CU, inner_CUU = _stacked(candidates)
    values = []
    for unit in range(score_CU.shape[1]):
        keep = np.arange(score_CU.shape[1]) != unit
        values.append(_chosen(score_CU[:, keep], inner_CUU[:, keep][:, :, keep]).mean())
    return np.asarray(values)


def _by_wells(scores: UnitScores) -> tuple[float, float]:
    """Wilson's 95 % interval of the mean, as a share of the wells."""
    share = share_of(round(scores.value * scores.n_test), scores.n_test)
    return min(share.low, scores.value), max(share.high, scores.value)


def _variance_of_mean(score_U: Numbers, n_train: float) -> float:
    return float(score_U.var(ddof=1) / len(score_U) * (1 + 2 / n_train))


def _stacked(candidates: Sequence[Candidate]) -> tuple[Numbers, Numbers]:
    return np.stack([each.scores.score for each in candidates]), np.stack([each.inner for each in candidates])


def _chosen(score_CU: Numbers, inner_CUU: Numbers) -> Numbers:
    """(U,) score on each unit of the candidate that the others choose."""
    n = score_CU.shape[1]
    is_other_UU = np.isfinite(inner_CUU).all(axis=0) & ~np.eye(n, dtype=bool)
    alone = ~is_other_UU.any(axis=1)
    if alone.any():  # of two units, or inner parts without two classes: the scores of the other units
        inner_CUU = inner_CUU.copy()
        inner_CUU[:, alone, :] = score_CU[:, None, :]
        is_other_UU[alone] = ~np.eye(n, dtype=bool)[alone]
    n_others_U = is_other_UU.sum(axis=1)
    known_CUU = np.where(is_other_UU, inner_CUU, 0.0)
    mean_CU = known_CUU.sum(axis=2) / n_others_U
    best_U = mean_CU.argmax(axis=0)
    behind_CU = mean_CU.max(axis=0) - mean_CU
    difference_CUU = np.where(is_other_UU, known_CUU[best_U, np.arange(n)] - known_CUU - behind_CU[:, :, None], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # one other unit has no spread: only the best counts
        error_CU = np.sqrt(np.square(difference_CUU).sum(axis=2) / np.maximum(n_others_U - 1, 0) / n_others_U)
        error_CU = np.where(n_others_U > 1, error_CU, 0.0)
        z_CU = np.where(behind_CU > 0, behind_CU / error_CU, 0.0)
    weight_CU = np.exp(-SELECTION_SHARPNESS * z_CU)
    return np.asarray((weight_CU * score_CU).sum(axis=0) / weight_CU.sum(axis=0))
