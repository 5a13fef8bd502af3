"""Channels that go, change places or forget their stain."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy import stats

from cytolake.models import CropBatch
from cytolake.models.augment import NOTHING


def named(crops: CropBatch) -> list[dict[int, torch.Tensor]]:
    """Pixels of each crop's channels by identity."""
    return [
        dict(zip(index[:n].tolist(), pixels[:n], strict=True))
        for pixels, index, n in zip(crops.pixels, crops.channel_index, crops.n_channels, strict=True)
    ]


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.9])
def test_each_channel_goes_with_the_probability_and_the_last_one_stays(many, change, probability):
    crops = many(2000, n_channels=4, side=2)
    result = change(crops, dataclasses.replace(NOTHING, channel_drop=probability))
    expected = stats.binom.pmf(range(5), 4, 1 - probability) * 2000
    expected[1] += expected[0]  # a crop that lost all keeps one
    counts = [result.n_channels.count(n) for n in range(1, 5)]
    assert stats.chisquare(counts, expected[1:]).pvalue > 0.01
    left = [sum(identity in crop for crop in named(result)) for identity in (1, 2, 3, 4)]
    assert stats.chisquare(left).pvalue > 0.001


def test_the_channels_that_stay_are_as_they_were_in_their_order(crops, change):
    result = change(crops, dataclasses.replace(NOTHING, channel_drop=0.5))
    assert result.n_channels != crops.n_channels
    for before, after in zip(named(crops), named(result), strict=True):
        assert list(after) == sorted(after)
        for identity, pixels in after.items():
            assert torch.equal(pixels, before[identity])


def test_with_probability_1_one_channel_of_each_crop_is_left(crops, change):
    result = change(crops, dataclasses.replace(NOTHING, channel_drop=1.0))
    assert result.n_channels == (1,) * len(crops)
    assert result.pixels.shape[1] == 1


def test_blank_channels_are_the_ones_that_would_have_been_removed(crops, change):
    removed = change(crops, dataclasses.replace(NOTHING, channel_drop=0.5))
    blank = change(crops, dataclasses.replace(NOTHING, channel_drop=0.5, channel_drop_mode="blank"))
    assert blank.n_channels == crops.n_channels
    assert torch.equal(blank.channel_index, crops.channel_index)
    for shown, left, before in zip(named(blank), named(removed), named(crops), strict=True):
        for identity, pixels in shown.items():
            assert torch.equal(pixels, before[identity] if identity in left else torch.zeros_like(pixels))


def test_shuffled_channels_carry_their_identity_along(many, change):
    crops = many(2000, n_channels=3, side=2)
    result = change(crops, dataclasses.replace(NOTHING, channel_shuffle=0.6))
    for before, after in zip(named(crops)[:50], named(result)[:50], strict=True):
        assert all(torch.equal(after[identity], before[identity]) for identity in (1, 2, 3))
    orders = [tuple(order) for order in result.channel_index.tolist()]
    counts = [orders.count(order) for order in ((1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1))]
    assert sum(counts) == 2000
    assert stats.chisquare(counts, [2000 * 0.5] + [2000 * 0.1] * 5).pvalue > 0.01


def test_shuffling_leaves_padding_at_the_end(crops, change):
    result = change(crops, dataclasses.replace(NOTHING, channel_shuffle=1.0))
    assert result.n_channels == crops.n_channels
    for index, n in zip(result.channel_index.tolist(), result.n_channels, strict=True):
        assert sorted(index[:n]) == list(range(1, n + 1))
        assert index[n:] == [0] * (5 - n)


def test_a_lost_identity_leaves_the_pixels(many, change):
    crops = many(1000, n_channels=3, side=2)
    result = change(crops, dataclasses.replace(NOTHING, identity_drop=0.25))
    assert torch.equal(result.pixels, crops.pixels)
    is_lost = result.channel_index == 0
    assert torch.equal(result.channel_index[~is_lost], crops.channel_index[~is_lost])
    assert stats.binomtest(int(is_lost.sum()), 3000, 0.25).pvalue > 0.01
