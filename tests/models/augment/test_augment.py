"""What holds for all knobs: results depend on the crop alone, and knobs do not depend on each other."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from tests.models.turned import flip_rotate

from cytolake.models import CropBatch, ModelConfig, build_encoder, collate
from cytolake.models.augment import KNOBS, AugmentConfig, augment
from cytolake.models.augment.draws import Draw, Draws
from cytolake.models.augment.geometry import sources

# In the order in which they act; what moves pixels by interpolation is done at once and is looked at as matrices.
ONE_AFTER_ANOTHER = [
    "flip_rotate", "crop_scale", "blur_sigma_px", "defocus_radius_px", "resolution", "bleed_through", "gamma",
    "contrast", "offset", "gain", "noise", "erasing", "channel_drop",
]  # fmt: skip
MOVES = ["shear_deg", "magnification", "rotation_deg", "translate", "crop_scale"]


def same(a: CropBatch, b: CropBatch) -> bool:
    return (
        torch.equal(a.pixels, b.pixels)
        and torch.equal(a.channel_index, b.channel_index)
        and a.n_channels == b.n_channels
    )


def some(crops: CropBatch, which: list[int]) -> CropBatch:
    return CropBatch(crops.pixels[which], crops.channel_index[which], tuple(crops.n_channels[i] for i in which))


def assert_crops_close(result: CropBatch, expected: CropBatch) -> None:
    """Crop by crop, whatever the padding; intensities are up to 65,535."""
    assert result.n_channels == expected.n_channels
    for i, n in enumerate(result.n_channels):
        torch.testing.assert_close(result.pixels[i, :n], expected.pixels[i, :n], rtol=1e-4, atol=0.5)
        assert torch.equal(result.channel_index[i, :n], expected.channel_index[i, :n])


@pytest.mark.parametrize("which", [[3], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [0, 5], [4, 4, 2]])
def test_a_crop_does_not_depend_on_what_shares_its_minibatch(crops, everything, change, which):
    together = change(crops, everything)
    assert_crops_close(
        change(some(crops, which), everything, sample_index=100 + np.array(which)), some(together, which)
    )


def test_a_crop_does_not_depend_on_padded_channels(crops, everything, change):
    two = some(crops, [0, 1])  # of 1 and 2 channels, padded to 5
    tight = CropBatch(two.pixels[:, :2], two.channel_index[:, :2], two.n_channels)
    assert_crops_close(change(two, everything), change(tight, everything))


def test_each_crop_has_its_own_epoch(crops, everything, change):
    epochs = np.arange(len(crops)) % 2
    mixed = change(crops, everything, epochs=epochs)
    for epoch in (0, 1):
        which = np.flatnonzero(epochs == epoch).tolist()
        assert_crops_close(some(mixed, which), some(change(crops, everything, epochs=epoch), which))


@pytest.mark.parametrize("other", [{"seed": 1}, {"epochs": 1}, {"view": 1}, {"sample_index": range(10)}])
@pytest.mark.parametrize("name", KNOBS)
def test_seed_epoch_view_and_crop_each_change_every_knob(crops, change, name, other):
    assert not same(change(crops, KNOBS[name](0.5)), change(crops, KNOBS[name](0.5), **other))


@pytest.mark.parametrize("name", KNOBS)
def test_strength_0_changes_no_bit(crops, change, name):
    assert same(change(crops, KNOBS[name](0)), crops)
    turned = AugmentConfig()
    if name != "flip_rotate":
        assert same(change(crops, KNOBS[name](0, turned)), change(crops, turned))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(AugmentConfig) if "_prob" in field.name])
def test_probability_0_changes_no_bit(crops, everything, change, name):
    knob = next(knob for knob in KNOBS if knob.startswith(name.removesuffix("_probability")))
    assert same(change(crops, dataclasses.replace(KNOBS[knob](1), **{name: 0})), crops)
    # Half of the crops or channels are as if it never happened, the others as if it always did.
    half = dataclasses.replace(KNOBS[knob](0.5), **{name: 0.5})
    always, sometimes = change(crops, KNOBS[knob](0.5)).pixels, change(crops, half).pixels
    is_changed = torch.isclose(sometimes, always, rtol=1e-4).all(dim=(2, 3))
    is_left = (sometimes == crops.pixels).all(dim=(2, 3))
    assert (is_changed | is_left).all()
    is_channel = crops.pixels.amax(dim=(2, 3)) > 0
    assert is_changed[is_channel].any()
    assert is_left[is_channel].any()


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(ONE_AFTER_ANOTHER, 2)))
def test_two_knobs_at_once_do_what_they_do_one_after_the_other(crops, change, first, second):
    """So neither changes the draws of the other, for any pair."""
    both = change(crops, KNOBS[second](0.3, KNOBS[first](0.3)))
    in_turn = change(change(crops, KNOBS[first](0.3)), KNOBS[second](0.3))
    assert_crops_close(both, in_turn)


def test_moves_at_once_are_the_moves_one_after_the_other():
    draws = Draws(0, 0, range(50), 0)
    config, product = AugmentConfig(), np.tile(np.eye(3), (50, 1, 1))
    for name in MOVES:
        config = KNOBS[name](0.4, config)
        alone = np.concatenate([sources(KNOBS[name](0.4), draws), np.tile([[[0.0, 0, 1]]], (50, 1, 1))], axis=1)
        product = product @ alone
    np.testing.assert_allclose(sources(config, draws), product[:, :2], atol=1e-12)


@pytest.mark.parametrize("name", ["channel_drop", "identity_drop", "channel_shuffle"])
def test_what_happens_to_channels_does_not_depend_on_pixels(crops, everything, change, name):
    quiet = change(crops, KNOBS[name](0.5))
    loud = change(crops, dataclasses.replace(everything, channel_drop=0, identity_drop=0, channel_shuffle=0))
    loud = change(loud, KNOBS[name](0.5))
    assert torch.equal(quiet.channel_index, loud.channel_index)
    assert quiet.n_channels == loud.n_channels


def test_draws_are_uniform_and_those_of_two_knobs_uncorrelated():
    draws = [Draws(3, 1, np.arange(3000), view) for view in (0, 1)]
    columns = [of_view.uniform(what, 3) for of_view in draws for what in Draw]
    columns += [np.concatenate([of_view.happens(what, 1, 0.5) for what in Draw], axis=1) for of_view in draws]
    columns += [of_view.turns()[:, None] for of_view in draws]
    table = np.concatenate(columns, axis=1)
    correlation = np.corrcoef(table.T)
    assert np.abs(correlation[~np.eye(len(correlation), dtype=bool)]).max() < 0.09  # sd of one is 0.018
    p_values = [stats.kstest(column, "uniform").pvalue for column in table.T[: 2 * 3 * len(Draw)]]
    assert min(p_values) > 1e-4
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_draws_keep_clear_of_those_for_masks_and_partners():
    """Even small purposes are flips, odd ones are masks, 2**20 is the choice of a partner crop."""
    purposes = {Draws(0, 0, [0], view)._purpose(what) + gate for view in range(40) for what in Draw for gate in (0, 1)}
    assert len(purposes) == 40 * 2 * len(Draw)
    assert min(purposes) > 1 << 21


def test_by_default_crops_are_flipped_and_turned_exactly(crops, change):
    images = [crop[:n].numpy() for crop, n in zip(crops.pixels, crops.n_channels, strict=True)]
    for view, epoch in ((0, 0), (1, 0), (0, 1)):
        turned = flip_rotate(images, 0, epoch, np.arange(100, 110), view=view)
        expected = collate(
            turned, [index[:n].tolist() for index, n in zip(crops.channel_index, crops.n_channels, strict=True)]
        )
        assert same(change(crops, AugmentConfig(), view=view, epochs=epoch), expected)


def test_padding_stays_0_and_every_crop_keeps_a_channel(crops, everything, change):
    for epoch in range(5):
        result = change(crops, everything, epochs=epoch)
        assert result.pixels.shape[1] == max(result.n_channels)
        for i, n in enumerate(result.n_channels):
            assert 1 <= n <= crops.n_channels[i]
            assert not result.pixels[i, n:].any()
            assert not result.channel_index[i, n:].any()


def test_the_unit_of_intensities_does_not_matter(crops, everything, change):
    small = CropBatch(crops.pixels / 65535, crops.channel_index, crops.n_channels)
    result, scaled = change(crops, everything), change(small, everything)
    assert torch.isfinite(result.pixels).all()
    torch.testing.assert_close(scaled.pixels * 65535, result.pixels, rtol=1e-3, atol=2)


@pytest.mark.parametrize("name", KNOBS)
def test_a_constant_channel_stays_finite(name, change):
    flat = CropBatch(torch.full((4, 2, 16, 16), 700.0), torch.tensor([[1, 2]] * 4), (2,) * 4)
    assert torch.isfinite(change(flat, KNOBS[name](1)).pixels).all()


def test_the_crops_handed_in_are_left_as_they_are(crops, everything, change):
    before = crops.pixels.clone(), crops.channel_index.clone()
    change(crops, everything)
    assert torch.equal(crops.pixels, before[0])
    assert torch.equal(crops.channel_index, before[1])


def test_local_views_are_small_and_otherwise_as_configured(crops, everything, change):
    local = change(crops, everything, crop_scale=(0.05, 0.4), size=16, view=2)
    assert local.pixels.shape[2:] == (16, 16)
    configured = dataclasses.replace(everything, crop_scale=(0.05, 0.4), size=16)
    assert same(local, change(crops, configured, view=2))
    assert change(crops, AugmentConfig(crop_scale=(0.4, 1.0)), view=0).pixels.shape[2:] == crops.pixels.shape[2:]


def test_an_encoder_takes_what_comes_out(crops, everything, change):
    model = ModelConfig(channels=("a", "b", "c", "d", "e"), width=24, depth=1, heads=2, crop_size=24)
    everything.check_model(model)
    tokens, runs = build_encoder(model, 0)(change(crops, everything))
    assert torch.isfinite(tokens).all()
    assert sum(n for n, _ in runs) == len(crops)


def test_mae_vit_takes_blank_channels_and_refuses_fewer(crops, change):
    model = ModelConfig(architecture="mae_vit", channels=("a", "b"), width=24, depth=1, heads=2, crop_size=24)
    blank = AugmentConfig(channel_drop=0.5, channel_drop_mode="blank")
    blank.check_model(model)
    two = some(crops, [1, 6])
    two = CropBatch(two.pixels[:, :2], two.channel_index[:, :2], two.n_channels)
    build_encoder(model, 0)(change(two, blank))
    for bad in (AugmentConfig(channel_drop=0.5), AugmentConfig(identity_drop=0.1)):
        with pytest.raises(ValueError, match=r"mae_vit needs all its stains \(a, b\)"):
            bad.check_model(model)
    with pytest.raises(ValueError, match="multiple of the model's patch_size, 8 px"):
        AugmentConfig(size=20).check_model(model)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale is \(0.0, 1.0\): expected 0 < least"),
        ({"crop_scale": (0.8, 0.4)}, "crop_scale"),
        ({"size": 0}, "size is 0: expected pixels"),
        ({"rotation_deg": 181}, r"rotation_deg is 181: expected 0 \(off\) to 180"),
        ({"shear_deg": -1}, "shear_deg is -1"),
        ({"translate": 1.5}, "translate is 1.5"),
        ({"erasing": float("nan")}, "erasing is nan"),
        ({"gain": 0.5}, r"gain is 0.5: expected a factor of 1 \(off\) or more"),
        ({"gamma": 0}, "gamma is 0"),
        ({"resolution": float("inf")}, "resolution is inf"),
        ({"noise": -0.1}, "noise is -0.1: expected 0"),
        ({"blur_sigma_px": float("inf")}, "blur_sigma_px is inf"),
        ({"channel_drop": 1.1}, "channel_drop is 1.1: expected a probability"),
        ({"gain_probability": -1}, "gain_probability is -1"),
        ({"erasing_boxes": 0}, "erasing_boxes is 0"),
        ({"channel_drop_mode": "zero"}, "channel_drop_mode 'zero' is not known: choose one of remove, blank"),
        ({"interpolation": "nearest"}, "choose one of bilinear, bicubic"),
    ],
)
def test_a_bad_config_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**wrong)


def test_every_number_of_a_config_is_checked():
    """A field that is added without a check is found here."""
    for field in dataclasses.fields(AugmentConfig):
        if field.type in ("float", "int", "int | None"):
            with pytest.raises(ValueError, match=field.name):
                AugmentConfig(**{field.name: -1})


def test_every_strength_but_those_of_probabilities_is_a_knob():
    others = {"size", "interpolation", "shared_intensity", "erasing_boxes", "erasing_per_channel", "channel_drop_mode"}
    names = {field.name for field in dataclasses.fields(AugmentConfig)}
    assert set(KNOBS) == {name for name in names - others if not name.endswith("_probability")}
    with pytest.raises(ValueError, match="strength of the knob gain is 2"):
        KNOBS["gain"](2)


def test_wrong_numbers_of_crops_are_refused(crops):
    with pytest.raises(ValueError, match="3 sample indices and 1 epochs for 10 crops"):
        augment(crops, AugmentConfig(), seed=0, epochs=0, sample_index=range(3))
    with pytest.raises(ValueError, match="10 sample indices and 2 epochs for 10 crops"):
        augment(crops, AugmentConfig(), seed=0, epochs=np.arange(2), sample_index=range(10))
    with pytest.raises(ValueError, match="view -1"):
        augment(crops, AugmentConfig(), seed=0, epochs=0, sample_index=range(10), view=-1)
    with pytest.raises(ValueError, match="size is 0"):
        augment(crops, AugmentConfig(), seed=0, epochs=0, sample_index=range(10), size=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_views(crops, everything, change):
    there = change(crops.to("cuda"), everything)
    assert there.pixels.is_cuda
    assert_crops_close(there.to("cpu"), change(crops, everything))
