from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from cytolake.catalog.contracts import TableContract
from cytolake.catalog.declared import table_contract
from cytolake.qc.metrics import METRICS, foreground_shares, measure_site

IN_COUNTS = {"mean", "sd", "p01", "p50", "p99", "max", "background_level", "background_floor"}


def cells(size: int = 256, n: int = 60, seed: int = 0) -> np.ndarray:
    """Discs of 8 px on black, each with an inner texture; 0..1."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size))
    y, x = np.mgrid[:size, :size]
    for cy, cx in rng.uniform(10, size - 10, (n, 2)):
        image[(y - cy) ** 2 + (x - cx) ** 2 < 64] = rng.uniform(0.6, 1)
    return image * (0.7 + 0.3 * ndimage.gaussian_filter(rng.random((size, size)), 0.7))


def photograph(image: np.ndarray, blur_px: float = 0.8, noise: float = 30.0, seed: int = 1) -> np.ndarray:
    """(1, H, W) uint16: optics, a background of 200 counts, camera noise."""
    rng = np.random.default_rng(seed)
    counts = 200 + 4000 * ndimage.gaussian_filter(image, blur_px) + noise * rng.standard_normal(image.shape)
    return np.clip(np.rint(counts), 0, 65535).astype(np.uint16)[None]


def test_the_metrics_are_the_tables_columns():
    contract: TableContract = table_contract("qc_metrics")
    assert (
        tuple(name for name in contract.schema.names if name not in ("site_id", "plate_id", "channel", "channel_index"))
        == METRICS
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (1, 2, 2), (1, 9, 9), (3, 17, 40)])
def test_every_metric_is_finite_whatever_the_image(dtype, shape):
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else np.finfo(dtype).max
    images = [np.zeros(shape, dtype), np.full(shape, top, dtype), (100 * rng.random(shape)).astype(dtype)]
    if not np.issubdtype(dtype, np.integer):
        broken = images[-1].copy()
        broken.flat[0], broken.flat[-1] = np.nan, np.inf
        images.append(broken)
    for image in images:
        measured = measure_site(image)
        assert len(measured) == shape[0]
        assert all(tuple(channel) == METRICS and np.isfinite(list(channel.values())).all() for channel in measured)
        assert np.isfinite(foreground_shares(image, [(0, 0, 1)])).all()


@pytest.mark.parametrize("noise", [5.0, 30.0, 120.0])
def test_defocus_steepens_the_slope_and_shrinks_the_laplacian_under_any_noise(noise):
    measured = [measure_site(photograph(cells(), blur_px, noise))[0] for blur_px in (0.8, 2.0, 4.0)]
    slopes = [channel["focus_slope"] for channel in measured]
    assert slopes[0] - 0.3 > slopes[1] > slopes[2] + 0.3
    for name, factor in (("laplacian_variance", 1.5), ("tenengrad", 1.05)):
        sharp, soft, blurred = (channel[name] for channel in measured)
        assert sharp > factor * soft > factor**2 * blurred


def test_the_type_of_the_pixels_changes_no_metric():
    """Counts of 0 to 250 fit every type; a float image may stand below 0."""
    image = photograph(cells())
    image = (image.astype(np.float64) * (250 / image.max())).astype(np.uint8)
    as_bytes = measure_site(image)[0]
    for dtype in ("int16", "uint16", "int32", "uint32", "float32", "float64"):
        assert measure_site(image.astype(dtype))[0] == pytest.approx(as_bytes, rel=1e-4, abs=1e-6), dtype
    below_0 = measure_site(image.astype(np.float32) - 1000)[0]
    for name in set(METRICS) - {"sd"}:
        expected = as_bytes[name] - (1000 if name in IN_COUNTS else 0)
        assert below_0[name] == pytest.approx(expected, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_percentiles_of_small_integers_are_numpys(dtype):
    image = np.random.default_rng(0).normal(100, 30, (1, 61, 47)).clip(0, 250).astype(dtype)
    measured = measure_site(image)[0]
    expected = np.percentile(image, (1, 50, 99))
    np.testing.assert_allclose([measured[name] for name in ("p01", "p50", "p99")], expected)


def test_sparse_photons_are_measured_as_what_they_are():
    """Photon counts of 0 to 3: defocus still shows, shot noise is found though most pixels are 0."""
    rng = np.random.default_rng(0)
    light = [1.5 * ndimage.gaussian_filter(cells(), blur_px) for blur_px in (0.8, 4.0)]
    sharp, blurred = (measure_site(np.minimum(rng.poisson(image), 3).astype(np.uint8)[None])[0] for image in light)
    assert sharp["laplacian_variance"] > 1.5 * blurred["laplacian_variance"]
    assert sharp["foreground_share"] > 0.1
    empty = measure_site(rng.poisson(0.05, (1, 256, 256)).astype(np.uint8))[0]
    assert empty["foreground_share"] < 0.01
    assert empty["noise_share"] == pytest.approx(1, abs=0.25)
    assert empty["saturated_share"] < 1e-3


def test_a_gain_scales_counts_and_leaves_the_rest():
    image = photograph(cells()).astype(np.uint32)
    once, thrice = measure_site(image)[0], measure_site(3 * image)[0]
    for name in METRICS:
        assert thrice[name] == pytest.approx(once[name] * (3 if name in IN_COUNTS else 1), rel=1e-4, abs=1e-6), name


def test_turning_the_site_changes_no_metric():
    image = photograph(cells())
    for turned in (image[:, ::-1], image[:, :, ::-1], image.transpose(0, 2, 1)):
        assert measure_site(turned)[0] == pytest.approx(measure_site(image)[0], rel=1e-3, abs=1e-4)


def test_saturation_is_the_share_of_clipped_pixels():
    image = photograph(cells())
    assert measure_site(image)[0]["saturated_share"] < 1e-3
    for share in (0.01, 0.03, 0.1):
        clipped = np.minimum(image, np.quantile(image, 1 - share).astype(np.uint16))
        expected = (clipped == clipped.max()).mean()
        assert measure_site(clipped)[0]["saturated_share"] == pytest.approx(expected, rel=0.1)


def test_saturation_is_not_seen_in_the_few_levels_of_a_dim_8_bit_image():
    dim = np.random.default_rng(0).poisson(1.5, (1, 200, 200)).astype(np.uint8)
    assert measure_site(dim)[0]["saturated_share"] == 0


def test_a_channel_that_stands_at_the_top_of_its_type_is_saturated_throughout():
    assert measure_site(np.full((1, 8, 8), 255, np.uint8))[0]["saturated_share"] == 1
    assert measure_site(np.full((1, 8, 8), 254, np.uint8))[0]["saturated_share"] == 0


def test_noise_share_is_the_noise_over_the_whole_deviation():
    for noise in (10.0, 30.0, 60.0):
        image = photograph(cells(), blur_px=1.5, noise=noise).astype(np.float32)
        assert measure_site(image)[0]["noise_share"] == pytest.approx(noise / image.std(), rel=0.15)


def test_foreground_is_the_area_of_the_cells():
    image = cells()
    assert measure_site(photograph(image))[0]["foreground_share"] == pytest.approx(
        (image > 0).mean(), rel=0.35
    )  # blur adds a rim


@pytest.mark.parametrize("level", [0, 100, 20_000])
def test_an_empty_site_has_no_foreground_and_is_not_called_out_of_focus(level):
    empty = (level + np.random.default_rng(0).poisson(40, (1, 256, 256))).astype(np.uint16)
    measured = measure_site(empty)[0]
    assert measured["foreground_share"] < 1e-3
    assert measured["focus_slope"] > -1


def test_transmitted_light_shows_foreground_where_there_is_texture():
    rng = np.random.default_rng(0)
    image = 12_000 + 30 * rng.standard_normal((256, 256)) + np.linspace(0, 600, 256)  # uneven illumination
    image[:, :128] += 400 * ndimage.laplace(ndimage.gaussian_filter(cells(), 2))[:, :128] / 0.05
    left, right = foreground_shares(np.rint(image).astype(np.uint16)[None], [(0, 0, 120), (0, 136, 120)])
    assert left > 0.2
    assert right < 0.01


def test_debris_holds_the_brightest_share():
    image = photograph(cells())
    spoilt = image.copy()
    spoilt[0, 100:110, 100:130] = 30_000
    assert measure_site(spoilt)[0]["brightest_share"] > 3 * measure_site(image)[0]["brightest_share"]


def test_what_is_bright_in_all_channels_at_once_stands_out_and_what_is_bright_in_one_does_not():
    channels = np.concatenate([photograph(cells(seed=seed), seed=seed) for seed in (0, 1, 2)])
    y, x = np.mgrid[:256, :256]
    speck = 12_000 * np.exp(-((y - 90) ** 2 + (x - 130) ** 2) / 18)
    clean = measure_site(channels)[0]["common_brightness"]
    in_one = channels + speck * (np.arange(3) == 0)[:, None, None]
    assert measure_site(in_one)[0]["common_brightness"] < 1.6 * clean
    everywhere = measure_site(channels + speck)
    assert everywhere[0]["common_brightness"] > 2.5 * clean
    assert len({channel["common_brightness"] for channel in everywhere}) == 1
    assert measure_site(channels[:1])[0]["common_brightness"] == 0


def test_a_glow_over_the_whole_field_lifts_the_background_by_its_counts():
    image = photograph(cells())
    before, after = measure_site(image)[0], measure_site(image + np.uint16(700))[0]
    assert after["background_floor"] - before["background_floor"] == pytest.approx(700, abs=2)


def test_the_darkest_background_does_not_move_with_the_number_of_cells():
    """Cells cover a tenth to a third of the field; the background is 200 counts, the noise of 4 x 4 means 7.5."""
    floors = [measure_site(photograph(cells(n=n)))[0]["background_floor"] for n in (30, 60, 120)]
    assert np.ptp(floors) < 5
    assert 200 - 3 * 7.5 < min(floors) < max(floors) < 200


def test_unevenness_is_the_rise_of_the_background_over_the_contrast():
    image = photograph(cells())
    even = measure_site(image)[0]
    assert even["unevenness"] < 0.05
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    for rise in (600, 1500):
        vignette = rise * (1 - (y**2 + x**2) / 2)
        measured = measure_site(image + vignette.astype(np.uint16))[0]
        contrast = measured["p99"] - measured["background_floor"]
        assert measured["unevenness"] == pytest.approx(rise / contrast, rel=0.25)


@pytest.mark.parametrize("patch", [np.s_[:100, :100], np.s_[90:170, 90:170]])
def test_a_patch_where_cells_leave_no_background_bare_is_not_unevenness(patch):
    crowded = cells()
    crowded[patch] = np.maximum(crowded[patch], 0.6)
    assert measure_site(photograph(crowded))[0]["unevenness"] < 0.05


def test_objects_are_counted_where_they_lie_apart():
    apart = np.zeros((512, 512))
    y, x = np.mgrid[:512, :512]
    centres = [(40 + 60 * i, 50 + 70 * j) for i in range(8) for j in range(6)]
    for cy, cx in centres:
        apart[(y - cy) ** 2 + (x - cx) ** 2 < 100] = 0.8
    assert measure_site(photograph(apart))[0]["object_count"] == pytest.approx(len(centres), abs=1)
    halved = apart * (x < 235)  # three of six columns
    assert measure_site(photograph(halved))[0]["object_count"] == pytest.approx(len(centres) / 2, abs=1)


def test_an_empty_site_has_no_objects():
    empty = np.random.default_rng(0).poisson(400, (1, 256, 256)).astype(np.uint16)
    assert measure_site(empty)[0]["object_count"] <= 1


def test_a_window_has_the_share_of_the_channel_that_shows_most():
    pixels = np.concatenate([photograph(cells(seed=seed), seed=seed) for seed in (0, 1)])
    whole = foreground_shares(pixels, [(0, 0, 256)])
    assert whole[0] == pytest.approx(max(channel["foreground_share"] for channel in measure_site(pixels)))
    quarters = [(y, x, 128) for y in (0, 128) for x in (0, 128)]
    one = foreground_shares(pixels[:1], quarters)
    assert one.mean() == pytest.approx(foreground_shares(pixels[:1], [(0, 0, 256)])[0])
    np.testing.assert_array_equal(
        foreground_shares(pixels, quarters), np.maximum(one, foreground_shares(pixels[1:], quarters))
    )


@pytest.mark.parametrize("window", [(0, 0, 65), (-1, 0, 8), (0, 60, 8), (0, 0, 0)])
def test_a_window_outside_the_site_is_refused(window):
    with pytest.raises(ValueError, match="not inside a site of 64 x 64"):
        foreground_shares(np.zeros((1, 64, 64), np.uint8), [window])


@pytest.mark.parametrize("shape", [(64, 64), (0, 64, 64), (1, 0, 64)])
def test_an_array_that_is_no_site_is_refused(shape):
    with pytest.raises(ValueError, match="expected \\(channels, height, width\\)"):
        measure_site(np.zeros(shape, np.uint8))


@pytest.mark.real_data
@pytest.mark.parametrize("metric", ["focus_slope", "laplacian_variance", "tenengrad"])
def test_each_focus_metric_alone_separates_real_planes_in_and_out_of_focus(planes, metric):
    inside, outside = ([measured[metric] for measured in planes[note]] for note in ("in focus", "out of focus"))
    assert min(len(inside), len(outside)) >= 9
    auroc = np.mean([a > b for a in inside for b in outside])
    assert auroc == 1


@pytest.mark.real_data
def test_real_planes_out_of_focus_are_far_from_those_in_focus(planes):
    slopes = {note: [measured["focus_slope"] for measured in found] for note, found in planes.items()}
    assert max(slopes["out of focus"]) < min(slopes["in focus"]) - 1


@pytest.mark.real_data
def test_nuclei_of_a_real_field_are_counted_as_its_segmentation_has_them(real_data: Path):
    folder = real_data / "jump_BR00117006_site" / "images"
    dna = tifffile.imread(folder / "orig" / "r01c01f01p01-ch5sk1fk1fl1.tiff")
    with Image.open(folder / "outlines" / "r01c01f01p01-ch5sk1fk1fl1_nuclei_outlines.png") as image:
        drawn = np.asarray(image)
    n_inside = ndimage.label((drawn if drawn.ndim == 2 else drawn[..., 0]) == 0)[1] - 1  # but the background
    assert n_inside > 100
    assert measure_site(dna[None])[0]["object_count"] == pytest.approx(n_inside, rel=0.1)


@pytest.fixture(scope="module")
def planes(real_data: Path) -> dict[str, list[dict[str, float]]]:
    """Metrics of the planes of BBBC006 in and out of focus."""
    folder = real_data / "bbbc006_focus"
    found: dict[str, list[dict[str, float]]] = {"in focus": [], "out of focus": []}
    with (folder / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["note"] in found:
                with Image.open(folder / row["path"]) as image:
                    found[row["note"]] += measure_site(np.asarray(image)[None])
    return found


def test_an_infinite_pixel_counts_like_one_that_is_no_number():
    image = photograph(cells()).astype(np.float32)
    measured = []
    for value in (np.nan, np.inf, -np.inf):
        image[0, 0, 0] = value
        measured += measure_site(image)
    assert measured[0] == measured[1] == measured[2]
