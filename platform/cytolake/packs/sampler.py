"""The order in which training sees crops: a function of (seed, epoch, index) alone, never of the number of workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def sample_order(n: int, seed: int, epoch: int) -> Rows:
    """(n,), the crops of one epoch: every number below n once.

    Crops are sorted by the raw output of a counter-based generator (Philox), which NumPy keeps the same from release to
    release; its `permutation` it does not.

    Raises:
        ValueError: A number below 0.
    """
    if min(n, seed, epoch) < 0:
        raise ValueError(f"n={n}, seed={seed}, epoch={epoch}: expected numbers of 0 or more.")
    generator = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    return np.argsort(generator.random_raw(n), kind="stable").astype(np.int64)


def minibatches(
    n: int, seed: int, epoch: int, minibatch_size: int, rank: int, world_size: int, start: int = 0
) -> Iterator[Rows]:
    """One worker's parts of the global minibatches of an epoch.

    Global minibatch k is `sample_order(n, seed, epoch)[k * minibatch_size : (k + 1) * minibatch_size]`, and a worker
    takes every `world_size`-th crop of it. The last one holds what is left, so a worker's part of it may be empty:
    every worker yields the same number of parts.

    Args:
        n: Crops of the pack.
        seed: Seed of the run.
        epoch: 0 is the first.
        minibatch_size: Crops of a global minibatch, all workers together.
        rank: This worker, from 0.
        world_size: Number of workers.
        start: Global minibatch to begin with, 0 at the beginning of the epoch.

    Raises:
        ValueError: A size below 1, or a rank or start out of range.
    """
    if minibatch_size < 1 or world_size < 1 or not 0 <= rank < world_size or start < 0:
        raise ValueError(
            f"minibatch_size={minibatch_size}, rank={rank}, world_size={world_size}, start={start}: expected sizes of "
            "1 or more, a rank below world_size and a start of 0 or more."
        )
    order = sample_order(n, seed, epoch)
    return (
        order[first : first + minibatch_size][rank::world_size]
        for first in range(start * minibatch_size, n, minibatch_size)
    )
