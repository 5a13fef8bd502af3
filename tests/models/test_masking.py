"""Masks and turns: a function of the crop and the epoch, of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.turned import flip_rotate

from cytolake.models import masking_noise
from cytolake.models.masking import draw_mask
from cytolake.models.runs import split_runs
from cytolake.models.seeding import sample_bits, uniform


@pytest.mark.parametrize("mask_ratio", [0.25, 0.5, 0.75, 0.9])
def test_each_crop_keeps_its_own_share_of_its_own_tokens(mask_ratio):
    runs = ((1, 10), (2, 64), (1, 320))
    mask = draw_mask(masking_noise(0, 0, range(4), 320), runs, mask_ratio)
    wanted = tuple((n, max(1, length * (100 - round(100 * mask_ratio)) // 100)) for n, length in runs)
    assert mask.runs == wanted
    visible = set(mask.visible.tolist())
    assert len(visible) == len(mask.visible)
    assert visible ^ set(mask.is_hidden.nonzero()[:, 0].tolist()) == set(range(10 + 2 * 64 + 320))
    assert sorted(mask.hidden.tolist()) == mask.is_hidden.nonzero()[:, 0].tolist()
    assert mask.hidden_runs == tuple((n, length - kept) for (n, length), (_, kept) in zip(runs, wanted, strict=True))
    stacks = split_runs(torch.arange(10 + 2 * 64 + 320), runs)
    for places, of_crops in zip(split_runs(mask.visible, mask.runs), stacks, strict=True):
        for row, own in zip(places, of_crops, strict=True):
            assert set(row.tolist()) <= set(own.tolist())


def test_the_mask_of_a_crop_does_not_depend_on_the_runs_beside_it():
    noise = masking_noise(0, 0, range(3), 128)
    together = draw_mask(noise, ((1, 64), (2, 128)), 0.75)
    alone = draw_mask(noise[2:], ((1, 128),), 0.75)
    assert torch.equal(split_runs(together.is_hidden, ((1, 64), (2, 128)))[1][1], alone.is_hidden)


def test_noise_of_a_crop_does_not_depend_on_its_neighbours_or_its_worker():
    together = masking_noise(3, 5, [10, 11, 12, 13], 64)
    assert torch.equal(together[1::2], masking_noise(3, 5, [11, 13], 64))
    assert torch.equal(together[:, :20], masking_noise(3, 5, [10, 11, 12, 13], 20))


@pytest.mark.parametrize("other", [(4, 5, 10), (3, 6, 10), (3, 5, 11)])
def test_seed_epoch_and_crop_each_change_the_noise(other):
    seed, epoch, index = other
    assert not torch.equal(masking_noise(3, 5, [10], 64), masking_noise(seed, epoch, [index], 64))


def test_draws_are_uniform_and_uncorrelated():
    draws = uniform(sample_bits(0, 0, np.arange(2000), 1), 50)
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 43.8  # 99.9 % of a chi-square with 19 degrees of freedom
    correlation = np.corrcoef(draws.T)
    assert np.abs(correlation[~np.eye(50, dtype=bool)]).max() < 0.1  # sd of one is 0.022


def test_a_turned_crop_holds_the_same_pixels_in_all_channels_alike():
    image = np.arange(2 * 4 * 4).reshape(2, 4, 4)
    turns = {flip_rotate([image], 0, epoch, [7])[0].tobytes() for epoch in range(100)}
    assert len(turns) == 8  # four rotations, each with its mirror image
    for epoch in range(10):
        turned = flip_rotate([image], 0, epoch, [7])[0]
        np.testing.assert_array_equal(turned[1] - turned[0], np.full((4, 4), 16))
        assert sorted(turned.ravel()) == sorted(image.ravel())
