"""How well predicted scores order and hit the true ones: Pearson, Spearman, Kendall, RMSE, with intervals.

N prompts, R draws. Correlations over several generators mix how generators differ with how prompts do, so they are
taken within each and averaged by Fisher's z (weights n - 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

METRICS = ("pearson", "spearman", "kendall", "rmse")
FEWEST = 4
"""Fewer rows than this have no Fisher z (its variance is 1 / (n - 3))."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def correlation(metric: str, truth: Numbers, predicted: Numbers) -> float:
    """One figure of N pairs; NaN where a side is constant (but for `rmse`).

    Args:
        metric: `pearson`, `spearman`, `kendall` (tau-b) or `rmse`.
        truth: (N,) scores.
        predicted: (N,) predictions.

    Raises:
        ValueError: Another metric.
    """
    from scipy.stats import kendalltau, rankdata

    if metric == "rmse":
        return float(np.sqrt(np.mean((truth - predicted) ** 2)))
    if metric not in METRICS:
        raise ValueError(f"no metric {metric!r}. There are {', '.join(METRICS)}.")
    if len(truth) < 2 or _is_constant(truth) or _is_constant(predicted):
        return float("nan")
    if metric == "kendall":
        return float(kendalltau(truth, predicted, method="asymptotic").statistic)  # no p-value is used
    if metric == "spearman":
        truth, predicted = rankdata(truth), rankdata(predicted)
    return float(np.corrcoef(truth, predicted)[0, 1])


def _is_constant(values: Numbers) -> bool:
    """Equal but for rounding: means of equal numbers differ in their last digits, and those would correlate."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def within_generators(
    metric: str, truth: Numbers, predicted: Numbers, generator: Sequence[str] | NDArray[np.str_]
) -> float:
    """The figure within each generator, averaged: correlations by Fisher's z, `rmse` over all rows.

    Generators of fewer than four rows, or of one score, are left out; NaN where none is left.
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
    metrics: Sequence[str] = METRICS,
) -> dict[str, Estimate]:
    """Every metric with a 95 % bootstrap interval over groups of prompts.

    Args:
        truth: (N,) scores.
        predicted: (N,) predictions.
        generator: (N,) what made the images; None where one did.
        group: (N,) rows resampled together, such as near-duplicates or one prompt's generators; None: each alone.
        n_draws: Resamples.
        seed: Of the resamples; equal groups and seeds give paired intervals.
        metrics: Which; all by default.

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
        drawn = np.array([within_generators(metric, truth[i], predicted[i], of_generator[i]) for i in draws])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        found[metric] = Estimate(value, float(low), float(high))
    return found


def gain_over(
    truth: Numbers,
    predicted: Numbers,
    baseline: Numbers,
    group: NDArray[np.intp] | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """How much less the root mean squared error is than a baseline's, in the scores' unit; above 0 is better.

    Both errors are of the same resampled rows, so what is hard for both does not widen the interval.

    Args:
        truth: (N,) scores.
        predicted: (N,) predictions.
        baseline: (N,) predictions of the baseline.
        group: (N,) rows resampled together; None: each alone.
        n_draws: Resamples of the 95 % interval.
        seed: Of the resamples.
    """
    squares = np.column_stack([(truth - baseline) ** 2, (truth - predicted) ** 2])

    def gain(rows: NDArray[np.intp] | slice) -> float:
        worse, better = np.sqrt(squares[rows].mean(axis=0))
        return float(worse - better)

    drawn = [gain(rows) for rows in resamples(group if group is not None else np.arange(len(truth)), n_draws, seed)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(gain(slice(None)), float(low), float(high))


def resamples(group: NDArray[np.intp], n_draws: int, seed: int) -> list[NDArray[np.intp]]:
    """Row numbers of each resample: groups with replacement, whole."""
    codes = np.unique(group, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(codes.max(initial=-1) + 2))
    random = np.random.default_rng(seed)
    n_groups = len(bounds) - 1
    if n_groups == len(codes):  # each alone
        return [random.integers(0, n_groups, n_groups) for _ in range(n_draws)]
    members = [order[bounds[g] : bounds[g + 1]] for g in range(n_groups)]
    return [np.concatenate([members[g] for g in random.integers(0, n_groups, n_groups)]) for _ in range(n_draws)]
