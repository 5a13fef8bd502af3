"""Agreement of predicted and true scores: Pearson, Spearman, Kendall and RMSE, with intervals.

Correlations over several generators mix differences between generators with those between prompts, so they are computed
within each generator and averaged by Fisher's z (weights n - 3).

Shapes: N prompts, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.bootstrap import resamples
from cytolake.statistics.intervals import percentile_interval

Numbers = NDArray[np.float64]

PREDICTION_METRICS = ("pearson", "spearman", "kendall", "rmse")
FEWEST = 4
"""Fewest rows with a Fisher z, whose variance is 1 / (n - 3)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def correlation(metric: str, truth: Numbers, predicted: Numbers) -> float:
    """One metric of N pairs; NaN where a side is constant (except for `rmse`).

    Args:
        metric: `pearson`, `spearman`, `kendall` (tau-b) or `rmse`.
        truth: (N,) scores.
        predicted: (N,) predictions.

    Raises:
        ValueError: An unknown metric.
    """
    from scipy.stats import kendalltau, rankdata

    if metric == "rmse":
        return float(np.sqrt(np.mean((truth - predicted) ** 2)))
    if metric not in PREDICTION_METRICS:
        raise ValueError(f"no metric {metric!r}. There are {', '.join(PREDICTION_METRICS)}.")
    if len(truth) < 2 or _is_constant(truth) or _is_constant(predicted):
        return float("nan")
    if metric == "kendall":
        return float(kendalltau(truth, predicted, method="asymptotic").statistic)  # no p-value is used
    if metric == "spearman":
        truth, predicted = rankdata(truth), rankdata(predicted)
    return float(np.corrcoef(truth, predicted)[0, 1])


def _is_constant(values: Numbers) -> bool:
    """Equal up to rounding: means of equal numbers differ in their last digits, which could correlate."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def within_generators(
    metric: str, truth: Numbers, predicted: Numbers, generator: Sequence[str] | NDArray[np.str_]
) -> float:
    """Mean of a metric over generators: correlations by Fisher's z, `rmse` over all rows.

    Generators with fewer than four rows, or with one score, are left out; NaN where none remains.
    """
    codes = np.unique(np.asarray(generator), return_inverse=True)[1]
    if metric == "rmse" or codes.max(initial=0) == 0:
        return correlation(metric, truth, predicted)
    total = weights = 0.0
    for code in range(int(codes.max()) + 1):
        rows = codes == code
        n = int(rows.sum())
        if n < FEWEST:
            continue
        value = correlation(metric, truth[rows], predicted[rows])
        if np.isfinite(value):
            total += (n - 3) * np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
            weights += n - 3
    return float(np.tanh(total / weights)) if weights else float("nan")


def score_predictions(
    truth: Numbers,
    predicted: Numbers,
    generator: Sequence[str] | None = None,
    group: NDArray[np.intp] | None = None,
    n_draws: int = 1000,
    seed: int = 0,
    metrics: Sequence[str] = PREDICTION_METRICS,
) -> dict[str, Estimate]:
    """Every metric with a 95 % bootstrap interval over groups of prompts.

    Args:
        truth: (N,) scores.
        predicted: (N,) predictions.
        generator: (N,) generator of the images; None for a single one.
        group: (N,) rows resampled together, such as near-duplicates or one prompt's generators; single rows where None.
        seed: Seed of the resamples; equal groups and seeds give paired intervals.
        metrics: Metrics; all by default.

    Raises:
        ValueError: Lengths differ, or a prediction is not finite.
    """
    truth, predicted = np.asarray(truth, dtype=float), np.asarray(predicted, dtype=float)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"scores of shape {truth.shape} and predictions of {predicted.shape}, expected one of each.")
    if not np.isfinite(predicted).all():
        raise ValueError(f"{int((~np.isfinite(predicted)).sum())} of {len(predicted)} predictions are not finite.")
    of_generator = np.asarray(generator if generator is not None else [""] * len(truth))
    draws = resamples(group if group is not None else np.arange(len(truth)), n_draws, seed)
    found = {}
    for metric in metrics:
        value = within_generators(metric, truth, predicted, of_generator)
        drawn = [within_generators(metric, truth[i], predicted[i], of_generator[i]) for i in draws]
        found[metric] = Estimate(value, *percentile_interval(drawn))
    return found


def gain_over(
    truth: Numbers,
    predicted: Numbers,
    baseline: Numbers,
    group: NDArray[np.intp] | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Root mean squared error of a baseline less that of the predictions, in the scores' unit; above 0 is better.

    Both errors use the same resampled rows, so rows that are hard for both do not widen the interval.

    Args:
        truth: (N,) scores.
        predicted: (N,) predictions.
        baseline: (N,) predictions of the baseline.
        group: (N,) rows resampled together; single rows where None.
        n_draws: Resamples behind the 95 % interval.
    """
    squares = np.column_stack([(truth - baseline) ** 2, (truth - predicted) ** 2])

    def gain(rows: NDArray[np.intp] | slice) -> float:
        worse, better = np.sqrt(squares[rows].mean(axis=0))
        return float(worse - better)

    drawn = [gain(rows) for rows in resamples(group if group is not None else np.arange(len(truth)), n_draws, seed)]
    return Estimate(gain(slice(None)), *percentile_interval(drawn))
