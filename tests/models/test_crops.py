"""Crops as models take them: standardised without a unit, padded without a trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytolake.models import collate, standardise


def crop(n_channels: int, seed: int = 0, dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(seed).integers(200, 4000, (n_channels, 16, 16)).astype(dtype)


@pytest.mark.parametrize(("gain", "background"), [(1e-6, 0.0), (1e6, 0.0), (3.0, 500.0)])
def test_gain_and_background_of_the_camera_change_nothing(gain, background):
    pixels = torch.from_numpy(crop(3).astype(np.float64))
    torch.testing.assert_close(standardise(pixels * gain + background), standardise(pixels), atol=1e-4, rtol=0)


def test_every_channel_gets_mean_0_and_sd_1():
    standard = standardise(torch.from_numpy(crop(4).astype(np.float32)))
    torch.testing.assert_close(standard.mean(dim=(-2, -1)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(dim=(-2, -1), correction=0), torch.ones(4))


def test_a_constant_channel_becomes_zeros_and_one_count_of_contrast_is_kept():
    pixels = torch.full((2, 16, 16), 60000.0)
    pixels[1, 3, 3] += 1
    standard = standardise(pixels)
    assert torch.equal(standard[0], torch.zeros(16, 16))
    assert standard[1].std(correction=0).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_collate_keeps_intensities_of_any_dtype(dtype):
    image = crop(2, dtype=dtype)
    np.testing.assert_array_equal(collate([image], [(1, 2)]).pixels[0].numpy(), image.astype(np.float32))


def test_collate_marks_what_is_padding():
    batch = collate([crop(1), crop(3)], [(4,), (1, 0, 2)])
    assert batch.n_channels == (1, 3)
    assert batch.channel_index.tolist() == [[4, 0, 0], [1, 0, 2]]


@pytest.mark.parametrize(
    ("images", "indices", "said"),
    [
        ([], [], "at least one crop"),
        ([crop(2)], [(1,)], "2 channels and 1 channel identities"),
        ([crop(2), crop(2)[:, :8, :8]], [(1, 2), (1, 2)], r"crop 1 .* \(2, 8, 8\)"),
        ([crop(2)[0]], [(1, 2)], r"crop 0 .* \(16, 16\)"),
        ([np.full((1, 4, 4), np.nan, np.float32)], [(1,)], "crop 0 .* channel 0: .* not finite"),
    ],
)
def test_a_bad_crop_is_refused_by_name(images, indices, said):
    with pytest.raises(ValueError, match=said):
        collate(images, indices)
