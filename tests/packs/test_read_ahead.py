from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from cytolake.packs.read_ahead import read_ahead

MINIBATCHES = [np.arange(i, i + 3) for i in range(20)]


@pytest.mark.parametrize(("threads", "depth"), [(1, 1), (2, 4), (5, 3), (3, 50)])
def test_minibatches_come_in_their_order_however_many_threads_read_them(threads, depth):
    def read(rows: np.ndarray) -> np.ndarray:
        time.sleep(0.001 * (rows[0] % 3))  # later minibatches are read sooner than earlier ones
        return rows * 10

    found = list(read_ahead(read, MINIBATCHES, threads=threads, depth=depth))
    assert len(found) == len(MINIBATCHES)
    for (rows, values), expected in zip(found, MINIBATCHES, strict=True):
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(values, expected * 10)


def test_an_error_comes_where_its_minibatch_would_have_come():
    def read(rows: np.ndarray) -> int:
        if rows[0] == 2:
            raise OSError("disk gone")
        return int(rows[0])

    found = read_ahead(read, MINIBATCHES, threads=2, depth=6)
    assert [next(found)[1], next(found)[1]] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(found)


def test_no_more_is_read_ahead_than_the_depth():
    begun = []
    found = read_ahead(lambda rows: begun.append(int(rows[0])), (np.array([i]) for i in itertools.count()), depth=3)
    next(found)
    time.sleep(0.05)
    assert len(begun) <= 4
    found.close()


def test_closing_ends_the_threads():
    before = threading.active_count()
    found = read_ahead(lambda rows: rows, (np.array([i]) for i in itertools.count()), threads=3)
    next(found)
    assert threading.active_count() > before
    found.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"depth": 0}])
def test_numbers_below_one_are_refused_at_once(wrong):
    with pytest.raises(ValueError, match="expected 1 or more"):
        read_ahead(lambda rows: rows, MINIBATCHES, **wrong)
