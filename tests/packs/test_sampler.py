from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolake.packs.sampler import GlobalMinibatch, minibatches, sample_order

sizes = st.integers(0, 200)
crops = st.integers(1, 200)
seeds = st.integers(0, 2**32)
minibatch_sizes = st.integers(1, 40)


@given(n=sizes, seed=seeds, epoch=st.integers(0, 1000))
def test_an_epoch_has_every_crop_once(n, seed, epoch):
    np.testing.assert_array_equal(np.sort(sample_order(n, seed, epoch)), np.arange(n))


def run(n: int, size: int, end: int, seed: int = 7, **settings: object) -> list[GlobalMinibatch]:
    return list(minibatches(n, seed, size, end=end, **settings))


@given(n=crops, size=minibatch_sizes, epochs=st.integers(1, 4))
def test_a_run_has_every_crop_once_in_every_epoch(n, size, epochs):
    parts = run(n, size, epochs * n)
    assert [len(part.rows) for part in parts[:-1]] == [size] * (len(parts) - 1)
    rows = np.concatenate([part.rows for part in parts])
    of_epoch = np.concatenate([part.epochs for part in parts])
    np.testing.assert_array_equal(of_epoch, np.repeat(np.arange(epochs), n))
    for epoch in range(epochs):
        np.testing.assert_array_equal(rows[of_epoch == epoch], sample_order(n, 7, epoch))


@given(n=crops, size=minibatch_sizes, world_size=st.integers(1, 9))
def test_any_number_of_workers_shares_the_same_minibatches(n, size, world_size):
    for part in run(n, size, 2 * n):
        shares = [part.share(rank, world_size) for rank in range(world_size)]
        sizes = [len(rows) for rows, _ in shares]
        assert max(sizes) - min(sizes) <= 1
        merged = np.empty((2, len(part.rows)), int)
        for rank, share in enumerate(shares):
            merged[:, rank::world_size] = share
        np.testing.assert_array_equal(merged, [part.rows, part.epochs])


@given(n=crops, size=minibatch_sizes, skipped=st.integers(0, 12), limit=st.none() | st.integers(1, 60))
def test_a_run_goes_on_exactly_where_it_stopped(n, size, skipped, limit):
    settings = {"tokens": np.arange(n) % 7 + 1, "max_tokens": limit}
    whole = run(n, size, 3 * n, **settings)
    skipped = min(skipped, len(whole) - 1)
    rest = run(n, size, 3 * n, first=whole[skipped].first, **settings)
    assert [part.rows.tolist() for part in rest] == [part.rows.tolist() for part in whole[skipped:]]


@given(n=crops, size=minibatch_sizes, limit=st.integers(1, 60))
def test_minibatches_hold_as_many_tokens_as_fit(n, size, limit):
    tokens = np.arange(n) % 7 + 1
    parts = run(n, size, 2 * n, tokens=tokens, max_tokens=limit)
    assert sum(len(part.rows) for part in parts) == 2 * n
    for part, after in itertools.pairwise(parts):
        assert len(part.rows) == 1 or tokens[part.rows].sum() <= limit
        assert len(part.rows) == size or tokens[part.rows].sum() + tokens[after.rows[0]] > limit


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


@pytest.mark.parametrize("wrong", [{"minibatch_size": 0}, {"first": -1}, {"n": 0}, {"max_tokens": 4}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        minibatches(**{"n": 9, "seed": 0, "minibatch_size": 3} | wrong)
