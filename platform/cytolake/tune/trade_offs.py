"""Test whether a setting helps some classes and harms others, by the recall of each class over its values.

S values of the setting, R seeds, K classes, N crops.

Source: Bendidi et al. 2023, "No Free Lunch in Self-Supervised Representation Learning", arXiv:2304.11718. There counts
were averaged over minibatches, which is biased for classes that a minibatch lacks; here one confusion matrix counts
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.tune.no_free_lunch import Gap, best_value, gap_against_chance
from cytolake.tune.within_seeds import least_p_value, placements, trend

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ClassEffect:
    """How the recall of one class changes as the value grows."""

    name: str
    mean: Numbers
    """(S,) recall over seeds."""
    sd: Numbers
    """(S,) over seeds; NaN of a single seed."""
    spearman: float
    """Rank correlation of value and recall over all S * R trainings; NaN where the recall never changes."""
    trend: float
    """Rank correlation within each seed, mean over the seeds: what is tested, and what says improved or worsened."""
    p_value: float
    """Two-sided, from exchanges of the values within each seed."""
    q_value: float
    """The same after Benjamini and Hochberg over the classes, those of the other direction counted with p = 1."""
    spread: float
    """Largest less smallest mean recall; above 0 without any effect."""
    spread_by_chance: float
    """Mean spread without effect, at the noise between seeds: what to compare the spread with; NaN with one seed."""
    best: float
    """Value of the largest mean recall."""


@dataclass(frozen=True, slots=True)
class TradeOffs:
    """Effects of one setting on all classes."""

    classes: list[ClassEffect]
    gap: Gap
    """No-free-lunch gap and its null."""
    best: float
    """Value with the largest mean recall over classes."""
    best_gain: float
    """Mean recall at the best value less that at the first, the value chosen on other seeds; NaN with one seed."""
    best_p_value: float
    """One-sided, of the null that the value does not matter to mean recall; allows for the choice of the best."""
    least_p_value: float
    """The smallest p-value that so few values and seeds can give a class."""
    n_trainings: int
    level: float
    """False discovery rate, of improved and worsened classes and of pairs."""

    @property
    def improved(self) -> list[str]:
        """Classes whose recall rises with the value."""
        return [each.name for each in self.classes if each.q_value < self.level and each.trend > 0]

    @property
    def worsened(self) -> list[str]:
        """Classes whose recall falls with the value."""
        return [each.name for each in self.classes if each.q_value < self.level and each.trend < 0]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(improved, worsened): every pair of classes with significant effects of opposite sign."""
        return [(one, other) for one in self.improved for other in self.worsened]

    @property
    def verdict(self) -> str:
        """In sentences, without the last full stop; lack of evidence included."""
        return f"{self._about_pairs()}. {_capitalised(self.gap.verdict)}"

    def _about_pairs(self) -> str:
        improved, worsened = len(self.improved), len(self.worsened)
        counts = f"of {len(self.classes)} classes {improved} improve and {worsened} worsen with the strength"
        if self.pairs:
            first = min(self.pairs, key=lambda pair: max(self._q(pair[0]), self._q(pair[1])))
            n = f"{len(self.pairs)} pairs of classes respond" if len(self.pairs) > 1 else "One pair of classes responds"
            return (
                f"{n} in opposite directions, such as {first[0]} (improves) and {first[1]} (worsens): {counts} (q < "
                f"{self.level:g}, {self.n_trainings} trainings)"
            )
        if self.least_p_value >= self.level:
            return (
                f"Too few trainings to call any class improved or worsened: {self.n_trainings} of them cannot give a "
                f"p-value below {self.least_p_value:.2g}. Add seeds or strengths"
            )
        least = min((each.p_value for each in self.classes if np.isfinite(each.p_value)), default=float("nan"))
        return (
            f"No evidence that classes respond in opposite directions: {counts} (q < {self.level:g}, least p "
            f"{least:.2g}, {self.n_trainings} trainings)"
        )

    def _q(self, name: str) -> float:
        return next(each.q_value for each in self.classes if each.name == name)


def confusion_matrix(label: Codes, predicted: Codes, n_classes: int) -> NDArray[np.int64]:
    """(K, K) counts over all N crops: row the true class, column the predicted one."""
    counts = np.bincount(label * n_classes + predicted, minlength=n_classes * n_classes)
    return np.asarray(counts.reshape(n_classes, n_classes), dtype=np.int64)


def recall_of_classes(confusion: NDArray[np.int64]) -> Numbers:
    """(K,) share of each class predicted correctly; NaN of a class without crops."""
    total = confusion.sum(axis=1)
    return np.asarray(np.divide(np.diag(confusion), total, out=np.full(len(total), np.nan), where=total > 0))


def trade_offs(
    values: Sequence[float],
    recall_SRK: Numbers,
    classes: Sequence[str],
    level: float = 0.05,
    n_permutations: int = 9999,
) -> TradeOffs:
    """Effects of a setting on every class, and which pairs of classes it sets against each other.

    Trainings of one seed share much, so values are exchanged within each seed alone (`within_seeds.trend`). Improved
    and worsened classes are two families, each with two-sided p-values at the level, that is one-sided at half of it:
    then the expected share of false pairs, in which one of the two has no such effect, is at most the level too. With
    one family for both, many truly improved classes would make it easy for a class without effect to enter as worsened
    and to form a pair with each of them.

    Args:
        values: (S,) values of the setting, increasing.
        recall_SRK: (S, R, K) recall of each class in each training; the same R seeds at every value.
        classes: (K,) names.
        n_permutations: Random placements for the gap, where there are too many to list.

    Raises:
        ValueError: Shapes that do not fit, fewer than three values, or a recall that is missing.
    """
    n_values, n_seeds, n_classes = recall_SRK.shape
    if len(values) != n_values or len(classes) != n_classes:
        raise ValueError(
            f"recall of shape {recall_SRK.shape}, expected ({len(values)} values, seeds, {len(classes)} classes)."
        )
    if n_values < 3 or list(values) != sorted(set(values)):
        raise ValueError(f"values of the setting are {list(values)}, expected three or more, increasing.")
    if not np.isfinite(recall_SRK).all():
        s, r, k = np.argwhere(~np.isfinite(recall_SRK))[0]
        raise ValueError(
            f"class {classes[k]} has no recall at value {values[s]:g}, training {r}: it has no crops in the test part. "
            "Leave the class out, or hold out other plates."
        )
    found = trend(recall_SRK, n_permutations)
    rising, falling = (_q_of_direction(found.p_value, sign * found.correlation) for sign in (1, -1))
    q_values = np.where(found.correlation < 0, falling, rising)
    spearman = _spearman(recall_SRK)
    by_chance = _spread_by_chance(recall_SRK, min(n_permutations, 999), 0)
    mean_SK = recall_SRK.mean(axis=1)
    sd_SK = recall_SRK.std(axis=1, ddof=1) if n_seeds > 1 else np.full_like(mean_SK, np.nan)
    effects = [
        ClassEffect(
            name=str(name),
            mean=mean_SK[:, k],
            sd=sd_SK[:, k],
            spearman=float(spearman[k]),
            trend=float(found.correlation[k]),
            p_value=float(found.p_value[k]),
            q_value=float(q_values[k]),
            spread=float(np.ptp(mean_SK[:, k])),
            spread_by_chance=float(by_chance[k]),
            best=float(values[int(mean_SK[:, k].argmax())]),
        )
        for k, name in enumerate(classes)
    ]
    best = best_value(recall_SRK.mean(axis=2), n_permutations)
    return TradeOffs(
        classes=effects,
        gap=gap_against_chance(recall_SRK, n_permutations),
        best=float(values[best.place]),
        best_gain=best.gain,
        best_p_value=best.p_value,
        least_p_value=least_p_value(n_values, n_seeds),
        n_trainings=n_values * n_seeds,
        level=level,
    )


def _q_of_direction(p_K: Numbers, towards_K: Numbers) -> Numbers:
    """(K,) q-values of the classes that respond in one direction, among all classes that were tested."""
    return benjamini_hochberg(np.where(towards_K > 0, p_K, np.where(np.isnan(p_K), np.nan, 1.0)))


def _spearman(recall_SRK: Numbers) -> Numbers:
    """(K,) over all trainings; NaN where the recall never changes."""
    from scipy.stats import rankdata

    n_values, n_seeds, n_classes = recall_SRK.shape
    x = np.repeat(np.arange(n_values, dtype=float), n_seeds)
    x = x - x.mean()
    ranks = rankdata(recall_SRK.reshape(-1, n_classes), axis=0)
    y = ranks - ranks.mean(axis=0)
    length = np.linalg.norm(x) * np.linalg.norm(y, axis=0)
    return np.asarray(np.divide(x @ y, length, out=np.full(n_classes, np.nan), where=length > 0))


def _spread_by_chance(recall_SRK: Numbers, n_permutations: int, seed: int) -> Numbers:
    """(K,) largest less smallest mean recall in units of the sd between seeds, mean over placements, times that sd."""
    n_values, n_seeds, n_classes = recall_SRK.shape
    if n_seeds < 2:
        return np.full(n_classes, np.nan)
    centred_SRK = recall_SRK - recall_SRK.mean(axis=0)
    places = placements(n_values, n_seeds, n_permutations, seed)
    total, noise_K = np.zeros(n_classes), np.zeros(n_classes)
    for i, part in enumerate(np.array_split(places, max(1, len(places) // 200))):
        placed_PSRK = centred_SRK[part, np.arange(n_seeds)]
        mean_PSK = placed_PSRK.mean(axis=2)
        sd_PK = np.sqrt(np.mean((placed_PSRK - mean_PSK[:, :, None]) ** 2, axis=(1, 2)))
        noise_K = sd_PK[0] if i == 0 else noise_K  # the first placement is the observed one
        spread_PK = np.ptp(mean_PSK, axis=1)
        total += np.divide(spread_PK, sd_PK, out=np.zeros_like(sd_PK), where=sd_PK > 0).sum(axis=0)
    return np.asarray(noise_K * total / len(places))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
