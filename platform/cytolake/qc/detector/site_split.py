"""Splits of labelled sites into training and test sites of an artefact detector: plates or wells are held out.

N labelled sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cytolake.qc.detector.detector import ARTEFACT
from cytolake.qc.labels import NORMAL

Unit = Literal["plate", "well"]


@dataclass(frozen=True, slots=True)
class SiteSplit:
    """One split of the sites."""

    seed: int
    held_out: tuple[str, ...]
    test: NDArray[np.intp]
    """Positions of the test sites."""
    orders: tuple[NDArray[np.intp], ...]
    """Training sites of each class, in the order in which labels are drawn."""


@dataclass(frozen=True, slots=True)
class DetectionTask:
    """Labels to predict, sites, and splits."""

    names: tuple[str, ...]
    """Names of the groups."""
    classes: tuple[str, ...]
    kinds: tuple[str, ...]
    """Classes before they are merged into normal and artefact."""
    label: NDArray[np.intp]
    """(N,) class of each site, 0 is normal."""
    kind: NDArray[np.intp]
    """(N,) place in `kinds`."""
    group: NDArray[np.intp]
    """(N,) place in `names`."""
    is_binary: bool
    is_one_class: bool
    splits: tuple[SiteSplit, ...]
    """Splits of the seeds with normal and spoilt test sites."""

    @classmethod
    def of(
        cls,
        labels: Sequence[str],
        groups: Sequence[str],
        seeds: Sequence[int],
        held_out_share: float,
        unit: Unit,
        *,
        is_binary: bool,
        is_one_class: bool,
    ) -> DetectionTask:
        """Split labelled sites.

        Args:
            labels: `normal` or a kind of artefact, of each site.
            groups: Its plate or well.
            held_out_share: Share of the groups in the test part; at least one, and at least one is trained on.
            unit: What the groups are. Wells are held out by class, a share of the normal and of the spoilt ones.
            is_binary: Kinds are joined to one class.
            is_one_class: Labels are drawn of normal sites alone.

        Raises:
            ValueError: Fewer than two groups.
        """
        names = tuple(sorted(set(groups)))
        if len(names) < 2:
            raise ValueError(
                f"label efficiency: sites of {len(names)} {unit} ({', '.join(names) or 'none'}), expected two or more: "
                f"labels of one {unit} say nothing of how a detector does on the next. Label sites of other {unit}s."
            )
        kinds = (NORMAL, *sorted(set(labels) - {NORMAL}))
        kind_N = np.array([kinds.index(label) for label in labels])
        label_N = np.minimum(kind_N, 1) if is_binary else kind_N
        classes = (NORMAL, ARTEFACT) if is_binary else kinds
        group_N = np.array([names.index(group) for group in groups])
        splits = []
        for seed in seeds:
            rng = np.random.default_rng([seed, 71])
            out = np.sort(_held_out(rng, label_N, group_N, len(names), held_out_share, unit))
            is_test = np.isin(group_N, out)
            if not (is_test & (label_N == 0)).any() or not (is_test & (label_N > 0)).any():
                continue
            orders = tuple(rng.permutation(np.flatnonzero((label_N == k) & ~is_test)) for k in range(len(classes)))
            splits.append(SiteSplit(seed, tuple(names[g] for g in out), np.flatnonzero(is_test), orders))
        return cls(names, classes, kinds, label_N, kind_N, group_N, is_binary, is_one_class, tuple(splits))

    def drawn(self, split: SiteSplit) -> tuple[NDArray[np.intp], ...]:
        """Training sites of the classes that labels are drawn from."""
        return split.orders[:1] if self.is_one_class else split.orders

    def most_labels(self, split: SiteSplit) -> int:
        """Largest number of labels per class in the training part."""
        return min(len(order) for order in self.drawn(split))


def _held_out(
    rng: np.random.Generator,
    label_N: NDArray[np.intp],
    group_N: NDArray[np.intp],
    n_groups: int,
    share: float,
    unit: Unit,
) -> NDArray[np.intp]:
    """Groups of the test part: any plates, or wells by class (a well is spoilt if any of its sites is)."""
    if unit == "plate":
        return np.asarray(rng.permutation(n_groups)[: min(n_groups - 1, max(1, round(share * n_groups)))])
    is_spoilt = np.bincount(group_N, label_N > 0, n_groups) > 0
    out = []
    for members in (np.flatnonzero(~is_spoilt), np.flatnonzero(is_spoilt)):
        out.append(rng.permutation(members)[: min(len(members) - 1, max(1, round(share * len(members))))])
    return np.concatenate(out)
