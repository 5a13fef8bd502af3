"""The feed: every worker reads its part of the same global minibatches, from any step on."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch

from cytolake.models import ModelConfig
from cytolake.packs.pack import Pack
from cytolake.train.feed import FeedSettings, Minibatch, Prefetcher, _Partners, read_minibatches
from cytolake.train.optimiser import build_optimiser, learning_rate_at

SETTINGS = FeedSettings(
    model=ModelConfig(channels=("DNA", "ER"), crop_size=16, patch_size=4, width=16, heads=2),
    seed=0, minibatch_size=8, flip_rotate=True, rank=0, world_size=1, first_step=0, n_steps=9,
)  # fmt: skip


@pytest.fixture(scope="module")
def pack(make_pack) -> Pack:
    return Pack.open(make_pack(36))


def same(one: Minibatch, other: Minibatch) -> bool:
    return torch.equal(one.crops.pixels, other.crops.pixels) and torch.equal(one.noise, other.noise)


@pytest.mark.parametrize("first_step", [1, 3, 4, 5, 8])
def test_a_feed_that_begins_later_gives_what_it_would_have_given(pack, first_step):
    whole = list(read_minibatches(pack, SETTINGS))
    late = list(read_minibatches(pack, dataclasses.replace(SETTINGS, first_step=first_step)))
    assert len(whole) == 9
    assert all(same(one, other) for one, other in zip(whole[first_step:], late, strict=True))


def test_workers_share_the_minibatch_of_one(pack):
    whole = list(read_minibatches(pack, SETTINGS))
    parts = [list(read_minibatches(pack, dataclasses.replace(SETTINGS, rank=rank, world_size=4))) for rank in range(4)]
    for step, minibatch in enumerate(whole):
        for rank in range(4):
            assert torch.equal(parts[rank][step].crops.pixels, minibatch.crops.pixels[rank::4])
            assert torch.equal(parts[rank][step].noise, minibatch.noise[rank::4])


def test_epochs_differ_in_order_and_cover_the_pack(pack):
    first, second = (
        torch.cat([each.crops.pixels for each in list(read_minibatches(pack, SETTINGS))[i : i + 4]]) for i in (0, 4)
    )
    sums = [sorted(part.sum(dim=(1, 2, 3)).tolist()) for part in (first, second)]
    assert not torch.equal(first, second)
    assert len(set(sums[0])) == 32  # 4 whole minibatches of 8; the 4 crops left over wait for another epoch


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


def test_waiting_for_data_is_measured():
    import time

    def slow():
        for _ in range(3):
            time.sleep(0.05)
            yield "minibatch"

    with Prefetcher(slow(), depth=1) as prefetcher:
        list(prefetcher)
    assert prefetcher.waited_s == pytest.approx(0.15, abs=0.1)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nearly_nothing():
    rates = [learning_rate_at(step, 100, 1.0, 0.1) for step in range(100)]
    assert max(rates) == rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate_at(0, 1, 1.0, 0.1) == 1.0


def test_biases_norms_tokens_and_embeddings_do_not_decay():
    from cytolake.models import build_model

    model = build_model(SETTINGS.model, 0)
    decayed = {id(parameter) for parameter in build_optimiser(model, 1.0, 0.1).param_groups[0]["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert all(name.endswith("weight") for name in names)
    assert not [name for name in names if "norm" in name or "channel_embedding" in name]
    assert "encoder.blocks.0.qkv.weight" in names


def test_the_second_view_is_of_the_same_well_whoever_reads_it(pack):
    model = dataclasses.replace(SETTINGS.model, contrastive_weight=0.5)
    settings = dataclasses.replace(SETTINGS, model=model, pairs_wells=True, flip_rotate=False)
    partners = _Partners(pack)
    wells = np.asarray(pack.index["well_id"].to_pylist())
    rows = np.arange(pack.n_crops)
    chosen = partners.of(rows, seed=0, epoch=0)
    assert (wells[chosen] == wells).all()
    assert (chosen != rows).any()
    assert (chosen != partners.of(rows, seed=0, epoch=1)).any()
    whole = list(read_minibatches(pack, settings))
    halves = [list(read_minibatches(pack, dataclasses.replace(settings, world_size=2, rank=rank))) for rank in (0, 1)]
    for step, minibatch in enumerate(whole):
        parts = torch.cat([half[step].second_crops.pixels for half in halves])
        torch.testing.assert_close(_sorted_rows(parts), _sorted_rows(minibatch.second_crops.pixels))


def test_a_plain_autoencoder_reads_no_second_view(pack):
    assert next(read_minibatches(pack, dataclasses.replace(SETTINGS, pairs_wells=True))).second_crops is None


def _sorted_rows(pixels: torch.Tensor) -> torch.Tensor:
    return pixels[pixels.flatten(1).sum(1).argsort()]
