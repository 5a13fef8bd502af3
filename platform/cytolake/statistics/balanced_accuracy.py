"""Balanced accuracy over wells, and its resamples.

Shapes: W wells, K classes, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WellCounts:
    """Correct predictions of the test part of one split, well by well."""

    correct: Numbers
    """(W,) crops (or wells) predicted correctly; 0 outside the test part."""
    total: Numbers
    """(W,) crops (or wells) in the test part; 0 outside it."""


def balanced_accuracy(counts: WellCounts, label_W: NDArray[np.intp]) -> float:
    """Mean over classes of the share predicted correctly; classes without a test well do not count."""
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
