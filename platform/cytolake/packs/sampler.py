"""The order of crops in training: a function of (seed, epoch, index) only, independent of the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def sample_order(n: int, seed: int, epoch: int) -> Rows:
    """(n,), the order of crops in one epoch: a permutation of 0 to n - 1.

    Crops are sorted by the raw output of a counter-based generator (Philox), which NumPy keeps the same from release to
    release; its `permutation` it does not.

    Raises:
        ValueError: A number below 0.
    """
    if min(n, seed, epoch) < 0:
        raise ValueError(f"n={n}, seed={seed}, epoch={epoch}: expected numbers of 0 or more.")
    generator = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    return np.argsort(generator.random_raw(n), kind="stable").astype(np.int64)


@dataclass(frozen=True, slots=True)
class GlobalMinibatch:
    """The crops of one training step, of all workers together."""

    first: int
    """Number of samples before it since the start of the run: sample k is the crop at place k % n of epoch k // n."""
    rows: Rows
    """(M,) crops of the pack."""
    epochs: Rows
    """(M,) the epoch of each: a minibatch may end one epoch and begin the next."""

    @property
    def end(self) -> int:
        """Number of samples up to and including it."""
        return self.first + len(self.rows)

    def share(self, rank: int, world_size: int) -> tuple[Rows, Rows]:
        """Crops and epochs of one worker: every `world_size`-th; empty if there are fewer crops than workers."""
        return self.rows[rank::world_size], self.epochs[rank::world_size]


def minibatches(
    n: int,
    seed: int,
    minibatch_size: int,
    *,
    first: int = 0,
    end: int | None = None,
    tokens: NDArray[np.int64] | None = None,
    max_tokens: int | None = None,
) -> Iterator[GlobalMinibatch]:
    """The minibatches of a run, across epochs: every crop is in exactly one minibatch of each epoch.

    The content of a minibatch depends only on its first sample, so a run that resumes at the `end` of its last finished
    minibatch sees the same crops as an uninterrupted run.

    Args:
        n: Crops of the pack, 1 or more.
        minibatch_size: Largest number of crops of a minibatch.
        end: Sample to stop before; the last minibatch may be smaller. None never ends.
        tokens: (n,) patch tokens of each crop; required with `max_tokens`.
        max_tokens: Largest number of patch tokens of a minibatch; a minibatch has at least one crop.

    Raises:
        ValueError: A size below 1, or a start below 0.
    """
    if minibatch_size < 1 or n < 1 or first < 0 or (max_tokens is not None and (max_tokens < 1 or tokens is None)):
        raise ValueError(
            f"n={n}, minibatch_size={minibatch_size}, first={first}, max_tokens={max_tokens}: expected sizes of 1 or "
            "more, a start of 0 or more, and the tokens of every crop where they are limited."
        )
    return _minibatches(n, seed, minibatch_size, first, end, tokens, max_tokens)


def _minibatches(
    n: int,
    seed: int,
    minibatch_size: int,
    first: int,
    end: int | None,
    tokens: NDArray[np.int64] | None,
    max_tokens: int | None,
) -> Iterator[GlobalMinibatch]:
    orders: dict[int, Rows] = {}

    def order(epoch: int) -> Rows:
        if epoch not in orders:
            orders.pop(epoch - 2, None)
            orders[epoch] = sample_order(n, seed, epoch)
        return orders[epoch]

    while end is None or first < end:
        last = first + minibatch_size if end is None else min(first + minibatch_size, end)
        samples = np.arange(first, last)
        epochs = samples // n
        rows = np.concatenate([order(e)[samples[epochs == e] - e * n] for e in range(first // n, (last - 1) // n + 1)])
        if max_tokens is not None and tokens is not None:
            fitting = max(1, int(np.searchsorted(np.cumsum(tokens[rows]), max_tokens, side="right")))
            rows, epochs = rows[:fitting], epochs[:fitting]
        yield GlobalMinibatch(first, rows, epochs)
        first += len(rows)
