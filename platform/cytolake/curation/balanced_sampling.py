"""Balanced sampling: choose items evenly over groups, and evenly over subgroups within each group.

After the hierarchical sampling of Vo et al. 2024, arXiv 2405.15613: every group gives as much as every other until it
has no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def fair_shares(sizes: Sequence[int] | Numbers, total: int) -> Numbers:
    """Number of items to take from each group: min(size, level), with the level at which they sum to the total.

    The remainder below the next level goes, one each, to the first groups that have more.
    """
    available = np.asarray(sizes, np.int64)
    if total >= available.sum():
        return available.copy()
    ascending = np.sort(available)
    before = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    if_level = before + ascending * (len(ascending) - np.arange(len(ascending)))  # sum with the level at each size
    at = int(np.searchsorted(if_level, total, side="right"))  # the first group that the level does not reach
    level = (total - int(before[at])) // (len(ascending) - at)
    shares: Numbers = np.minimum(available, level)
    left = total - int(shares.sum())
    shares[np.flatnonzero(available > level)[:left]] += 1
    return shares


def balanced_choice(
    levels: Sequence[Numbers], rank: Numbers, total: int | None = None, per_group: int | None = None
) -> NDArray[np.bool_]:
    """Choose items evenly over the groups of the first level, within each over those of the second, and so on.

    Args:
        levels: For each level (N,) the group of each item.
        rank: (N,) distinct numbers; within a group of the last level the lowest are chosen.
        total: Largest number of items; None for no limit.
        per_group: Largest number of items of each group of the first level; None for no limit.

    Returns:
        (N,) True where chosen.
    """
    chosen = np.zeros(len(rank), np.bool_)
    order = np.argsort(rank, kind="stable")
    groups = _split(order, levels[0])
    sizes = np.array([len(group) for group in groups], np.int64)
    limits = sizes if per_group is None else np.minimum(sizes, per_group)
    shares = limits if total is None else fair_shares(limits, total)
    for group, share in zip(groups, shares.tolist(), strict=True):
        chosen[_choose(group, levels[1:], share)] = True
    return chosen


def _choose(items: Numbers, levels: Sequence[Numbers], total: int) -> Numbers:
    """The chosen items of some, which are ordered by rank."""
    if not levels or total >= len(items):
        return items[:total]
    groups = _split(items, levels[0])
    shares = fair_shares([len(group) for group in groups], total).tolist()
    return np.concatenate([_choose(group, levels[1:], share) for group, share in zip(groups, shares, strict=True)])


def _split(items: Numbers, codes: Numbers) -> list[Numbers]:
    """The items of each group in their order; groups by their first item."""
    if not len(items):
        return []
    of_item = codes[items]
    by_group = np.argsort(of_item, kind="stable")
    starts = np.flatnonzero(np.diff(of_item[by_group])) + 1
    positions = sorted(np.split(by_group, starts), key=lambda members: int(members[0]))
    return [items[members] for members in positions]
