"""What each knob does to a channel's intensities, read back from the result."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from cytolake.models import CropBatch, standardise
from cytolake.models.augment import KNOBS, NOTHING


def sd(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.double().std(dim=(2, 3), correction=0)


def test_gain_multiplies_each_channel_by_its_own_factor(many, change):
    crops = many(1000, n_channels=2)
    ratio = (change(crops, dataclasses.replace(NOTHING, gain=3.0)).pixels / crops.pixels).double()
    torch.testing.assert_close(ratio.amax(dim=(2, 3)), ratio.amin(dim=(2, 3)), rtol=1e-5, atol=0)
    logs = np.log(ratio[:, :, 0, 0].numpy()) / np.log(3)
    for channel in (0, 1):
        assert stats.kstest((logs[:, channel] + 1) / 2, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.1


def test_offset_adds_a_part_of_the_channels_own_sd(many, change):
    crops = many(1000, n_channels=2)
    result = change(crops, dataclasses.replace(NOTHING, offset=0.5)).pixels
    added = ((result - crops.pixels).double().mean(dim=(2, 3)) / sd(crops.pixels)).numpy()
    torch.testing.assert_close(sd(result), sd(crops.pixels), rtol=1e-5, atol=0)
    for channel in (0, 1):
        assert stats.kstest(added[:, channel] + 0.5, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(added.T)[0, 1]) < 0.1


def test_offset_and_gain_together_scale_both_mean_and_sd(crops, change):
    config = dataclasses.replace(NOTHING, offset=0.5, gain=2.0)
    result = change(crops, config).pixels.double()
    offset = (change(crops, dataclasses.replace(config, gain=1)).pixels - crops.pixels).double().mean(dim=(2, 3))
    gain = change(crops, dataclasses.replace(config, offset=0)).pixels.double().mean(dim=(2, 3))
    gain = gain / crops.pixels.double().mean(dim=(2, 3)).clamp(min=1e-9)
    expected = gain * (crops.pixels.double().mean(dim=(2, 3)) + offset)
    torch.testing.assert_close(result.mean(dim=(2, 3)), expected, rtol=1e-5, atol=0.01)
    torch.testing.assert_close(sd(result), gain * sd(crops.pixels), rtol=1e-4, atol=0.01)


def test_gamma_keeps_the_range_and_is_a_power_between(many, change):
    crops = many(500)
    result = change(crops, dataclasses.replace(NOTHING, gamma=2.0)).pixels.double().flatten(1)
    before = crops.pixels.double().flatten(1)
    low, high = before.amin(1, keepdim=True), before.amax(1, keepdim=True)
    torch.testing.assert_close(result.amin(1), before.amin(1), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(result.amax(1), before.amax(1), rtol=1e-5, atol=1e-3)
    inner = ((before[0] - low[0]) / (high - low)[0]).sub(0.5).abs() < 0.2
    power = ((result - low) / (high - low))[:, inner].log() / ((before - low) / (high - low))[:, inner].log()
    torch.testing.assert_close(power.amax(1), power.amin(1), rtol=1e-3, atol=0)
    assert stats.kstest((np.log2(power[:, 0].numpy()) + 1) / 2, "uniform").pvalue > 0.01


def test_contrast_scales_what_is_above_the_mean_and_leaves_the_rest(many, change):
    crops = many(500)
    result = change(crops, dataclasses.replace(NOTHING, contrast=3.0)).pixels.double().flatten(1)
    before = crops.pixels.double().flatten(1)
    mean = before[0].mean()
    is_dark = before[0] < mean
    torch.testing.assert_close(result[:, is_dark], before[:, is_dark], rtol=0, atol=0)
    bright = before[0] > mean + 100
    factor = (result[:, bright] - mean) / (before[:, bright] - mean)
    torch.testing.assert_close(factor.amax(1), factor.amin(1), rtol=1e-3, atol=0)
    assert stats.kstest((np.log(factor[:, 0].numpy()) / np.log(3) + 1) / 2, "uniform").pvalue > 0.01


@pytest.mark.parametrize("name", ["gain", "offset"])
def test_a_standardising_encoder_does_not_see(crops, change, name):
    result = change(crops, KNOBS[name](1.0))
    assert not torch.allclose(result.pixels, crops.pixels, rtol=0.1)
    torch.testing.assert_close(standardise(result.pixels), standardise(crops.pixels), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["gamma", "contrast", "noise", "bleed_through"])
def test_a_standardising_encoder_sees(crops, change, name):
    moved = (standardise(change(crops, KNOBS[name](1.0)).pixels) - standardise(crops.pixels)).square().mean(dim=(2, 3))
    is_channel = torch.tensor([[c < n for c in range(5)] for n in crops.n_channels])
    if name == "bleed_through":
        is_channel[[0, 5]] = False  # crops of one channel have nothing to receive
    assert moved[is_channel].sqrt().mean() > 0.1


def test_noise_has_the_sd_that_is_declared(many, change):
    crops = many(300, n_channels=2, side=48)
    added = (change(crops, dataclasses.replace(NOTHING, noise=0.5)).pixels - crops.pixels).double()
    relative = (sd(added) / sd(crops.pixels)).numpy()
    for channel in (0, 1):
        assert stats.kstest(relative[:, channel] / 0.5, "uniform").pvalue > 0.01
    unit = (added / sd(added)[:, :, None, None]).numpy()
    assert np.abs(unit.mean(axis=(2, 3))).max() < 5 / 48
    assert stats.kstest(unit[:20].ravel()[::7], "norm").pvalue > 0.01
    assert abs(np.corrcoef(unit[:, 0].ravel(), unit[:, 1].ravel())[0, 1]) < 0.005  # channels
    assert abs(np.corrcoef(unit[:-1].ravel(), unit[1:].ravel())[0, 1]) < 0.005  # crops
    assert abs(np.corrcoef(unit[..., :-1].ravel(), unit[..., 1:].ravel())[0, 1]) < 0.005  # neighbours


def test_bleed_through_adds_another_channel_of_the_crop_in_units_of_the_receivers_sd(change):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(0, 1, (3, 32, 32)) * [[[1]], [[100]], [[10000]]] + 5e4).float()
    crops = CropBatch(image.expand(600, -1, -1, -1).contiguous(), torch.tensor([[1, 2, 3]] * 900), (3,) * 600)
    added = (change(crops, dataclasses.replace(NOTHING, bleed_through=0.8)).pixels - crops.pixels).double()
    relative = (sd(added) / sd(crops.pixels)).numpy()
    unit = standardise(crops.pixels[0]).flatten(1).double()
    for receiver in (1, 2):  # float32 holds too little of channel 0 on its pedestal
        assert stats.kstest(relative[:, receiver] / 0.8, "uniform").pvalue > 0.01
        share = (standardise(added[:, receiver].float()).flatten(1).double() @ unit.T / 32**2).numpy()
        source = share.argmax(axis=1)
        assert np.median(share.max(axis=1)) > 0.99
        counts = np.bincount(source, minlength=3)
        assert counts[receiver] == 0
        assert stats.binomtest(int(counts.max()), 600).pvalue > 0.01


def test_a_crop_of_one_channel_has_no_bleed_through(many, change):
    crops = many(5)
    assert torch.equal(change(crops, KNOBS["bleed_through"](1.0)).pixels, crops.pixels)


def test_shared_intensity_is_one_draw_for_all_channels(many, change):
    crops = many(20, n_channels=3)
    config = dataclasses.replace(NOTHING, gain=3.0, shared_intensity=True)
    ratio = (change(crops, config).pixels / crops.pixels)[:, :, 0, 0]
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 3), rtol=1e-5, atol=0)
    assert ratio[:, 0].std() > 0.1


def test_a_probability_is_the_share_of_channels_that_change(many, change):
    crops = many(1000, n_channels=3)
    config = dataclasses.replace(NOTHING, gain=3.0, gain_probability=0.3)
    is_changed = (change(crops, config).pixels != crops.pixels).any(dim=3).any(dim=2)
    assert stats.binomtest(int(is_changed.sum()), 3000, 0.3).pvalue > 0.01
