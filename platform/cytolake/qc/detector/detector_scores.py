"""Scores of an artefact detector on weighted sites, for one set of weights or for all resamples at once.

Letters: M held-out sites, K classes, L different probabilities, B bins. Weights are (M,) or (R, M) for R resamples; a
score is then one number or (R,).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

BINARY_METRICS = ("auroc", "auprc", "recall_at_1_percent_fpr", "balanced_accuracy", "macro_f1", "calibration_error")
"""Normal against spoilt. `recall_at_1_percent_fpr`: share of the spoilt sites that are found where 1 in 100 normal ones
is failed. `balanced_accuracy`, `macro_f1`: at the detector's threshold. `calibration_error`: expected, over 10 bins of
the probability."""
KIND_METRICS = ("balanced_accuracy_of_kinds", "macro_f1_of_kinds")
"""Metrics of classification into normal and every kind of artefact, by the most probable class."""
FALSE_POSITIVE_RATE = 0.01
_BINS = 10


def binary_scores(
    probability_M: Numbers, is_spoilt_M: NDArray[np.bool_], weight: Numbers, threshold: float
) -> dict[str, Numbers]:
    """`BINARY_METRICS` of the probabilities of being spoilt.

    Args:
        probability_M: (M,)
        is_spoilt_M: (M,)
        weight: (M,) or (R, M) how much each site counts; 0 leaves it out.
        threshold: A site above it is classified as spoilt.

    Returns:
        nan where a side has no weight.
    """
    spoilt, normal = weight[..., is_spoilt_M].sum(axis=-1), weight[..., ~is_spoilt_M].sum(axis=-1)
    found, failed, precision = _ranking(probability_M, is_spoilt_M, weight)
    is_taken = probability_M > threshold
    hits = weight[..., is_taken & is_spoilt_M].sum(axis=-1)
    alarms = weight[..., is_taken & ~is_spoilt_M].sum(axis=-1)
    bin_MB = np.eye(_BINS)[np.minimum((probability_M * _BINS).astype(int), _BINS - 1)]
    gap = np.abs((weight * (probability_M - is_spoilt_M)) @ bin_MB).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = {
            "auroc": (np.diff(failed) * (found[..., 1:] + found[..., :-1]) / 2).sum(axis=-1),
            "auprc": (np.diff(found) * precision).sum(axis=-1),
            "recall_at_1_percent_fpr": np.where(failed <= FALSE_POSITIVE_RATE + 1e-12, found, 0).max(axis=-1),
            "balanced_accuracy": (hits / spoilt + (normal - alarms) / normal) / 2,
            "macro_f1": hits / (spoilt + hits + alarms) + (normal - alarms) / (2 * normal - alarms + spoilt - hits),
            "calibration_error": gap / (spoilt + normal),
        }
    is_known = (spoilt > 0) & (normal > 0)
    return {name: np.where(is_known, value, math.nan) for name, value in scores.items()}


def kind_scores(taken_M: NDArray[np.intp], label_M: NDArray[np.intp], weight: Numbers) -> dict[str, Numbers]:
    """`KIND_METRICS`, over the classes that have weight."""
    n = int(max(taken_M.max(), label_M.max())) + 1
    counts = (weight @ np.eye(n * n)[label_M * n + taken_M]).reshape(*weight.shape[:-1], n, n)
    of_class, as_class = counts.sum(axis=-1), counts.sum(axis=-2)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    is_there = of_class > 0
    recall = np.divide(right, of_class, out=np.zeros_like(right), where=is_there)
    f1 = np.divide(2 * right, of_class + as_class, out=np.zeros_like(right), where=is_there)
    with np.errstate(invalid="ignore"):
        return {
            "balanced_accuracy_of_kinds": recall.sum(axis=-1) / is_there.sum(axis=-1),
            "macro_f1_of_kinds": f1.sum(axis=-1) / is_there.sum(axis=-1),
        }


def _ranking(
    probability_M: Numbers, is_spoilt_M: NDArray[np.bool_], weight: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """Shares of the spoilt and of the normal sites at or above each probability (1 + L each), and precision (L)."""
    order = np.argsort(-probability_M, kind="stable")
    ranked, is_hit, weight = probability_M[order], is_spoilt_M[order], weight[..., order]
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))  # sites that score alike are found together
    hits = np.cumsum(weight * is_hit, axis=-1)[..., last]
    flagged = np.cumsum(weight, axis=-1)[..., last]
    none = np.zeros((*weight.shape[:-1], 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.concatenate([none, hits / hits[..., -1:]], axis=-1)
        failed = np.concatenate([none, (flagged - hits) / (flagged - hits)[..., -1:]], axis=-1)
    precision = np.divide(hits, flagged, out=np.ones_like(hits), where=flagged > 0)
    return found, failed, precision
