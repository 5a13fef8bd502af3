from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolake.packs.sampler import minibatches, sample_order

sizes = st.integers(0, 200)
seeds = st.integers(0, 2**32)
minibatch_sizes = st.integers(1, 40)


@given(n=sizes, seed=seeds, epoch=st.integers(0, 1000))
def test_an_epoch_has_every_crop_once(n, seed, epoch):
    np.testing.assert_array_equal(np.sort(sample_order(n, seed, epoch)), np.arange(n))


@given(n=sizes, seed=seeds, size=minibatch_sizes, world_size=st.integers(1, 9))
def test_any_number_of_workers_sees_the_same_global_minibatches(n, seed, size, world_size):
    alone = list(minibatches(n, seed, 3, size, 0, 1))
    together = zip(*(list(minibatches(n, seed, 3, size, rank, world_size)) for rank in range(world_size)), strict=True)
    parts = list(together)
    assert len(parts) == len(alone)
    for part, whole in zip(parts, alone, strict=True):
        assert max(map(len, part)) - min(map(len, part)) <= 1
        merged = np.empty_like(whole)
        for rank in range(world_size):
            merged[rank::world_size] = part[rank]
        np.testing.assert_array_equal(merged, whole)
    np.testing.assert_array_equal(np.concatenate([*alone, np.empty(0, int)]), sample_order(n, seed, 3))


@given(n=sizes, size=minibatch_sizes, rank=st.integers(0, 2), start=st.integers(0, 12))
def test_a_later_start_goes_on_exactly_where_an_earlier_run_stopped(n, size, rank, start):
    whole = list(minibatches(n, 7, 1, size, rank, 3))
    rest = list(minibatches(n, 7, 1, size, rank, 3, start=start))
    assert len(rest) == max(0, len(whole) - start)
    for ours, theirs in zip(rest, whole[start:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_seed_and_epoch_change_the_order():
    orders = {tuple(sample_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_the_same_on_every_machine_and_release():
    assert sample_order(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert sample_order(10, 2026, 3).tolist() == [0, 3, 2, 5, 8, 9, 6, 7, 1, 4]


def test_every_place_is_equally_likely():
    places = np.stack([np.argsort(sample_order(8, seed, 0)) for seed in range(4000)])
    expected, deviation = 500, np.sqrt(4000 / 8)
    for crop in range(8):
        assert np.abs(np.bincount(places[:, crop], minlength=8) - expected).max() < 5 * deviation


@pytest.mark.parametrize(
    "wrong", [{"minibatch_size": 0}, {"world_size": 0}, {"rank": 2}, {"rank": -1}, {"start": -1}, {"n": -1}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        list(minibatches(**{"n": 9, "seed": 0, "epoch": 0, "minibatch_size": 3, "rank": 0, "world_size": 2} | wrong))
