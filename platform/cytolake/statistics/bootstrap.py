"""Bootstrap resamples of scores: Poisson weights of units, and rows of groups drawn whole.

`intervals` makes intervals of the resamples.

Shapes: U units (rows, groups, perturbations or features), N rows, R draws, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.intervals import student_quantile

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
        units_U: (U,) numbers of these units, below `n_units`.
        n_units: Number of units in the screen.
        n_draws: R.

    Source: the Poisson bootstrap, Hanley and MacGibbon 2006, doi:10.1016/j.cmpb.2006.04.006.
    """
    upper, lower = np.empty(n_draws), np.empty(n_draws)
    for draws, weights_RN in _weights(n_units, n_draws):
        upper[draws], lower[draws] = weights_RN[:, units_U] @ numerator_U, weights_RN[:, units_U] @ denominator_U
    return np.asarray(np.divide(upper, lower, out=np.full(n_draws, np.nan), where=lower > 0))


def resampled_pairs(values_Q: Floats, pairs: NDArray[np.intp], n_nodes: int, n_draws: int) -> Floats:
    """(R,) mean value of pairs when each end counts Poisson(1) times, since pairs that share an end are not
    independent.

    NaN where a draw left no pair.

    Args:
        values_Q: (Q,)
        pairs: (Q, 2) places of the ends.
        n_nodes: Number of possible ends in the screen.
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
        units_U: (U,) numbers of these units, below `n_units`.
        n_units: Number of units in the screen.
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
    """(R,) the draws spread out so that their percentiles are the interval of Student's t over a few units.

    Source: Hesterberg 2015, doi:10.1080/00031305.2015.1089789, section 4 (narrowness bias).
    """
    from scipy import stats

    wider = float(student_quantile(n_units - 1) / stats.norm.ppf(0.975)) * float(np.sqrt(n_units / (n_units - 1)))
    return np.asarray(value + wider * (draws_R - value))


def mean_over_seeds(draws_SR: Sequence[Floats]) -> Floats:
    """(R,) draws of the mean over seeds, which are drawn with replacement; a unit has the same weight in all seeds.

    With few seeds, their part of the interval is a rough estimate, and rather too narrow than too wide.
    """
    draws = np.asarray(draws_SR)
    chosen_RS = np.random.default_rng(7).integers(0, len(draws), (draws.shape[1], len(draws)))
    return np.asarray(draws[chosen_RS, np.arange(draws.shape[1])[:, None]].mean(axis=1))


def resamples(group: NDArray[np.intp], n_draws: int, seed: int) -> list[NDArray[np.intp]]:
    """Row numbers of each resample: whole groups, with replacement.

    Args:
        group: (N,) group of each row; a number of its own where rows are drawn one by one.
        n_draws: R.
        seed: Seed of the draws; equal groups and seeds give paired resamples.
    """
    codes = np.unique(group, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(codes.max(initial=-1) + 2))
    random = np.random.default_rng(seed)
    n_groups = len(bounds) - 1
    if n_groups == len(codes):  # each alone
        return [random.integers(0, n_groups, n_groups) for _ in range(n_draws)]
    members = [order[bounds[g] : bounds[g + 1]] for g in range(n_groups)]
    return [np.concatenate([members[g] for g in random.integers(0, n_groups, n_groups)]) for _ in range(n_draws)]


def _weights(n_units: int, n_draws: int) -> Iterator[tuple[slice, Floats]]:
    """(R', n) Poisson weight of each unit, for some draws at a time; the same in every call."""
    rng = np.random.default_rng(6)
    step = max(1, BLOCK_VALUES // max(1, n_units))
    for start in range(0, n_draws, step):
        stop = min(start + step, n_draws)
        yield slice(start, stop), rng.poisson(1.0, (stop - start, n_units)).astype(np.float64)
