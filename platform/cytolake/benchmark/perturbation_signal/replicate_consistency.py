"""Replicate consistency: similarity of one perturbation in two experiments, compared with different perturbations.

For every perturbation in two experiments, the cosine between its two means is one value of the first distribution. The
cosine between its mean in one experiment and another perturbation's mean in the other is one value of the second, with
equally many pairs over the same pairs of experiments. The distance between the two distributions, Kolmogorov-Smirnov or
Cramer-von Mises, measures how well perturbations are recognised across experiments.

Cramer-von Mises' T is about n / 2 times an integral that does not depend on the number of pairs n. Compare T at equal n
only; `cramer_von_mises_per_pair` = T (n + m) / (n m) is that integral.

Source: Kraus et al. 2024, arXiv 2411.02572, replicate consistency; the pairing by experiments is ours.

Shapes: N rows, M means of one perturbation in one experiment, D features, n pairs, P perturbations, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cytolake.catalog.ids import content_id
from cytolake.statistics.intervals import MIN_GROUPS, ROUNDING, Interval, student_quantile
from cytolake.statistics.unit_vectors import unit_vectors

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

PAIRS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class ReplicateConsistency:
    """Recognition of perturbations across experiments; each score has a 95 % interval over perturbations."""

    kolmogorov_smirnov: Interval
    """0..1; 1 where every pair of replicates is more similar than every other pair."""
    cramer_von_mises: Interval
    """T at n = m = `n_pairs`."""
    cramer_von_mises_per_pair: Interval
    """T (n + m) / (n m), the same at any number of pairs."""
    n_pairs: int
    """Pairs of replicates that are compared, and equally many pairs of different perturbations."""
    n_pairs_in_all: int
    """All pairs of replicates; more than `n_pairs` where a sample was taken."""
    n_unmatched: int
    """Sampled pairs left out because the other experiment has no other perturbation."""
    n_perturbations: int
    """Perturbations with a pair."""
    n_not_finite: int
    """Rows left out because a value is not finite."""


def replicate_consistency(
    vectors: NDArray[np.generic],
    perturbations: Sequence[str],
    experiments: Sequence[str],
    *,
    max_pairs: int = 100_000,
    bootstrap_draws: int = 1000,
    seed: int = 0,
) -> ReplicateConsistency:
    """Compare replicates in different experiments with different perturbations in different experiments.

    Rows of one perturbation in one experiment are averaged first. A resample takes perturbations with replacement,
    each with its pairs of both kinds. The distance between two samples is biased upwards where the distributions are
    nearly equal; the intervals correct this bias and can then lie below the value.

    Args:
        vectors: (N, D) of any numeric type, aligned, without control rows.
        perturbations: (N,)
        experiments: (N,)
        max_pairs: Most pairs of replicates that are compared; a seeded sample of more.
        seed: Seed of the sample, the other perturbations and the resamples.

    Raises:
        ValueError: Arguments of different lengths, no perturbation in two experiments, no other perturbation to compare
            with, or a setting below 1.
    """
    for name, value in (("max_pairs", max_pairs), ("bootstrap_draws", bootstrap_draws)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more.")
    matrix = np.asarray(vectors)
    if matrix.ndim != 2 or not len(matrix) == len(perturbations) == len(experiments):
        raise ValueError(
            f"vectors of shape {matrix.shape}, {len(perturbations)} perturbations and {len(experiments)} experiments, "
            "expected (N, D), N and N. Take all from the same rows."
        )
    matrix = matrix.astype(np.float64)
    finite = np.isfinite(matrix).all(axis=1)
    unit_MD, of_mean, experiment_of_mean = _unit_means(
        matrix[finite], np.asarray(perturbations, str)[finite], np.asarray(experiments, str)[finite]
    )
    rng = np.random.default_rng(int(content_id("replicate consistency", seed), 16))
    one, other, n_in_all = _replicate_pairs(of_mean, max_pairs, rng)
    if not n_in_all:
        raise ValueError(
            f"no perturbation of {len(set(perturbations))} has finite rows in 2 of {len(set(experiments))} "
            "experiments. Replicate perturbations over experiments, or give the batches as experiments."
        )
    swap = rng.random(len(one)) < 0.5
    one, other = np.where(swap, other, one), np.where(swap, one, other)
    stranger, is_matched = _strangers(one, other, of_mean, experiment_of_mean, rng)
    one, other, stranger = one[is_matched], other[is_matched], stranger[is_matched]
    if not len(one):
        raise ValueError(
            "every experiment that holds a replicate holds no other perturbation, expected 2 or more in each to "
            "compare with. Give plates or batches that hold several perturbations as experiments."
        )
    query, null = _cosines(unit_MD, one, other), _cosines(unit_MD, one, stranger)
    n_perturbations = len(np.unique(of_mean[one]))
    codes = np.unique(np.concatenate([of_mean[one], of_mean[stranger]]), return_inverse=True)[1].astype(np.int64)
    n = len(query)
    ks = float(stats.ks_2samp(query, null, method="asymp").statistic)
    cvm = float(stats.cramervonmises_2samp(query, null, method="asymptotic").statistic)
    resampled, swapped = _resampled(query, null, codes[:n], codes[n:], bootstrap_draws, rng)
    return ReplicateConsistency(
        kolmogorov_smirnov=_interval(ks, resampled[0], swapped[0], n_perturbations, 1.0),
        cramer_von_mises=_interval(cvm, resampled[1] * n / 2, swapped[1] * n / 2, n_perturbations, math.inf),
        cramer_von_mises_per_pair=_interval(cvm * 2 / n, resampled[1], swapped[1], n_perturbations, math.inf),
        n_pairs=n,
        n_pairs_in_all=n_in_all,
        n_unmatched=int((~is_matched).sum()),
        n_perturbations=n_perturbations,
        n_not_finite=int((~finite).sum()),
    )


def _unit_means(
    matrix: Floats, perturbations: NDArray[np.str_], experiments: NDArray[np.str_]
) -> tuple[Floats, Codes, Codes]:
    """(M, D) unit vector of each perturbation's mean in each experiment, (M,) its perturbation, (M,) its experiment."""
    _, p = np.unique(perturbations, return_inverse=True)
    experiment_names, e = np.unique(experiments, return_inverse=True)
    cells, of_row, counts = np.unique(
        p.astype(np.int64) * max(1, len(experiment_names)) + e, return_inverse=True, return_counts=True
    )
    order = np.argsort(of_row, kind="stable")
    if not len(cells):
        return matrix, np.empty(0, np.int64), np.empty(0, np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    means_MD = np.add.reduceat(matrix[order], starts, axis=0) / counts[:, None]
    return unit_vectors(means_MD), cells // len(experiment_names), cells % len(experiment_names)


def _replicate_pairs(of_mean: Codes, max_pairs: int, rng: np.random.Generator) -> tuple[Codes, Codes, int]:
    """All pairs of means of one perturbation, or a sample of them, and the number of all pairs.

    `of_mean` is in ascending order, so the means of a perturbation are consecutive.
    """
    _, starts, counts = np.unique(of_mean, return_index=True, return_counts=True)
    n_pairs = counts * (counts - 1) // 2
    ends = np.cumsum(n_pairs)
    n_in_all = int(ends[-1]) if len(ends) else 0
    chosen = np.arange(n_in_all) if n_in_all <= max_pairs else np.sort(rng.choice(n_in_all, max_pairs, replace=False))
    group = np.searchsorted(ends, chosen, side="right")
    rank = chosen - (ends[group] - n_pairs[group]) if len(chosen) else chosen
    # Pair number k = j (j - 1) / 2 + i with i < j; rounding changes the root by one at most.
    j = np.floor((1 + np.sqrt(1 + 8 * rank)) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > rank
    j += j * (j + 1) // 2 <= rank
    i = rank - j * (j - 1) // 2
    first = starts[group] if len(chosen) else chosen
    return first + i, first + j, n_in_all


def _strangers(
    one: Codes, other: Codes, of_mean: Codes, experiment_of_mean: Codes, rng: np.random.Generator
) -> tuple[Codes, NDArray[np.bool_]]:
    """For each pair the mean of another perturbation in the experiment of `other`; False where there is none."""
    order = np.argsort(experiment_of_mean, kind="stable")
    counts = np.bincount(experiment_of_mean)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    experiment = experiment_of_mean[other]
    # `other` is one of the experiment's means and the only one of its perturbation: draw among the rest.
    is_matched = counts[experiment] > 1
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    drawn = (rng.random(len(other)) * np.maximum(counts[experiment] - 1, 1)).astype(np.int64)
    drawn += drawn >= place[other] - starts[experiment]
    drawn = np.minimum(drawn, counts[experiment] - 1)
    return order[starts[experiment] + drawn], is_matched


def _cosines(unit_MD: Floats, first: Codes, second: Codes) -> Floats:
    blocks = [slice(start, start + PAIRS_AT_ONCE) for start in range(0, len(first), PAIRS_AT_ONCE)]
    return np.concatenate([np.einsum("nd,nd->n", unit_MD[first[b]], unit_MD[second[b]]) for b in blocks])


class _Distances:
    """Distances between the two distributions of cosines under any weights of the pairs; the cosines are sorted
    once."""

    def __init__(self, query: Floats, null: Floats) -> None:
        values = np.concatenate([query, null])
        self.order = np.argsort(values, kind="stable")
        self.is_query = self.order < len(query)
        # Distributions are compared at the end of each run of equal values.
        self.ends = np.flatnonzero(np.append(np.diff(values[self.order]) > 0, True))

    def of(self, query_weight: Floats, null_weight: Floats, swapped: NDArray[np.bool_] | None = None) -> Floats:
        """(2,) Kolmogorov-Smirnov distance and Cramer-von Mises integral; `swapped` pairs change sides."""
        weight = np.concatenate([query_weight / query_weight.sum(), null_weight / null_weight.sum()])[self.order]
        is_query = self.is_query
        if swapped is not None:
            is_query = is_query ^ np.concatenate([swapped, swapped])[self.order]
        below = np.cumsum(np.where(is_query, weight, 0.0))[self.ends]
        both = np.cumsum(weight)[self.ends] / 2
        gap = 2 * np.abs(below - both)  # F - G, for both = (F + G) / 2
        gap = np.where(gap > ROUNDING, gap, 0.0)
        return np.asarray([gap.max(), gap**2 @ np.diff(both, prepend=0.0)])


def _resampled(
    query: Floats, null: Floats, group: Codes, other: Codes, n_draws: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """(2, R) distances of resamples of the perturbations, and (2, R) distances without any effect.

    Perturbations, not pairs, were sampled, so a pair of two perturbations has the product of their counts as weight.
    Without an effect, a perturbation's pairs with itself and with others are exchangeable.

    Args:
        query: (n,) cosines of replicates.
        null: (n,) cosines with the other perturbation.
        group: (n,) the pair's perturbation, from 0 up.
        other: (n,) the other one of `null`.
    """
    distances = _Distances(query, null)
    n_groups = int(max(group.max(), other.max())) + 1
    resampled, swapped = np.full((2, n_draws), np.nan), np.empty((2, n_draws))
    ones = np.ones(len(query))
    for draw in range(n_draws):
        count = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups)).astype(np.float64)
        of_query, of_null = count[group], count[group] * count[other]
        if of_query.any() and of_null.any():
            resampled[:, draw] = distances.of(of_query, of_null)
        swapped[:, draw] = distances.of(ones, ones, (rng.random(n_groups) < 0.5)[group])
    return resampled, swapped


def _interval(value: float, resampled_R: Floats, swapped_R: Floats, n: int, greatest: float) -> Interval:
    """The value less the bias of the resamples, with Student's t over the perturbations times their spread.

    The distance between two samples exceeds that between their distributions, and a resample's exceeds it again. For
    small effects resamples underestimate this bias, so the interval starts at 0 where the value is not larger than with
    sides changed at random.
    """
    known = resampled_R[np.isfinite(resampled_R)]
    if n < MIN_GROUPS or len(known) < 2:
        return Interval(value, math.nan, math.nan, resampled_R)
    middle = 2 * value - float(known.mean())
    half = float(student_quantile(n - 1) * known.std(ddof=1)) * math.sqrt(n / (n - 1))
    low, high = np.clip([middle - half, middle + half], 0.0, greatest)
    if value <= np.quantile(swapped_R, 0.975):
        low = 0.0
    return Interval(value, float(low), float(high), resampled_R)
