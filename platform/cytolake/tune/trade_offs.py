"""Does a setting help some classes and harm others? Recall of each class over the values of one knob.

S values of the knob, R seeds, K classes, N crops.

Source: Bendidi et al. 2023, "No Free Lunch in Self-Supervised Representation Learning", arXiv:2304.11718. There counts
were averaged over minibatches, which is biased for classes that a minibatch lacks; here one confusion matrix counts
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ClassEffect:
    """How one class fares as the knob grows."""

    name: str
    mean: Numbers
    """(S,) recall over seeds."""
    sd: Numbers
    """(S,) over seeds; NaN of a single seed."""
    spearman: float
    """Rank correlation of value and recall over all S * R trainings; NaN where the recall never changes."""
    p_value: float
    """Two-sided, from permutations of the values over the trainings."""
    q_value: float
    """The same after Benjamini and Hochberg over the classes."""
    spread: float
    """Largest less smallest mean recall."""
    best: float
    """Value of the knob of the largest mean recall."""


@dataclass(frozen=True, slots=True)
class TradeOffs:
    """What one knob does to all classes."""

    classes: list[ClassEffect]
    pairs: list[tuple[str, str]]
    """(helped, harmed): every pair of classes with significant effects of opposite sign."""
    gap: float
    """No-free-lunch gap: what would be gained if each class had its own best value, in mean recall; never below 0."""
    best: float
    """Value with the largest mean recall over classes."""
    n_trainings: int
    level: float
    """False discovery rate that pairs were taken at."""

    @property
    def verdict(self) -> str:
        """In a sentence, evidence of absence included."""
        helped = [each.name for each in self.classes if each.q_value < self.level and each.spearman > 0]
        harmed = [each.name for each in self.classes if each.q_value < self.level and each.spearman < 0]
        if self.pairs:
            first = min(self.pairs, key=lambda pair: max(self._q(pair[0]), self._q(pair[1])))
            return (
                f"{len(self.pairs)} pairs of classes with significant opposite effects, such as {first[0]} (helped) "
                f"and {first[1]} (harmed); each class at its own best value would gain {self.gap:.3f} in mean recall"
            )
        least = min((each.p_value for each in self.classes if np.isfinite(each.p_value)), default=float("nan"))
        return (
            f"no pair of classes with significant opposite effects: of {len(self.classes)} classes {len(helped)} are "
            f"helped and {len(harmed)} harmed (least p {least:.3g}, {self.n_trainings} trainings); gap {self.gap:.3f}"
        )

    def _q(self, name: str) -> float:
        return next(each.q_value for each in self.classes if each.name == name)


def confusion_matrix(label: Codes, told: Codes, n_classes: int) -> NDArray[np.int64]:
    """(K, K) counts over all N crops: row the true class, column the told one."""
    counts = np.bincount(label * n_classes + told, minlength=n_classes * n_classes)
    return np.asarray(counts.reshape(n_classes, n_classes), dtype=np.int64)


def recall_of_classes(confusion: NDArray[np.int64]) -> Numbers:
    """(K,) share of each class told correctly; NaN of a class without crops."""
    total = confusion.sum(axis=1)
    return np.asarray(np.divide(np.diag(confusion), total, out=np.full(len(total), np.nan), where=total > 0))


def no_free_lunch_gap(mean_SK: Numbers) -> float:
    """Mean over classes of their best recall, less the best mean recall; 0 where one value is best for all."""
    return float(np.mean(mean_SK.max(axis=0)) - mean_SK.mean(axis=1).max())


def trade_offs(
    values: Sequence[float],
    recall_SRK: Numbers,
    classes: Sequence[str],
    level: float = 0.05,
    n_permutations: int = 9999,
    seed: int = 0,
) -> TradeOffs:
    """Effects of a knob on every class, and which pairs of classes it sets against each other.

    Under the null the value of the knob does not matter, so values are exchangeable over trainings; each permutation is
    used for all classes. A class counts once its q-value is below the level; a pair needs both.

    Args:
        values: (S,) values of the knob, increasing.
        recall_SRK: (S, R, K) recall of each class in each training.
        classes: (K,) names.
        level: False discovery rate.
        n_permutations: Random ones.
        seed: Of the permutations.

    Raises:
        ValueError: Shapes that do not fit, fewer than three values, or a recall that is missing.
    """
    from scipy.stats import rankdata

    n_values, n_seeds, n_classes = recall_SRK.shape
    if len(values) != n_values or len(classes) != n_classes:
        raise ValueError(
            f"recall of shape {recall_SRK.shape}, expected ({len(values)} values, seeds, {len(classes)} classes)."
        )
    if n_values < 3 or list(values) != sorted(set(values)):
        raise ValueError(f"values of the knob are {list(values)}, expected three or more, increasing.")
    if not np.isfinite(recall_SRK).all():
        s, r, k = np.argwhere(~np.isfinite(recall_SRK))[0]
        raise ValueError(
            f"class {classes[k]} has no recall at value {values[s]:g}, training {r}: it has no crops in the test part. "
            "Leave the class out, or hold out other plates."
        )
    rank_of_value = np.repeat(np.arange(n_values, dtype=float), n_seeds)
    x = rank_of_value - rank_of_value.mean()
    ranks = rankdata(recall_SRK.reshape(-1, n_classes), axis=0)
    y = ranks - ranks.mean(axis=0)
    length = np.linalg.norm(y, axis=0)
    scale = np.linalg.norm(x) * np.where(length > 0, length, np.nan)
    found = x @ y / scale
    random = np.random.default_rng(seed)
    at_least = np.zeros(n_classes)
    for start in range(0, n_permutations, 1000):
        n = min(1000, n_permutations - start)
        permuted = random.permuted(np.broadcast_to(x, (n, len(x))), axis=1)
        at_least += (np.abs(permuted @ y / scale) >= np.abs(found) - 1e-12).sum(axis=0)
    p_values = np.where(np.isfinite(found), (at_least + 1) / (n_permutations + 1), np.nan)
    q_values = adjusted(p_values)
    mean_SK = recall_SRK.mean(axis=1)
    sd_SK = recall_SRK.std(axis=1, ddof=1) if n_seeds > 1 else np.full_like(mean_SK, np.nan)
    effects = [
        ClassEffect(
            name=str(name),
            mean=mean_SK[:, k],
            sd=sd_SK[:, k],
            spearman=float(found[k]),
            p_value=float(p_values[k]),
            q_value=float(q_values[k]),
            spread=float(np.ptp(mean_SK[:, k])),
            best=float(values[int(mean_SK[:, k].argmax())]),
        )
        for k, name in enumerate(classes)
    ]
    helped = [each.name for each in effects if each.q_value < level and each.spearman > 0]
    harmed = [each.name for each in effects if each.q_value < level and each.spearman < 0]
    return TradeOffs(
        classes=effects,
        pairs=[(one, other) for one in helped for other in harmed],
        gap=no_free_lunch_gap(mean_SK),
        best=float(values[int(mean_SK.mean(axis=1).argmax())]),
        n_trainings=n_values * n_seeds,
        level=level,
    )


def adjusted(p_values: Numbers) -> Numbers:
    """q-values of Benjamini and Hochberg 1995 of the p-values that are there; NaN elsewhere."""
    from scipy.stats import false_discovery_control

    q_values = np.full(len(p_values), np.nan)
    there = np.isfinite(p_values)
    if there.any():
        q_values[there] = false_discovery_control(p_values[there], method="bh")
    return q_values
