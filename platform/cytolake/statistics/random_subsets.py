"""Rows of groups and seeded random draws of rows, the parts of permutation tests. Draws are the same on every machine.

Shapes: B draws, n rows of a draw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]

MIN_PLACEMENTS = 20
"""A group that can be placed in fewer ways than this cannot reach a p-value of 0.05 whatever its effect."""
AT_ONCE_UP_TO = 64  # rows of a draw: Floyd's algorithm over all draws compares each row with all before it


def random_subsets(rng: np.random.Generator, n_all: int, n: int, n_draws: int) -> Codes:
    """(B, n) draws of n different numbers below `n_all`; every subset is equally likely."""
    if n > AT_ONCE_UP_TO:
        draws = [rng.choice(n_all, n, replace=False, shuffle=False) for _ in range(n_draws)]
        return np.asarray(draws, np.int64).reshape(n_draws, n)
    drawn = np.empty((n_draws, n), np.int64)
    for position, last in enumerate(range(n_all - n, n_all)):
        candidate = rng.integers(0, last + 1, size=n_draws)
        is_taken = (drawn[:, :position] == candidate[:, None]).any(axis=1)
        drawn[:, position] = np.where(is_taken, last, candidate)
    return drawn


def can_reach_significance(pool_sizes: Sequence[int], counts: Sequence[int]) -> bool:
    """Whether there are at least `MIN_PLACEMENTS` ways to draw `counts` rows from pools of these sizes, one a
    stratum."""
    placements = 1
    for size, count in zip(pool_sizes, counts, strict=True):
        if 0 < count < size:
            placements *= min(math.comb(size, min(count, size - count, 5)), MIN_PLACEMENTS)
        if placements >= MIN_PLACEMENTS:
            return True
    return False


def rows_of_groups(groups: Codes) -> list[tuple[int, Codes]]:
    """The groups from 0 up that have rows, ascending, each with its rows, ascending."""
    order = np.argsort(groups, kind="stable")
    numbers, starts = np.unique(groups[order], return_index=True)
    split = zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)
    return [(number, own.astype(np.int64)) for number, own in split if number >= 0]


def at_most(rng: np.random.Generator, rows: Codes, n: int) -> Codes:
    """The rows, or a random n of them in ascending order where there are more."""
    return rows if len(rows) <= n else np.sort(rng.choice(rows, n, replace=False))


def seeded_generator(seed: int, *stream: str | int) -> np.random.Generator:
    """Generator of one named stream of random numbers, independent of every other stream of the seed."""
    return np.random.default_rng([seed, *json.dumps(stream).encode()])
