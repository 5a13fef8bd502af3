"""Boxes that are emptied."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from cytolake.models.augment import NOTHING


def test_one_box_of_the_drawn_area_is_set_to_the_channels_mean(many, change):
    crops = many(500, n_channels=2, side=64)
    result = change(crops, dataclasses.replace(NOTHING, erasing=0.4)).pixels
    is_erased = result != crops.pixels
    assert torch.equal(is_erased[:, 0], is_erased[:, 1])
    share = is_erased[:, 0].double().mean(dim=(1, 2)).numpy()
    assert stats.kstest(share / 0.4, "uniform").pvalue > 0.01
    for i in range(50):
        erased = is_erased[i, 0].numpy()
        if not erased.any():
            continue
        assert erased[ndimage.find_objects(erased.astype(int))[0]].all()  # a box
        for channel in (0, 1):
            mean = crops.pixels[i, channel].mean()
            torch.testing.assert_close(result[i, channel][erased], mean.expand(int(erased.sum())))


@pytest.mark.parametrize("boxes", [1, 3, 10])
def test_boxes_share_the_area(many, change, boxes):
    crops = many(300, side=64)
    result = change(crops, dataclasses.replace(NOTHING, erasing=0.2, erasing_boxes=boxes)).pixels
    share = (result != crops.pixels).double().mean(dim=(1, 2, 3)).numpy()
    assert share.max() < 0.2 + 0.02  # rounded to pixels
    assert 0.08 < share.mean() < 0.105  # half of 0.2, less where boxes overlap
    if boxes > 1:
        parts = [ndimage.label(mask)[1] for mask in (result != crops.pixels)[:, 0].numpy()]
        assert max(parts) > boxes / 2


def test_a_whole_crop_can_be_erased_but_no_more(many, change):
    crops = many(2000, side=16)
    share = (change(crops, dataclasses.replace(NOTHING, erasing=1.0)).pixels != crops.pixels).double()
    assert stats.kstest(share.mean(dim=(1, 2, 3)).numpy(), "uniform").statistic < 0.05


def test_channels_have_boxes_of_their_own_on_request(many, change):
    crops = many(200, n_channels=2)
    config = dataclasses.replace(NOTHING, erasing=0.4, erasing_per_channel=True)
    is_erased = (change(crops, config).pixels != crops.pixels).double()
    share = is_erased.mean(dim=(2, 3)).numpy()
    assert abs(np.corrcoef(share.T)[0, 1]) < 0.2
    assert not torch.equal(is_erased[:, 0], is_erased[:, 1])
