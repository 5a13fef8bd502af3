"""Test whether classes need different values of a setting, or differ only by the noise of choosing the best of several.

The best of several noisy means is too high, so a gap between "each class at its own best" and "all at the common best"
is there without any effect. Here it is compared with its null: all classes share one response to the setting.

S values of the setting, R seeds, K classes, P placements.

Source of the gap: Bendidi et al. 2023, "No Free Lunch in Self-Supervised Representation Learning", arXiv:2304.11718. Of
the test: permutation of residuals of a reduced model, Freedman and Lane 1983, doi:10.1080/07350015.1983.10509354.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.tune.within_seeds import placements

Numbers = NDArray[np.float64]
_AT_ONCE = 400
_TINY = 1e-12
"""Recalls are shares of crops: what is smaller is rounding."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The no-free-lunch gap, in mean recall, and the part that noise explains."""

    value: float
    """Mean over classes of their best recall, less the best mean recall; never below 0."""
    by_chance: float
    """The mean gap where all classes share one response, at the noise between seeds; NaN with one seed."""
    excess_low: float
    """Lower end of the 95 % interval of `excess`, over placements; NaN with one seed."""
    excess_high: float
    p_value: float
    """One-sided, of the null that all classes share one response: that the gap is as large or larger. A gap that is
    too small is no finding, and common where classes differ in noise. NaN with one seed."""
    gain: float
    """Mean recall gained on a seed by taking, for each class, the best value on the other seeds rather than the best
    common value on them, mean over the seeds. Below 0 where the choice by class does harm; NaN with one seed."""

    @property
    def excess(self) -> float:
        """The gap less what chance gives. Where classes do differ it is too low rather than too high."""
        return self.value - self.by_chance

    @property
    def excess_text(self) -> str:
        """The excess and its interval, such as `+0.020 [+0.009, +0.026]`."""
        excess, low, high = (
            f"{round(each, 3) + 0.0:+.3f}" for each in (self.excess, self.excess_low, self.excess_high)
        )
        return f"{excess} [{low}, {high}]"

    @property
    def is_evident(self) -> bool:
        """Whether the interval of the excess lies above 0."""
        return self.excess_low > _TINY

    @property
    def verdict(self) -> str:
        """One sentence, without a full stop."""
        if np.isnan(self.p_value):
            return (
                f"one seed cannot separate classes that need different strengths from noise (gap {self.value:.3f}): "
                "train with two seeds or more"
            )
        against = f"the gap is {self.value:.3f}, and {self.by_chance:.3f} is expected from noise alone"
        interval = f"difference {self.excess_text}, one-sided p {self.p_value:.2g}"
        if self.is_evident:
            return (
                f"classes need different strengths: {against} ({interval}); choosing the strength of each class on the "
                f"other seeds changes mean recall on the seed left out by {self.gain:+.3f}"
            )
        return f"no evidence that classes need different strengths: {against} ({interval})"


@dataclass(frozen=True, slots=True)
class BestValue:
    """The value of the setting with the largest mean recall over classes, and whether it is better than the first."""

    place: int
    """Of the value, 0 = first."""
    gain: float
    """Mean recall over that at the first value, on a seed whose best value is chosen on the other seeds, mean over the
    seeds; NaN with one seed."""
    p_value: float
    """One-sided, of the null that the value does not matter; allows for the choice. NaN with one seed."""


def no_free_lunch_gap(mean_SK: Numbers) -> float:
    """Mean over classes of their best recall, less the best mean recall; 0 where one value is best for all."""
    return float(_gaps(mean_SK))


def gap_against_chance(recall_SRK: Numbers, n_permutations: int = 9999, seed: int = 0) -> Gap:
    """Compare the gap with that of classes which share one response to the setting.

    Recall is taken as seed and class, plus the training's own level, plus a deviation of the class in that training.
    Under the null the deviations are noise: within a seed those of all classes together are exchangeable over the
    values, while the common response stays where it is. The gap is divided by the spread of the deviations between
    seeds, so that placements which scatter a true effect do not count as more noise. Sizes by simulation: `make
    bench-nulls`. Classes that respond alike but to different degrees do not enlarge the gap and are not reported.

    Args:
        recall_SRK: (S, R, K).
        n_permutations: Random placements, where there are too many to list.
    """
    n_values, n_seeds = recall_SRK.shape[:2]
    gap = no_free_lunch_gap(recall_SRK.mean(axis=1))
    if n_seeds < 2:
        nan = float("nan")
        return Gap(gap, nan, nan, nan, nan, nan)
    training_SR = recall_SRK.mean(axis=2)
    deviation_SRK = recall_SRK - training_SR[:, :, None]
    deviation_SRK = deviation_SRK - deviation_SRK.mean(axis=0)
    common_S = training_SR.mean(axis=1)
    seeds = np.arange(n_seeds)
    gaps, spreads = [], []
    places = placements(n_values, n_seeds, n_permutations, seed)
    for part in np.array_split(places, max(1, len(places) // _AT_ONCE)):
        placed_PSRK = deviation_SRK[part, seeds]
        mean_PSK = placed_PSRK.mean(axis=2)
        gaps.append(_gaps(common_S[:, None] + mean_PSK))
        spreads.append(np.sqrt(np.mean((placed_PSRK - mean_PSK[:, :, None]) ** 2, axis=(1, 2, 3))))
    gap_P, spread_P = np.concatenate(gaps), np.concatenate(spreads)
    ratio_P = _ratio(gap_P, spread_P)
    least = 1e-9 * max(1.0, abs(float(ratio_P[0]))) if np.isfinite(ratio_P[0]) else 0.0
    noise = float(spread_P[0])
    finite = ratio_P[np.isfinite(ratio_P)]
    by_chance, low, high = 0.0, 0.0, 0.0
    if noise > _TINY and len(finite):
        by_chance = noise * float(finite.mean())
        low, high = (noise * float(q) for q in np.quantile(ratio_P, [0.025, 0.975], method="inverted_cdf"))
    return Gap(
        value=gap,
        by_chance=by_chance,
        excess_low=gap - high,
        excess_high=gap - low,
        p_value=float(np.mean(ratio_P >= ratio_P[0] - least)),
        gain=_gain_of_own_value(recall_SRK),
    )


def best_value(recall_SR: Numbers, n_permutations: int = 9999, seed: int = 0) -> BestValue:
    """Find the value with the largest mean, and test it against the first value with the choice allowed for.

    Args:
        recall_SR: (S, R) mean recall over classes.
        n_permutations: Random placements, where there are too many to list.
    """
    n_values, n_seeds = recall_SR.shape
    place = int(recall_SR.mean(axis=1).argmax())
    if n_seeds < 2:
        return BestValue(place, float("nan"), float("nan"))
    gains = []
    for left_out in range(n_seeds):
        others = np.delete(recall_SR, left_out, axis=1).mean(axis=1)
        gains.append(recall_SR[others.argmax(), left_out] - recall_SR[0, left_out])
    centred_SR = recall_SR - recall_SR.mean(axis=0)
    placed_PSR = centred_SR[placements(n_values, n_seeds, n_permutations, seed), np.arange(n_seeds)]
    mean_PS = placed_PSR.mean(axis=2)
    spread_P = np.sqrt(np.mean((placed_PSR - mean_PS[:, :, None]) ** 2, axis=(1, 2)))
    ratio_P = _ratio(mean_PS.max(axis=1) - mean_PS[:, 0], spread_P)
    least = 1e-9 * max(1.0, float(ratio_P[0])) if np.isfinite(ratio_P[0]) else 0.0
    return BestValue(place, float(np.mean(gains)), float(np.mean(ratio_P >= ratio_P[0] - least)))


def _gaps(mean_SK: Numbers) -> Numbers:
    """(...) gaps of (..., S, K) mean recalls."""
    return np.asarray(mean_SK.max(axis=-2).mean(axis=-1) - mean_SK.mean(axis=-1).max(axis=-1))


def _ratio(effect_P: Numbers, spread_P: Numbers) -> Numbers:
    """(P,) effect over spread; without spread 0 of no effect, else infinite."""
    certain = np.where(effect_P > _TINY, np.inf, 0.0)
    return np.asarray(np.divide(effect_P, spread_P, out=certain, where=spread_P > _TINY))


def _gain_of_own_value(recall_SRK: Numbers) -> float:
    n_seeds, n_classes = recall_SRK.shape[1:]
    gains = []
    for left_out in range(n_seeds):
        others_SK = np.delete(recall_SRK, left_out, axis=1).mean(axis=1)
        here_SK = recall_SRK[:, left_out]
        own = here_SK[others_SK.argmax(axis=0), np.arange(n_classes)].mean()
        gains.append(own - here_SK[others_SK.mean(axis=1).argmax()].mean())
    return float(np.mean(gains))
