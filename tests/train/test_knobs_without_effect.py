"""Which knobs an encoder can see, found by the code of training; expectations from what the models do."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from tests.embed.small_screen import make_small_screen

from cytolake.models import CropBatch, ModelConfig, collate
from cytolake.models.augment import KNOBS, NOTHING, AugmentConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.train.config import PretrainConfig
from cytolake.train.dry_run import dry_run
from cytolake.train.knobs_without_effect import changes_input, crops_to_compare

CHANNELS = ("DNA", "ER", "Actin")


def unseen(objective: str = "simclr", **model) -> set[str]:
    config = ModelConfig(channels=CHANNELS, crop_size=32, patch_size=8, width=16, depth=2, heads=2, **model)
    crops = crops_to_compare(config)
    found = set()
    for name, knob in KNOBS.items():
        after = knob(1.0)
        if name == "channel_drop" and config.is_fused:
            after = dataclasses.replace(after, channel_drop_mode="blank")
        if name == "identity_drop" and config.is_fused:
            continue
        if not changes_input(config, NOTHING, after, crops, ObjectiveConfig(name=objective)):
            found.add(name)
    return found


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("objective", "model", "expected"),
    [
        ("simclr", {"architecture": "mae_vit"}, {"gain", "offset", "channel_shuffle"}),
        slow("simclr", {"architecture": "mae_vit", "input_scaling": "as_is"}, {"channel_shuffle"}),
        ("mae", {"architecture": "chada_vit"}, {"gain", "offset", "channel_shuffle"}),
        slow("simclr", {"architecture": "chada_vit", "channel_code": "order"}, {"gain", "offset", "identity_drop"}),
        ("simclr", {"architecture": "ca_mae_vit"}, {"gain", "offset", "channel_shuffle", "identity_drop"}),
        slow("mae", {"architecture": "ca_mae_vit"}, {"gain", "offset", "channel_shuffle"}),  # its decoder knows stains
        ("dino", {"architecture": "mae_vit"}, {"gain", "offset", "channel_shuffle", "crop_scale"}),
    ],
)
def test_knobs_that_an_encoder_cannot_see(objective, model, expected):
    assert unseen(objective, **model) == expected


@pytest.mark.parametrize("probability", [0.0, 0.05, 1.0])
def test_a_knob_is_seen_as_soon_as_it_may_happen(probability):
    config = ModelConfig(channels=CHANNELS, crop_size=32, patch_size=8, width=16, depth=2, heads=2)
    before = dataclasses.replace(NOTHING, gamma_probability=probability)
    assert changes_input(config, before, KNOBS["gamma"](1.0, before), crops_to_compare(config)) == (probability > 0)


def test_crops_of_one_channel_have_nothing_to_drop_or_to_mix():
    config = ModelConfig(channels=CHANNELS, crop_size=32, patch_size=8, width=16, depth=2, heads=2)
    images = list(np.random.default_rng(0).gamma(2, 300, (8, 1, 32, 32)))
    crops = collate(images, [(1,)] * 8)
    unseen = {name for name in KNOBS if not changes_input(config, NOTHING, KNOBS[name](1.0), crops)}
    assert unseen == {"gain", "offset", "channel_shuffle", "channel_drop", "bleed_through"}


def test_dim_channels_on_a_bright_background_are_not_seen_to_change_by_rounding():
    config = ModelConfig(channels=CHANNELS, crop_size=32, patch_size=8, width=16, depth=2, heads=2)
    pixels = 50_000 + 5 * torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)).round()
    crops = CropBatch(pixels, torch.tensor([[1, 2, 3]] * 16), (3,) * 16)
    for knob in ("gain", "offset"):
        assert not changes_input(config, NOTHING, KNOBS[knob](1.0), crops)


def test_crops_of_a_pack_have_every_set_of_channels(tmp_path):
    small = make_small_screen(tmp_path, mixed=True)
    config = ModelConfig(channels=("DNA", "ER"), crop_size=16, patch_size=8, width=16, depth=2, heads=2)
    crops = crops_to_compare(config, small.pack)
    assert set(crops.n_channels) == {1, 2}
    assert crops.pixels.shape[-2:] == (16, 16)
    assert changes_input(config, NOTHING, KNOBS["channel_drop"](1.0), crops)


def test_a_dry_run_warns_of_what_is_on_and_without_effect():
    model = ModelConfig(crop_size=16, patch_size=8, width=16, depth=2, heads=2)
    mae = ObjectiveConfig(mae=MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2))
    config = PretrainConfig(model=model, objective=mae, augment=AugmentConfig(gain=2.0, gamma=2.0), minibatch_size=8)
    assert dry_run(config, n_crops=100).without_effect == {
        "gain": "changes nothing that the encoder gets: each channel of a crop is standardised"
    }
