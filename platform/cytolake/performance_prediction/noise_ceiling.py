"""Noise ceiling of prompt predictors: the reliability of mean scores, from the scores of single images.

The images of each prompt are halved at random, and the means of the halves are correlated over prompts, within each
generator, because differences between generators are no noise. The reliability of the means over all images follows
from this correlation.

Shapes: N prompts, H halvings, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.performance_prediction.correlations import FEWEST, Estimate
from cytolake.statistics.bootstrap import resamples
from cytolake.statistics.intervals import percentile_interval

Numbers = NDArray[np.float64]
LARGEST_Z = 15.0
"""Fisher's z of a correlation of 1 up to rounding."""


@dataclass(frozen=True, slots=True)
class NoiseCeiling:
    """Best possible performance of a predictor, given the number of images behind each mean score."""

    reliability: Estimate
    """Expected correlation with the means of a second set of as many images; its interval resamples prompts."""
    ceiling: float
    """Square root of the reliability: the Pearson correlation of the scores with their noise-free values, which a
    perfect predictor would reach."""
    n_prompts: int
    """Prompts with two or more images; others do not count."""
    half_correlation: float
    """Correlation of the means of halves. A clearly negative value means that something other than noise separates the
    images of a prompt, such as a generator without a column, and that the reliability is not that of the prompts."""


def noise_ceiling(
    image_scores: Sequence[Numbers],
    generator: Sequence[str] | None = None,
    group: NDArray[np.intp] | None = None,
    *,
    of_single: bool = False,
    n_halvings: int = 50,
    n_draws: int = 200,
    seed: int = 0,
) -> NoiseCeiling | None:
    """Reliability of mean scores from repeated ones; None where no generator has four prompts with two images.

    Prompts with many and with few images are halved in the same way, so the reliability is that of the whole table. Odd
    numbers of images give halves of unequal length, which the formula accounts for.

    Args:
        image_scores: For each of N prompts (and generators) the scores of its images.
        generator: (N,) generator of the images; None for a single one.
        group: (N,) prompts resampled together; single prompts where None.
        of_single: Reliability of the score of one image instead of the mean over all images.
        seed: Seed of both.

    Source: Horst 1951, Educational and Psychological Measurement 11:368, for halves of unequal length; here with the
    harmonic means of the lengths, as prompts differ in theirs. Of equal halves it is the formula of Spearman 1910 and
    Brown 1910, 2 r / (1 + r).
    """
    several = np.array([i for i, scores in enumerate(image_scores) if len(scores) >= 2], dtype=np.intp)
    names = np.array(["" if generator is None else generator[i] for i in several.tolist()], dtype=str)
    strata = [rows for rows in (np.flatnonzero(names == name) for name in np.unique(names)) if len(rows) >= FEWEST]
    if not strata:
        return None
    several = several[np.sort(np.concatenate(strata))]
    names = np.array(["" if generator is None else generator[i] for i in several.tolist()], dtype=str)
    random = np.random.default_rng(seed)
    halves = np.array([_halved(image_scores[i], n_halvings, random) for i in several.tolist()])  # (N, 2, H)
    n_images = np.array([len(image_scores[i]) for i in several.tolist()])
    codes = several if group is None else np.asarray(group)[several]
    drawn = [np.bincount(rows, minlength=len(several)) for rows in resamples(codes, n_draws, seed)]
    counts = np.array([np.ones(len(several)), *drawn], dtype=float)  # the first row is the table itself
    r = np.tanh(_mean_z(halves, counts, names))
    if not np.isfinite(r[0]):
        return None
    smaller, larger = n_images // 2, n_images - n_images // 2
    inverse = counts @ np.column_stack([1 / smaller, 1 / larger, 1 / n_images]) / counts.sum(axis=1, keepdims=True)
    values = reliability_of_whole(r, inverse[:, 0], inverse[:, 1], 1.0 if of_single else inverse[:, 2])
    value = float(values[0])
    interval = percentile_interval(values[1:])
    return NoiseCeiling(Estimate(value, *interval), float(np.sqrt(value)), len(several), float(r[0]))


def reliability_of_whole(r: Numbers, smaller: Numbers, larger: Numbers, whole: Numbers | float) -> Numbers:
    """Reliability of a mean from the correlation of the means of its two parts; 0 where that is not above 0.

    With x the variance of one image over that between prompts, the parts correlate by
    1 / sqrt((1 + x a) (1 + x b)), and the reliability of the whole is 1 / (1 + x w).

    Args:
        r: Correlation of the parts' means.
        smaller: a, mean over prompts of 1 / images of one part.
        larger: b, the same of the other part.
        whole: w, the same of the whole.
    """
    r = np.asarray(r, dtype=float)
    safe = np.where(r > 0, r, 1.0)
    total, product = smaller + larger, smaller * larger
    x = (np.sqrt(total**2 + 4 * product * (safe**-2 - 1)) - total) / (2 * product)
    return np.asarray(np.where(r > 0, 1 / (1 + x * whole), np.where(np.isnan(r), np.nan, 0.0)))


def _halved(scores: Numbers, n_halvings: int, random: np.random.Generator) -> Numbers:
    """(2, H) means of two random halves; the first half is the smaller one."""
    shuffled = random.permuted(np.tile(np.asarray(scores, dtype=float), (n_halvings, 1)), axis=1)
    middle = shuffled.shape[1] // 2
    return np.stack([shuffled[:, :middle].mean(axis=1), shuffled[:, middle:].mean(axis=1)])


def _mean_z(halves: Numbers, counts: Numbers, names: NDArray[np.str_]) -> Numbers:
    """(R,) Fisher's z of the halves' correlation, averaged over halvings and (weights n - 3) over generators."""
    total, weights = np.zeros(len(counts)), np.zeros(len(counts))
    for name in np.unique(names):
        rows = names == name
        one, other = halves[rows, 0], halves[rows, 1]
        one, other = one - one.mean(axis=0), other - other.mean(axis=0)  # sums of squares lose digits far from 0
        weight = counts[:, rows]
        n = weight.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = weight @ one / n, weight @ other / n
            spreads = weight @ one**2 / n - means[0] ** 2, weight @ other**2 / n - means[1] ** 2
            r = (weight @ (one * other) / n - means[0] * means[1]) / np.sqrt(spreads[0] * spreads[1])
        is_known = (np.minimum(*spreads) > 1e-12 * np.maximum((one**2).max(), 1e-300)) & np.isfinite(r)
        z = np.clip(np.arctanh(np.clip(np.where(is_known, r, 0.0), -1, 1 - 1e-13)), -LARGEST_Z, LARGEST_Z)
        n_known = is_known.sum(axis=1)
        share = np.where(n_known > 0, np.maximum(n[:, 0] - 3, 0), 0)
        total += share * np.where(is_known, z, 0).sum(axis=1) / np.maximum(n_known, 1)
        weights += share
    return np.where(weights > 0, total / np.maximum(weights, 1e-300), np.nan)
