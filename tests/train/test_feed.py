"""The feed: every worker reads its part of the same global minibatches, from any sample on."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cytolake.models import ModelConfig
from cytolake.models.augment import AugmentConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.packs.pack import Pack
from cytolake.train import feed
from cytolake.train.feed import FeedSettings, Minibatch, Prefetcher, _Partners, read_minibatches

STAINS = ("DNA", "ER", "RNA", "AGP", "Mito")
SETTINGS = FeedSettings(
    model=ModelConfig(channels=("DNA", "ER"), crop_size=16, patch_size=4, width=16, heads=2),
    objective=ObjectiveConfig(), seed=0, minibatch_size=8, rank=0, world_size=1, first_sample=0, end_sample=72,
)  # fmt: skip
TWO_VIEWS = ObjectiveConfig(mae=MaeConfig(contrastive_weight=0.5))


@pytest.fixture(scope="module")
def pack(make_pack) -> Pack:
    return Pack.open(make_pack(36))


@pytest.fixture(scope="module")
def mixed(make_pack) -> Pack:
    return Pack.open(make_pack(36, (STAINS[:1], STAINS, STAINS[:3])))


def same(one: Minibatch, other: Minibatch) -> bool:
    return (
        one.whole.first == other.whole.first
        and np.array_equal(one.rows, other.rows)
        and all(
            torch.equal(a.crops.pixels, b.crops.pixels) and torch.equal(a.noise, b.noise)
            for a, b in zip(one.views, other.views, strict=True)
        )
    )


@pytest.mark.parametrize("skipped", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("max_tokens", [None, 100])
def test_a_feed_that_begins_later_gives_what_it_would_have_given(pack, skipped, max_tokens):
    settings = dataclasses.replace(SETTINGS, minibatch_tokens=max_tokens, objective=TWO_VIEWS)
    whole = list(read_minibatches(pack, settings))
    late = list(read_minibatches(pack, dataclasses.replace(settings, first_sample=whole[skipped].whole.first)))
    assert sum(len(each.rows) for each in whole) == 72
    assert all(same(one, other) for one, other in zip(whole[skipped:], late, strict=True))


def test_workers_share_the_minibatch_of_one(pack):
    whole = list(read_minibatches(pack, SETTINGS))
    parts = [list(read_minibatches(pack, dataclasses.replace(SETTINGS, rank=rank, world_size=4))) for rank in range(4)]
    for step, minibatch in enumerate(whole):
        for rank in range(4):
            view = parts[rank][step].views[0]
            assert torch.equal(view.crops.pixels, minibatch.views[0].crops.pixels[rank::4])
            assert torch.equal(view.noise, minibatch.views[0].noise[rank::4])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_crop_counts_once_however_many_workers_share_it(mixed, world_size):
    settings = dataclasses.replace(
        SETTINGS, model=dataclasses.replace(SETTINGS.model, channels=STAINS), minibatch_tokens=90, end_sample=36
    )
    ranks = [
        list(read_minibatches(mixed, dataclasses.replace(settings, rank=rank, world_size=world_size)))
        for rank in range(world_size)
    ]
    assert sorted(np.concatenate([each.rows for rank in ranks for each in rank]).tolist()) == list(range(36))
    for parts in zip(*ranks, strict=True):  # one step
        n = len(parts[0].whole.rows)
        assert sum(part.weight for part in parts) == pytest.approx(world_size)
        for part in parts:
            assert part.weight / world_size == pytest.approx(len(part.rows) / n)  # each crop's share of the mean
            assert len(part.views[0].crops) == max(1, len(part.rows))  # a worker without crops still computes along
        assert sum(part.n_tokens for part in parts) == sum(16 * len(mixed.channels(row)) for row in parts[0].whole.rows)


def test_epochs_differ_in_order_and_cover_the_pack(pack):
    rows = np.concatenate([each.rows for each in read_minibatches(pack, SETTINGS)])
    assert sorted(rows[:36]) == sorted(rows[36:]) == list(range(36))
    assert not np.array_equal(rows[:36], rows[36:])


def test_augmentation_turns_a_crop_otherwise_in_every_epoch(pack):
    settings = dataclasses.replace(SETTINGS, minibatch_size=36)
    seen = [dict(zip(each.rows, each.views[0].crops.pixels, strict=True)) for each in read_minibatches(pack, settings)]
    assert any(not torch.equal(seen[0][row], seen[1][row]) for row in range(36))
    still = dataclasses.replace(settings, augment=AugmentConfig(flip_rotate=False))
    for each in read_minibatches(pack, still):
        for row, pixels in zip(each.rows, each.views[0].crops.pixels, strict=True):
            np.testing.assert_array_equal(pixels.numpy(), pack.read([row])[0])


def test_an_error_of_the_source_reaches_the_reader_after_what_came_before():
    def source():
        yield "first"
        raise OSError("gone")

    with Prefetcher(source(), depth=2) as prefetcher:
        assert next(prefetcher) == "first"
        with pytest.raises(OSError, match="gone"):
            next(prefetcher)


def test_leaving_early_ends_the_thread():
    def endless():
        while True:
            yield "minibatch"

    with Prefetcher(endless(), depth=2) as prefetcher:
        next(prefetcher)
    assert not [thread for thread in threading.enumerate() if thread.name == "minibatch-prefetch"]


def test_waiting_for_data_is_measured(monkeypatch):
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))  # a second passes between two looks
    monkeypatch.setattr(feed, "time", clock)
    with Prefetcher(iter(["minibatch"] * 3), depth=1) as prefetcher:
        assert len(list(prefetcher)) == 3
    assert prefetcher.waited_s == 4, "three minibatches and the end"


def test_the_second_view_is_of_the_same_well_for_every_reader(pack):
    settings = dataclasses.replace(
        SETTINGS, objective=TWO_VIEWS, pairs_wells=True, augment=AugmentConfig(flip_rotate=False)
    )
    partners = _Partners(pack)
    wells = np.asarray(pack.index["well_id"].to_pylist())
    rows = np.arange(pack.n_crops)
    chosen = partners.of(rows, seed=0, epochs=0)
    assert (wells[chosen] == wells).all()
    assert (chosen != rows).any()
    assert (chosen != partners.of(rows, seed=0, epochs=1)).any()
    whole = list(read_minibatches(pack, settings))
    halves = [list(read_minibatches(pack, dataclasses.replace(settings, world_size=2, rank=rank))) for rank in (0, 1)]
    for step, minibatch in enumerate(whole):
        for rank in (0, 1):
            part = halves[rank][step].views[1].crops.pixels
            assert torch.equal(part, minibatch.views[1].crops.pixels[rank::2])


def test_a_plain_autoencoder_reads_no_second_view(pack):
    assert len(next(read_minibatches(pack, dataclasses.replace(SETTINGS, pairs_wells=True))).views) == 1
