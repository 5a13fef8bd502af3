"""Aligned, reused memory for minibatches, which files are read into faster than into fresh memory.

The system copies a file into memory that begins at a multiple of 64 bytes nearly twice as fast as into what
`numpy.empty` gives, 16 bytes past one: 7.9 against 4.3 GB/s of 5 x 64 x 64 uint16, one thread. Fresh memory it clears
first, and the processor's cache holds none of it, so memory that nobody holds any more is used again: 7.1 against 6.1
GB/s, two threads, before alignment.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

KEPT = 8
"""Blocks kept for reuse, in addition to those of minibatches in use and read ahead."""
SMALLEST_BYTES = 1_000_000
_ALIGNMENT = 64  # a line of the processor's cache


class ReusedMemory:
    """Makes arrays as `numpy.empty` does. Thread-safe."""

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=KEPT)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array whose memory is reused after the array and everything that shares its memory are deleted."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if n_bytes < SMALLEST_BYTES:
            return np.empty(shape, dtype)
        block = self._block(n_bytes)
        # Views of an array refer to the array that owns the memory. This one owns none, so they refer to it, and when
        # it goes, nothing refers to the memory.
        array: NDArray[Any] = np.frombuffer(block.data, dtype, count=math.prod(shape))
        weakref.finalize(array, self._free.append, block).atexit = False
        return array.reshape(shape)

    def _block(self, n_bytes: int) -> NDArray[np.uint8]:
        for _ in range(KEPT):
            try:
                block = self._free.pop()  # the last one: the processor's cache may still hold it
            except IndexError:
                break
            if n_bytes <= len(block) <= 2 * n_bytes:
                return block
        memory = np.empty(n_bytes + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return memory[start : start + n_bytes]
