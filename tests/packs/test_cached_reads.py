from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from cytolake.packs.cached_reads import read_cached

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot read without waiting")


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).bytes(1000)


@pytest.fixture
def descriptor(checkout: Path, content: bytes):
    """Of a file on the checkout's disk: a file system in memory, as tests may have for theirs, has no such reads."""
    with tempfile.TemporaryFile(dir=checkout, buffering=0) as file:
        file.write(content)
        yield file.fileno()


def test_each_piece_of_memory_gets_its_bytes_and_the_rest_stays(content, descriptor):
    memory = np.zeros(100, np.uint8)
    descriptors = np.array([descriptor, descriptor], np.int32)
    got = read_cached(
        descriptors, numbers(500, 7), numbers(0, 2), numbers(2, 1), memory, numbers(40, 0, 80), numbers(10, 5, 20)
    )
    assert got.tolist() == [15, 20]
    expected = bytearray(100)
    expected[40:50], expected[0:5], expected[80:100] = content[500:510], content[510:515], content[7:27]
    assert memory.tobytes() == bytes(expected)


def test_what_cannot_be_read_is_reported_by_the_number_of_bytes(descriptor):
    descriptors = np.array([descriptor, 10**6], np.int32)
    got = read_cached(
        descriptors,
        numbers(990, 0),
        numbers(0, 1),
        numbers(1, 1),
        np.zeros(60, np.uint8),
        numbers(0, 30),
        numbers(30, 30),
    )
    assert got.tolist() == [10, -1]


@pytest.mark.parametrize(("place", "length"), [(-1, 5), (96, 5)])
def test_a_piece_outside_of_the_memory_is_refused(descriptor, place, length):
    with pytest.raises(ValueError, match="expected 0 to 100"):
        read_cached(
            np.array([descriptor], np.int32), numbers(0), numbers(0), numbers(1), np.zeros(100, np.uint8),
            numbers(place), numbers(length),
        )  # fmt: skip
