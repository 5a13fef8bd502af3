"""Balanced accuracy of wells, and 95 % intervals that hold for few groups and few splits.

W wells, K classes, R draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.shares import share_of

Numbers = NDArray[np.float64]

MIN_GROUPS = 3
"""Groups that an interval needs: the sd of two says next to nothing."""
ROUNDING = 1e-12  # draws this near are equal


@dataclass(frozen=True, slots=True)
class WellCounts:
    """How the test part of one split went, well by well."""

    correct: Numbers
    """(W,) crops (or wells) told correctly; 0 outside the test part."""
    total: Numbers
    """(W,) crops (or wells) in the test part; 0 outside it."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A score, and the range that other wells of the same classes would plausibly have given."""

    value: float
    low: float
    high: float
    draws: Numbers
    """(R,) the score of each resample. The same wells, classes and draws give paired resamples."""


def balanced_accuracy(counts: WellCounts, label_W: NDArray[np.intp]) -> float:
    """Mean over classes of the share told correctly; classes without a test well do not count."""
    return float(_scores(counts, label_W, np.ones((1, len(label_W))))[0])


def resampled_scores(counts: WellCounts, label_W: NDArray[np.intp], group_W: NDArray[np.intp], n_draws: int) -> Numbers:
    """(R,) balanced accuracy of resampled wells; NaN of a draw without a test well of any class.

    Groups are drawn whole, with replacement; where every well is a group of its own, within each class. The same test
    wells, classes and groups give the same resamples, so differences can be taken pairwise.

    Args:
        counts: Counts of one split.
        label_W: (W,) class of each well; negative where the well is in no class.
        group_W: (W,) plate or batch of each well, or a number of its own.
        n_draws: R.
    """
    random = np.random.default_rng(0)
    weight_RW = np.zeros((n_draws, len(label_W)))
    tested = np.flatnonzero((label_W >= 0) & (counts.total > 0))
    groups, of_tested = np.unique(group_W[tested], return_inverse=True)
    if len(groups) < len(tested):
        weight_RW[:, tested] = random.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), n_draws)[
            :, of_tested
        ]
    else:
        for label in np.unique(label_W[tested]).tolist():
            members = tested[label_W[tested] == label]
            share = np.full(len(members), 1 / len(members))
            weight_RW[:, members] = random.multinomial(len(members), share, n_draws)
    return _scores(counts, label_W, weight_RW)


def few_groups_interval(
    value: float,
    draws: Numbers,
    n_groups: int,
    bounds: tuple[float, float] = (0.0, 1.0),
    level: float = 0.95,
    n_strata: int = 1,
) -> tuple[float, float]:
    """Interval of a score from resamples of groups (plates, wells, compounds, ...) that holds for few of them.

    The percentiles of a bootstrap of 4 plates are far too narrow: it can only draw what is there. Student's t with
    n_groups - 1 degrees of freedom times the bootstrap's sd, corrected for n_groups: exact for a mean of normal plates.
    Where all draws are alike, such as all right, their spread says nothing: a score within 0..1 is then taken for a
    share of the groups, with Wilson's interval.

    Args:
        value: The score.
        draws: (R,) the score of each resample; nan where it is not defined.
        n_groups: Groups that were resampled.
        bounds: What the score cannot leave.
        level: Coverage.
        n_strata: Within which groups were resampled, each with its own mean.

    Returns:
        nan and nan without draws, and with fewer than `MIN_GROUPS`, or two more groups than strata.

    Source: Hesterberg 2015, doi:10.1080/00031305.2015.1089789, section 4 (the bootstrap t and narrowness bias).
    """
    from scipy import stats

    known = draws[np.isfinite(draws)]
    if n_groups - n_strata < MIN_GROUPS - 1 or len(known) < 2 or not math.isfinite(value):
        return math.nan, math.nan
    if np.ptp(known) <= ROUNDING and bounds == (0.0, 1.0):
        share = share_of(round(value * n_groups), n_groups)
        return min(share.low, value), max(share.high, value)
    quantile = float(stats.t.ppf((1 + level) / 2, n_groups - n_strata))
    half = quantile * standard_error(known, n_groups, n_strata)
    return max(bounds[0], value - half), min(bounds[1], value + half)


def standard_error(draws: Numbers, n_groups: int, n_strata: int = 1) -> float:
    """Of a score, from its resamples: their sd, which of few groups is too small by sqrt(1 - strata / groups)."""
    return float(draws.std(ddof=1)) * math.sqrt(n_groups / (n_groups - n_strata))


def mean_of_groups(
    sums: Numbers, counts: Numbers, n_draws: int, random: np.random.Generator, bounds: tuple[float, float]
) -> Interval:
    """Mean over things that come in groups, with the 95 % interval of `few_groups_interval` over the groups.

    Args:
        sums: (G,) sum over each group's things.
        counts: (G,) how many things it has.
        n_draws: Resamples of the groups.
        random: Of the resamples.
        bounds: What the mean cannot leave.
    """
    n = len(sums)
    draws = np.empty(n_draws)
    for i in range(n_draws):  # one at a time: a matrix of 1,000 draws of 25,000 groups would hold 200 MB
        drawn = random.integers(0, n, n)
        draws[i] = sums[drawn].sum() / counts[drawn].sum()
    value = float(sums.sum() / counts.sum())
    return Interval(value, *few_groups_interval(value, draws, n, bounds), draws)


def mean_of_splits(score_J: Numbers, test_share: float, n_test: int) -> Interval:
    """Mean over random splits of one data set, with a 95 % interval that knows that training sets differ too.

    Variance (1 / J + test / train) times that of the splits' scores, Student's t with J - 1 degrees of freedom. An
    interval from resampled wells with the probes as they are covers chance in 81 to 90 % where there is only chance;
    this one in 94 to 96 %. Equal scores, such as all right, are a share of the tested things, with Wilson's interval.

    Args:
        score_J: (J,) score of each split, 0..1.
        test_share: Of the things, in the test part.
        n_test: Things that were tested.

    Returns:
        Without an interval where there is one split.

    Source: Nadeau and Bengio 2003, doi:10.1023/A:1024068626366.
    """
    from scipy import stats

    n, value = len(score_J), float(score_J.mean())
    if n < 2:
        return Interval(value, math.nan, math.nan, score_J)
    if np.ptp(score_J) <= ROUNDING:
        share = share_of(round(value * n_test), n_test)
        return Interval(value, min(share.low, value), max(share.high, value), score_J)
    variance = (1 / n + test_share / (1 - test_share)) * float(score_J.var(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt(variance)
    return Interval(value, max(0.0, value - half), min(1.0, value + half), score_J)


def _scores(counts: WellCounts, label_W: NDArray[np.intp], weight_RW: Numbers) -> Numbers:
    """(R,) balanced accuracy under each row of weights; a class that a draw left without test wells does not count."""
    classes = np.unique(label_W[(label_W >= 0) & (counts.total > 0)])
    is_class_WK = (label_W[:, None] == classes[None, :]).astype(float)
    correct_RK = weight_RW @ (counts.correct[:, None] * is_class_WK)
    total_RK = weight_RW @ (counts.total[:, None] * is_class_WK)
    recall_RK = np.divide(correct_RK, total_RK, out=np.full_like(correct_RK, np.nan), where=total_RK > 0)
    n_classes_R = (total_RK > 0).sum(axis=1)
    sums = np.nansum(recall_RK, axis=1)
    return np.asarray(np.divide(sums, n_classes_R, out=np.full(len(sums), np.nan), where=n_classes_R > 0))
