from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cytolake.packs.reused_memory import KEPT, SMALLEST_BYTES, ReusedMemory

SHAPE = (SMALLEST_BYTES // 100, 100)


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_memory_that_nobody_holds_is_given_again():
    memory = ReusedMemory()
    array = memory.empty(SHAPE, "uint8")
    first = address(array)
    del array
    assert address(memory.empty((SHAPE[0], 50), "uint16")) == first


@pytest.mark.parametrize(
    "part_of",
    [
        lambda array: array,
        lambda array: array[5],
        lambda array: array[3:9].reshape(-1)[::2],
        lambda array: array.T.view("uint8"),
        lambda array: list(array)[-1],
        lambda array: memoryview(array),
        lambda array: torch.from_numpy(array),
        lambda array: torch.from_numpy(array[7])[3:],
    ],
)
def test_memory_that_anything_still_shows_is_never_given_again(part_of):
    memory = ReusedMemory()
    array = memory.empty(SHAPE, "uint8")
    array[...] = 1
    part = part_of(array)
    del array
    for _ in range(3):
        memory.empty(SHAPE, "uint8")[...] = 2
    assert (np.asarray(part) == 1).all()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 4), "float32"), ((0, 5), "uint8"), (SHAPE, "uint16"), (SHAPE, ">i8")]
)
def test_arrays_are_writable_and_of_the_given_shape(shape, dtype):
    array = ReusedMemory().empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.writeable
    assert array.flags.c_contiguous


def test_a_block_much_larger_than_requested_is_let_go():
    memory = ReusedMemory()
    memory.empty((4 * SMALLEST_BYTES,), "uint8")
    assert len(memory._free) == 1
    array = memory.empty((SMALLEST_BYTES,), "uint8")
    assert len(memory._free) == 0
    del array
    assert len(memory._free) == 1


def test_few_blocks_are_kept():
    memory = ReusedMemory()
    arrays = [memory.empty(SHAPE, "uint8") for _ in range(3 * KEPT)]
    arrays.clear()
    assert len(memory._free) == KEPT


def test_threads_never_share_a_block():
    memory = ReusedMemory()

    def fill(number: int) -> bool:
        array = memory.empty(SHAPE, "uint8")
        array[...] = number
        return bool((array == number).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(fill, range(200)))
