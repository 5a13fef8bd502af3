"""Splits of wells into train and test, with whole plates or batches held out so that a score measures generalisation.

W wells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

SplitBy = Literal["plate", "batch", "well", "row", "column", "column_block", "leave_one_well_out"]
SPLITS: tuple[str, ...] = get_args(SplitBy)
WITHIN_PLATES: tuple[SplitBy, ...] = ("well", "row", "column", "column_block", "leave_one_well_out")
"""Splits with test wells on plates that the probe was fitted on."""


@dataclass(frozen=True, slots=True)
class Split:
    """One split of the wells into train and test."""

    seed: int
    held_out: tuple[str, ...]
    """Names of the plates, batches or wells in the test part, sorted."""
    is_test: NDArray[np.bool_]
    """(W,) True where the well is in the test part."""


def hold_out_groups(groups: Sequence[str], share: float, seeds: Sequence[int]) -> list[Split]:
    """One split for each seed, in which whole groups (plates or batches) are held out.

    Seed s takes the s-th of a fixed list of splits. The list holds out every group once before any group a second time,
    and repeats a split only when there is no other with at most half of the groups held out.

    Args:
        groups: (W,) group of each well.
        share: Share of the groups in the test part, at least one group.
        seeds: 0 and up.

    Raises:
        ValueError: Fewer than two groups.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(
            f"found {len(names)} group to split by ({', '.join(names) or 'none'}), expected at least 2 plates or "
            "batches. Ingest more plates, or set probe.split=well for screens of one plate."
        )
    n_held_out = min(max(1, round(share * len(names))), len(names) - 1)
    ordered = _distinct_choices(len(names), n_held_out)
    choices: list[tuple[int, ...]] = [next(ordered) for _ in range(max(seeds) + 1)]
    of_well = np.asarray([names.index(group) for group in groups])
    return [
        Split(seed, tuple(names[i] for i in sorted(choices[seed])), np.isin(of_well, choices[seed])) for seed in seeds
    ]


def hold_out_wells(
    wells: Sequence[str], labels: Sequence[str], share: float, seeds: Sequence[int], *, stream: int = 0
) -> list[Split]:
    """One split for each seed, in which a share of every class's wells is held out.

    For screens with too few plates to hold any out. A class of two or more wells is in both parts. Positions and plates
    of the test part are not new, so scores are higher than those of `hold_out_groups`.

    Args:
        wells: (W,) unique names.
        labels: (W,) class of each well.
        share: Share of each class's wells in the test part, at least one where the class has two.
        seeds: 0 and up.
        stream: Another number gives different splits for the same seeds.
    """
    splits = []
    label_W = np.asarray(labels)
    for seed in seeds:
        random = np.random.default_rng([stream, seed])
        is_test = np.zeros(len(wells), dtype=bool)
        for label in sorted(set(labels)):
            members = np.flatnonzero(label_W == label)
            n_held_out = min(max(1, round(share * len(members))), len(members) - 1)
            is_test[random.permutation(members)[:n_held_out]] = True
        splits.append(Split(seed, tuple(sorted(np.asarray(wells)[is_test].tolist())), is_test))
    return splits


def classes_in_both(label_W: NDArray[np.intp], is_test: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Sorted classes with wells in the train and in the test part; negative labels are no class."""
    both = np.intersect1d(label_W[is_test], label_W[~is_test])
    return np.asarray(both[both >= 0], dtype=np.intp)


def _distinct_choices(n: int, k: int) -> Iterator[tuple[int, ...]]:
    """Endless sets of held-out groups: all sets of k, then of k + 1 up to half of the groups, then all again."""
    random = np.random.default_rng(0)
    while True:
        for size in range(k, max(k, n // 2) + 1):
            seen: set[tuple[int, ...]] = set()
            deck: list[int] = []
            while len(seen) < math.comb(n, size):
                if len(deck) < size:  # dealt like cards: every group has its turn before any has a second
                    deck += [int(i) for i in random.permutation(n) if i not in deck]
                choice = tuple(sorted(deck[:size]))
                deck = deck[size:]
                if choice not in seen:
                    seen.add(choice)
                    yield choice
