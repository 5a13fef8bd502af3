"""Crops as models take them: standardised without a unit, padded without a trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytolake.models import ModelConfig, build_encoder, collate, model_id, standardise
from cytolake.models.crops import REFERENCE_NOISE_FLOOR, CropBatch, floor_of, range_of, scaled


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


def without_a_floor(pixels: torch.Tensor) -> torch.Tensor:
    """`standardise` as it was before there were floors, operation by operation."""
    pixels = pixels.float()
    low = pixels.amin(dim=(-2, -1), keepdim=True)
    span = pixels.amax(dim=(-2, -1), keepdim=True) - low
    unit = (pixels - low) / torch.where(span == 0, torch.ones_like(span), span)
    unit = unit - unit.mean(dim=(-2, -1), keepdim=True)
    sd = unit.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    return unit / torch.where(span == 0, torch.ones_like(sd), sd)


def test_encoders_of_before_floors_see_the_same_crops_to_the_bit_under_the_same_id():
    old = (
        '{"architecture": "chada_vit", "block": "sequential", "channel_code": "stain", "channels": ["DNA", "ER"], '
        '"crop_size": 16, "depth": 1, "drop_path": 0.0, "heads": 2, "layer_scale": 0.0, "max_channels": 10, '
        '"mlp_ratio": 4.0, "patch_size": 8, "positions": "sin_cos", "standardise": true, "width": 16}'
    )
    config = ModelConfig.from_json(old)
    assert (config.input_scaling, config.noise_floor) == ("standardise", 0.0)
    assert config.to_json() == old  # of which its id is the hash
    batch = collate([crop(2, dtype=np.uint8), np.zeros((2, 16, 16), np.uint8)], [(1, 2)] * 2)
    seen = build_encoder(config, 0).patches(batch).pixels
    want = without_a_floor(batch.pixels).reshape(2, 2, 2, 8, 2, 8).transpose(3, 4).reshape(-1, 64)
    assert torch.equal(seen, want)


def test_a_scaling_is_part_of_a_models_identity():
    configs = [
        ModelConfig(crop_size=16, width=16, heads=2, depth=1, **scaling)
        for scaling in (
            {},
            {"noise_floor": 1.0},
            {"noise_floor": 2.0},
            {"input_scaling": "unit_range"},
            {"input_scaling": "as_is"},
        )
    ]
    assert len({model_id(build_encoder(config, 0)) for config in configs}) == 5
    assert [ModelConfig.from_json(config.to_json()) for config in configs] == configs


def test_the_reference_floor_is_the_instance_norm_of_the_reference_on_8_bit_counts():
    """Channels of an sd of .8, 8 and 30 counts: the first is left with .71 of its unit, where none gives it 1."""
    random = np.random.default_rng(0)
    image = np.stack([np.clip(np.rint(random.normal(90, sd, (64, 64))), 0, 255) for sd in (0.8, 8, 30)])
    batch = collate([image.astype(np.uint8)], [(1, 2, 3)])
    norm = torch.nn.InstanceNorm2d(3, eps=1e-5)
    want = norm(batch.pixels / 255)
    found = standardise(batch.pixels, floor_of(batch, REFERENCE_NOISE_FLOOR))
    # Counts near 90 have 24 - 7 bits left below the point, and .8 of them is the unit: 90 / .8 * 2^-24 = 7e-6.
    torch.testing.assert_close(found, want, atol=5e-5, rtol=0)
    exact = image[0].std() / np.hypot(image[0].std(), REFERENCE_NOISE_FLOOR)
    assert exact == pytest.approx(0.71, abs=0.03)
    assert found[0, 0].std(correction=0).item() == pytest.approx(exact, rel=1e-4)
    model = ModelConfig(channels=("a", "b", "c"), noise_floor=REFERENCE_NOISE_FLOOR)
    seen = build_encoder(model, 0).patches(batch).pixels
    torch.testing.assert_close(seen.square().mean(), want.square().mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("count", [1.0, 1 / 255])
def test_a_floor_is_in_counts_whether_they_come_as_counts_or_as_shares_of_255(count):
    pixels = crop(1, dtype=np.uint8)
    whole = collate([pixels], [(1,)])
    batch = collate([pixels if count == 1 else np.float32(pixels * count)], [(1,)])
    torch.testing.assert_close(
        standardise(batch.pixels, floor_of(batch, 40.0)),
        standardise(whole.pixels, torch.tensor(40.0)),
        atol=1e-5,
        rtol=0,
    )


def test_a_constant_channel_becomes_zeros_with_a_floor_too():
    assert torch.equal(standardise(torch.full((1, 8, 8), 60000.0), torch.tensor(0.8)), torch.zeros(1, 8, 8))


@pytest.mark.parametrize(
    ("image", "range_"),
    [
        (crop(1, dtype=np.uint8), 255),
        (crop(1), 65535),
        (crop(1, dtype=np.int32), 2**31 - 1),
        (np.float32(crop(1) / 65535), 1),
        (np.float32(crop(1)), np.nan),
        (np.full((1, 16, 16), -0.1, np.float32), np.nan),
    ],
)
def test_the_range_of_pixels_is_that_of_their_type_and_of_fractions_1(image, range_):
    np.testing.assert_equal(range_of(image), float(range_))
    batch = collate([image], [(1,)])
    if np.isnan(range_):
        with pytest.raises(ValueError, match=r"crop 0 of 1: found numbers of unknown range; .* takes the counts"):
            scaled(batch, "unit_range")
    else:
        np.testing.assert_allclose(scaled(batch, "unit_range").numpy()[0], image / range_, rtol=1e-6)
    if range_ == 1:
        assert torch.equal(scaled(batch, "as_is"), batch.pixels)
    else:
        with pytest.raises(ValueError, match=r"input_scaling='as_is' takes fractions in \[0, 1\]"):
            scaled(batch, "as_is")
    assert scaled(batch, "standardise") is batch.pixels


def test_a_minibatch_of_unknown_ranges_is_refused_where_they_count():
    batch = CropBatch(torch.zeros(2, 1, 16, 16), torch.ones(2, 1, dtype=torch.long), (1, 1))
    for scaling in ("unit_range", "as_is"):
        encoder = build_encoder(ModelConfig(crop_size=16, width=16, heads=2, depth=1, input_scaling=scaling), 0)
        with pytest.raises(ValueError, match="numbers of unknown range"):
            encoder.pooled_blocks(batch)


@pytest.mark.parametrize(
    "wrong", [{"noise_floor": -1.0}, {"noise_floor": 1.0, "input_scaling": "unit_range"}, {"input_scaling": "minmax"}]
)
def test_a_scaling_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=f"model {next(iter(wrong))}"):
        ModelConfig(**wrong)
