"""Permutation tests of a setting's effect that exchange its values within each training seed only.

A training seed shifts the recall of a class at every value of the setting: trainings of different seeds are not
exchangeable. Under "the value does not matter" the values within one seed are, whatever the seeds do.

S values of the setting, R seeds, K classes, P placements.

Sources: Page 1963, "Ordered hypotheses for multiple treatments", doi:10.1080/01621459.1963.10500843 (ranks within
blocks, summed over blocks); Phipson and Smyth 2010, doi:10.2202/1544-6115.1585 (p-values of random permutations).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Places = NDArray[np.intp]

MOST_VALUES = 8
"""All S! orders of one seed are listed up to this many values: 40,320."""


@dataclass(frozen=True, slots=True)
class Trend:
    """Trend with the value, within seeds."""

    correlation: Numbers
    """(K,) rank correlation with the value within each seed, -1 to 1, mean over the seeds in which recall varies; NaN
    where it never does."""
    p_value: Numbers
    """(K,) two-sided; NaN where recall never varies."""


def trend(recall_SRK: Numbers, n_permutations: int = 9999, seed: int = 0) -> Trend:
    """Test of Page on mid-ranks within seeds, two-sided.

    Up to `MOST_VALUES` values the p-value is exact: the distribution over all (S!)^R placements, ties included, is the
    convolution of the seeds' own. Beyond, placements are random.

    Args:
        recall_SRK: (S, R, K), values of the setting in increasing order.
        n_permutations: Random placements, where there are too many to list.
    """
    from scipy.stats import rankdata

    n_values, n_seeds, n_classes = recall_SRK.shape
    # Twice the centred ranks, so that mid-ranks are whole numbers and sums are exact.
    scores_SRK = np.rint(2 * rankdata(recall_SRK, axis=0) - (n_values + 1)).astype(np.int64)
    x_S = 2 * np.arange(n_values) - (n_values - 1)
    statistic_RK = np.einsum("s,srk->rk", x_S, scores_SRK)
    length_RK = np.sqrt((x_S**2).sum() * (scores_SRK**2).sum(axis=0))
    varies_RK = length_RK > 0
    correlation_RK = np.divide(statistic_RK, length_RK, out=np.zeros(length_RK.shape), where=varies_RK)
    n_varying = varies_RK.sum(axis=0)
    correlation = np.full(n_classes, np.nan)
    np.divide(correlation_RK.sum(axis=0), n_varying, out=correlation, where=n_varying > 0)
    found_K = np.abs(statistic_RK.sum(axis=0))
    if n_values <= MOST_VALUES:
        p_value = _exact_p_values(x_S, scores_SRK, found_K)
    else:
        places = placements(n_values, n_seeds, n_permutations, seed)
        at_least = np.zeros(n_classes)
        for part in np.array_split(places, max(1, len(places) // 500)):
            at_least += (np.abs(np.einsum("psr,srk->pk", x_S[part], scores_SRK)) >= found_K).sum(axis=0)
        p_value = at_least / len(places)
    return Trend(correlation, np.where(n_varying > 0, p_value, np.nan))


def least_p_value(n_values: int, n_seeds: int) -> float:
    """The smallest two-sided p-value that `trend` can give: both perfect orders of every seed, of (S!)^R placements."""
    return float(2 / math.factorial(n_values) ** n_seeds)


def placements(n_values: int, n_seeds: int, most: int, seed: int) -> Places:
    """(P, S, R) orders of the values within each seed, the one that was observed first.

    All (S!)^R where these are no more than `most` + 1, else that one and `most` random ones: the share of placements
    that reach what was observed is then a valid p-value, never 0.
    """
    n_all = math.factorial(n_values) ** n_seeds
    if n_all <= most + 1:
        orders = np.array(list(itertools.permutations(range(n_values))), dtype=np.intp)
        of_seed = np.array(list(itertools.product(range(len(orders)), repeat=n_seeds)), dtype=np.intp)
        return np.ascontiguousarray(orders[of_seed].transpose(0, 2, 1))
    observed = np.broadcast_to(np.arange(n_values)[None, :, None], (1, n_values, n_seeds))
    drawn = np.random.default_rng(seed).random((most, n_values, n_seeds)).argsort(axis=1)
    return np.concatenate([observed, drawn])


def _exact_p_values(x_S: NDArray[np.int64], scores_SRK: NDArray[np.int64], found_K: NDArray[np.int64]) -> Numbers:
    """(K,) share of all placements whose sum over seeds is at least as far from 0."""
    orders = x_S[np.array(list(itertools.permutations(range(len(x_S)))))]
    reach = int((x_S**2).sum())  # no sum within one seed is farther from 0
    of_ties: dict[tuple[int, ...], Numbers] = {}
    n_seeds = scores_SRK.shape[1]
    distance = np.abs(np.arange(-n_seeds * reach, n_seeds * reach + 1))
    p_values = []
    for scores_SR, found in zip(np.moveaxis(scores_SRK, 2, 0), found_K, strict=True):
        share = np.ones(1)
        for scores_S in np.sort(scores_SR, axis=0).T:
            ties = tuple(scores_S.tolist())
            if ties not in of_ties:
                counts = np.bincount(orders @ scores_S + reach, minlength=2 * reach + 1)
                of_ties[ties] = counts / len(orders)
            share = np.convolve(share, of_ties[ties])
        p_values.append(min(1.0, float(share[distance >= found].sum())))
    return np.array(p_values)
