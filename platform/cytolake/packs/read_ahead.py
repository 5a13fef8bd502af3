"""Read minibatches ahead with threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
T = TypeVar("T")


def read_ahead(
    read: Callable[[Rows], T], minibatches: Iterable[Rows], *, threads: int = 2, depth: int = 2
) -> Iterator[tuple[Rows, T]]:
    """Yield each minibatch with the result of `read`, in the order of the minibatches.

    Order and content do not depend on `threads` or `depth`. Closing the iterator ends the threads.

    Args:
        read: `Pack.read`, `Pack.stack` or another thread-safe function.
        minibatches: Rows of each minibatch, see `sampler.minibatches`.
        threads: Number of minibatches read at the same time.
        depth: Number of minibatches read ahead; bounds the memory.

    Raises:
        ValueError: `threads` or `depth` below 1.
        Exception: That which `read` raises, where the minibatch would have come.
    """
    if threads < 1 or depth < 1:
        raise ValueError(f"threads={threads}, depth={depth}: expected 1 or more.")
    return _read_ahead(read, iter(minibatches), threads, depth)


def _read_ahead(
    read: Callable[[Rows], T], minibatches: Iterator[Rows], threads: int, depth: int
) -> Iterator[tuple[Rows, T]]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    waiting: deque[tuple[Rows, Future[T]]] = deque()
    try:
        for rows in minibatches:
            waiting.append((rows, pool.submit(read, rows)))
            if len(waiting) > depth:
                rows, found = waiting.popleft()
                yield rows, found.result()
        while waiting:
            rows, found = waiting.popleft()
            yield rows, found.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
