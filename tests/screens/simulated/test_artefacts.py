from __future__ import annotations

import numpy as np
import pytest
from scipy import fft

from cytolake.screens.simulated.artefacts import ARTEFACT_KINDS, add_artefact
from cytolake.screens.simulated.screen import SimulatedScreen, simulated_site, simulated_wells

DARK = 100.0


@pytest.fixture(scope="module")
def site() -> np.ndarray:
    """(5, 128, 128) uint16 of a simulated well."""
    config = SimulatedScreen(n_plates=1, n_batches=1, site_size_px=128, artefact_share=0.0, seed=3)
    return simulated_site(config, simulated_wells(config)[20], 1)


def grainless(height: int = 96, width: int = 96, n: int = 1) -> np.ndarray:
    """(n, H, W) float64: soft discs on a background of DARK, without any noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    image = np.full((n, height, width), DARK)
    for channel in image:
        for cy, cx in rng.uniform(0, min(height, width), (12, 2)):
            channel += 1000 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 60)
    return image


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_severity_0_leaves_every_count_as_it_is(site, kind):
    for pixels in (site, site.astype(np.float32)):
        spoilt, affected = add_artefact(pixels, kind, 0.0, 1)
        assert spoilt.dtype == pixels.dtype
        np.testing.assert_array_equal(spoilt, pixels)
        assert not affected.any()
        assert not np.shares_memory(spoilt, pixels)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_the_mask_names_exactly_the_channels_that_changed(site, kind, dtype):
    pixels = (site // 256 if dtype == "uint8" else site).astype(dtype)
    if dtype == "uint8":
        pixels = pixels + np.random.default_rng(0).integers(1, 30, pixels.shape).astype(dtype)
    before = pixels.copy()
    for seed in range(2):
        spoilt, affected = add_artefact(pixels, kind, 1.0, seed)
        assert (spoilt.dtype, spoilt.shape) == (pixels.dtype, pixels.shape)
        assert np.isfinite(spoilt).all()
        assert affected.any()
        np.testing.assert_array_equal((spoilt != pixels).any(axis=(1, 2)), affected)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_a_seed_decides_everything_and_another_seed_something_else(site, kind):
    first, again = add_artefact(site, kind, 0.6, 5), add_artefact(site, kind, 0.6, 5)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert any((add_artefact(site, kind, 0.6, seed)[0] != first[0]).any() for seed in range(6, 12))


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_only_the_given_channels_change(site, kind):
    wanted = (1, 3)
    spoilt, affected = add_artefact(site, kind, 1.0, 2, wanted)
    assert np.flatnonzero(affected).tolist() == list(wanted)
    np.testing.assert_array_equal(np.delete(spoilt, wanted, axis=0), np.delete(site, wanted, axis=0))


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_more_severity_takes_the_image_farther_from_what_it_was(site, kind):
    channels = (0, 1) if kind == "channel_swap" else (0,)
    counts = site.astype(float)
    change = [
        np.mean([np.abs(add_artefact(site, kind, s, seed, channels)[0] - counts).mean() for seed in range(3)])
        for s in (0.1, 0.4, 1.0)
    ]
    assert 0 < change[0] < change[1] < change[2]


@pytest.mark.parametrize("seed", range(2))
def test_defocus_spreads_a_point_to_the_sd_that_the_severity_says(seed):
    point = np.zeros((1, 201, 201))
    point[0, 100, 100] = 1e6
    for severity in (0.2, 0.8):
        spread = add_artefact(point, "defocus", severity, seed)[0][0]
        assert spread.sum() == pytest.approx(1e6, rel=1e-3)
        sd = np.sqrt((spread.sum(axis=0) * (np.arange(201) - 100) ** 2).sum() / spread.sum())
        assert sd == pytest.approx(10 * severity, rel=0.05)


@pytest.mark.parametrize("kind", ["defocus", "empty", "dead_channel", "channel_swap"])
@pytest.mark.parametrize("severity", [0.3, 0.7])
def test_the_cameras_grain_stays_where_the_image_is_smoothed_or_mixed(kind, severity):
    rng = np.random.default_rng(1)
    pixels = 500 + 10 * rng.standard_normal((2, 256, 256))
    spoilt = add_artefact(pixels, kind, severity, 3)[0]
    for channel in spoilt:
        grain = np.diff(channel, axis=0).std() / np.sqrt(2)
        assert grain == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("severity", [0.1, 0.5, 1.0])
def test_saturation_puts_a_share_of_0_3_s_of_the_pixels_at_the_ceiling(site, severity):
    spoilt, affected = add_artefact(site, "saturation", severity, 4, ceiling=65535)
    (channel,) = spoilt[affected]
    assert (channel >= 65534).mean() == pytest.approx(0.3 * severity, abs=0.01)
    assert channel.max() == 65535


def test_the_ceiling_is_that_of_the_smallest_camera_that_holds_the_image(site):
    twelve_bits = np.minimum(site // 20, 4000).astype(np.uint16)
    twelve_bits[:, 0, 0] = 4000
    assert add_artefact(twelve_bits, "saturation", 1.0, 0, (2,))[0][2].max() == 4095


@pytest.mark.parametrize("severity", [0.25, 1.0])
def test_noise_is_that_of_the_photons_and_the_reading(severity):
    pixels = np.full((1, 200, 200), DARK)
    pixels[0, 20:] += 1000  # 90 % of the pixels: p99 is 1000 above the dark
    pixels[0, :20, :100] -= 1  # the dark is lower somewhere, as the 0.1st percentile is
    bright = add_artefact(pixels, "noise", severity, 0)[0][0, 20:]
    photons = 10 ** (3 - 2 * severity)
    assert bright.mean() == pytest.approx(DARK + 1000, rel=0.01)
    assert bright.std() == pytest.approx(1000 * np.sqrt(photons + 4) / photons, rel=0.03)


@pytest.mark.parametrize("severity", [0.2, 1.0])
def test_autofluorescence_is_a_field_of_the_lowest_waves_as_strong_as_said(severity):
    pixels = grainless()
    field = (add_artefact(pixels, "autofluorescence", severity, 1)[0] - pixels)[0]
    assert field.min() == pytest.approx(0, abs=1e-9)
    mean = pixels.mean() - np.percentile(pixels, 0.1)
    assert field.std() == pytest.approx(2 * severity * mean)
    waves = fft.dctn(field, norm="ortho")
    waves[:4, :4] = 0
    assert np.abs(waves).max() < 1e-8 * field.std() * field.size**0.5


def test_debris_only_adds_light_in_the_same_places_of_all_channels():
    pixels = grainless(n=3)
    for seed in range(5):
        added = add_artefact(pixels, "debris", 1.0, seed)[0] - pixels
        weaker = add_artefact(pixels, "debris", 0.5, seed)[0] - pixels
        assert added.min() >= 0
        level = np.percentile(pixels[0], 99) - np.percentile(pixels[0], 0.1)
        assert 1.0 * level < added.max() < 20 * level
        lit = added > 0.2 * added.max(axis=(1, 2), keepdims=True)
        assert (lit == lit[0]).all()
        assert 0 < lit[0].mean() < 0.4
        assert (added[0][weaker[0] > 0.1 * weaker[0].max()] > 0).all()  # pieces that were there stay


@pytest.mark.parametrize("kind", ["empty", "dead_channel"])
def test_nothing_of_the_cells_is_left_at_severity_1(site, kind):
    spoilt, affected = add_artefact(site, kind, 1.0, 2)
    for c in np.flatnonzero(affected):
        assert abs(np.corrcoef(spoilt[c].ravel(), site[c].ravel())[0, 1]) < 0.03
        assert spoilt[c].mean() < np.percentile(site[c], 25)


def test_light_falls_across_the_site_to_a_fifth():
    pixels = grainless()
    spoilt = add_artefact(pixels, "illumination_gradient", 1.0, 7)[0]
    dark = np.percentile(pixels, 0.1)
    is_lit = pixels > DARK + 5
    left = (spoilt[is_lit] - dark) / (pixels[is_lit] - dark)
    assert left.max() <= 1 + 1e-9
    assert left.min() >= 0.2 - 1e-9
    assert left.max() - left.min() > 0.5


@pytest.mark.parametrize("seed", range(2))
def test_a_tile_shift_moves_what_lies_beyond_a_seam(seed):
    pixels = np.random.default_rng(0).integers(0, 60_000, (2, 80, 120)).astype(np.uint16)
    spoilt = add_artefact(pixels, "tile_shift", 1.0, seed)[0]
    moved = (spoilt != pixels).any(axis=0)
    across_rows = not moved[:10].any() and not moved[:, 0].all()
    turned, was = (spoilt, pixels) if across_rows else (spoilt.swapaxes(1, 2), pixels.swapaxes(1, 2))
    start = int((turned != was).any(axis=(0, 2)).argmax())
    shift = round(0.1 * was.shape[2])
    assert 0.2 < start / was.shape[1] < 0.8
    tile, before = turned[:, start:], was[:, start:]
    np.testing.assert_array_equal(turned[:, :start], was[:, :start])
    assert np.array_equal(tile[:, :, shift:], before[:, :, :-shift]) or np.array_equal(
        tile[:, :, :-shift], before[:, :, shift:]
    )


def test_a_whole_swap_exchanges_two_channels_and_half_a_swap_makes_them_alike(site):
    swapped, affected = add_artefact(site, "channel_swap", 1.0, 0, (4, 1))
    assert np.flatnonzero(affected).tolist() == [1, 4]
    np.testing.assert_array_equal(swapped[[4, 1]], site[[1, 4]])
    clean = grainless(n=2)
    half = add_artefact(clean, "channel_swap", 0.5, 0)[0]
    np.testing.assert_allclose(half, np.broadcast_to(clean.mean(axis=0), half.shape), atol=0.2)  # grain


@pytest.mark.parametrize("kind", ARTEFACT_KINDS)
def test_images_without_contrast_stay_finite(kind):
    for value in (0, 65535):
        flat = np.full((2, 32, 40), value, np.uint16)
        spoilt, _ = add_artefact(flat, kind, 0.7, 1)
        assert spoilt.dtype == np.uint16
        assert np.isfinite(add_artefact(flat.astype(np.float32), kind, 0.7, 1)[0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "bubbles"}, "bubbles.*expected one of defocus"),
        ({"severity": 1.5}, "severity 1.5, expected 0"),
        ({"severity": float("nan")}, "severity nan"),
        ({"seed": -1}, "seed -1"),
        ({"pixels": np.zeros((64, 64), np.uint16)}, r"shape \(64, 64\)"),
        ({"pixels": np.zeros((2, 8, 64), np.uint16)}, "at least 16 x 16"),
        ({"channels": (0, 5)}, "of a site with 2; expected different ones, 0 to 1"),
        ({"channels": ()}, "none of a site"),
        ({"kind": "channel_swap", "channels": (0,)}, "expected two to exchange"),
        ({"kind": "channel_swap", "pixels": np.zeros((1, 32, 32))}, "1 of 1 channels"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_was_found(change, message):
    arguments = {"pixels": np.zeros((2, 32, 32), np.uint16), "kind": "noise", "severity": 0.5, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        add_artefact(**arguments)
