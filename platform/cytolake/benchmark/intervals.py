"""Balanced accuracy over several splits, with an interval from resampled wells.

W wells, K classes, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


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


def bootstrap_over_wells(splits: Sequence[WellCounts], label_W: NDArray[np.intp], n_draws: int) -> Interval:
    """Mean over splits of the balanced accuracy, with a 95 % percentile interval.

    Wells, not crops, are resampled, for crops of one well are not independent; with replacement within each class, and
    the same resample in every split. The interval leaves out what another training set would change.

    Args:
        splits: Counts of each split, over the same wells.
        label_W: (W,) class of each well; negative where the well is in no class.
        n_draws: Resamples.
    """
    value = float(np.mean([balanced_accuracy(counts, label_W) for counts in splits]))
    weight_RW = _resampled_weights(label_W, n_draws)
    draws = np.mean([_scores(counts, label_W, weight_RW) for counts in splits], axis=0)
    # A draw without a test well of any class has no score; where none has one, there is no interval.
    low, high = np.nanpercentile(draws, [2.5, 97.5]) if np.isfinite(draws).any() else (np.nan, np.nan)
    return Interval(value, float(low), float(high), draws)


def _resampled_weights(label_W: NDArray[np.intp], n_draws: int) -> Numbers:
    """(R, W) how often each well was drawn."""
    random = np.random.default_rng(0)  # fixed: equal wells give equal resamples, so differences can be taken pairwise
    weight_RW = np.zeros((n_draws, len(label_W)))
    for label in np.unique(label_W[label_W >= 0]):
        members = np.flatnonzero(label_W == label)
        weight_RW[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n_draws)
    return weight_RW


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
