"""Average precision by chance: P positives placed at random among L ranks.

Its expectation has a closed form. Its distribution is exact, from a list of all placements, where they are few; else it
is sampled, with its own seed for each (P, L), so neither the order of calls nor a cache changes a result.

Shapes: B draws, C placements, P positives, M negatives.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]

EXACT_UP_TO = 100_000
"""Placements that are listed rather than sampled: 4 other replicates among 24 wells, the rest controls, have 10,626."""
TIE = 1e-12
"""Two average precisions this near are equal but for rounding."""
_CELLS_AT_ONCE = 4_000_000  # ranks drawn at the same time, 32 MB


def expected_average_precision(n_positives: ArrayLike, n_total: ArrayLike) -> Floats:
    """Mean average precision of a random order of `n_total` = L items of which `n_positives` = P are positive.

    Rank k counts if a positive is there (probability P / L), and its precision is (1 + the positives before it) / k,
    where each of the k - 1 items before it is positive with probability (P - 1) / (L - 1). Summed over k and divided by
    P: (H + (P - 1) / (L - 1) (L - H)) / L, with the harmonic number H = 1 + 1/2 + ... + 1/L.

    Raises:
        ValueError: Not 1 <= n_positives <= n_total.

    Source: Bestgen 2015, Prague Bulletin of Mathematical Linguistics 103; mu0 of Kalinin et al. 2025,
    doi:10.1038/s41467-025-60306-2.
    """
    positives, total = np.broadcast_arrays(np.asarray(n_positives, np.float64), np.asarray(n_total, np.float64))
    if ((positives < 1) | (positives > total)).any():
        raise ValueError(
            f"{n_positives!r} positives among {n_total!r} items: expected at least one, and no more than the items."
        )
    harmonic = digamma(total + 1) + np.euler_gamma
    before = (positives - 1) / np.maximum(total - 1, 1)  # a single item has none before it
    return np.asarray((harmonic + before * (total - harmonic)) / total)


def normalise(average_precision: ArrayLike, n_positives: ArrayLike, n_total: ArrayLike) -> Floats:
    """(AP - mu0) / (1 - mu0): 0 is chance and 1 is perfect, for any share of positives.

    Values below -1 are possible where most items are positive.

    Args:
        average_precision: 0..1.
        n_positives: Positives of each value.
        n_total: Positives and negatives of each value, with at least one negative.

    Raises:
        ValueError: No positive, or no negative: then every order has the same average precision.
    """
    if (np.asarray(n_positives) >= np.asarray(n_total)).any():
        raise ValueError("an average precision without negatives is always 1, and cannot be normalised.")
    mu0 = expected_average_precision(n_positives, n_total)
    return np.asarray((np.asarray(average_precision, np.float64) - mu0) / (1 - mu0))


def is_exact(n_positives: int, n_total: int, exact_up_to: int = EXACT_UP_TO) -> bool:
    """Whether there are at most `exact_up_to` placements."""
    log = math.lgamma(n_total + 1) - math.lgamma(n_positives + 1) - math.lgamma(n_total - n_positives + 1)
    # The logarithm avoids binomials with thousands of digits.
    return log < math.log(max(exact_up_to, 1)) + 1 and math.comb(n_total, n_positives) <= exact_up_to


@lru_cache(maxsize=128)
def exact_null(n_positives: int, n_total: int) -> Floats:
    """(C,) average precision of every placement, ascending; all placements are equally likely.

    Raises:
        ValueError: More than a million placements: use `sampled_null`.
    """
    if not is_exact(n_positives, n_total, 1_000_000):
        raise ValueError(f"{n_positives} of {n_total} ranks: too many placements to list. Use sampled_null.")
    n_negatives = n_total - n_positives
    if n_positives <= n_negatives:
        values = _of_positives(_all_subsets(n_total, n_positives))
    else:
        values = _of_negatives(_all_subsets(n_total, n_negatives), n_total)
    values.sort()
    values.flags.writeable = False
    return values


@lru_cache(maxsize=1024)
def sampled_null(n_positives: int, n_total: int, size: int = 10_000, seed: int = 0) -> Floats:
    """(B,) average precision of random placements; equal arguments give equal draws in equal order."""
    rng = np.random.default_rng([seed, n_positives, n_total, size])
    n_drawn = min(n_positives, n_total - n_positives)
    values = np.ones(size)
    at_once = max(1, _CELLS_AT_ONCE // max(n_drawn, 1))
    for start in range(0, size, at_once):
        ranks = _random_subsets(rng, n_total, n_drawn, min(at_once, size - start))
        is_positive = n_drawn == n_positives
        values[start : start + len(ranks)] = _of_positives(ranks) if is_positive else _of_negatives(ranks, n_total)
    values.flags.writeable = False
    return values


def _of_positives(ranks_BP: Ranks) -> Floats:
    """(B,) average precision of positives at ascending ranks from 0."""
    return np.asarray(np.mean(np.arange(1, ranks_BP.shape[1] + 1) / (ranks_BP + 1), axis=1))


def _of_negatives(ranks_BM: Ranks, n_total: int) -> Floats:
    """(B,) average precision from the ascending ranks of the negatives, for rows with fewer negatives than positives.

    Between the i-th negative and the next, precision is 1 - i / rank: the loss is i times a difference of harmonic
    numbers.
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n_total + 1))])
    after = np.concatenate([ranks_BM[:, 1:], np.full((len(ranks_BM), 1), n_total)], axis=1)
    lost = np.arange(1, ranks_BM.shape[1] + 1) * (harmonic[after] - harmonic[ranks_BM + 1])
    return np.asarray(1 - lost.sum(axis=1) / (n_total - ranks_BM.shape[1]))


def _all_subsets(n_all: int, n: int) -> Ranks:
    count = math.comb(n_all, n)
    flat = (rank for subset in combinations(range(n_all), n) for rank in subset)
    return np.fromiter(flat, np.int64, count=count * n).reshape(count, n)


def _random_subsets(rng: np.random.Generator, n_all: int, n: int, n_draws: int) -> Ranks:
    """(B, n) ascending numbers below n_all; every subset is equally likely.

    Duplicates are drawn again until all numbers differ, which favours no number.
    """
    drawn = np.sort(rng.integers(0, n_all, (n_draws, n)), axis=1)
    while True:
        rows = np.flatnonzero((drawn[:, 1:] == drawn[:, :-1]).any(axis=1))
        if not len(rows):
            return drawn
        part = drawn[rows]
        again = np.zeros(part.shape, dtype=bool)
        again[:, 1:] = part[:, 1:] == part[:, :-1]
        part[again] = rng.integers(0, n_all, int(again.sum()))
        part.sort(axis=1)
        drawn[rows] = part
