"""Intervals of a score by resampling what it is a mean of, and of a mean over seeds.

Shapes: U units (rows, groups, perturbations or features), R draws, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BLOCK_VALUES = 4_000_000  # 32 MB of weights at once


def resampled_ratio(
    numerator_U: Floats, denominator_U: Floats, units_U: NDArray[np.intp], n_units: int, n_draws: int
) -> Floats:
    """(R,) sum of numerators / sum of denominators when each unit counts Poisson(1) times; NaN where that is 0 / 0.

    The mean of numbers has a denominator of 1 each; the mean over rows in groups that are drawn whole, their sizes.
    A unit counts as often in every call, so that scores of two embeddings, or of two splits that share a unit, move
    together.

    Args:
        numerator_U: (U,)
        denominator_U: (U,)
        units_U: (U,) which units these are, below `n_units`.
        n_units: How many there are in the screen.
        n_draws: R.

    Source: the Poisson bootstrap, Hanley and MacGibbon 2006, doi:10.1016/j.cmpb.2006.04.006.
    """
    upper, lower = np.empty(n_draws), np.empty(n_draws)
    for draws, weights_RN in _weights(n_units, n_draws):
        upper[draws], lower[draws] = weights_RN[:, units_U] @ numerator_U, weights_RN[:, units_U] @ denominator_U
    return np.asarray(np.divide(upper, lower, out=np.full(n_draws, np.nan), where=lower > 0))


def resampled_pairs(values_Q: Floats, pairs: NDArray[np.intp], n_nodes: int, n_draws: int) -> Floats:
    """(R,) mean value of pairs when their ends count Poisson(1) times: pairs that share an end are not independent.

    NaN where a draw left no pair.

    Args:
        values_Q: (Q,)
        pairs: (Q, 2) places of the ends.
        n_nodes: How many ends there are in the screen.
        n_draws: R.
    """
    upper, lower = np.empty(n_draws), np.empty(n_draws)
    for draws, weights_RN in _weights(n_nodes, n_draws):
        weights_RQ = weights_RN[:, pairs[:, 0]] * weights_RN[:, pairs[:, 1]]
        upper[draws], lower[draws] = weights_RQ @ values_Q, weights_RQ.sum(axis=1)
    return np.asarray(np.divide(upper, lower, out=np.full(n_draws, np.nan), where=lower > 0))


def resampled_means(
    sums_UK: Floats, counts_UK: Floats, units_U: NDArray[np.intp], n_units: int, n_draws: int
) -> Floats:
    """(R,) mean over K classes of their rows' mean when each unit counts Poisson(1) times; NaN of a draw of nothing.

    Args:
        sums_UK: (U, K) sum over the rows of a class in a unit.
        counts_UK: (U, K) its rows. A class that a draw leaves without rows does not count in it.
        units_U: (U,) which units these are, below `n_units`.
        n_units: How many there are in the screen.
        n_draws: R.
    """
    means = np.full(n_draws, np.nan)
    for draws, weights_RN in _weights(n_units, n_draws):
        weights_RU = weights_RN[:, units_U]
        upper_RK, lower_RK = weights_RU @ sums_UK, weights_RU @ counts_UK
        mean_RK = np.divide(upper_RK, lower_RK, out=np.zeros_like(upper_RK), where=lower_RK > 0)
        n_classes_R = (lower_RK > 0).sum(axis=1)
        here = np.full(len(n_classes_R), np.nan)
        np.divide(mean_RK.sum(axis=1), n_classes_R, out=here, where=n_classes_R > 0)
        means[draws] = here
    return means


def widened(draws_R: Floats, value: float, n_units: int) -> Floats:
    """(R,) the draws, as far apart that their percentiles are the interval of Student's t over a few units.

    Source: Hesterberg 2015, doi:10.1080/00031305.2015.1089789, section 4 (narrowness bias).
    """
    from scipy import stats

    wider = float(stats.t.ppf(0.975, n_units - 1) / stats.norm.ppf(0.975)) * float(np.sqrt(n_units / (n_units - 1)))
    return np.asarray(value + wider * (draws_R - value))


def mean_over_seeds(draws_SR: Sequence[Floats]) -> Floats:
    """(R,) draws of the mean over seeds, which are drawn with replacement; units count alike in all of them.

    With few seeds the share of the interval that is due to them is rough, and too narrow rather than too wide.
    """
    draws = np.asarray(draws_SR)
    chosen_RS = np.random.default_rng(7).integers(0, len(draws), (draws.shape[1], len(draws)))
    return np.asarray(draws[chosen_RS, np.arange(draws.shape[1])[:, None]].mean(axis=1))


def percentile_interval(draws_R: Floats | None) -> tuple[float | None, float | None]:
    """2.5 and 97.5 % of the draws that are numbers; None without any."""
    if draws_R is None or not np.isfinite(draws_R).any():
        return None, None
    low, high = np.nanpercentile(draws_R, [2.5, 97.5]).tolist()
    return low, high


def _weights(n_units: int, n_draws: int) -> Iterator[tuple[slice, Floats]]:
    """(R', n) how often each unit counts, for some draws at a time; the same in every call."""
    rng = np.random.default_rng(6)
    step = max(1, BLOCK_VALUES // max(1, n_units))
    for start in range(0, n_draws, step):
        stop = min(start + step, n_draws)
        yield slice(start, stop), rng.poisson(1.0, (stop - start, n_units)).astype(np.float64)
